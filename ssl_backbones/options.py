"""Options of a backbone and its pretraining. The defaults are the demo: a minute on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypedDict

from openworld.runtime.options import Above, AtLeast, Between, FilePath, check
from ssl_backbones.backbones import BackboneOptions, ResNetOptions
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.methods.simclr_options import SimCLROptions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ViewsName = Literal[
    "simclr",
    "moco_v1",
    "moco_v2",
    "moco_v3",
    "byol",
    "sup_con",
    "swav",
    "deepcluster_v2",
    "dino",
    "instdisc",
    "pirl",
    "cmc",
    "cmc_lab",
    "cpc",
    "cpc_v2",
    "clip",
    "curl",
    "distillation",
]
"""The recipes of ssl_backbones/views.py."""


class Preprocess(TypedDict):
    """Input of a network: ``(image / 255 * range - mean) / std``, channels in ``order``.

    LAB is for analysis: ``mean`` and ``std`` are those of CIE L*a*b* (views.lab_from_rgb), and no detector takes it.
    """

    order: Literal["RGB", "BGR", "LAB"]
    range: float
    mean: list[float]
    std: list[float]


@dataclass(kw_only=True)
class PretrainOptions:
    """One self-supervised pretraining."""

    method: MethodOptions = field(default_factory=SimCLROptions)
    """The method and its own options; its ``name`` chooses it, see ssl_backbones/methods."""
    arch: BackboneOptions = field(default_factory=ResNetOptions)
    """The backbone; its ``name`` chooses the family, see ssl_backbones/backbones."""
    views: ViewsName = "moco_v2"
    """View recipe, see ssl_backbones/views.py."""
    view_size: Annotated[int, AtLeast(8)] = 64
    """Side of a view in pixels."""
    local_view_size: Annotated[int, AtLeast(8)] = 28
    """Side of the small views of a multi-crop recipe (paper: 96 beside 224)."""
    local_views: Annotated[int, AtLeast(0)] | None = None
    """Number of small views of the recipe to make; None for all of them, 0 for the two large ones only."""
    images: FilePath | None = None
    """Folder of images; None means the images that the detector will train on. Supervised contrast uses the folder name
    of each image as its label; no other method uses it."""
    labelled: FilePath | None = None
    """Folder with one folder of images per class (or with ``train`` and ``val`` of such folders), for the probes. None
    means ``images`` if that has one folder per class and the method does not learn from it; otherwise no probe."""
    white_level: Annotated[int, Between(255, 65535)] | None = None
    """Value of 16-bit grey images that is white, as ``data.loader.white_level``. None means that one in a run, and
    otherwise 65535."""
    steps: Annotated[int, AtLeast(0)] = 100
    """Optimisation steps."""
    batch_size: Annotated[int, AtLeast(2)] = 64
    """Images per step, over all processes and micro-batches; each gives two views. A set with fewer images is
    used whole in every step."""
    accumulate: Annotated[int, AtLeast(1)] = 1
    """Number of consecutive micro-batches per step, whose gradients are averaged: saves memory. Batch norm and
    negatives from the batch see the micro-batch only."""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    """SGD or LARS, both with momentum, or Adam with decoupled weight decay, whose first beta is that momentum."""
    lr: Annotated[float, AtLeast(0)] = 0.01
    """Learning rate after warm-up; it is not scaled by the batch size."""
    final_lr: Annotated[float, AtLeast(0)] = 0.0
    """Learning rate at the end of the cosine."""
    lr_milestones: list[Annotated[int, AtLeast(0)]] = field(default_factory=list)
    """Steps at which the learning rate falls to a tenth; given, they replace the cosine."""
    sgd_momentum: Annotated[float, Between(0, 1)] = 0.9
    """Momentum of the optimiser."""
    weight_decay: Annotated[float, AtLeast(0)] = 1e-4
    """L2 penalty; the method says which parameters are exempt."""
    warmup: Annotated[int, AtLeast(0)] = 10
    """Steps of linear warm-up."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks. Losses are always computed in fp32."""
    channels_last: bool = True
    """Memory layout NHWC for the convolutions."""
    sync_batch_norm: bool = False
    """With several processes, batch norm sees the micro-batch of all processes, not only its own share."""
    workers: Annotated[int, AtLeast(0)] = 0
    """Processes that make views; 0 makes them in the training process. The result is the same for any number."""
    cache_megabytes: Annotated[int, AtLeast(0)] = 1024
    """Memory for decoded images, which are kept at twice the view size if the whole set fits."""
    checkpoint_every: Annotated[int, AtLeast(1)] = 50
    """Steps between checkpoints."""
    log_every: Annotated[int, AtLeast(1)] = 1
    """Steps between lines of the log, and between measurements of the collapse meters."""
    probe_every: Annotated[int, AtLeast(0)] = 500
    """Steps between kNN probes while training, if there are labelled images; 0 for none before the end."""
    probe_images: Annotated[int, AtLeast(2)] = 25_000
    """Largest number of labelled images for the probes, spread evenly."""
    knn_k: Annotated[int, AtLeast(1)] = 20
    """Neighbours of the kNN probe."""
    knn_temperature: Annotated[float, Above(0)] = 0.1
    """Temperature of the probe's votes."""

    def __post_init__(self) -> None:
        check(self)
