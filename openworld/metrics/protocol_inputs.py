"""Input of a protocol: the list of images, the detections and the objects as it reads them.

I listed images, M objects, D detections, K known classes. Labels are rows: known classes from 0, then unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.matching import ranked
from openworld.metrics.protocols import Protocol

Reals = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ImageList:
    """A list of images as a protocol reads it; every field has one entry per listed position, (I,).

    Args:
        first: position where the same id is listed first.
        copies: number of listings of the image; images whose ids the protocol cannot tell apart are one image.
        target: position of the image whose objects its detections are compared with.
        has_objects: its objects count.
        has_detections: its detections are scored.
    """

    first: Whole
    copies: Whole
    target: Whole
    has_objects: Flags
    has_detections: Flags

    @property
    def is_first(self) -> Flags:
        """(I,) bool: the position is the first listing of its id."""
        first: Flags = self.first == np.arange(len(self.first))
        return first


@dataclass(frozen=True)
class ReadDetections:
    """The D detections that a protocol scores, as it reads them.

    Args:
        boxes: (D, 4) float64 in the protocol's pixels.
        image_index: (D,) int64, the listed image whose objects they are compared with.
        labels, scores, rank: (D,).
    """

    boxes: Reals
    image_index: Whole
    labels: Whole
    scores: Reals
    rank: Whole


@dataclass(frozen=True)
class ReadObjects:
    """The M objects that detections can match, as a protocol reads them.

    Args:
        boxes: (M, 4) float64 in the protocol's pixels.
        image_index, labels: (M,) int64.
        ignore, crowd: (M,) bool.
        per_row: (K + 1,) int64, number of objects that count for each known class and for unknown. An object of a later
            listing can count here, but it cannot be found.
    """

    boxes: Reals
    image_index: Whole
    labels: Whole
    ignore: Flags
    crowd: Flags
    per_row: Whole


def as_number(image_id: int | str) -> int | None:
    """Convert an image id to the whole number that ``int`` reads; None if it is not one."""
    try:
        return int(image_id)
    except ValueError:
        return None


def read_list(image_ids: Sequence[int | str], protocol: Protocol) -> ImageList:
    """Determine which listed images are the same, and whose objects and detections count."""
    positions: dict[int | str, int] = {}
    first = np.array([positions.setdefault(name, at) for at, name in enumerate(image_ids)], dtype=np.int64)
    every = np.ones(len(first), dtype=bool)
    if protocol.image_ids == "exact":
        copies = np.bincount(first, minlength=len(first))[first]
        return ImageList(first, copies, np.arange(len(first)), every, every)

    # Ids that are one number are one image: `head` is the position that it is listed first, `last` the first listing of
    # the id that is listed last.
    heads: dict[int | str, int] = {}
    last_of: dict[int, int] = {}
    head = np.empty(len(first), dtype=np.int64)
    for at, name in enumerate(image_ids):
        number = as_number(name)
        head[at] = heads.setdefault(name if number is None else number, at)
        last_of[int(head[at])] = int(first[at])
    copies = np.bincount(head, minlength=len(first))[head]
    last = np.array([last_of[at] for at in head.tolist()], dtype=np.int64)
    if protocol.image_ids == "number_first":
        return ImageList(first, copies, head, first == head, first == last)
    return ImageList(first, copies, np.arange(len(first)), every, first == last)


def images_that_count(images: ImageList, protocol: Protocol) -> Flags:
    """Return (I,) bool: the listings whose objects add to the number of objects."""
    return images.has_objects & (images.is_first | (protocol.duplicate_objects == "counted"))


def read_detections(detections: ScoredBoxes, images: ImageList, protocol: Protocol) -> ReadDetections:
    """Choose, repeat and round detections as the protocol does, in this order."""
    taken, rank = _chosen(detections, images, protocol)
    if protocol.duplicate_detections == "repeated" and (images.copies > 1).any():
        taken, rank = _repeated(taken, rank, images.copies)
    return ReadDetections(
        boxes=_as_scored(taken.boxes, protocol, detections=True),
        image_index=images.target[taken.image_index] if len(taken) else taken.image_index,
        labels=taken.labels,
        scores=taken.scores if protocol.score_decimals is None else _rounded(taken.scores, protocol.score_decimals),
        rank=rank,
    )


def read_objects(ground_truth: GroundTruth, images: ImageList, num_known: int, protocol: Protocol) -> ReadObjects:
    """Return the objects on the first listing of each image, and how many count, with the protocol's flags."""
    crowd = ground_truth.crowd if protocol.ignore == "neutral" else np.zeros_like(ground_truth.crowd)
    ignore = {
        "neutral": ground_truth.ignore,
        "voc": ground_truth.ignore & ~ground_truth.crowd,
        "counted": np.zeros_like(ground_truth.ignore),
    }[protocol.ignore]
    counted = ~ignore & images_that_count(images, protocol)[ground_truth.image_index]
    findable = (images.has_objects & images.is_first)[ground_truth.image_index]
    return ReadObjects(
        boxes=_as_scored(ground_truth.boxes[findable], protocol, detections=False),
        image_index=ground_truth.image_index[findable],
        labels=ground_truth.labels[findable],
        ignore=ignore[findable],
        crowd=crowd[findable],
        per_row=np.bincount(ground_truth.labels[counted], minlength=num_known + 1),
    )


def rank_within(groups: Whole, scores: Reals) -> Whole:
    """Return (D,) int64: number of detections of the same group that score higher; equal scores rank by position."""
    order = ranked(groups, scores)
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank = np.empty(len(scores), dtype=np.int64)
    rank[order] = np.arange(len(scores)) - np.repeat(starts, np.diff(starts, append=len(scores)))
    return rank


def _chosen(detections: ScoredBoxes, images: ImageList, protocol: Protocol) -> tuple[ScoredBoxes, Whole]:
    """Return the detections that the protocol scores, and the rank of each within its image."""
    if not images.has_detections.all():
        detections = detections[images.has_detections[detections.image_index]]
    if protocol.score_threshold is not None:
        detections = detections[detections.scores >= protocol.score_threshold]
    if protocol.detections_per_class is not None:
        stride = int(detections.labels.max(initial=0)) + 1
        rank = rank_within(detections.image_index * stride + detections.labels, detections.scores)
        detections = detections[rank < protocol.detections_per_class]
    rank = rank_within(detections.image_index, detections.scores)
    if protocol.detections_per_image is not None and rank.max(initial=-1) >= protocol.detections_per_image:
        kept = rank < protocol.detections_per_image
        detections, rank = detections[kept], rank[kept]
    return detections, rank


def _repeated(detections: ScoredBoxes, rank: Whole, copies: Whole) -> tuple[ScoredBoxes, Whole]:
    """Repeat each detection for every copy of its image, second copies after all first copies."""
    times = copies[detections.image_index]
    rows = np.concatenate([np.flatnonzero(times > copy) for copy in range(int(times.max(initial=1)))])
    return detections[rows], rank[rows]


def _as_scored(boxes: Reals, protocol: Protocol, *, detections: bool) -> Reals:
    """Convert boxes to the protocol's pixels. Detections to be rounded are shifted in float32, as when printed."""
    shift: Reals = np.array([protocol.box_offset, protocol.box_offset, 0.0, 0.0])
    if detections and protocol.box_decimals is not None:
        shifted = boxes.astype(np.float32) + shift.astype(np.float32)
        return _rounded(shifted.astype(np.float64), protocol.box_decimals)
    moved: Reals = boxes + shift
    return moved


def _rounded(values: Reals, decimals: int) -> Reals:
    """Round to decimals, half to even, as formatting a float32 does."""
    scale = float(10**decimals)
    rounded: Reals = np.rint(values * scale) / scale
    return rounded
