"""The backbone that another library would build from its settings and weights, for ``verify`` to compare.

The settings are a detectron2 configuration (.yaml), or the file that an export for torchvision writes. Settings that
the file does not name have the library's default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from openworld.errors import CheckpointError, ConfigError
from openworld.runtime.files import read_yaml
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.handover.found import PREPROCESSES
from ssl_backbones.handover.layouts import recognise
from ssl_backbones.handover.read import BackboneFile, read_tree
from ssl_backbones.handover.verify import stage_features, verify, verify_weights
from ssl_backbones.options import Preprocess

# detectron2/config/defaults.py
_DEFAULTS: dict[str, Any] = {
    "MODEL.PIXEL_MEAN": PREPROCESSES["caffe"]["mean"],
    "MODEL.PIXEL_STD": PREPROCESSES["caffe"]["std"],
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "INPUT.FORMAT": "BGR",
}
# torchvision/models/detection/backbone_utils.py
_LAYERS = ("layer4", "layer3", "layer2", "layer1", "conv1")
_TRAINABLE_LAYERS, _TORCHVISION_NORM = 3, "FrozenBatchNorm2d"
_REMEDY = "give the settings that `openworld backbone export` wrote, or a detectron2 configuration"


@dataclass(frozen=True)
class Plan:
    """A network as a library would build it."""

    weights: Path
    arch: ResNetOptions
    preprocess: Preprocess
    frozen_stages: int
    """Number of frozen stages, from the stem on: 1 the stem, 2 the stem and C2, …"""
    frozen_norms: bool

    def trainable(self, network: Backbone) -> set[str]:
        """Return the names of the parameters that training changes."""
        stages = [("conv1", "bn1"), *((f"layer{stage}",) for stage in range(1, 5))]
        frozen = tuple(f"{name}." for names in stages[: self.frozen_stages] for name in names)
        norms = {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
        return {
            name
            for name, _ in network.named_parameters()
            if not name.startswith(frozen) and not (self.frozen_norms and name.rpartition(".")[0] in norms)
        }


def verify_settings(backbone: BackboneFile, settings: Path) -> dict[str, float]:
    """Build what the settings describe, load the weights that they name, and compare it with the backbone.

    detectron2 and torchvision need not be installed: at these settings their trunks are this project's ResNet.

    Returns:
        The relative difference of each stage, ``c2``..``c5``.

    Raises:
        ConfigError: the file is not readable, or names no weights.
        CheckpointError: the weights cannot be read.
        HandoverError: the networks differ. The message says where: tensors that are missing, of another shape or frozen
            at random values, the stride, the padding, the colour order, mean and std.
    """
    plan = read_plan(settings)
    network = plan.arch.build()
    tensors, own = _loaded(plan.weights), network.state_dict()
    fits = {name: name in tensors and tensors[name].shape == value.shape for name, value in own.items()}
    held = {name: tensors[name] if fits[name] else value for name, value in own.items()}
    known = {name: value for name, value in held.items() if fits[name] or name in tensors}
    verify_weights(backbone, known, trainable=plan.trainable(network), name=str(settings))
    network.load_state_dict(held)
    names = ("the pretrained backbone", f"the detector of {settings.name}")
    return verify(
        stage_features(backbone.network(), backbone.preprocess),
        stage_features(network, plan.preprocess),
        names=names,
        backbone=backbone,
    )


def read_plan(settings: Path) -> Plan:
    """Read the network that a settings file describes.

    Raises:
        ConfigError: the file is not YAML or not settings of either library, or no ResNet here supports some value.
    """
    content = read_yaml(settings, remedy=_REMEDY)
    folder = settings.parent
    if isinstance(base := content.pop("_BASE_", None), str):
        content = _merged(read_yaml(folder / base, remedy=_REMEDY), content)
    if "MODEL" in content:
        return _detectron2_plan(content, settings)
    if "image_mean" in content or "backbone_name" in content:
        return _torchvision_plan(content, settings)
    raise ConfigError(
        f"has neither MODEL nor backbone_name but {list(content)[:5]}", where=str(settings), remedy=_REMEDY
    )


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _detectron2_plan(content: Mapping[str, Any], settings: Path) -> Plan:
    def value(key: str) -> Any:
        found: Any = content
        for name in key.split("."):
            if not isinstance(found, Mapping) or name not in found:
                return _DEFAULTS.get(key)
            found = found[name]
        return found

    def build() -> Plan:
        norm = value("MODEL.RESNETS.NORM")
        return Plan(
            weights=_weights(value("MODEL.WEIGHTS"), settings),
            arch=ResNetOptions(
                name=f"resnet{int(value('MODEL.RESNETS.DEPTH'))}",  # type: ignore[arg-type]
                width=value("MODEL.RESNETS.WIDTH_PER_GROUP") / 64,
                stem_width=value("MODEL.RESNETS.STEM_OUT_CHANNELS"),
                stride_in_1x1=bool(value("MODEL.RESNETS.STRIDE_IN_1X1")),
            ),
            preprocess={
                "order": value("INPUT.FORMAT"),
                "range": 255.0,
                "mean": [float(number) for number in value("MODEL.PIXEL_MEAN")],
                "std": [float(number) for number in value("MODEL.PIXEL_STD")],
            },
            frozen_stages=int(value("MODEL.BACKBONE.FREEZE_AT")),
            frozen_norms=norm == "FrozenBN",
        )

    return _built(build, settings)


def _torchvision_plan(content: Mapping[str, Any], settings: Path) -> Plan:
    trained = _LAYERS[: int(content.get("trainable_layers", _TRAINABLE_LAYERS))]
    imagenet = PREPROCESSES["imagenet"]

    def build() -> Plan:
        width = float(content.get("width", 1.0))
        return Plan(
            weights=_weights(content.get("weights"), settings),
            arch=ResNetOptions(
                name=content.get("backbone_name", "resnet50"),
                width=width,
                stem_width=content.get("stem_width"),
            ),
            preprocess={
                "order": "RGB",
                "range": 1.0,
                "mean": [float(number) for number in content.get("image_mean", imagenet["mean"])],
                "std": [float(number) for number in content.get("image_std", imagenet["std"])],
            },
            frozen_stages=len(_LAYERS) - len(trained),
            frozen_norms=_TORCHVISION_NORM in str(content.get("norm_layer", _TORCHVISION_NORM)),
        )

    return _built(build, settings)


def _built(build: Any, settings: Path) -> Plan:
    try:
        plan: Plan = build()
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"a value is of another kind ({error})", where=str(settings), remedy=_REMEDY) from error
    if len(plan.preprocess["mean"]) != 3 or len(plan.preprocess["std"]) != 3 or len(plan.preprocess["order"]) != 3:
        raise ConfigError(f"describes no images of 3 channels: {plan.preprocess}", where=str(settings), remedy=_REMEDY)
    return plan


def _weights(name: Any, settings: Path) -> Path:
    if not isinstance(name, str) or not name:
        raise ConfigError("names no weights (MODEL.WEIGHTS, weights)", where=str(settings), remedy=_REMEDY)
    return settings.parent / name


def _loaded(path: Path) -> dict[str, Tensor]:
    """Load the tensors that a library finds in a weight file, by torchvision's names."""
    tree = read_tree(path)
    try:
        found = recognise(tree, str(path))
    except CheckpointError:
        return {}
    bare = isinstance(tree, Mapping) and "model" in tree and any(key.startswith("res2.") for key in tree["model"])
    return {} if bare and not tree.get("matching_heuristics") else found.tensors
