"""Batches. What a training step sees is a pure function of the seed and the step, so a resumed run needs only the step.

Epochs are permutations laid end to end: place ``p = step * batch_size + position`` holds image ``permutation(p // n)[p
% n]`` of ``n`` images, of which those with rare classes may be repeats, augmented by a generator seeded with step and
position. The number of worker processes changes nothing; processes that train together take neighbouring positions
of each batch.
"""

from __future__ import annotations

import gc
import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from openworld.data.options import LoaderOptions
from openworld.data.records import Record
from openworld.data.repeat_factors import epoch_length, epoch_order, repeat_factors
from openworld.data.splits import Sample
from openworld.data.transforms import augment, prepare
from openworld.errors import DataError, EnvironmentProblem
from openworld.runtime import distributed
from openworld.runtime.images import load_image
from openworld.runtime.seeding import generator
from openworld.structures import Target

__all__ = [
    "EvalBatch",
    "TrainBatch",
    "TrainBatches",
    "eval_batches",
    "eval_target",
    "load_image",
    "load_record",
    "own_batches",
    "to_original",
]

log = logging.getLogger("openworld.data")

TrainBatch = tuple[list[Tensor], list[Target]]
"""images (3, h, w) as :func:`openworld.data.transforms.augment` gives them, and their targets in their pixels."""
EvalBatch = tuple[list[Tensor], list[int], list[Tensor]]
"""images (3, h, w) as :func:`openworld.data.transforms.prepare` gives them, their positions among all, and (4,) float32
scales for :func:`to_original`."""


def load_record(record: Record) -> Tensor:
    """Decode a record's image to (3, H, W) uint8, in the orientation in which it was annotated.

    Raises:
        DataError: as :func:`openworld.runtime.images.read_rgb`, or the size of the file is not the annotated one: the
            boxes would lie elsewhere.
    """
    image = load_image(record.path, (record.width, record.height))
    height, width = image.shape[-2:]
    if (width, height) != (record.width, record.height):
        turned = (width, height) == (record.height, record.width)
        raise DataError(
            f"image is {width}x{height}, its annotation (id {record.image_id!r}) says {record.width}x{record.height}",
            where=str(record.path),
            remedy="the file was turned after it was annotated: store it in the annotated orientation"
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
    """One training batch and the images that could not be read for it: (position in samples, message)."""

    images: list[Tensor] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    broken: list[tuple[int, str]] = field(default_factory=list)

    def pin_memory(self) -> _Step:
        """For the thread of the ``DataLoader`` that pins what workers send."""
        self.images = [image.pin_memory() for image in self.images]
        return self


class _PackedSamples:
    """What training needs of its samples, in a few flat arrays.

    A worker process that is forked shares memory with its parent until one of them writes, and counting references is
    writing: of many small objects every worker soon has its own copy.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        names = [json.dumps([sample.record.image_id, str(sample.record.path)]).encode() for sample in samples]
        self._names = np.frombuffer(b"".join(names), dtype=np.uint8)
        self._name_ends = np.cumsum([0, *map(len, names)])
        self._sizes = np.array([(s.record.width, s.record.height) for s in samples], dtype=np.int64).reshape(-1, 2)
        self._ends = np.cumsum([0, *map(len, samples)])
        self._boxes = np.concatenate([sample.boxes for sample in samples], dtype=np.float32)
        self._labels = np.concatenate([sample.labels for sample in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def pixels(self) -> int:
        """Of all images together."""
        return int(self._sizes.prod(axis=1).sum())

    def repeat_factors(self, threshold: float) -> NDArray[np.float64]:
        """(N,) how many times an epoch shows each image."""
        return repeat_factors(self._labels, self._ends, threshold)

    def record(self, index: int) -> Record:
        """The image of a sample, without annotations."""
        image_id, path = json.loads(self._names[self._name_ends[index] : self._name_ends[index + 1]].tobytes())
        width, height = self._sizes[index].tolist()
        return Record(image_id, Path(path), width, height, *_NOTHING)

    def targets(self, index: int) -> tuple[Tensor, Tensor]:
        """(N, 4) float32 boxes in pixels of the original image, (N,) int64 labels. Copies."""
        own = slice(int(self._ends[index]), int(self._ends[index + 1]))
        return torch.from_numpy(self._boxes[own].copy()), torch.from_numpy(self._labels[own].copy())


_NOTHING = (np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_))


class _TrainSteps:
    """Builds the batch of any step; lives in the training process or in each worker."""

    def __init__(
        self,
        samples: Sequence[Sample],
        batch_size: int,
        positions: range,
        seed_parts: tuple[int | str, ...],
        options: LoaderOptions,
    ) -> None:
        self.samples, self.batch_size, self.seed_parts = _PackedSamples(samples), batch_size, seed_parts
        self.positions, self.options = positions, options
        keep = options.workers == 0 and 3 * self.samples.pixels < options.cache_mib * 2**20
        self._cache: dict[int, Tensor] | None = {} if keep else None
        self._broken: dict[int, str] = {}
        self._factors = self.samples.repeat_factors(options.repeat_threshold) if options.repeat_threshold else None
        self._epoch_length = epoch_length(len(self.samples), self._factors)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def __getitem__(self, step: int) -> _Step:
        batch = _Step()
        for position in self.positions:
            self._add(batch, step, position)
        if not batch.images:  # every image was broken: the first good one of those that come next
            for place in range(self.batch_size, self.batch_size + len(self.samples)):
                self._add(batch, step, place + self.positions.start)
                if batch.images:
                    break
        return batch

    def _add(self, batch: _Step, step: int, position: int) -> None:
        index = self._index(step * self.batch_size + position)
        record = self.samples.record(index)
        try:
            image = self._image(index, record)
        except DataError as error:
            self._broken[index] = str(error)
            batch.broken.append((index, str(error)))
            return
        boxes, labels = self.samples.targets(index)
        random = generator(*self.seed_parts, "augment", step, position)
        pixels, boxes = augment(image, boxes, self.options, random)
        batch.images.append(pixels)
        batch.targets.append(Target(boxes, labels, record.image_id))

    def _index(self, place: int) -> int:
        epoch, offset = divmod(place, self._epoch_length)
        if self._order[0] != epoch:
            random = generator(*self.seed_parts, "order", epoch)
            self._order = (epoch, epoch_order(len(self.samples), self._factors, random))
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
        samples: a view that training may see.
        batch_size: images a step, of all processes together.
        seed_parts: numbers and names that all order and augmentation are derived from.
        start_step: first step, counted from 0; a resumed run gives the step that it stopped before.
        total_steps: one past the last step.
        options: sizes, augmentation, workers.
        positions: this process's part of each batch, which is all of it by default.

    Raises:
        DataError: no samples; or, while iterating, more than ``options.max_bad_fraction`` of the images are broken.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        batch_size: int,
        seed_parts: tuple[int | str, ...],
        start_step: int,
        total_steps: int,
        options: LoaderOptions,
        positions: range | None = None,
    ) -> None:
        if not samples:
            raise DataError(
                "there is no image to train on: none has a box of the classes that this phase trains",
                remedy="check `tasks` against the classes that the training data annotates",
            )
        self.broken: dict[str, str] = {}
        """Path of each image that could not be read: why."""
        self._samples = samples
        self._range = range(start_step, total_steps)
        self._options = options
        own = range(batch_size) if positions is None else positions
        self._steps = _TrainSteps(samples, batch_size, own, tuple(seed_parts), options)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[TrainBatch]:
        for batch in _in_order(self._steps, self._range, self._options.workers):
            self._report(batch.broken)
            if not batch.images:
                raise DataError(
                    f"none of {len(self._samples)} images can be read; the last: {batch.broken[-1][1]}",
                    remedy="check the folder of the images",
                )
            yield batch.images, batch.targets

    def _report(self, broken: list[tuple[int, str]]) -> None:
        for index, message in broken:
            path = str(self._samples[index].record.path)
            if path not in self.broken:
                self.broken[path] = message
                log.warning("image left out: %s", message)
        distinct = {str(sample.record.path) for sample in self._samples} if broken else set()
        if len(self.broken) > self._options.max_bad_fraction * len(distinct) and broken:
            shown = "\n  ".join(list(self.broken.values())[:20])
            raise DataError(
                f"{len(self.broken)} of {len(distinct)} images cannot be read, more than the fraction "
                f"max_bad_fraction={self._options.max_bad_fraction:g}:\n  {shown}",
                remedy="replace these images, remove them from the annotations, or raise loader.max_bad_fraction",
            )


def eval_batches(
    samples: Sequence[Sample] | Sequence[Record],
    batch_size: int,
    options: LoaderOptions,
    *,
    numbers: range | None = None,
    broken: Callable[[str], None] | None = None,
) -> Iterator[EvalBatch]:
    """Every image once, in order, without augmentation; decoded ahead if there are workers.

    Args:
        samples: all images.
        batch_size: images a batch.
        options: sizes, workers.
        numbers: which batches, counted from 0; all by default.
        broken: is told of an image that cannot be read, which is then left out of its batch; the batch may be empty.

    Raises:
        DataError: an image cannot be read and ``broken`` is not given.
    """
    records = [sample.record if isinstance(sample, Sample) else sample for sample in samples]
    wanted = range(math.ceil(len(records) / batch_size)) if numbers is None else numbers
    prepared = _in_order(_EvalBatches(records, batch_size, options), wanted, options.workers)
    for number, batch in zip(wanted, prepared, strict=True):
        images, positions, scales = [], [], []
        for position, found in enumerate(batch, start=number * batch_size):
            if isinstance(found, str):
                if broken is None:
                    raise DataError(found)
                broken(found)
                continue
            images.append(found[0])
            positions.append(position)
            scales.append(found[1])
        yield images, positions, scales


def own_batches(count: int, batch_size: int) -> range:
    """Numbers of this process's share of the batches of so many images: whole batches, padded as in one process."""
    share = distributed.local_range(math.ceil(count / batch_size))
    return range(share.start, share.stop)


def eval_target(sample: Sample, scale: Tensor) -> Target:
    """What is annotated on an image, in pixels of the image as evaluation feeds it."""
    boxes, rows = torch.from_numpy(sample.boxes) * scale, torch.from_numpy(sample.labels)
    return Target(boxes, rows, sample.record.image_id)


class _EvalBatches:
    """Image and scale of each record of any batch; of one that cannot be read the message (it must cross processes)."""

    def __init__(self, records: list[Record], batch_size: int, options: LoaderOptions) -> None:
        self.records, self.batch_size, self.options = records, batch_size, options

    def __getitem__(self, number: int) -> list[tuple[Tensor, Tensor] | str]:
        first = number * self.batch_size
        return [self._prepared(record) for record in self.records[first : first + self.batch_size]]

    def _prepared(self, record: Record) -> tuple[Tensor, Tensor] | str:
        try:
            return prepare(load_record(record), self.options)
        except DataError as error:
            return str(error)


Item = TypeVar("Item", covariant=True)


class _Indexed(Protocol[Item]):
    def __getitem__(self, index: int, /) -> Item: ...


def _in_order(source: _Indexed[Item], numbers: range, workers: int) -> Iterator[Item]:
    """``source[n]`` for each number in order, computed ahead by worker processes if there are any.

    Where there is a GPU a thread then moves them to pinned memory, from which the copy to the GPU waits for nothing.

    Raises:
        EnvironmentProblem: the system killed a worker.
    """
    if workers == 0:
        for number in numbers:
            yield source[number]
        return
    loader = DataLoader(
        _AsTorch(source),
        batch_size=None,
        sampler=numbers,
        num_workers=min(workers, max(1, len(numbers))),
        generator=torch.Generator(),  # or the loader draws from the global one, and workers would change the run
        worker_init_fn=_enter_worker,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):  # but an error that a worker met and passed on
            raise
        raise EnvironmentProblem(
            f"a process that decodes images died ({error})",
            remedy="resume the run; if memory ran out, set data.loader.workers lower, or to 0",
        ) from error


def _enter_worker(worker: int) -> None:
    gc.freeze()  # the collector writes into every object that it visits, and would so copy all that is shared


class _AsTorch(TorchDataset[Item]):
    def __init__(self, source: _Indexed[Item]) -> None:
        self.source = source

    def __getitem__(self, index: int) -> Item:
        return self.source[index]
