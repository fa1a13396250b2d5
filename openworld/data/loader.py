"""Batches. What a training step sees is a pure function of the seed and the step, so a resumed run needs only the step.

Epochs are permutations laid end to end: place ``p = step * batch_size + position`` holds image ``permutation(p // n)[p
% n]`` of ``n`` images, of which those with rare classes may be repeats, augmented by a generator seeded with step and
position. The number of worker processes changes nothing; processes that train together take neighbouring positions
of each batch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openworld.data.augmentation import augment
from openworld.data.options import LoaderOptions
from openworld.data.repeat_factors import epoch_length, epoch_order, repeat_factors
from openworld.data.splits import Sample, View
from openworld.data.transforms import prepare
from openworld.data.workers import in_order
from openworld.errors import DataError
from openworld.records import Dataset, Record
from openworld.runtime import distributed
from openworld.runtime.images import load_image
from openworld.runtime.seeding import generator
from openworld.structures import Target

log = logging.getLogger("openworld.data")

TrainBatch = tuple[list[Tensor], list[Target]]
"""images (3, h, w) as :func:`openworld.data.augmentation.augment` gives them, and their targets in their pixels."""
EvalBatch = tuple[list[Tensor], list[int], list[Tensor]]
"""images (3, h, w) as :func:`openworld.data.transforms.prepare` gives them, their positions among all, and (4,) float32
scales for :func:`to_original`."""


def load_record(record: Record) -> Tensor:
    """Decode a record's image to (3, H, W) uint8, in the orientation in which it was annotated.

    Raises:
        DataError: as :func:`openworld.runtime.images.read_rgb`, or the size of the file is not the annotated one: the
            boxes would lie elsewhere.
    """
    image = load_image(record.path, record.turned_to, white_level=record.white_level)
    height, width = image.shape[-2:]
    if (width, height) != (record.width, record.height):
        turned = (width, height) == (record.height, record.width)
        raise DataError(
            f"image is {width}x{height}, its annotation (id {record.image_id!r}) says {record.width}x{record.height}",
            where=str(record.path),
            remedy="the file was turned after it was annotated, or `orientation` of the set should be another"
            if turned
            else "use the images that were annotated, or scale the boxes and correct width and height",
        )
    return image


def to_original(boxes: Tensor, scale: Tensor, width: int, height: int) -> Tensor:
    """Boxes (N, 4) in pixels of an evaluation image -> pixels of the original image, clipped to it."""
    limits = torch.tensor([width, height] * 2, dtype=boxes.dtype, device=boxes.device)
    return (boxes / scale.to(boxes)).clamp(min=0).minimum(limits)


@dataclass
class _Step:
    """One training batch and the images that could not be read for it: (position in the view, message)."""

    images: list[Tensor] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)

    def pin_memory(self) -> _Step:
        """For the thread of the ``DataLoader`` that pins what workers send."""
        self.images = [image.pin_memory() for image in self.images]
        return self


class _TrainSteps:
    """Builds the batch of any step; lives in the training process or in each worker."""

    def __init__(
        self,
        view: View,
        batch_size: int,
        positions: range,
        seed_parts: tuple[int | str, ...],
        options: LoaderOptions,
    ) -> None:
        self.view, self.batch_size, self.seed_parts = view, batch_size, seed_parts
        self.positions, self.options = positions, options
        decoded_bytes = 3 * int(view.images.sizes.prod(axis=1).sum())
        keep = options.workers == 0 and decoded_bytes < options.cache_mib * 2**20
        self._cache: dict[int, Tensor] | None = {} if keep else None
        self._broken: dict[int, str] = {}
        self._factors: NDArray[np.float64] | None = None
        if options.repeat_threshold:
            self._factors = repeat_factors(view.labels, view.images.offsets, options.repeat_threshold)
        self._epoch_length = epoch_length(len(view), self._factors)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def __getitem__(self, step: int) -> _Step:
        batch = _Step()
        for position in self.positions:
            self._add(batch, step, position)
        if not batch.images:  # every image was broken: the first good one of those that come next
            for place in range(self.batch_size, self.batch_size + len(self.view)):
                self._add(batch, step, place + self.positions.start)
                if batch.images:
                    break
        return batch

    def _add(self, batch: _Step, step: int, position: int) -> None:
        index = self._index(step * self.batch_size + position)
        record, labels = self.view[index]
        try:
            image = self._image(index, record)
        except DataError as error:
            self._broken[index] = str(error)
            batch.broken.append((index, str(error)))
            return
        random = generator(*self.seed_parts, "augment", step, position)
        annotated = Target(torch.from_numpy(record.boxes.copy()), torch.from_numpy(labels.copy()), record.image_id)
        pixels, target = augment(image, annotated, self.options, random)
        batch.images.append(pixels)
        batch.targets.append(target)

    def _index(self, place: int) -> int:
        epoch, offset = divmod(place, self._epoch_length)
        if self._order[0] != epoch:
            random = generator(*self.seed_parts, "order", epoch)
            self._order = (epoch, epoch_order(len(self.view), self._factors, random))
        return int(self._order[1][offset])

    def _image(self, index: int, record: Record) -> Tensor:
        if self._cache is None:
            return load_record(record)
        if index not in self._cache:
            if index in self._broken:
                raise DataError(self._broken[index])
            self._cache[index] = load_record(record)
        return self._cache[index]


class TrainBatches:
    """Batches of steps ``start_step`` … ``total_steps - 1``.

    An image that cannot be read is left out: its batch is smaller, or holds the next good image if nothing else is
    left. It is logged once and kept in ``broken``.

    Args:
        view: what training may see.
        batch_size: images per step, of all processes together.
        seed_parts: numbers and names that all order and augmentation are derived from.
        start_step: first step, counted from 0; a resumed run gives the step that it stopped before.
        total_steps: one past the last step.
        options: sizes, augmentation, workers.
        positions: this process's part of each batch, which is all of it by default.

    Raises:
        DataError: the view is empty; or, while iterating, more than ``options.max_bad_fraction`` of the images are
            broken.
    """

    def __init__(
        self,
        view: View,
        *,
        batch_size: int,
        seed_parts: tuple[int | str, ...],
        start_step: int,
        total_steps: int,
        options: LoaderOptions,
        positions: range | None = None,
    ) -> None:
        if not len(view):
            raise DataError(
                "there is no image to train on: none has a box of the classes that this phase trains",
                remedy="check `tasks` against the classes that the training data annotates",
            )
        self.broken: dict[str, str] = {}
        """Path of each image that could not be read: why."""
        self._view = view
        self._range = range(start_step, total_steps)
        self._options = options
        share = range(batch_size) if positions is None else positions
        self._steps = _TrainSteps(view, batch_size, share, tuple(seed_parts), options)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[TrainBatch]:
        for batch in in_order(self._steps, self._range, self._options.workers):
            self._report(batch.broken)
            if not batch.images:
                raise DataError(
                    f"none of {len(self._view)} images can be read; the last: {batch.broken[-1][1]}",
                    remedy="check the folder of the images",
                )
            yield batch.images, batch.targets

    def _report(self, broken: list[tuple[int, str]]) -> None:
        for index, message in broken:
            path = str(self._view.images.paths[index])
            if path not in self.broken:
                self.broken[path] = message
                log.warning("image left out: %s", message)
        distinct = set(self._view.images.paths) if broken else set()
        if len(self.broken) > self._options.max_bad_fraction * len(distinct) and broken:
            shown = "\n  ".join(list(self.broken.values())[:20])
            raise DataError(
                f"{len(self.broken)} of {len(distinct)} images cannot be read, more than the fraction "
                f"max_bad_fraction={self._options.max_bad_fraction:g}:\n  {shown}",
                remedy="replace these images, remove them from the annotations, or raise loader.max_bad_fraction",
            )


def eval_batches(
    images: Dataset,
    batch_size: int,
    options: LoaderOptions,
    *,
    numbers: range | None = None,
    broken: Callable[[str], None] | None = None,
) -> Iterator[EvalBatch]:
    """Yield every image once, in order, without augmentation; decoded ahead if there are workers.

    Args:
        images: all images.
        batch_size: images per batch.
        options: sizes, workers.
        numbers: which batches, counted from 0; all by default.
        broken: is told of an image that cannot be read, which is then left out of its batch; the batch may be empty.

    Raises:
        DataError: an image cannot be read and ``broken`` is not given.
    """
    wanted = range(math.ceil(len(images) / batch_size)) if numbers is None else numbers
    prepared = in_order(_EvalBatches(images, batch_size, options), wanted, options.workers)
    for number, batch in zip(wanted, prepared, strict=True):
        pixels, positions, scales = [], [], []
        for position, found in enumerate(batch, start=number * batch_size):
            if isinstance(found, str):
                if broken is None:
                    raise DataError(found)
                broken(found)
                continue
            pixels.append(found[0])
            positions.append(position)
            scales.append(found[1])
        yield pixels, positions, scales


def local_batches(num_images: int, batch_size: int) -> range:
    """Numbers of the batches that this process evaluates: whole batches, padded as in one process."""
    share = distributed.local_range(math.ceil(num_images / batch_size))
    return range(share.start, share.stop)


def eval_target(sample: Sample, scale: Tensor) -> Target:
    """Return what is annotated on an image, in pixels of the image as evaluation feeds it."""
    boxes, rows = torch.from_numpy(sample.record.boxes) * scale, torch.from_numpy(sample.labels)
    return Target(boxes, rows, sample.record.image_id)


class _EvalBatches:
    """Image and scale of each record of any batch; of one that cannot be read the message (it must cross processes)."""

    def __init__(self, images: Dataset, batch_size: int, options: LoaderOptions) -> None:
        self.images, self.batch_size, self.options = images, batch_size, options

    def __getitem__(self, number: int) -> list[tuple[Tensor, Tensor] | str]:
        first = number * self.batch_size
        last = min(first + self.batch_size, len(self.images))
        return [self._prepared(self.images[position]) for position in range(first, last)]

    def _prepared(self, record: Record) -> tuple[Tensor, Tensor] | str:
        try:
            return prepare(load_record(record), self.options)
        except DataError as error:
            return str(error)
