"""Images with classes that the probes classify: crops of objects, or a folder with one folder per class.

Shapes: N images.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openworld.errors import DataError
from openworld.runtime.images import WHITE_LEVEL, find_images
from ssl_backbones.images import ImagePool, labels_of
from ssl_backbones.probes.features import spread_evenly

LabelledCrops = tuple[Sequence[Tensor | np.ndarray[Any, Any]], Sequence[int | str]]
"""Crops of objects, (3, H, W) uint8 tensors or (H, W, 3) uint8 arrays, RGB, and the label of each."""

EVERY = 5
"""Every fifth image of each class is held out of the probes' training, unless there are folders for both parts."""
_PART = re.compile(r"(train|val|valid|validation|test|unlabell?ed)\d*", re.IGNORECASE)


@dataclass(frozen=True)
class LabelledSet:
    """Images with classes, and the positions of those for training and for testing the probes.

    Attributes:
        image: (3, H, W) uint8 by position.
        labels: (N,) int64 from 0.
        train, test: positions; ``test`` may be empty.
        leave_one_out: the kNN probe classifies each image by all others, and needs no held-out part.
        source: where the images come from, for the card.
    """

    image: Callable[[int], Tensor]
    labels: Tensor
    train: list[int]
    test: list[int]
    leave_one_out: bool
    source: str

    @property
    def known(self) -> list[int]:
        """Positions of both parts, sorted."""
        return sorted(self.train + self.test)

    def parts(self, features_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Divide rows of :attr:`known` into those of the training part and those of the test part."""
        row = {position: at for at, position in enumerate(self.known)}
        train, test = ([row[position] for position in part] for part in (self.train, self.test))
        return features_ND[train], features_ND[test]

    def thinned(self, at_most: int) -> LabelledSet:
        """Keep at most ``at_most`` images, spread evenly over both parts."""
        total = len(self.train) + len(self.test)
        if total <= at_most:
            return self
        train, test = (
            [part[at] for at in spread_evenly(len(part), max(min(1, len(part)), at_most * len(part) // total))]
            for part in (self.train, self.test)
        )
        return replace(self, train=train, test=test)


def from_crops(crops: LabelledCrops) -> LabelledSet | None:
    """Make a set of crops, of which every fifth of each class is for testing; None for fewer than two.

    Raises:
        DataError: crops and labels differ in number, or a crop is not an image.
    """
    images, names = crops
    if len(images) != len(names):
        raise DataError(f"{len(images)} crops but {len(names)} labels", where="probes", remedy="give one label a crop")
    if len(images) < 2:
        return None
    tensors = [_as_tensor(image) for image in images]
    classes = sorted({str(name) for name in names})
    labels = torch.tensor([classes.index(str(name)) for name in names])
    return LabelledSet(tensors.__getitem__, labels, *hold_out(labels), leave_one_out=True, source="crops of objects")


def from_folder(folder: Path, *, side: int, cache_megabytes: int, white_level: int = WHITE_LEVEL) -> LabelledSet:
    """Read a folder with one folder per class, or with ``train`` and ``val`` below it, each with one folder per class.

    Raises:
        DataError: no such folder, no images, one class only, or only one of the two parts.
    """
    parts = [folder / part for part in ("train", "val")]
    found = [find_images(part) for part in (parts if all(part.is_dir() for part in parts) else [folder])]
    paths = [path for part in found for path in part]
    pool = ImagePool(
        paths, side=side, cache_megabytes=cache_megabytes, labels=labels_of(paths), white_level=white_level
    )
    return from_pool(pool, str(folder), test=set(found[1]) if len(found) > 1 else None)


def from_pool(pool: ImagePool, source: str, *, test: set[Path] | None = None) -> LabelledSet:
    """Make a set of a pool with labels. ``test``: the images held out, by default every fifth of each class."""
    assert pool.labels is not None
    labels = torch.tensor(pool.labels)
    if test is None:
        train, held_out = hold_out(labels)
    else:
        held_out = [position for position in range(len(pool)) if pool.path(position) in test]
        train = sorted(set(range(len(pool))) - set(held_out))
    return LabelledSet(pool.__getitem__, labels, train, held_out, leave_one_out=not held_out, source=source)


def classes_of(folder: Path, paths: Sequence[Path]) -> list[str] | None:
    """Names of the classes if ``folder`` has one folder of images per class and nothing else; otherwise None.

    Folders named like parts of a data set (train2017, val) are not classes.
    """
    names = Counter(path.parent.name for path in paths)
    flat = all(path.parent.parent == folder for path in paths)
    if not flat or len(names) < 2 or min(names.values()) < 2 or all(_PART.fullmatch(name) for name in names):
        return None
    return sorted(names)


def hold_out(labels_N: Tensor) -> tuple[list[int], list[int]]:
    """Split into positions to learn from, and every fifth of each class to test on."""
    seen: Counter[int] = Counter()
    train, test = [], []
    for position, label in enumerate(labels_N.tolist()):
        seen[label] += 1
        if seen[label] % EVERY == 0:
            test.append(position)
        else:
            train.append(position)
    return train, test


def _as_tensor(image: Tensor | np.ndarray[Any, Any]) -> Tensor:
    tensor = image if isinstance(image, Tensor) else torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[0] != 3 or 0 in tensor.shape:
        raise DataError(
            f"a crop is {tensor.dtype} of shape {tuple(tensor.shape)}",
            where="probes",
            remedy="give (3, H, W) uint8 tensors or (H, W, 3) uint8 arrays with at least one pixel",
        )
    return tensor
