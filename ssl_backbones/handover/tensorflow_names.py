"""Backbones by the names of TensorFlow and of JAX: SimCLR's variables, BYOL's pickle."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from ssl_backbones.handover.found import PREPROCESSES, Found
from ssl_backbones.handover.pickles import Husk
from ssl_backbones.handover.tree import Entry, tensor_of

_BLOCKS_R50 = (3, 4, 6, 3)


def simclr(entry: Entry) -> Iterator[Found]:
    """Read SimCLR's variables by name (resnet.py): layers are numbered in order of creation, shortcuts first.

    The convolutions pad as torch does, the pool of the stem as TensorFlow's SAME.
    """
    pattern = re.compile(r"(?:.*/)?(conv2d|batch_normalization)(?:_(\d+))?/(\w+)(?::0)?")
    layers: dict[str, dict[int, dict[str, str]]] = {"conv2d": {}, "batch_normalization": {}}
    flat = entry.tensors
    for key in flat:
        found = pattern.fullmatch(key)
        if found and "head" not in key:
            layers[found[1]].setdefault(int(found[2] or 0), {})[found[3]] = key
    convolutions = [found for _, found in sorted(layers["conv2d"].items()) if "kernel" in found]
    norms = [found for _, found in sorted(layers["batch_normalization"].items()) if "gamma" in found]
    places = list(_creation_order())
    if len(convolutions) != len(places) or len(norms) < len(places):
        return
    kinds = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    tensors, taken = {}, set()
    for (convolution, norm), conv_keys, norm_keys in zip(places, convolutions, norms, strict=False):
        tensors[f"{convolution}.weight"] = flat[conv_keys["kernel"]].permute(3, 2, 0, 1).contiguous()
        taken.add(conv_keys["kernel"])
        for theirs, ours in kinds.items():
            if theirs in norm_keys:
                tensors[f"{norm}.{ours}"] = flat[norm_keys[theirs]]
                taken.add(norm_keys[theirs])
    left_out = [entry.stored[key] for key in flat if key not in taken]
    yield Found("SimCLR, TensorFlow's names", tensors, left_out, PREPROCESSES["simclr"], {"pool_padding": "end"})


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


def byol(entry: Entry) -> Iterator[Found]:
    """Read BYOL's pickle (byol_experiment.py): the online network's parameters and batch-norm averages.

    Convolutions and pool pad as TensorFlow's SAME does.
    """
    state = entry.content.get("experiment_state", entry.content)
    if isinstance(state, Husk):  # a named tuple: online_params, target_params, online_state, target_state, opt_state
        parameters, averages = state.arguments[:1], state.arguments[2:3]
    else:
        fields = state if isinstance(state, Mapping) else getattr(state, "_asdict", dict)()
        parameters, averages = (fields.get("online_params"),), (fields.get("online_state"),)
    if not parameters or not averages or not all(isinstance(part, Mapping) for part in (*parameters, *averages)):
        return
    tensors: dict[str, Tensor] = {}
    left_out: list[str] = []
    for module, values in parameters[0].items():
        name = _haiku_name(module)
        if name is None:
            left_out.append(module)
        elif "w" in values:
            tensors[f"{name}.weight"] = tensor_of(values["w"]).permute(3, 2, 0, 1).contiguous()
        else:
            tensors[f"{name}.weight"] = tensor_of(values["scale"]).flatten()
            tensors[f"{name}.bias"] = tensor_of(values["offset"]).flatten()
    for module, values in averages[0].items():
        name, kind = _haiku_name(module.rpartition("/~/")[0]), module.rpartition("/~/")[2]
        if name is not None and kind in ("mean_ema", "var_ema"):
            tensors[f"{name}.running_{kind.removesuffix('_ema')}"] = tensor_of(values["average"]).flatten()
    arch = {"pool_padding": "end", "conv_padding": "end"}
    yield Found("BYOL, haiku's names: online network", tensors, left_out, PREPROCESSES["imagenet"], arch)


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
