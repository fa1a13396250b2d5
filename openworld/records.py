"""Annotated images in columns: what every reader produces and what training, evaluation, scoring and audit read.

A :class:`Dataset` of I images and N annotated boxes is a handful of flat arrays. ``dataset[i]`` is a :class:`Record`, a
view of one image. What a task may see of a data set (:mod:`openworld.data.splits`), a held-out part and a published
list are selections of its rows.

Boxes are ``x1 y1 x2 y2`` in pixels of the original image, 0-based, with ``x2 - x1`` the width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from openworld.columns import ImageId, IntArray, Names, ends_of, members_of
from openworld.errors import DataError
from openworld.repairs import Repairs

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """One image and everything that is annotated on it; K boxes.

    Args:
        image_id: as in the annotation file (COCO: id; VOC and YOLO: stem of the file).
        path: the image file.
        width: pixels.
        height: pixels.
        boxes: (K, 4) float32, inside the image.
        categories: (K,) int64 positions in ``Dataset.categories``.
        ignore: (K,) bool, crowd or difficult: evaluation neither asks for these boxes nor counts detections on them.
        annotation_ids: (K,) ids of the annotation file, for messages and exports; may be left out.
        crowd: (K,) bool, the box outlines a group (COCO ``iscrowd``): never a training target. Left out: no crowds.
        listed: number of times that the image list names this image; published lists repeat some.
        upright: whether the boxes are of the picture as its EXIF tag turns it; None: the size tells.
        white_level: value of a 16-bit grey image that is white.
    """

    image_id: ImageId
    path: Path
    width: int
    height: int
    boxes: FloatArray
    categories: IntArray
    ignore: BoolArray
    annotation_ids: Sequence[ImageId] = ()
    crowd: BoolArray = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    listed: int = 1
    upright: bool | None = None
    white_level: int = 65535

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if not len(self.crowd):
            object.__setattr__(self, "crowd", np.zeros(count, dtype=np.bool_))
        if self.boxes.shape != (count, 4) or {len(self.categories), len(self.ignore), len(self.crowd)} != {count}:
            raise ValueError(f"record {self.image_id!r}: boxes, categories, ignore and crowd differ in length")
        if len(self.annotation_ids) not in (0, count):
            raise ValueError(f"record {self.image_id!r}: {len(self.annotation_ids)} annotation ids, {count} boxes")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def turned_to(self) -> bool | tuple[int, int]:
        """Which orientation of its file was annotated, as :data:`openworld.runtime.image_headers.Upright`."""
        return (self.width, self.height) if self.upright is None else self.upright


@dataclass(frozen=True, eq=False)
class Dataset:
    """I annotated images with N boxes that share one list of category names.

    Args:
        categories: names.
        image_ids: (I,) as in the annotation file.
        paths: (I,) image files.
        sizes: (I, 2) int64 width, height in pixels.
        listed: (I,) int64, number of times that the image list names an image.
        offsets: (I + 1,) int64; the boxes of image i are ``offsets[i]`` … ``offsets[i + 1] - 1``.
        boxes: (N, 4) float32, inside their images.
        box_categories: (N,) int64 positions in ``categories``.
        ignore: (N,) bool, crowd or difficult.
        crowd: (N,) bool.
        annotation_ids: (N,) as in the annotation file.
        repairs: what was repaired while reading.
        task_images: ids of the images that each task may train on, one set per task, as published lists say. Empty: the
            classes on an image alone decide.
        dropped_files: image files without which their annotations could not be read, so that the images are left out.
        searched: what the reader says of image files that it did not find, such as where it looked; empty: nothing.
        upright: whether the boxes are of the pictures as their EXIF tags turn them; None: the size of each image tells.
        white_level: value of a 16-bit grey image that is white.

    Raises:
        ValueError: columns that do not fit together.
    """

    categories: tuple[str, ...]
    image_ids: Names
    paths: Names
    sizes: IntArray
    listed: IntArray
    offsets: IntArray
    boxes: FloatArray
    box_categories: IntArray
    ignore: BoolArray
    crowd: BoolArray
    annotation_ids: Names
    repairs: Repairs = field(default_factory=Repairs)
    task_images: tuple[frozenset[ImageId], ...] = ()
    dropped_files: tuple[str, ...] = ()
    searched: str = ""
    upright: bool | None = None
    white_level: int = 65535

    def __post_init__(self) -> None:
        images, boxes = len(self.image_ids), len(self.boxes)
        of_images = {len(self.paths), len(self.listed), len(self.offsets) - 1}
        of_boxes = {len(self.box_categories), len(self.ignore), len(self.crowd), len(self.annotation_ids)}
        if (
            of_images != {images}
            or of_boxes != {boxes}
            or self.sizes.shape != (images, 2)
            or self.boxes.shape != (boxes, 4)
        ):
            raise ValueError("the columns of a data set differ in length")
        if self.offsets[0] != 0 or self.offsets[-1] != boxes or (np.diff(self.offsets) < 0).any():
            raise ValueError("the offsets of a data set do not cut its boxes into images")
        if boxes and not 0 <= self.box_categories.min() <= self.box_categories.max() < len(self.categories):
            raise ValueError("a box of a data set has a category that it does not have")

    @classmethod
    def from_records(
        cls,
        categories: Sequence[str],
        records: Iterable[Record],
        repairs: Repairs | None = None,
        task_images: tuple[frozenset[ImageId], ...] = (),
    ) -> Self:
        """Build the columns from single images, for formats that are read image by image.

        A record without annotation ids gets the positions of its boxes in the data set.

        Raises:
            ValueError: records that are to be decoded in different ways.
        """
        rows = list(records)
        decoding = {(row.upright, row.white_level) for row in rows} or {(None, 65535)}
        if len(decoding) > 1:
            raise ValueError("the records of a data set differ in upright or white_level")
        upright, white_level = decoding.pop()
        annotation_ids: list[ImageId] = []
        for row in rows:
            first = len(annotation_ids)
            annotation_ids += row.annotation_ids if len(row.annotation_ids) else range(first, first + len(row))

        def joined(columns: list[NDArray[Any]], dtype: type, *shape: int) -> NDArray[Any]:
            return np.concatenate([np.zeros((0, *shape), dtype=dtype), *columns], dtype=dtype, casting="same_kind")

        return cls(
            categories=tuple(categories),
            image_ids=Names(row.image_id for row in rows),
            paths=Names(str(row.path) for row in rows),
            sizes=np.array([(row.width, row.height) for row in rows], dtype=np.int64).reshape(-1, 2),
            listed=np.array([row.listed for row in rows], dtype=np.int64),
            offsets=ends_of(np.array([len(row) for row in rows], dtype=np.int64)),
            boxes=joined([row.boxes for row in rows], np.float32, 4),
            box_categories=joined([row.categories for row in rows], np.int64),
            ignore=joined([row.ignore for row in rows], np.bool_),
            crowd=joined([row.crowd for row in rows], np.bool_),
            annotation_ids=Names(annotation_ids),
            repairs=Repairs() if repairs is None else repairs,
            task_images=task_images,
            upright=upright,
            white_level=white_level,
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Record:
        """One image; the arrays of the record are views of the columns."""
        place = range(len(self))[index]
        boxes = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
        width, height = self.sizes[place].tolist()
        return Record(
            image_id=self.image_ids[place],
            path=Path(str(self.paths[place])),
            width=width,
            height=height,
            boxes=self.boxes[boxes],
            categories=self.box_categories[boxes],
            ignore=self.ignore[boxes],
            annotation_ids=self.annotation_ids[boxes],
            crowd=self.crowd[boxes],
            listed=int(self.listed[place]),
            upright=self.upright,
            white_level=self.white_level,
        )

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    @cached_property
    def position_of(self) -> dict[ImageId, int]:
        """Image id to the position of the image."""
        return {image_id: position for position, image_id in enumerate(self.image_ids)}

    @property
    def num_annotations(self) -> int:
        """Number of boxes."""
        return len(self.boxes)

    @property
    def image_index(self) -> IntArray:
        """(N,) position of the image of each box."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def find(self, image_id: ImageId) -> Record:
        """The image with an id.

        Raises:
            KeyError: there is none.
        """
        return self[self.position_of[image_id]]

    def select(self, images: ArrayLike, boxes: BoolArray | None = None) -> Dataset:
        """Copy some of the images, in the given order, an image as often as it is given.

        Args:
            images: (M,) positions.
            boxes: (N,) bool, boxes that are copied; the others are not in the result. None: all.
        """
        chosen = np.asarray(images, dtype=np.int64)
        rows, offsets = members_of(self.offsets, chosen)
        if boxes is not None:
            kept = boxes[rows]
            rows = rows[kept]
            offsets = ends_of(kept.astype(np.int64))[offsets]
        return replace(
            self,
            image_ids=self.image_ids.take(chosen),
            paths=self.paths.take(chosen),
            sizes=self.sizes[chosen],
            listed=self.listed[chosen],
            offsets=offsets,
            boxes=self.boxes[rows],
            box_categories=self.box_categories[rows],
            ignore=self.ignore[rows],
            crowd=self.crowd[rows],
            annotation_ids=self.annotation_ids.take(rows),
        )

    def as_json(self) -> dict[str, Any]:
        """Counts and repairs, for data.json of a run."""
        return {"images": len(self), "annotations": self.num_annotations, **self.repairs.as_json()}


def renamed(dataset: Dataset, names: Mapping[str, str], categories: Sequence[str] | None = None) -> Dataset:
    """Rename categories; those that get one name become one category.

    Args:
        dataset: as read.
        names: names of the annotation files to those of the schedule; other names stay.
        categories: all names afterwards, in their order. None: those that occur, in the order of the data set.
    """
    after = [names.get(name, name) for name in dataset.categories]
    categories = tuple(dict.fromkeys(after if categories is None else categories))
    place_of = np.array([categories.index(name) for name in after], dtype=np.int64)
    return replace(dataset, categories=categories, box_categories=place_of[dataset.box_categories])


def merged(parts: Sequence[Dataset]) -> Dataset:
    """Join data sets of different images; categories of one name become one. Without parts: no images.

    Raises:
        ValueError: parts whose images are to be decoded in different ways.
    """
    if not parts:
        return Dataset.from_records((), ())
    decoding = {(part.upright, part.white_level) for part in parts}
    if len(decoding) > 1:
        raise ValueError("data sets that are joined differ in upright or white_level")
    upright, white_level = decoding.pop()
    categories = tuple(dict.fromkeys(name for part in parts for name in part.categories))
    unified = [renamed(part, {}, categories) for part in parts]
    repairs = Repairs()
    for part in parts:
        repairs.extend(part.repairs)
    columns: dict[str, Any] = {}
    for column in ("image_ids", "paths", "annotation_ids"):
        columns[column] = Names.joined([getattr(part, column) for part in unified])
    for column in ("sizes", "listed", "boxes", "box_categories", "ignore", "crowd"):
        columns[column] = np.concatenate([getattr(part, column) for part in unified])
    return Dataset(
        categories=categories,
        offsets=ends_of(np.concatenate([np.diff(part.offsets) for part in parts])),
        repairs=repairs,
        dropped_files=tuple(file for part in parts for file in part.dropped_files),
        searched="; ".join(dict.fromkeys(part.searched for part in parts if part.searched)),
        upright=upright,
        white_level=white_level,
        **columns,
    )


def check_files(dataset: Dataset, where: object) -> Dataset:
    """Return the data set if all of its image files exist.

    Args:
        dataset: as read.
        where: what the user named: the annotations or a folder, for the message.

    Raises:
        DataError: image files are missing; the message names the first few.
    """
    missing = [*dataset.dropped_files, *(str(path) for path in dataset.paths if not file_exists(str(path)))]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        searched = f" ({dataset.searched})" if dataset.searched else ""
        raise DataError(
            f"{len(missing)} of {len(dataset) + len(dataset.dropped_files)} images do not exist: {shown}{searched}",
            where=str(where),
            remedy="set `images` to the folder that file names are relative to, correct the list, or fetch the images",
        )
    return dataset


def file_exists(path: str | Path) -> bool:
    """Whether there is such a file. False, too, for a name that no file can have; ``Path.is_file`` raises there."""
    return os.path.isfile(path)  # noqa: PTH113
