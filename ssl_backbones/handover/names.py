"""Names of a ResNet's tensors in other libraries; this project uses torchvision's names."""

from __future__ import annotations

import re

_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")
_DETECTRON2 = re.compile(r"res([2-5])\.(\d+)\.(conv(\d)|shortcut)(\.norm)?\.(\w+)")
_CAFFE2 = re.compile(r"res([2-5])_(\d+)_branch(1|2a|2b|2c)_(w|bn_s|bn_b)")
_HUGGINGFACE = re.compile(
    r"encoder\.stages\.([0-3])\.layers\.(\d+)\.(shortcut|layer\.([0-2]))\.(convolution|normalization)\.(\w+)"
)
_CAFFE2_KIND = {"w": "weight", "bn_s": "weight", "bn_b": "bias"}


def detectron2_name(name: str) -> str | None:
    """Return the name in detectron2's trunk: ``layer4.0.conv1.weight`` → ``res5.0.conv1.weight``; None for heads.

    detectron2 puts ``backbone.`` in front in a C4 detector, ``roi_heads.`` for its res5, ``backbone.bottom_up.`` with
    a pyramid.
    """
    module, _, kind = name.rpartition(".")
    if module in ("conv1", "bn1"):
        return f"stem.conv1.{kind}" if module == "conv1" else f"stem.conv1.norm.{kind}"
    block = _BLOCK.fullmatch(name)
    if block is None:
        return None
    stage, number, layer, index, kind = int(block[1]) + 1, block[2], block[3], block[4], block[5]
    convolution = "shortcut" if layer == "downsample." else f"conv{index}"
    norm = ".norm" if layer == "bn" or (layer == "downsample." and index == "1") else ""
    return f"res{stage}.{number}.{convolution}{norm}.{kind}"


def from_detectron2(name: str) -> str | None:
    """Invert :func:`detectron2_name`; None for names outside the trunk."""
    if name.startswith("stem.conv1."):
        kind = name.removeprefix("stem.conv1.")
        return f"bn1.{kind.removeprefix('norm.')}" if kind.startswith("norm.") else f"conv1.{kind}"
    found = _DETECTRON2.fullmatch(name)
    if found is None:
        return None
    stage, number, index, norm, kind = int(found[1]) - 1, found[2], found[4], found[5], found[6]
    if index is None:
        return f"layer{stage}.{number}.downsample.{1 if norm else 0}.{kind}"
    return f"layer{stage}.{number}.{'bn' if norm else 'conv'}{index}.{kind}"


def from_caffe2(name: str) -> str | None:
    """Convert names of FAIR's converted MSRA networks: ``res2_0_branch2a_bn_s`` → ``layer1.0.bn1.weight``."""
    if name in ("conv1_w", "res_conv1_bn_s", "res_conv1_bn_b"):
        kind = name.split("_", 1)[1].removeprefix("conv1_")
        return f"{'conv1' if kind == 'w' else 'bn1'}.{_CAFFE2_KIND[kind]}"
    found = _CAFFE2.fullmatch(name)
    if found is None:
        return None
    block, kind = f"layer{int(found[1]) - 1}.{found[2]}", found[4]
    if found[3] == "1":
        return f"{block}.downsample.{0 if kind == 'w' else 1}.{_CAFFE2_KIND[kind]}"
    index = "abc".index(found[3][1]) + 1
    return f"{block}.{'conv' if kind == 'w' else 'bn'}{index}.{_CAFFE2_KIND[kind]}"


def from_huggingface(name: str) -> str | None:
    """Convert names of transformers' ResNets: ``encoder.stages.0.layers.1.layer.2.normalization.bias`` →
    ``layer1.1.bn3.bias``; None for names outside the trunk."""
    stem = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", name)
    if stem:
        return f"{'conv1' if stem[1] == 'convolution' else 'bn1'}.{stem[2]}"
    found = _HUGGINGFACE.fullmatch(name)
    if found is None:
        return None
    block, norm = f"layer{int(found[1]) + 1}.{found[2]}", found[5] == "normalization"
    if found[4] is None:
        return f"{block}.downsample.{int(norm)}.{found[6]}"
    return f"{block}.{'bn' if norm else 'conv'}{int(found[4]) + 1}.{found[6]}"
