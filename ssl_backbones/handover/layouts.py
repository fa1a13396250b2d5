"""The layouts in which pretrained backbones are published, recognised by the content of the file.

A layout is a wrapper of dictionaries, a prefix of the backbone's keys, and names. If a checkpoint holds two networks
(query and key, online and target, student and teacher), the one that its authors evaluate is used. Most layouts are of
ResNets; the other families are recognised by torchvision's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openworld.errors import CheckpointError
from ssl_backbones.backbones import FAMILIES, ResNetOptions
from ssl_backbones.handover.names import from_caffe2, from_detectron2
from ssl_backbones.handover.pickles import Husk
from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD, Preprocess

PREPROCESSES: dict[str, Preprocess] = {
    "imagenet": {"order": "RGB", "range": 1.0, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
    # SwAV, src/multicropdataset.py: 0.228 for red, in all released networks of SwAV, DeepCluster-v2 and SeLa-v2
    "swav": {"order": "RGB", "range": 1.0, "mean": list(IMAGENET_MEAN), "std": [0.228, *IMAGENET_STD[1:]]},
    # SimCLR, data_util.py: images stay in [0, 1]
    "simclr": {"order": "RGB", "range": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3},
    # CLIP, clip/clip.py
    "clip": {
        "order": "RGB",
        "range": 1.0,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
    # SupContrast, main_supcon.py, for CIFAR-10
    "cifar10": {"order": "RGB", "range": 1.0, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]},
    # detectron2/config/defaults.py, for the MSRA networks
    "caffe": {"order": "BGR", "range": 255.0, "mean": [103.53, 116.28, 123.675], "std": [1.0] * 3},
}
"""Preprocessing of networks, by name."""

# Dictionaries around the tensors. DINO's evaluation uses the teacher; PyContrast's the model and not its average.
_CONTAINERS = (
    "classy_state_dict",
    "base_model",
    "state_dict",
    "teacher",
    "model",
    "model_state_dict",
    "model_ema",
    "trunk",
    "student",
)

# Prefix of the backbone's keys, the more specific ones first, and who writes it.
_PREFIXES = (
    ("module.encoder_q.", "MoCo v1, MoCo v2 or PCL: query encoder"),
    ("module.base_encoder.", "MoCo v3: base encoder"),
    ("module.backbone.", "Barlow Twins or DINO, full checkpoint"),
    ("module.encoder.", "SimSiam or PyContrast"),
    ("encoder.module.", "SupCon on several devices"),
    ("module.visual.", "CLIP: image tower"),
    ("visual.", "CLIP: image tower"),
    ("encoder_q.0.", "OpenSelfSup's MoCo: query encoder"),
    ("encoder_q.", "MoCo or PCL: query encoder"),
    ("online_net.0.", "OpenSelfSup's BYOL: online network"),
    ("teacher_backbone.", "lightly's DINO: teacher"),
    ("backbone.", "solo-learn, mmselfsup, lightly or DINO"),
    ("encoder.", "SupCon, PyContrast's average or this project"),
    ("_feature_blocks.", "VISSL: trunk"),
    ("module.", "InstDisc, SwAV or DeepCluster-v2"),
    ("", "torchvision's names (torchvision, timm, Barlow Twins, DINO, SimCLR converted)"),
)

# lightly's examples: nn.Sequential(*list(resnet.children())[:-1])
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

_BACKBONE_KEY = re.compile(ResNetOptions.keys)
_BLOCKS_R50 = (3, 4, 6, 3)


class Found(NamedTuple):
    """A backbone as stored in a file."""

    layout: str
    """Code that writes such files."""
    tensors: dict[str, Tensor]
    """Tensors by torchvision's names."""
    left_out: list[str]
    """Keys of the file's other tensors."""
    preprocess: Preprocess
    arch: dict[str, Any]
    """Options of the backbone that follow from the layout and not from the tensors."""


def recognise(tree: Any, where: str) -> Found:
    """Find the backbone in the content of a file.

    Args:
        tree: nested dictionaries with tensors or arrays.
        where: names the file in errors.

    Raises:
        CheckpointError: the layout is not known; the message describes the content of the file.
    """
    dictionaries = list(_dictionaries(tree))
    readers: tuple[Callable[[dict[str, Tensor]], Found | None], ...] = (
        _caffe2,
        _detectron2,
        _tensorflow,
        _named,
        _other_family,
    )
    for entry in dictionaries:
        if (found := _haiku(entry)) is not None:
            return found
        flat = _tensors(entry)
        for reader in readers:
            if (found := reader(flat)) is not None:
                return found
    raise CheckpointError(
        f"no backbone found under any known prefix; {_content(tree, dictionaries)}",
        where=where,
        remedy="rename its keys to torchvision's (conv1.weight, layer1.0.conv1.weight, ...)",
    )


def flat_tensors(tree: Any) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of each dictionary of a file that may hold a network, the outermost first."""
    for entry in _dictionaries(tree):
        yield _tensors(entry)


def _dictionaries(tree: Any) -> Iterator[Mapping[Any, Any]]:
    """Yield a file's dictionary, then nested ones that may hold a network, in the order of ``_CONTAINERS``."""
    if isinstance(tree, Husk):
        tree = _module_tensors(tree)
    if isinstance(tree, Mapping):
        yield tree
        for name in _CONTAINERS:
            yield from _dictionaries(tree.get(name))


def _module_tensors(module: Husk, prefix: str = "") -> dict[str, Tensor]:
    """Return the state_dict of a module that was pickled whole."""
    tensors: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        own = getattr(module, kind, {})
        tensors |= {f"{prefix}{name}": value for name, value in own.items() if isinstance(value, Tensor)}
    for name, child in getattr(module, "_modules", {}).items():
        if isinstance(child, Husk):
            tensors |= _module_tensors(child, f"{prefix}{name}.")
    return tensors


def _tensors(entry: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {}
    for key, value in entry.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            tensors[key] = _tensor(value)
    return tensors


def _tensor(value: Any) -> Tensor:
    array = np.ascontiguousarray(value)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True)).reshape(np.shape(value))


# -- torchvision's names under a prefix -------------------------------------------------------------------------------


def _named(flat: dict[str, Tensor]) -> Found | None:
    for prefix, layout in _PREFIXES:
        if f"{prefix}conv1.weight" in flat and f"{prefix}layer1.0.conv1.weight" in flat:
            return _split(flat, {key.removeprefix(prefix): key for key in flat if key.startswith(prefix)}, layout)
        if f"{prefix}0.weight" in flat and f"{prefix}4.0.conv1.weight" in flat:
            own = [key for key in flat if key.startswith(prefix)]
            return _split(flat, {_renumber(key.removeprefix(prefix)): key for key in own}, f"lightly, under {prefix!r}")
    others = _prefixes(flat)
    if len(others) == 1:
        own = [key for key in flat if key.startswith(others[0])]
        return _split(flat, {key.removeprefix(others[0]): key for key in own}, f"torchvision's names, {others[0]!r}")
    return None


def _other_family(flat: dict[str, Tensor]) -> Found | None:
    """Find a network of torchvision that is not a ResNet, or one of this project with the same names."""
    for prefix, layout in _PREFIXES:
        for family in FAMILIES.values():
            if all(f"{prefix}{key}" in flat for key in family.telling_keys):
                own = re.compile(re.escape(prefix) + family.keys)
                tensors = {key.removeprefix(prefix): value for key, value in flat.items() if own.match(key)}
                left_out = [key for key in flat if not own.match(key)]
                return Found(layout, tensors, left_out, PREPROCESSES["imagenet"], {})
    return None


def _prefixes(flat: Mapping[str, Tensor]) -> list[str]:
    """Return all prefixes of networks with torchvision's names."""
    end = "layer1.0.conv1.weight"
    starts = [key.removesuffix(end) for key in flat if key.endswith(end)]
    return [prefix for prefix in starts if f"{prefix}conv1.weight" in flat]


def _renumber(key: str) -> str:
    head, _, rest = key.partition(".")
    return f"{_NUMBERED.get(head, head)}.{rest}"


def _split(flat: dict[str, Tensor], named: dict[str, str], layout: str) -> Found:
    kept = {name: key for name, key in named.items() if _BACKBONE_KEY.match(name)}
    tensors, taken = {name: flat[key] for name, key in kept.items()}, set(kept.values())
    left_out = [key for key in flat if key not in taken]
    bare = {key.removeprefix("module.") for key in left_out}
    if any(key.startswith("prototypes.") for key in bare):
        several = any(key.startswith("prototypes.prototypes") for key in bare)
        name = "DeepCluster-v2 or SeLa-v2" if several else "SwAV"
        return Found(name, tensors, left_out, PREPROCESSES["swav"], {})
    if "conv3.weight" in tensors:
        return Found("CLIP: image tower", tensors, left_out, PREPROCESSES["clip"], {"stem": "clip"})
    supcon = any(key.startswith("head.") for key in bare) and tensors["conv1.weight"].shape[-1] == 3
    return Found(layout, tensors, left_out, PREPROCESSES["cifar10" if supcon else "imagenet"], {})


# -- detectron2 -------------------------------------------------------------------------------------------------------


def _detectron2(flat: dict[str, Tensor]) -> Found | None:
    """Find a trunk as converters for detectron2 write it, or the one inside a C4 or FPN detector."""
    for prefix in ("", "backbone.", "backbone.bottom_up."):
        if f"{prefix}stem.conv1.weight" in flat and f"{prefix}res2.0.conv1.weight" in flat:
            break
    else:
        return None
    tensors, left_out = {}, []
    for key, value in flat.items():
        own = key.removeprefix(prefix) if key.startswith(prefix) else key.removeprefix("roi_heads.")
        name = from_detectron2(own)
        if name is None:
            left_out.append(key)
        else:
            tensors[name] = value
    preprocess, arch = PREPROCESSES["imagenet"], {}
    if "pixel_mean" in flat and "pixel_std" in flat:
        mean, std = flat["pixel_mean"].flatten().tolist(), flat["pixel_std"].flatten().tolist()
        preprocess = {"order": "BGR" if mean[0] < mean[2] else "RGB", "range": 255.0, "mean": mean, "std": std}
        arch = {"stride_in_1x1": std == [1.0] * 3}  # the MSRA networks, which detectron2 feeds so
    layout = f"detectron2's names under {prefix!r}" if prefix else "detectron2's names"
    return Found(layout, tensors, left_out, preprocess, arch)


def _caffe2(flat: dict[str, Tensor]) -> Found | None:
    """Read FAIR's R-50.pkl of MSRA. Its batch norms are scale and shift alone (detectron2, c2_model_loading.py)."""
    if "conv1_w" not in flat or "res2_0_branch2a_w" not in flat:
        return None
    named = {key: from_caffe2(key) for key in flat}
    tensors = {name: flat[key] for key, name in named.items() if name is not None}
    for name in [name for name in tensors if name.endswith(".bias")]:
        bias = tensors[name]
        tensors[f"{name.removesuffix('bias')}running_mean"] = torch.zeros_like(bias)
        tensors[f"{name.removesuffix('bias')}running_var"] = torch.ones_like(bias) - 1e-5  # epsilon is added to it
    left_out = [key for key, name in named.items() if name is None]
    return Found("MSRA, Caffe2's names", tensors, left_out, PREPROCESSES["caffe"], {"stride_in_1x1": True})


# -- TensorFlow and JAX -----------------------------------------------------------------------------------------------


def _tensorflow(flat: dict[str, Tensor]) -> Found | None:
    """Read SimCLR's variables by name (resnet.py): layers are numbered in order of creation, shortcuts first.

    The convolutions pad as torch does, the pool of the stem as TensorFlow's SAME.
    """
    pattern = re.compile(r"(?:.*/)?(conv2d|batch_normalization)(?:_(\d+))?/(\w+)(?::0)?")
    layers: dict[str, dict[int, dict[str, str]]] = {"conv2d": {}, "batch_normalization": {}}
    for key in flat:
        found = pattern.fullmatch(key)
        if found and "head" not in key:
            layers[found[1]].setdefault(int(found[2] or 0), {})[found[3]] = key
    convolutions = [found for _, found in sorted(layers["conv2d"].items()) if "kernel" in found]
    norms = [found for _, found in sorted(layers["batch_normalization"].items()) if "gamma" in found]
    places = list(_creation_order())
    if len(convolutions) != len(places) or len(norms) < len(places):
        return None
    kinds = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    tensors, taken = {}, set()
    for (convolution, norm), conv_keys, norm_keys in zip(places, convolutions, norms, strict=False):
        tensors[f"{convolution}.weight"] = flat[conv_keys["kernel"]].permute(3, 2, 0, 1).contiguous()
        taken.add(conv_keys["kernel"])
        for theirs, ours in kinds.items():
            if theirs in norm_keys:
                tensors[f"{norm}.{ours}"] = flat[norm_keys[theirs]]
                taken.add(norm_keys[theirs])
    left_out = [key for key in flat if key not in taken]
    return Found("SimCLR, TensorFlow's names", tensors, left_out, PREPROCESSES["simclr"], {"pool_padding": "end"})


def _creation_order() -> Iterator[tuple[str, str]]:
    """Yield convolution and norm of each layer of a ResNet-50, in the order in which SimCLR's code creates them."""
    yield "conv1", "bn1"
    for stage, blocks in enumerate(_BLOCKS_R50, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            if block == 0:
                yield f"{name}.downsample.0", f"{name}.downsample.1"
            for index in (1, 2, 3):
                yield f"{name}.conv{index}", f"{name}.bn{index}"


def _haiku(entry: Mapping[Any, Any]) -> Found | None:
    """Read BYOL's pickle (byol_experiment.py): the online network's parameters and batch-norm averages.

    Convolutions and pool pad as TensorFlow's SAME does.
    """
    state = entry.get("experiment_state", entry)
    if isinstance(state, Husk):  # a named tuple: online_params, target_params, online_state, target_state, opt_state
        parameters, averages = state.arguments[:1], state.arguments[2:3]
    else:
        fields = state if isinstance(state, Mapping) else getattr(state, "_asdict", dict)()
        parameters, averages = (fields.get("online_params"),), (fields.get("online_state"),)
    if not parameters or not averages or not all(isinstance(part, Mapping) for part in (*parameters, *averages)):
        return None
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    for module, values in parameters[0].items():
        name = _haiku_name(module)
        if name is None:
            left_out.append(module)
        elif "w" in values:
            tensors[f"{name}.weight"] = _tensor(values["w"]).permute(3, 2, 0, 1).contiguous()
        else:
            tensors[f"{name}.weight"] = _tensor(values["scale"]).flatten()
            tensors[f"{name}.bias"] = _tensor(values["offset"]).flatten()
    for module, values in averages[0].items():
        name, kind = _haiku_name(module.rpartition("/~/")[0]), module.rpartition("/~/")[2]
        if name is not None and kind in ("mean_ema", "var_ema"):
            tensors[f"{name}.running_{kind.removesuffix('_ema')}"] = _tensor(values["average"]).flatten()
    arch = {"pool_padding": "end", "conv_padding": "end"}
    return Found("BYOL, haiku's names: online network", tensors, left_out, PREPROCESSES["imagenet"], arch)


def _haiku_name(module: str) -> str | None:
    if "projector" in module or "predictor" in module or "classifier" in module:
        return None
    if module.endswith(("/initial_conv", "/initial_batchnorm")):
        return "conv1" if module.endswith("conv") else "bn1"
    found = re.search(r"block_group_(\d)/~/block_(\d+)/~/(shortcut_)?(conv|batchnorm)(?:_(\d))?$", module)
    if found is None:
        return None
    block, norm = f"layer{int(found[1]) + 1}.{found[2]}", found[4] == "batchnorm"
    if found[3]:
        return f"{block}.downsample.{int(norm)}"
    return f"{block}.{'bn' if norm else 'conv'}{int(found[5] or 0) + 1}"


# -- unknown layouts --------------------------------------------------------------------------------------------------


def _content(tree: Any, dictionaries: list[Mapping[Any, Any]]) -> str:
    """Describe the content of a file of no known layout, for the error."""
    if not dictionaries:
        return f"the file holds a {type(tree).__name__}"
    networks = [prefix for entry in dictionaries for prefix in _prefixes(_tensors(entry))]
    if networks:
        return f"it holds {len(networks)} networks, under {', '.join(map(repr, networks))}"
    innermost = max(dictionaries, key=lambda entry: len(_tensors(entry)))
    keys = [str(key) for key in list(_tensors(innermost) or innermost)]
    if any("patch_embed" in key or "class_embedding" in key for key in keys):
        return f"it looks like a vision Transformer (it has {next(k for k in keys if 'embed' in k)!r})"
    wrapped = "" if innermost is dictionaries[0] else f"{list(dictionaries[0])[:5]} at the top and "
    return f"the file has {wrapped}{len(keys)} keys that start with {keys[:5]}"
