"""Batches. What a training step sees is a pure function of the seed and the step, so a resumed run needs only the step.

Epochs are permutations laid end to end: place ``p = step * batch_size + position`` holds image ``permutation(p // n)[p
% n]`` of ``n`` images, of which those with rare classes may be repeats, augmented by a generator seeded with step and
position. The number of worker processes changes nothing. A batch may be cut into parts that are computed one after the
other; processes that train together take neighbouring positions of each part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

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
    """One part of a training batch and the images that could not be read for it: (path, message)."""

    images: list[Tensor] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)

    def pin_memory(self) -> _Step:
        """For the thread of the ``DataLoader`` that pins what workers send."""
        self.images = [image.pin_memory() for image in self.images]
        return self


class _Epochs:
    """The images of one view in the order of its epochs; place 0 is the first image of the first epoch.

    Args:
        view: what training may see.
        seed_parts: numbers and names that the order is derived from.
        options: how often images repeat.
        keep: decoded images stay in memory.
    """

    def __init__(self, view: View, seed_parts: tuple[int | str, ...], options: LoaderOptions, *, keep: bool) -> None:
        self.view, self.seed_parts = view, seed_parts
        self._cache: dict[int, Tensor] | None = {} if keep else None
        self._broken: dict[int, str] = {}
        self._factors = _factors(view, options)
        self._epoch_length = epoch_length(len(view), self._factors)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def at(self, place: int) -> tuple[Sample, Tensor | str]:
        """Return the image at a place with what the task sees of it, and its pixels, or why they cannot be read."""
        index = self._index(place)
        sample = self.view[index]
        try:
            return sample, self._image(index, sample.record)
        except DataError as error:
            self._broken[index] = str(error)
            return sample, str(error)

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


class _TrainSteps:
    """Builds any part of the batch of any step; lives in the training process or in each worker."""

    def __init__(
        self,
        view: View,
        batch_size: int,
        parts: Sequence[range],
        seed_parts: tuple[int | str, ...],
        options: LoaderOptions,
        exemplars: View | None,
        num_exemplars: int,
    ) -> None:
        self.parts, self.options, self.seed_parts = tuple(parts), options, seed_parts
        self._own = batch_size - num_exemplars
        self._exemplars = num_exemplars
        views = [view] if exemplars is None else [view, exemplars]
        decoded_bytes = sum(3 * int(each.images.sizes.prod(axis=1).sum()) for each in views)
        keep = options.workers == 0 and decoded_bytes < options.cache_mib * 2**20
        self._epochs = _Epochs(view, seed_parts, options, keep=keep)
        self._replayed = self._epochs
        if exemplars is not None:
            self._replayed = _Epochs(exemplars, (*seed_parts, "exemplars"), options, keep=keep)

    def __getitem__(self, number: int) -> _Step:
        batch = _Step()
        step, part = divmod(number, len(self.parts))
        batch_size = self._own + self._exemplars
        for position in self.parts[part]:
            # Exemplars are spread evenly, so that every part and every process has its share of them.
            before, after = (self._exemplars * place // batch_size for place in (position, position + 1))
            if after > before:
                self._add(batch, self._replayed, step * self._exemplars + before, step, position)
            else:
                self._add(batch, self._epochs, step * self._own + position - before, step, position)
        if not batch.images:  # every image was broken: the first good one of those that come next
            for place in range(batch_size, batch_size + len(self._epochs.view)):
                position = place + self.parts[part].start
                self._add(batch, self._epochs, step * self._own + position, step, position)
                if batch.images:
                    break
        return batch

    def _add(self, batch: _Step, epochs: _Epochs, place: int, step: int, position: int) -> None:
        (record, labels), image = epochs.at(place)
        if isinstance(image, str):
            batch.broken.append((str(record.path), image))
            return
        random = generator(*self.seed_parts, "augment", step, position)
        annotated = Target(torch.from_numpy(record.boxes.copy()), torch.from_numpy(labels.copy()), record.image_id)
        pixels, target = augment(image, annotated, self.options, random)
        batch.images.append(pixels)
        batch.targets.append(target)


class TrainBatches:
    """Batches of steps ``start_step`` … ``total_steps - 1``; part by part, if a batch has several.

    An image that cannot be read is left out: its part of the batch is smaller, or holds the next good image if nothing
    else is left. It is logged once and kept in ``broken``.

    Args:
        view: what training may see.
        batch_size: images per step, of all processes together.
        seed_parts: numbers and names that all order and augmentation are derived from.
        start_step: first step, counted from 0; a resumed run gives the step that it stopped before.
        total_steps: one past the last step.
        options: sizes, augmentation, workers.
        parts: this process's positions in each part of a batch, see :func:`local_parts`. By default there is one part,
            and all of it.
        exemplars: a second view, which some images of each batch come from, spread over it, in an order of its own; an
            empty one is as none.
        num_exemplars: number of these images, below ``batch_size``.

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
        parts: Sequence[range] | None = None,
        exemplars: View | None = None,
        num_exemplars: int = 0,
    ) -> None:
        if not len(view):
            raise DataError(
                "there is no image to train on: none has a box of the classes that this phase trains",
                remedy="check `tasks` against the classes that the training data annotates",
            )
        self.broken: dict[str, str] = {}
        """Path of each image that could not be read: why."""
        if exemplars is not None and not len(exemplars):  # a published list names none for the first task
            exemplars, num_exemplars = None, 0
        self._views = [view] if exemplars is None else [view, exemplars]
        own = [range(batch_size)] if parts is None else parts
        self._parts_per_step = len(own)
        self._range = range(start_step * len(own), total_steps * len(own))
        self._options = options
        self._steps = _TrainSteps(view, batch_size, own, tuple(seed_parts), options, exemplars, num_exemplars)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self._range) // self._parts_per_step

    def by_step(self) -> Iterator[list[TrainBatch]]:
        """Yield the parts of each step's batch."""
        parts = iter(self)
        while step := list(islice(parts, self._parts_per_step)):
            yield step

    def __iter__(self) -> Iterator[TrainBatch]:
        for batch in in_order(self._steps, self._range, self._options.workers):
            self._report(batch.broken)
            if not batch.images:
                raise DataError(
                    f"none of {len(self._views[0])} images can be read; the last: {batch.broken[-1][1]}",
                    remedy="check the folder of the images",
                )
            yield batch.images, batch.targets

    def _report(self, broken: list[tuple[str, str]]) -> None:
        for path, message in broken:
            if path not in self.broken:
                self.broken[path] = message
                log.warning("image left out: %s", message)
        distinct = {path for view in self._views for path in view.images.paths} if broken else set()
        if len(self.broken) > self._options.max_bad_fraction * len(distinct) and broken:
            shown = "\n  ".join(list(self.broken.values())[:20])
            raise DataError(
                f"{len(self.broken)} of {len(distinct)} images cannot be read, more than the fraction "
                f"max_bad_fraction={self._options.max_bad_fraction:g}:\n  {shown}",
                remedy="replace these images, remove them from the annotations, or raise loader.max_bad_fraction",
            )


def local_parts(batch_size: int, parts: int) -> list[range]:
    """Return this process's positions in each of the equal, consecutive parts of a batch.

    The parts are the same for any number of processes, which ``parts`` times divides the batch.
    """
    size = batch_size // parts
    share = distributed.local_range(size)
    return [range(part * size + share.start, part * size + share.stop) for part in range(parts)]


def images_per_epoch(view: View, options: LoaderOptions) -> int:
    """Return the number of images that an epoch of training shows, repeats of rare classes included."""
    return epoch_length(len(view), _factors(view, options))


def _factors(view: View, options: LoaderOptions) -> NDArray[np.float64] | None:
    """(N,) how many times an epoch shows each image; None: every image once."""
    if not options.repeat_threshold:
        return None
    return repeat_factors(view.labels, view.images.offsets, options.repeat_threshold)


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
