"""Validated annotations: what every reader produces, and the one policy for boxes.

N boxes on an image. Boxes are ``x1 y1 x2 y2`` in pixels, 0-based, with ``x2 - x1`` the width.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openworld.data.options import SourceOptions
from openworld.errors import DataError

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MAX_COORDINATE = 1e6
"""Pixels. Larger coordinates are taken for damage."""
MIN_SIDE = 1.0
"""Pixels. Boxes that are thinner inside their image are dropped."""
CLIP_TOLERANCE = 0.1
"""Pixels. A box that leaves the image by less is clipped without being counted: annotation tools round."""


@dataclass
class Repairs:
    """What was repaired while reading: how often, and the first cases in words."""

    MAX_EXAMPLES = 20

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, message: str) -> None:
        """Count one repair; the message names file, record and value."""
        self.counts[kind] += 1
        if len(self.examples) < self.MAX_EXAMPLES:
            self.examples.append(f"{kind}: {message}")

    def as_json(self) -> dict[str, Any]:
        return {"repairs": dict(sorted(self.counts.items())), "examples": list(self.examples)}


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """One image and everything that is annotated on it.

    Args:
        image_id: as in the annotation file (COCO: id, VOC and YOLO: stem of the file).
        path: the image file.
        width: pixels.
        height: pixels.
        boxes: (N, 4) float32, inside the image.
        categories: (N,) int64 positions in ``Dataset.categories``.
        ignore: (N,) bool, crowd or difficult: evaluation neither asks for these boxes nor counts detections on them.
        annotation_ids: (N,) ids of the annotation file, for messages and exports.
        crowd: (N,) bool, the box outlines a group (COCO ``iscrowd``): never a training target. None: no crowds.
        listed: how often the image list names this image; published lists repeat some.
    """

    image_id: int | str
    path: Path
    width: int
    height: int
    boxes: FloatArray
    categories: IntArray
    ignore: BoolArray
    annotation_ids: tuple[int | str, ...] = ()
    crowd: BoolArray | None = None
    listed: int = 1

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or len(self.categories) != count or len(self.ignore) != count:
            raise ValueError(f"record {self.image_id!r}: boxes, categories and ignore differ in length")
        if self.annotation_ids and len(self.annotation_ids) != count:
            raise ValueError(f"record {self.image_id!r}: {len(self.annotation_ids)} annotation ids, {count} boxes")

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Records that share one list of category names.

    Args:
        categories: names.
        records: images.
        repairs: what was repaired while reading.
        task_images: ids of the images that each task may train on, one set a task, as published lists say. Empty: the
            classes on an image alone decide.
    """

    categories: tuple[str, ...]
    records: tuple[Record, ...]
    repairs: Repairs = field(default_factory=Repairs)
    task_images: tuple[frozenset[int | str], ...] = ()

    @cached_property
    def by_id(self) -> dict[int | str, Record]:
        return {record.image_id: record for record in self.records}

    @property
    def num_annotations(self) -> int:
        return sum(len(record) for record in self.records)

    def as_json(self) -> dict[str, Any]:
        """Counts and repairs, for data.json of a run."""
        return {"images": len(self.records), "annotations": self.num_annotations, **self.repairs.as_json()}


def clean_boxes(
    boxes: NDArray[np.float64],
    width: int | IntArray,
    height: int | IntArray,
    repairs: Repairs,
    describe: Callable[[int], str],
) -> tuple[FloatArray, IntArray]:
    """The one policy for boxes; nothing else in the project drops or changes an annotated box.

    Dropped and counted: a coordinate that is not finite (it would crash ``roi_align``), a coordinate beyond
    ``MAX_COORDINATE``, an inverted box, a box wholly outside the image, a box thinner than ``MIN_SIDE`` inside it.
    Clipped and counted: a box partly outside.

    Args:
        boxes: (N, 4) float64 x1 y1 x2 y2, any values.
        width: of the image, pixels; or (N,) of each box's image.
        height: of the image, pixels; or (N,) of each box's image.
        repairs: counts what happens.
        describe: names box ``n`` in messages (file, image, annotation).

    Returns:
        boxes (M, 4) float32 inside the image with sides >= ``MIN_SIDE``, and (M,) int64 their positions in the input.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    limits = np.empty_like(boxes)
    limits[:, 0::2] = np.reshape(width, (-1, 1))
    limits[:, 1::2] = np.reshape(height, (-1, 1))
    clipped = np.clip(boxes, 0.0, limits).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        sides = clipped[:, 2:] - clipped[:, :2]
        suspect = ~(np.abs(clipped - boxes).max(axis=1) <= CLIP_TOLERANCE) | ~(sides >= MIN_SIDE).all(axis=1)
    kept = np.ones(len(boxes), dtype=np.bool_)
    for number in np.flatnonzero(suspect).tolist():
        box = boxes[number]
        image = f"image {limits[number, 0]:.0f}x{limits[number, 1]:.0f}"
        problem = _problem(box, clipped[number])
        if problem is not None:
            repairs.add(f"dropped: {problem}", f"{describe(number)} has the box {_text(box)}, {image}")
            kept[number] = False
        else:
            repairs.add("clipped to the image", f"{describe(number)} has the box {_text(box)}, {image}")
    return clipped[kept], np.flatnonzero(kept).astype(np.int64)


def _problem(box: NDArray[np.float64], clipped: FloatArray) -> str | None:
    """Why a box cannot be used, or None."""
    if not np.isfinite(box).all():
        return "coordinate not finite"
    if np.abs(box).max() > MAX_COORDINATE:
        return f"coordinate beyond {MAX_COORDINATE:.0e}"
    if box[2] < box[0] or box[3] < box[1]:
        return "inverted"
    if box[2] == box[0] or box[3] == box[1]:
        return "without area"
    sides = clipped[2:] - clipped[:2]
    if (sides <= 0).any():
        return "outside the image"
    if (sides < MIN_SIDE).any():
        return f"thinner than {MIN_SIDE:g} px"
    return None


def _text(box: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"


def size_of_boxes(boxes: NDArray[np.float64]) -> tuple[int, int]:
    """Width and height in pixels of the smallest image, at least 1 x 1, that holds all usable boxes.

    Args:
        boxes: (N, 4) float64 x1 y1 x2 y2; those with a coordinate that is not finite or beyond ``MAX_COORDINATE``
            do not count.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    usable = boxes[(np.abs(boxes) <= MAX_COORDINATE).all(axis=1)]
    right, bottom = usable[:, 2:].max(axis=0, initial=1.0)
    return math.ceil(right), math.ceil(bottom)


def read_dataset(
    source: SourceOptions, rename: Mapping[str, str] | None = None, *, need_images: bool = True
) -> Dataset:
    """Read and validate one annotated set of images.

    Args:
        source: where and in which format.
        rename: class names of the files to the names that the schedule uses. Two names may become one.
        need_images: False, image files may be missing: scoring needs the annotations only. Where then the annotations
            do not say the size of an image, it is the extent of the boxes, which is counted as a repair.

    Raises:
        DataError: files that are missing or cannot be used; the readers' docstrings say what is repaired instead.
    """
    from openworld.data.formats.cache import AnnotationCache  # these build on this module
    from openworld.data.formats.coco import read_coco
    from openworld.data.formats.voc import read_voc
    from openworld.data.formats.yolo import is_yolo, read_yolo

    if source.annotations is None:
        raise DataError("no annotations given", remedy="name a COCO .json file, a VOC folder or a YOLO data.yaml")
    path = Path(source.annotations)
    if not path.exists():
        raise DataError("no such file or folder", where=str(path), remedy="check the path of the annotations")
    format = source.format
    if format == "auto":
        if path.is_file() and path.suffix.lower() == ".json":
            format = "coco"
        elif (path / "Annotations").is_dir():
            format = "voc"
        elif is_yolo(path):
            format = "yolo"
        else:
            raise DataError(
                "neither a .json file, nor a data.yaml, nor a folder with Annotations/ or labels/ in it",
                where=str(path),
                remedy="give a COCO .json file, a VOC folder or a YOLO data.yaml, or set `format`",
            )
    images = Path(source.images) if source.images is not None else None
    cache = AnnotationCache.of_user() if source.cache else None
    if format == "coco":
        return read_coco(path, images, rename, image_set=source.image_set, need_images=need_images, cache=cache)
    if format == "voc":
        return read_voc(path, images, source.image_set, rename, need_images=need_images, cache=cache)
    return read_yolo(path, images, source.image_set, rename, need_images=need_images)


def file_exists(path: str | Path) -> bool:
    """Whether there is such a file. False, too, for a name that no file can have; ``Path.is_file`` raises there."""
    return os.path.isfile(path)  # noqa: PTH113


def check_files(files: Sequence[Path], where: Path) -> None:
    """Raise DataError if images are missing, naming the first few."""
    missing = [str(file) for file in files if not file_exists(file)]
    if missing:
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(files)} images do not exist: {shown}",
            where=str(where),
            remedy="set `images` to the folder that file names are relative to, correct the list, or fetch the images",
        )
