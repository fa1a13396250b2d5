"""What can be chosen about a backbone and its pretraining. The defaults are the demo: a minute on two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from openworld.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Preprocess(TypedDict):
    """What a network expects: ``(image / 255 * range - mean) / std``, channels in ``order``."""

    order: Literal["RGB", "BGR"]
    range: float
    mean: list[float]
    std: list[float]


@dataclass(kw_only=True)
class ArchOptions:
    """A ResNet with torchvision's key names, and the details that tensors alone do not tell."""

    arch: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    """Depth and block type."""
    width: float = 0.5
    """Multiplier on all channels; 1.0 is the original."""
    stem_width: int | None = None
    """Output channels of the stem; None means 64 * width, rounded."""
    stem: Literal["imagenet7x7", "cifar3x3"] = "imagenet7x7"
    """7x7 stride 2 with max pool (stride 4), or 3x3 stride 1 without pool (stride 1)."""
    stride_in_1x1: bool = False
    """Bottlenecks stride in their first 1x1 (Caffe, MSRA) and not in their 3x3 (torchvision, most SSL)."""
    pool_padding: Literal["both", "end"] = "both"
    """Stem max pool padded on both sides (torchvision) or right and bottom only (Caffe, TensorFlow on even sides)."""
    zero_init_residual: bool = False
    """Start each residual branch at zero."""
    norm: Literal["batch", "frozen"] = "batch"
    """Trainable batch norm, or one with fixed statistics and affine parameters."""

    def __post_init__(self) -> None:
        _one_of("arch", self.arch, ("resnet18", "resnet34", "resnet50"))
        _one_of("stem", self.stem, ("imagenet7x7", "cifar3x3"))
        _one_of("pool_padding", self.pool_padding, ("both", "end"))
        _one_of("norm", self.norm, ("batch", "frozen"))
        _at_least("width", self.width, 1 / 64)
        if self.stem_width is not None:
            _at_least("stem_width", self.stem_width, 1)


@dataclass(kw_only=True)
class PretrainOptions:
    """One self-supervised pretraining."""

    method: Literal["simclr", "moco_v2"] = "simclr"
    """Which method, see ssl_backbones/methods."""
    arch: ArchOptions = field(default_factory=ArchOptions)
    """The backbone."""
    views: Literal["simclr", "moco_v2"] = "moco_v2"
    """View recipe, see ssl_backbones/views.py."""
    view_size: int = 64
    """Side of a view in pixels."""
    images: str | None = None
    """Folder of images without labels; None means the images that the detector will train on."""
    steps: int = 100
    """Optimisation steps."""
    batch_size: int = 64
    """Images a step (each gives two views). A set with fewer images is used whole in every step."""
    optimizer: Literal["sgd", "lars"] = "sgd"
    """SGD or LARS, both with momentum and a cosine schedule."""
    lr: float = 0.01
    """Learning rate after warm-up, as it is: nothing scales it by the batch size."""
    sgd_momentum: float = 0.9
    """Momentum of the optimiser."""
    weight_decay: float = 1e-4
    """L2 penalty; the method says which parameters it spares."""
    warmup: int = 10
    """Steps of linear warm-up."""
    temperature: float = 0.2
    """Temperature of the contrastive softmax."""
    projection_dim: int = 128
    """Dimensions of the space in which views are compared."""
    queue_size: int = 4096
    """MoCo: negatives kept from earlier batches."""
    teacher_momentum: float = 0.999
    """MoCo: m in teacher = m * teacher + (1 - m) * student."""
    shuffle_groups: int = 1
    """MoCo: groups with batch-norm statistics of their own, as so many devices would have; 1 turns shuffling off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks. Losses are always computed in fp32."""
    channels_last: bool = True
    """Memory layout NHWC for the convolutions."""
    workers: int = 0
    """Processes that make views; 0 makes them in the training process. The result is the same for any number."""
    cache_megabytes: int = 1024
    """Decoded images are kept in memory, at twice the view size, where the whole set fits in this."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    log_every: int = 1
    """Steps between lines of the log."""
    knn_k: int = 20
    """Neighbours of the kNN probe."""
    knn_temperature: float = 0.1
    """Temperature of the probe's votes."""

    def __post_init__(self) -> None:
        _one_of("method", self.method, ("simclr", "moco_v2"))
        _one_of("views", self.views, ("simclr", "moco_v2"))
        _one_of("optimizer", self.optimizer, ("sgd", "lars"))
        _one_of("precision", self.precision, ("fp32", "bf16"))
        for name in ("steps", "warmup", "workers", "cache_megabytes", "lr", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        for name in ("projection_dim", "queue_size", "shuffle_groups", "checkpoint_every", "log_every", "knn_k"):
            _at_least(name, getattr(self, name), 1)
        _at_least("view_size", self.view_size, 8)
        _at_least("batch_size", self.batch_size, 2)
        for name in ("sgd_momentum", "teacher_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", remedy="choose a value from 0 to 1")
        for name in ("temperature", "knn_temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", remedy="choose a value above 0")


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}", remedy=f"choose one of {', '.join(allowed)}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ConfigError(f"{name} is {value}", remedy=f"choose a value of at least {least:g}")
