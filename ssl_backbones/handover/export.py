"""Export a backbone to another library: its weights under that library's names, and the matching settings.

Weights alone are not enough. Beside them are a card (architecture, preprocessing, SHA-256), by which this project reads
the file back, and a YAML file with the settings under which the other library computes the same features. Networks that
the library cannot compute are refused.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import safetensors.torch
import torch
from torch import Tensor

from openworld.errors import ConfigError
from openworld.runtime.files import sha256_of, write_atomic, write_json
from ssl_backbones.backbones import BackboneOptions, ResNetOptions
from ssl_backbones.handover.names import detectron2_name
from ssl_backbones.handover.read import BackboneFile
from ssl_backbones.options import Preprocess

Target = Literal["torchvision", "detectron2", "detectron2-c4", "detectron2-fpn"]
"""``detectron2``: the trunk's own names with ``matching_heuristics``, which fit any detector; ``-c4`` and ``-fpn``: the
full names inside such a detector, which need no heuristics."""

_PREFIXES: dict[str, tuple[str, str]] = {
    "detectron2": ("", ""),
    "detectron2-c4": ("backbone.", "roi_heads."),
    "detectron2-fpn": ("backbone.bottom_up.", "backbone.bottom_up."),
}
"""Prefixes of the names of the trunk and of those of res5."""

_SUFFIXES = {"torchvision": (".safetensors", ".pth"), "detectron2": (".pkl",)}


class Exported(NamedTuple):
    """The files of an export."""

    weights: Path
    settings: Path
    card: Path


def export_backbone(backbone: BackboneFile, target: Target, output: Path, *, inexact: bool = False) -> Exported:
    """Write a backbone for ``target``: weights, settings (``.yaml``) and card (``.json``) of one name.

    Args:
        backbone: as :func:`~ssl_backbones.handover.read.load_backbone_file` returns it.
        target: see :data:`Target`.
        output: the weight file: ``.safetensors`` or ``.pth`` for torchvision, ``.pkl`` for detectron2.
        inexact: write it even if the other library pads differently, so that features differ a little, mostly at edges.

    Raises:
        ConfigError: the target or the suffix is unknown, or the library cannot compute the architecture.
    """
    if target not in get_args(Target):
        raise ConfigError(f"target is {target!r}", remedy=f"choose one of {', '.join(get_args(Target))}")
    library, output = target.split("-")[0], Path(output)
    if output.suffix not in _SUFFIXES[library]:
        raise ConfigError(
            f"{library} reads no {output.suffix or 'file without a suffix'}",
            where=str(output),
            remedy=f"name it {' or '.join(output.with_suffix(suffix).name for suffix in _SUFFIXES[library])}",
        )
    arch = _checked(backbone.arch, library, inexact)
    backbone = backbone.as_rgb() if library == "torchvision" else backbone
    preprocess, tensors = backbone.preprocess, backbone.state_dict
    if library == "detectron2":
        content = _detectron2_weights(tensors, target)
        write_atomic(output, pickle.dumps(content, protocol=2))
        settings = detectron2_settings(arch, preprocess, output.name)
    else:
        tensors = {name: value.contiguous() for name, value in tensors.items()}
        if output.suffix == ".safetensors":
            write_atomic(output, safetensors.torch.save(tensors, {"format": "pt"}))
        else:
            stream = io.BytesIO()
            torch.save(tensors, stream)
            write_atomic(output, stream.getvalue())
        settings = torchvision_settings(arch, preprocess, output.name)
    files = Exported(output, output.with_suffix(".yaml"), output.with_suffix(".json"))
    write_atomic(files.settings, _as_yaml(settings, library))
    card = {"arch": dataclasses.asdict(arch), "preprocess": preprocess, "sha256": sha256_of(output)}
    write_json(
        files.card,
        {**card, "source": backbone.layout, "prefix": backbone.prefix, "choice": backbone.choice, "target": target},
    )
    return files


def _checked(arch: BackboneOptions, library: str, inexact: bool) -> ResNetOptions:
    """Return the architecture if the library can compute it in the detectors that settings are written for."""
    if not isinstance(arch, ResNetOptions):
        raise ConfigError(
            f"settings for {library}'s detectors are written for ResNets, and arch.name is {arch.name!r}",
            where="export",
            remedy="use it as model.weights of a detector of this project; its keys are torchvision's already",
        )
    reasons = []
    if arch.stem != "imagenet7x7":
        reasons.append(f"its stem is {arch.stem}")
    if arch.norm == "layer":
        reasons.append("it has layer norms")
    if library == "torchvision" and arch.stride_in_1x1:
        reasons.append("it strides in the 1x1, torchvision in the 3x3")
    if library == "detectron2" and arch.name != "resnet50" and (arch.width != 1 or arch.stem_width not in (None, 64)):
        reasons.append(f"it is a {arch.name} of width {arch.width:g}, and detectron2 builds those of width 1 alone")
    if not inexact and "end" in (arch.pool_padding, arch.conv_padding):
        reasons.append("it pads at the end, the library on both sides (--inexact writes it all the same)")
    if reasons:
        raise ConfigError(
            f"{library} has no such network: {'; '.join(reasons)}",
            where="export",
            remedy="use it as model.weights of a detector of this project, which computes it as it was trained",
        )
    return arch


def _detectron2_weights(tensors: Mapping[str, Tensor], target: Target) -> dict[str, Any]:
    """Make detectron2's dictionary. Counters of batch norms are left out: its frozen norms have none."""
    trunk, res5 = _PREFIXES[target]
    model = {}
    for key, value in tensors.items():
        name = None if key.endswith("num_batches_tracked") else detectron2_name(key)
        if name is not None:
            model[f"{res5 if name.startswith('res5.') else trunk}{name}"] = value.numpy()
    content: dict[str, Any] = {"model": model, "__author__": "openworld"}
    return {**content, "matching_heuristics": True} if target == "detectron2" else content


def detectron2_settings(arch: ResNetOptions, preprocess: Preprocess, weights: str) -> dict[str, Any]:
    """Return the keys of a detectron2 configuration that depend on the backbone; the others belong to the detector.

    Norms are synchronised and every stage is trained, as in the published detectors on self-supervised backbones:
    frozen norms and a frozen stem are detectron2's defaults, made for the MSRA networks.
    """
    scale = 255 / preprocess["range"]
    depth = int(arch.name.removeprefix("resnet"))
    return {
        "MODEL": {
            "WEIGHTS": weights,
            "PIXEL_MEAN": [round(scale * value, 6) for value in preprocess["mean"]],
            "PIXEL_STD": [round(scale * value, 6) for value in preprocess["std"]],
            "BACKBONE": {"FREEZE_AT": 0},
            "RESNETS": {
                "DEPTH": depth,
                "STRIDE_IN_1X1": arch.stride_in_1x1,
                "NORM": "SyncBN",
                "STEM_OUT_CHANNELS": arch.stem_width or max(1, round(64 * arch.width)),
                "WIDTH_PER_GROUP": max(1, round(64 * arch.width)),
                "RES2_OUT_CHANNELS": max(1, round(64 * arch.width)) * (4 if depth == 50 else 1),
            },
            "FPN": {"NORM": "SyncBN"},
        },
        "INPUT": {"FORMAT": preprocess["order"]},
    }


def torchvision_settings(arch: ResNetOptions, preprocess: Preprocess, weights: str) -> dict[str, Any]:
    """Return the arguments of FasterRCNN and of its backbone in ``torchvision.models.detection``.

    ``preprocess`` is for RGB in [0, 1], see :meth:`~ssl_backbones.handover.read.BackboneFile.as_rgb`.
    """
    return {
        "weights": weights,
        "backbone_name": arch.name,
        "width": arch.width,
        "stem_width": arch.stem_width or max(1, round(64 * arch.width)),
        "norm_layer": "torch.nn.BatchNorm2d",
        "trainable_layers": 5,
        "image_mean": preprocess["mean"],
        "image_std": preprocess["std"],
    }


_HEADS = {
    "detectron2": """\
# What a detectron2 configuration needs beside the weights. Mean and std are in the order of INPUT.FORMAT, for values
# from 0 to 255. SyncBN needs GPUs; on a CPU set both NORMs to BN. A C4 detector on this backbone wants a norm of its
# own after res5; without it, lower the learning rate.
""",
    "torchvision": """\
# resnet_fpn_backbone(backbone_name=…, weights=None, norm_layer=…, trainable_layers=…), then
# backbone.body.load_state_dict(weights), then FasterRCNN(backbone, …, image_mean=…, image_std=…). The defaults freeze
# stem and stage 1 at random values. Its constructors make width 1 alone.
""",
}


def _as_yaml(settings: Mapping[str, Any], library: str) -> str:
    import yaml

    return _HEADS[library] + yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=None)
