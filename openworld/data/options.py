"""Options of the data layer: where annotations lie, which class belongs to which task, how images are fed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from openworld.errors import ConfigError


def default_tasks() -> list[list[str]]:
    """The schedule of the synthetic world. Three of its twelve categories belong to no task: they stay unknown."""
    return [["ball", "cube", "ring"], ["heart", "cone", "gear"], ["star", "cross", "crescent"]]


@dataclass(kw_only=True)
class SourceOptions:
    """One annotated set of images."""

    annotations: str | None = None
    """COCO: the .json file. VOC: the folder that holds Annotations/, such as VOCdevkit/VOC2007."""
    images: str | None = None
    """Folder of the images. Default for COCO: images/ beside the .json file, or else the file's folder; for VOC:
    JPEGImages/."""
    format: Literal["auto", "coco", "voc"] = "auto"
    """Format of the annotations. ``auto``: a .json file is COCO, a folder with Annotations/ is VOC."""
    image_set: str | None = None
    """VOC only: a list in ImageSets/Main such as ``trainval``, or the path of a .txt file. Default: every image."""


@dataclass(kw_only=True)
class SyntheticOptions:
    """The procedural open world that the demo trains on."""

    train_images: int = 480
    """Images for training."""
    val_images: int = 80
    """Images for energy fitting."""
    test_images: int = 160
    """Images for evaluation."""
    pretrain_images: int = 400
    """Images without annotations for self-supervised pretraining: close-ups of one object, as photographs for
    classification are. 0: pretrain on the training images."""
    size: int = 128
    """Side of the square images in pixels."""
    seed: int = 0
    """The same seed and sizes give the same files."""

    def __post_init__(self) -> None:
        for name in ("train_images", "val_images", "test_images"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "give at least 1")
        _check("pretrain_images", self.pretrain_images, self.pretrain_images >= 0, "give 0 or more")
        _check("size", self.size, 64 <= self.size <= 1024, "give 64 to 1024 pixels")


@dataclass(kw_only=True)
class LoaderOptions:
    """How images are decoded, resized and augmented."""

    min_size: int = 128
    """Shorter side of the image as it enters the model, in pixels."""
    max_size: int = 128
    """Upper limit of the longer side, in pixels; it wins over ``min_size``."""
    flip: float = 0.5
    """Probability of a horizontal flip in training."""
    scale_jitter: list[float] = field(default_factory=lambda: [0.75, 1.0])
    """Training multiplies the size by a factor drawn uniformly from this range. [1.0, 1.0] switches it off."""
    workers: int = 0
    """Processes that decode ahead. 0: in the training process, and small data sets are decoded only once."""
    cache_mib: int = 1024
    """With ``workers=0``, decoded images are kept when all of them together need less than this many MiB."""
    max_bad_fraction: float = 0.05
    """Training stops when more than this fraction of the images cannot be read."""

    def __post_init__(self) -> None:
        _check("min_size", self.min_size, self.min_size >= 16, "give at least 16 pixels")
        _check("max_size", self.max_size, self.max_size >= self.min_size, f"give at least min_size ({self.min_size})")
        _check("flip", self.flip, 0 <= self.flip <= 1, "give a probability from 0 to 1")
        jitter = self.scale_jitter
        fits = len(jitter) == 2 and 0.1 <= jitter[0] <= jitter[1] <= 10
        _check("scale_jitter", jitter, fits, "give two rising factors from 0.1 to 10, such as [0.75, 1.0]")
        _check("workers", self.workers, self.workers >= 0, "give 0 or more")
        _check("cache_mib", self.cache_mib, self.cache_mib >= 0, "give 0 or more")
        _check("max_bad_fraction", self.max_bad_fraction, 0 <= self.max_bad_fraction <= 1, "give 0 to 1")


@dataclass(kw_only=True)
class DataOptions:
    """Images, annotations and the schedule of classes."""

    tasks: list[list[str]] = field(default_factory=default_tasks)
    """Class names that each task introduces. Classes of the data that no task names stay unknown."""
    synthetic: SyntheticOptions | None = field(default_factory=SyntheticOptions)
    """The embedded synthetic world. null: read ``train``, ``val`` and ``test``."""
    train: SourceOptions = field(default_factory=SourceOptions)
    """Images for training. Not read with ``synthetic``."""
    val: SourceOptions = field(default_factory=SourceOptions)
    """Images for energy fitting; without annotations, a part of the training images. Not read with ``synthetic``."""
    held_out_fraction: float = 0.1
    """Without ``val``: share of the training images that is kept out of training for energy fitting."""
    test: SourceOptions = field(default_factory=SourceOptions)
    """Images for evaluation. Not read with ``synthetic``."""
    rename: dict[str, str] = field(default_factory=dict)
    """Class names of the annotation files to the names that ``tasks`` use, such as ``airplane: aeroplane``."""
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    """How images are decoded, resized and augmented."""

    def __post_init__(self) -> None:
        _check("held_out_fraction", self.held_out_fraction, 0 < self.held_out_fraction < 1, "give a share from 0 to 1")
        _check("tasks", self.tasks, len(self.tasks) >= 1, "name the classes of at least one task")
        if self.synthetic is None:
            for name in ("train", "test"):
                given = getattr(self, name).annotations
                _check(f"data.{name}.annotations", given, given is not None, "name a COCO .json file or a VOC folder")


def _check(name: str, value: object, fits: bool, remedy: str) -> None:
    if not fits:
        raise ConfigError(f"{name}={value!r} cannot be used", remedy=remedy)
