"""Input arrays of the metrics: annotated objects, and detections on the same images.

M objects, D detections. Boxes are float64 ``x1 y1 x2 y2`` in pixels of the original image, 0-based, ``x2 - x1`` the
width. Labels are rows of a label space: known classes from 0, then unknown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openworld.columns import ImageId
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.records import Dataset

Reals = NDArray[np.float64]
Whole = NDArray[np.int64]
Flags = NDArray[np.bool_]


def _columns(owner: str, boxes: ArrayLike, **others: tuple[ArrayLike, type]) -> tuple[Reals, dict[str, NDArray[Any]]]:
    """Return typed copies of a table's columns.

    Raises:
        DataError: columns differ in length, or a box is not finite or not ordered.
    """
    table = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    columns: dict[str, NDArray[Any]] = {
        name: np.asarray(values, dtype=kind).reshape(-1) for name, (values, kind) in others.items()
    }
    for name, column in columns.items():
        if len(column) != len(table):
            raise DataError(
                f"{owner} has {len(table)} boxes and {len(column)} values of {name}",
                remedy="give one value for each box",
            )
    if len(wrong := _wrong_boxes(table)):
        raise _box_error(table, int(wrong[0]), 0, owner, None)
    return table, columns


def _wrong_boxes(boxes: Reals) -> Whole:
    """Positions of boxes that are not finite or not ordered."""
    return np.flatnonzero(~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1))


def _box_error(boxes: Reals, row: int, first: int, owner: str, where: str | None) -> DataError:
    """The error for a wrong box; ``first`` is the position of the first box of its owner."""
    return DataError(
        f"box {row - first} of {owner} is {boxes[row].tolist()}",
        where=where,
        remedy="give finite x1 y1 x2 y2 with x1 <= x2 and y1 <= y2",
    )


def _check_images(owner: str, image_index: Whole, num_images: int) -> None:
    if image_index.size and not 0 <= image_index.min() <= image_index.max() < num_images:
        raise DataError(
            f"{owner} refers to images {image_index.min()} to {image_index.max()} of {num_images}",
            remedy="image_index is a position in image_ids, from 0",
        )


@dataclass(frozen=True)
class GroundTruth:
    """Annotated objects as a task sees them: known classes, and *unknown* for every other.

    Args:
        image_ids: all images that are scored, also those without objects; an id may be listed more than once.
        image_index: (M,) int64, position in ``image_ids``.
        boxes: (M, 4) float64.
        labels: (M,) int64, 0 … K-1 known, K unknown.
        ignore: (M,) bool, difficult or crowd.
        crowd: (M,) bool, the box outlines a group; such an object is ignored, too.
    """

    image_ids: tuple[ImageId, ...]
    image_index: Whole
    boxes: Reals
    labels: Whole
    ignore: Flags
    crowd: Flags

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_arrays(
        cls,
        image_ids: Iterable[ImageId],
        image_index: ArrayLike,
        boxes: ArrayLike,
        labels: ArrayLike,
        num_known: int,
        ignore: ArrayLike | None = None,
        crowd: ArrayLike | None = None,
    ) -> Self:
        """Build from plain arrays; every label of ``num_known`` and above becomes unknown.

        Raises:
            DataError: columns differ in length, a box is invalid, a label is negative, or an image index is out of
                range.
        """
        size = len(np.asarray(boxes, dtype=np.float64).reshape(-1, 4))
        ids = tuple(image_ids)
        table, columns = _columns(
            "the ground truth",
            boxes,
            image_index=(image_index, np.int64),
            labels=(labels, np.int64),
            ignore=(np.zeros(size, dtype=bool) if ignore is None else ignore, np.bool_),
            crowd=(np.zeros(size, dtype=bool) if crowd is None else crowd, np.bool_),
        )
        _check_images("the ground truth", columns["image_index"], len(ids))
        if (columns["labels"] < 0).any():
            raise DataError(
                f"label {int(columns['labels'].min())} in the ground truth", remedy="labels are rows, from 0"
            )
        rows = np.minimum(columns["labels"], num_known)
        groups = columns["crowd"]
        return cls(ids, columns["image_index"], table, rows, columns["ignore"] | groups, groups)

    @classmethod
    def from_dataset(cls, dataset: Dataset, space: LabelSpace) -> Self:
        """Build from a data set and the label space of a task; rows are those of its growing layout.

        An image that is listed again comes again, with the same id and objects, after all images.

        Raises:
            DataError: as :meth:`from_arrays`, naming the image.
        """
        space = space.growing
        known = {name: space.row(name) for name in space.known}
        row_of = np.array([known.get(name, space.unknown) for name in dataset.categories], dtype=np.int64)
        images = np.arange(len(dataset))
        listed = dataset.select(np.concatenate([images, np.repeat(images, dataset.listed - 1)]))
        boxes = listed.boxes.astype(np.float64)
        if len(wrong := _wrong_boxes(boxes)):
            image = int(listed.image_index[wrong[0]])
            raise _box_error(
                boxes, int(wrong[0]), int(listed.offsets[image]), "the record", f"image {listed.image_ids[image]!r}"
            )
        ignore = listed.ignore | listed.crowd
        labels = row_of[listed.box_categories]
        return cls(tuple(listed.image_ids), listed.image_index, boxes, labels, ignore, listed.crowd)


@dataclass(frozen=True)
class ScoredBoxes:
    """Detections on the images of a :class:`GroundTruth`.

    Args:
        image_index: (D,) int64, position in the ground truth's ``image_ids``; the first one, if an id is repeated.
        boxes: (D, 4) float64.
        labels: (D,) int64, 0 … K-1 known, K unknown.
        scores: (D,) float64.
    """

    image_index: Whole
    boxes: Reals
    labels: Whole
    scores: Reals

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def from_arrays(cls, image_index: ArrayLike, boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> Self:
        """Build from plain arrays.

        Raises:
            DataError: columns differ in length, a box is invalid, or a score is not finite.
        """
        table, columns = _columns(
            "the detections",
            boxes,
            image_index=(image_index, np.int64),
            labels=(labels, np.int64),
            scores=(scores, np.float64),
        )
        wrong = ~np.isfinite(columns["scores"])
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise DataError(
                f"score {columns['scores'][row]} of detection {row}", remedy="give a finite score for each detection"
            )
        return cls(columns["image_index"], table, columns["labels"], columns["scores"])

    def __getitem__(self, rows: NDArray[Any]) -> ScoredBoxes:
        return ScoredBoxes(self.image_index[rows], self.boxes[rows], self.labels[rows], self.scores[rows])

    def check(self, ground_truth: GroundTruth, num_known: int) -> None:
        """Refuse detections that do not fit the ground truth.

        Raises:
            DataError: an image index is out of range, or a label is neither known nor unknown.
        """
        _check_images("the detections", self.image_index, len(ground_truth.image_ids))
        if self.labels.size and not 0 <= self.labels.min() <= self.labels.max() <= num_known:
            raise DataError(
                f"detections have labels {self.labels.min()} to {self.labels.max()}",
                remedy=f"with {num_known} known classes a label is 0 to {num_known - 1}, or {num_known} for unknown",
            )
