"""The layouts in which pretrained backbones are published, recognised by the content of the file.

A layout is a path of dictionaries, a prefix of the backbone's keys, and names; path and prefix may be any. If a
checkpoint holds two networks (query and key, online and target, student and teacher), the one that its authors evaluate
is taken (:mod:`ssl_backbones.handover.networks`). Most layouts are of ResNets; the other families are recognised by
torchvision's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from openworld.errors import CheckpointError
from ssl_backbones.backbones import FAMILIES, ResNetOptions
from ssl_backbones.handover.found import PREPROCESSES, Found
from ssl_backbones.handover.names import from_caffe2, from_detectron2, from_huggingface
from ssl_backbones.handover.networks import Candidate, choose
from ssl_backbones.handover.tensorflow_names import byol, simclr
from ssl_backbones.handover.tree import Entry, entries

# Prefix of the backbone's keys, and who writes it. Networks under other prefixes are read all the same.
_WRITERS = {
    "module.encoder_q.": "MoCo v1, MoCo v2 or PCL: query encoder",
    "module.base_encoder.": "MoCo v3: base encoder",
    "module.backbone.": "Barlow Twins or DINO, full checkpoint",
    "module.encoder.": "SimSiam or PyContrast",
    "module.visual.": "CLIP: image tower",
    "visual.": "CLIP: image tower",
    "encoder_q.0.": "OpenSelfSup's MoCo or DenseCL: query encoder",
    "encoder_q.": "MoCo or PCL: query encoder",
    "online_encoder.net.": "byol-pytorch: online encoder",
    "online_net.0.": "OpenSelfSup's BYOL: online network",
    "teacher_backbone.": "lightly's DINO: teacher",
    "backbone.": "solo-learn, mmselfsup, lightly or DINO",
    "encoder.": "SupCon, PyContrast's average or this project",
    "_feature_blocks.": "VISSL: trunk",
    "module.": "InstDisc, SwAV or DeepCluster-v2",
    "": "torchvision's names (torchvision, timm, Barlow Twins, DINO, SimCLR converted)",
}

# lightly's examples: nn.Sequential(*list(resnet.children())[:-1])
_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

_BACKBONE_KEY = re.compile(ResNetOptions.keys)


def recognise(tree: Any, where: str, *, network: str | None = None) -> Found:
    """Find the backbone in the content of a file.

    Args:
        tree: nested dictionaries, lists and tuples with tensors or arrays.
        where: names the file in errors.
        network: prefix of its keys if the file holds several networks, see
            :func:`ssl_backbones.handover.networks.choose`.

    Raises:
        CheckpointError: the layout is not known, or nothing tells several networks apart; the message describes the
            content of the file.
    """
    dictionaries = list(entries(tree))
    found = [
        each._replace(prefix=f"{entry.place}{each.prefix}")
        for entry in dictionaries
        for reader in _READERS
        for each in reader(entry)
    ]
    if not found:
        content, remedy = _content(tree, dictionaries)
        raise CheckpointError(f"no backbone found under any prefix; {content}", where=where, remedy=remedy)
    choice = choose([Candidate(each.prefix, each.tensors) for each in found], network, where)
    return found[choice.taken]._replace(choice=choice.reason)


def flat_tensors(tree: Any, where: str) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of each dictionary of a file that may hold a network, by keys without wrappers.

    The dictionary of the backbone comes first, then the others, the outermost first.
    """
    dictionaries = list(entries(tree))
    try:
        prefix = recognise(tree, where).prefix
    except CheckpointError:  # a file with a head alone
        prefix = ""
    dictionaries.sort(key=lambda entry: -len(entry.place) if prefix.startswith(entry.place) else 1)
    for entry in dictionaries:
        yield entry.tensors


def _prefixes(flat: Mapping[str, Tensor], *keys: str) -> list[str]:
    """Return all prefixes under which all of ``keys`` stand."""
    starts = [key.removesuffix(keys[0]) for key in flat if key.endswith(keys[0])]
    whole = [prefix for prefix in starts if prefix == "" or prefix.endswith(".")]
    return [prefix for prefix in whole if all(f"{prefix}{key}" in flat for key in keys)]


def _below(flat: Mapping[str, Tensor], prefix: str) -> dict[str, str]:
    """Return the keys below a prefix, by the rest of the key."""
    return {key.removeprefix(prefix): key for key in flat if key.startswith(prefix)}


# -- torchvision's names under a prefix -------------------------------------------------------------------------------


def _torchvision(entry: Entry) -> Iterator[Found]:
    flat = entry.tensors
    for prefix in _prefixes(flat, "layer1.0.conv1.weight", "conv1.weight"):
        layout = _WRITERS.get(prefix, f"torchvision's names, {prefix!r}")
        yield _split(entry, _below(flat, prefix), layout)._replace(prefix=prefix)
    for prefix in _prefixes(flat, "4.0.conv1.weight", "0.weight"):
        named = {_renumber(name): key for name, key in _below(flat, prefix).items()}
        yield _split(entry, named, f"lightly, under {prefix!r}")._replace(prefix=prefix)


def _other_family(entry: Entry) -> Iterator[Found]:
    """Find networks of torchvision that are not ResNets, or networks of this project with the same names."""
    flat = entry.tensors
    for family in FAMILIES.values():
        for prefix in [] if family is ResNetOptions else _prefixes(flat, *family.telling_keys):
            own = re.compile(re.escape(prefix) + family.keys)
            tensors = {key.removeprefix(prefix): value for key, value in flat.items() if own.match(key)}
            left_out = [entry.stored[key] for key in flat if not own.match(key)]
            layout = _WRITERS.get(prefix, f"torchvision's names, {prefix!r}")
            yield Found(layout, tensors, left_out, PREPROCESSES["imagenet"], {}, prefix)


def _renumber(key: str) -> str:
    head, _, rest = key.partition(".")
    return f"{_NUMBERED.get(head, head)}.{rest}"


def _split(entry: Entry, named: Mapping[str, str], layout: str) -> Found:
    flat = entry.tensors
    kept = {name: key for name, key in named.items() if _BACKBONE_KEY.match(name)}
    tensors, taken = {name: flat[key] for name, key in kept.items()}, set(kept.values())
    others = [key for key in flat if key not in taken]
    left_out, bare = [entry.stored[key] for key in others], {key.removeprefix("module.") for key in others}
    if any(key.startswith("prototypes.") for key in bare):
        several = any(key.startswith("prototypes.prototypes") for key in bare)
        name = "DeepCluster-v2 or SeLa-v2" if several else "SwAV"
        return Found(name, tensors, left_out, PREPROCESSES["swav"], {})
    if "conv3.weight" in tensors:
        return Found("CLIP: image tower", tensors, left_out, PREPROCESSES["clip"], {"stem": "clip"})
    supcon = any(key.startswith("head.") for key in bare) and tensors["conv1.weight"].shape[-1] == 3
    return Found(layout, tensors, left_out, PREPROCESSES["cifar10" if supcon else "imagenet"], {})


# -- other libraries' names -------------------------------------------------------------------------------------------


def _detectron2(entry: Entry) -> Iterator[Found]:
    """Find trunks as converters for detectron2 write them, and those inside C4 and FPN detectors."""
    flat = entry.tensors
    for prefix in _prefixes(flat, "res2.0.conv1.weight", "stem.conv1.weight"):
        detector = prefix.removesuffix("bottom_up.").removesuffix("backbone.")
        tensors, left_out = {}, []
        for key, value in flat.items():
            own = key.removeprefix(prefix if key.startswith(prefix) else f"{detector}roi_heads.")
            name = from_detectron2(own) if own != key or prefix == "" else None
            if name is None:
                left_out.append(entry.stored[key])
            else:
                tensors[name] = value
        preprocess, arch = PREPROCESSES["imagenet"], {}
        pixels = [flat.get(f"{detector}{name}") for name in ("pixel_mean", "pixel_std")]
        if all(value is not None and value.numel() == 3 for value in pixels):
            mean, std = (value.flatten().tolist() for value in pixels if value is not None)
            preprocess = {"order": "BGR" if mean[0] < mean[2] else "RGB", "range": 255.0, "mean": mean, "std": std}
            arch = {"stride_in_1x1": std == [1.0] * 3}  # the MSRA networks, which detectron2 feeds so
        layout = f"detectron2's names under {prefix!r}" if prefix else "detectron2's names"
        yield Found(layout, tensors, left_out, preprocess, arch, prefix)


def _caffe2(entry: Entry) -> Iterator[Found]:
    """Read FAIR's R-50.pkl of MSRA. Its batch norms are scale and shift alone (detectron2, c2_model_loading.py)."""
    flat = entry.tensors
    if "conv1_w" not in flat or "res2_0_branch2a_w" not in flat:
        return
    named = {key: from_caffe2(key) for key in flat}
    tensors = {name: flat[key] for key, name in named.items() if name is not None}
    for name in [name for name in tensors if name.endswith(".bias")]:
        bias = tensors[name]
        tensors[f"{name.removesuffix('bias')}running_mean"] = torch.zeros_like(bias)
        tensors[f"{name.removesuffix('bias')}running_var"] = torch.ones_like(bias) - 1e-5  # epsilon is added to it
    left_out = [key for key, name in named.items() if name is None]
    yield Found("MSRA, Caffe2's names", tensors, left_out, PREPROCESSES["caffe"], {"stride_in_1x1": True})


def _huggingface(entry: Entry) -> Iterator[Found]:
    """Find ResNets of transformers (modeling_resnet.py), alone or as the backbone of a detector."""
    flat, first = entry.tensors, "encoder.stages.0.layers.0.layer.0.convolution.weight"
    for prefix in _prefixes(flat, first, "embedder.embedder.convolution.weight"):
        named = {key: from_huggingface(name) for name, key in _below(flat, prefix).items()}
        tensors = {name: flat[key] for key, name in named.items() if name is not None}
        left_out = [entry.stored[key] for key in flat if named.get(key) is None]
        layout = f"transformers' names under {prefix!r}" if prefix else "transformers' names"
        yield Found(layout, tensors, left_out, PREPROCESSES["imagenet"], {}, prefix)


_READERS: tuple[Callable[[Entry], Iterator[Found]], ...] = (
    _torchvision,
    _detectron2,
    _caffe2,
    _huggingface,
    _other_family,
    simclr,
    byol,
)


# -- unknown layouts --------------------------------------------------------------------------------------------------

_SUPPORTED = "give a ResNet-18, -34 or -50, or a ConvNeXt with torchvision's names"
# Parts of keys, what has them, and the remedy.
_OTHERS = (
    (r"patch_embed|class_embedding|cls_token", "a vision Transformer", _SUPPORTED),
    (r"flat_param", "a part of an FSDP checkpoint, whose tensors are flattened", "save a FULL_STATE_DICT"),
    (
        r"parametrizations\.|\.weight_orig$|\.weight_u$",
        "a network with parametrized weights",
        "save it after torch.nn.utils.parametrize.remove_parametrizations",
    ),
    (r"_packed_params|zero_point|\.scale$", "a quantised network", "give the network with float weights"),
    (r"conv1\.0\.weight$|stem\.[03]\.weight$", "a ResNet-C or -D, whose stem is three convolutions", _SUPPORTED),
)


def _content(tree: Any, dictionaries: list[Entry]) -> tuple[str, str]:
    """Describe the content of a file of no known layout, for the error; return the remedy, too."""
    remedy = "rename its keys to torchvision's (conv1.weight, layer1.0.conv1.weight, ...)"
    if not dictionaries:
        return f"the file holds a {type(tree).__name__}", remedy
    innermost = max(dictionaries, key=lambda entry: len(entry.tensors))
    keys = [str(key) for key in (innermost.tensors or innermost.content)]
    for pattern, what, other in _OTHERS:
        if telling := next((key for key in keys if re.search(pattern, key)), None):
            return f"it looks like {what} (it has {telling!r})", other
    wrapped = "" if innermost is dictionaries[0] else f"{list(dictionaries[0].content)[:5]} at the top and "
    return f"the file has {wrapped}{len(keys)} keys that start with {keys[:5]}", remedy
