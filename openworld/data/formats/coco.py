"""COCO annotation files.

I images, N boxes.

What the reader does with defects:

=====================================================  ===========================================================
not JSON, no images/categories/annotations list; a     AnnotationError
file of another tool, a panoptic or an LVIS file
record without id, file_name, name, image_id or        AnnotationError naming file, record and field
category_id; a value that is not a number; a bbox
that is not four of them, or is x1 y1 x2 y2 by the
areas or the sizes of the images
image id or category id given twice                    AnnotationError
file_name that climbs out of the folder of the images  AnnotationError
or lies on a drive, in the form of any system; one
that is absolute and not inside that folder
id, name or file_name with half a surrogate pair       AnnotationError
byte order mark, UTF-16, numbers written as text,      read
id 0, symbolic links in the folder of the images,
absolute file_name inside that folder
images in another folder, see                          found, where nobody names the folder
:mod:`openworld.data.formats.image_folder`
file_name that is a URL                                kept; such a file does not exist
file_name with backslashes, a leading slash, a query,  read so where only the file of that name exists, counted
``%20``, in the other Unicode form, in other case
two such names for one file that only a query or the   AnnotationError
case tells apart
file_name that repeats the folder that was named       read, counted
a key given twice in one record                        read; the last counts, as JSON readers do
iscrowd, area or annotation id missing                 read; area is not used, ids become the position
width or height missing or not positive                read from the image file or, without it, the extent of the
                                                       boxes; counted
the same, and the image file has an EXIF tag           the stored size, unless ``orientation`` is ``upright``; counted
                                                       on its own
photographs with an EXIF orientation tag               turned where width and height are those of the turned picture
image_id or category_id of another type ("7" for 7)    matched, counted
image_id or category_id that nothing has               annotation dropped, counted
category name that is a number, true or false          read as the text that stands in the file, counted
two categories of one name                             merged, counted
bbox missing, null, empty or 0 0 0 0                   taken from the polygon or the mask, counted; without
                                                       either the annotation is dropped, counted
no annotation of a file with a box                     AnnotationError
two images with one file_name                          kept, counted
coordinates that are not finite, huge or inverted,     dropped or clipped, counted:
other boxes                                            :func:`openworld.data.boxes.clean_boxes`
=====================================================  ===========================================================
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openworld.columns import ImageId, IntArray, Names
from openworld.data.boxes import clean_boxes
from openworld.data.formats import Reader
from openworld.data.formats.cache import cached
from openworld.data.formats.coco_boxes import box_of, check_order
from openworld.data.formats.coco_fields import (
    Where,
    check_object,
    flag_of,
    identifier_of,
    number_of,
    referred,
    required,
)
from openworld.data.formats.coco_file import decode_file, one_set
from openworld.data.formats.file_names import check_name, is_encodable
from openworld.data.formats.image_folder import locate_images
from openworld.data.formats.sizes import found_size, size_text, usable_size
from openworld.errors import AnnotationError
from openworld.records import Dataset
from openworld.repairs import Repairs


def read_coco(
    path: Path,
    images: Path | None = None,
    image_set: str | None = None,
    *,
    whole_pixels: bool = False,
    cache: Path | None = None,
    upright: bool | None = None,
) -> Dataset:
    """Read a COCO detection file.

    Args:
        path: the .json file.
        images: folder that file names are relative to. Default: the first of those in which tools put the images that
            holds them (:mod:`openworld.data.formats.image_folder`), or else ``images/`` beside the file, or its folder.
        image_set: ``field=value`` takes the images that have this value, for files that hold several sets.
        whole_pixels: widen boxes as :func:`widen_to_pixels` does, before those that are too thin are dropped.
        cache: folder for parsed annotations. None: parse them.
        upright: whether the pictures were annotated as their EXIF tags turn them; None: the annotated sizes tell.

    Raises:
        AnnotationError: see the table above.
        DataError: an image file whose size is needed cannot be read.
    """
    path = Path(path)

    def parse() -> Dataset:
        with _without_collections():
            return _parse(path, images, image_set, whole_pixels, upright)

    settings = {"format": "coco", "set": image_set, "whole pixels": whole_pixels}
    dataset = cached(cache, path, settings, {str(path): 1}, parse)
    # The cache does not keep where the image files lie.
    located = locate_images(path, images, [str(name) for name in dataset.paths], dataset.repairs)
    return replace(dataset, paths=Names(located.paths), searched=located.searched, upright=upright)


READER = Reader(
    detects=lambda path: path.is_file() and path.suffix.lower() == ".json",
    read=lambda place: read_coco(
        place.annotations, place.images, place.image_set, cache=place.cache, upright=place.upright
    ),
)


class _Annotation(NamedTuple):
    """One annotation: positions of its image and category, corners x1 y1 x2 y2, flags, id."""

    image: int
    category: int
    box: tuple[float, float, float, float]
    crowd: bool
    ignore: bool
    identifier: ImageId


def _parse(path: Path, images: Path | None, image_set: str | None, whole_pixels: bool, upright: bool | None) -> Dataset:
    """The data set of a file; its paths are the file names as they are written there."""
    root = decode_file(path)
    if image_set is not None:
        root = one_set(root, image_set, path)
    repairs = Repairs()
    categories, category_of = _categories(root["categories"], path, repairs)
    entries = _images(root["images"], path, repairs)
    image_ids = list(entries)
    declared = [
        _declared_size(entry, Where(path, "images", number, entry)) for number, entry in enumerate(entries.values())
    ]

    # Columns of all annotations, image after image, each image's in the order of the file.
    found = _annotations(root["annotations"], path, image_ids, declared, category_of, repairs)
    found.sort(key=lambda annotation: annotation.image)
    image_index = np.array([annotation.image for annotation in found], dtype=np.int64)
    boxes = np.array([annotation.box for annotation in found], dtype=np.float64).reshape(-1, 4)

    # The size of each image, from its record or else from elsewhere.
    bounds = np.searchsorted(image_index, np.arange(len(entries) + 1)).tolist()
    names = [entry["file_name"] for entry in entries.values()]
    files = locate_images(path, images, names, Repairs()).paths if None in declared else names
    sizes = np.ones((len(entries), 2), dtype=np.int64)
    for number, entry in enumerate(entries.values()):
        sizes[number] = declared[number] or found_size(
            Path(files[number]),
            boxes[bounds[number] : bounds[number + 1]],
            f"{Where(path, 'images', number, entry)} declares {size_text(entry.get('width'), entry.get('height'))}",
            repairs,
            upright=upright,
        )

    # The policy for boxes, and the columns of those that stay.
    def describe(number: int) -> str:
        image_id = image_ids[found[number].image]
        return f"{path.name}, image {image_id!r}, annotation {found[number].identifier!r}"

    width, height = sizes[image_index, 0], sizes[image_index, 1]
    if whole_pixels:
        boxes = widen_to_pixels(boxes, width, height)
    cleaned, kept = clean_boxes(boxes, width, height, repairs, describe)
    chosen = [found[number] for number in kept.tolist()]
    return Dataset(
        categories=categories,
        image_ids=Names(image_ids),
        paths=Names(names),
        sizes=sizes,
        listed=np.ones(len(entries), dtype=np.int64),
        offsets=np.searchsorted(image_index[kept], np.arange(len(entries) + 1)).astype(np.int64),
        boxes=cleaned,
        box_categories=np.array([annotation.category for annotation in chosen], dtype=np.int64),
        ignore=np.array([annotation.ignore for annotation in chosen], dtype=np.bool_),
        crowd=np.array([annotation.crowd for annotation in chosen], dtype=np.bool_),
        annotation_ids=Names(annotation.identifier for annotation in chosen),
        repairs=repairs,
    )


def _annotations(
    entries: Sequence[Any],
    path: Path,
    image_ids: Sequence[ImageId],
    sizes: Sequence[tuple[int, int] | None],
    category_of: Mapping[ImageId, int],
    repairs: Repairs,
) -> list[_Annotation]:
    """The annotations that have a box and whose image and category exist, in the order of the file."""
    position_of = {image_id: position for position, image_id in enumerate(image_ids)}
    found: list[_Annotation] = []
    seen: set[ImageId] = set()
    any_box = not entries
    check_order(entries, path, dict(zip(image_ids, sizes, strict=True)))
    for position, entry in enumerate(entries):
        where = Where(path, "annotations", position, entry)
        check_object(entry, where)
        identifier = identifier_of(entry["id"], "id", where) if entry.get("id") is not None else position
        if identifier in seen:
            repairs.add("annotation id given twice", str(where))
        seen.add(identifier)
        crowd = flag_of(entry.get("iscrowd"), "iscrowd", where)
        ignore = crowd or flag_of(entry.get("ignore"), "ignore", where)
        image = referred(required(entry, "image_id", where), position_of, "image_id", where, repairs)
        category = referred(required(entry, "category_id", where), category_of, "category_id", where, repairs)
        box = box_of(entry, where, None if image is None else sizes[image], repairs)
        any_box |= box is not None
        if image is not None and category is not None and box is not None:
            found.append(_Annotation(image, category, box, crowd, ignore, identifier))
    if not any_box:
        raise AnnotationError(
            f"none of its {len(entries)} annotations has a box, a polygon or a mask of its image",
            where=str(path),
            remedy="give a detection file, whose annotations have bbox: [x, y, width, height]",
        )
    return found


def widen_to_pixels(boxes: NDArray[np.float64], width: int | IntArray, height: int | IntArray) -> NDArray[np.float64]:
    """Boxes as the published conversion to XML and its reader leave them, here cut at the image's border.

    The XML files have int(x + 1), int(y + 1), int(x + w + 1), int(y + h + 1), and the reader takes 1 off the first two:
    floor(x1), floor(y1), floor(x2) + 1, floor(y2) + 1. So no box is thinner than a pixel.

    Args:
        boxes: (N, 4) float64 x1 y1 x2 y2.
        width: of the image, pixels; or (N,) of each box's image.
        height: of the image, pixels; or (N,) of each box's image.
    """
    widened = np.floor(boxes)
    widened[:, 2:] += 1
    widened[:, 2] = np.minimum(widened[:, 2], width)
    widened[:, 3] = np.minimum(widened[:, 3], height)
    return widened


def coco_category_names(path: Path) -> dict[int, str]:
    """Return category id to category name, as a results file of the same data set uses the ids.

    Args:
        path: a COCO detection file, such as the ground truth.

    Raises:
        AnnotationError: the file is not a COCO detection file, or a category id is not a whole number.
    """
    path = Path(path)
    names, category_of = _categories(decode_file(path)["categories"], path, Repairs())
    found: dict[int, str] = {}
    for identifier, position in category_of.items():
        if isinstance(identifier, str) and not (identifier.strip().isdecimal() and len(identifier) < 20):
            raise AnnotationError(
                f"category id {identifier!r} of {names[position]!r} is not a whole number",
                where=str(path),
                remedy="number the categories; results refer to them by number",
            )
        if int(identifier) in found:
            raise AnnotationError(
                f"category id {identifier!r} is given twice", where=str(path), remedy="make ids unique"
            )
        found[int(identifier)] = names[position]
    return found


def _categories(entries: list[Any], path: Path, repairs: Repairs) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Names in the order of the file, and category id to position."""
    positions: dict[str, int] = {}
    category_of: dict[int | str, int] = {}
    for position, entry in enumerate(entries):
        where = Where(path, "categories", position)
        check_object(entry, where)
        identifier = identifier_of(required(entry, "id", where), "id", where)
        name = required(entry, "name", where)
        if isinstance(name, int) or (isinstance(name, float) and math.isfinite(name)):
            # true and false were perhaps yes and no, which the file no longer says.
            repairs.add("category name that is not a text", f"{where} is called {json.dumps(name)}")
            name = json.dumps(name)
        if not isinstance(name, str) or not name.strip() or not is_encodable(name):
            raise AnnotationError(f"name is {name!r}", where=str(where), remedy="give every category a name")
        if identifier in category_of:
            problem = f"category id {identifier!r} is given twice"
            raise AnnotationError(problem, where=str(where), remedy="make category ids unique")
        name = name.strip()
        if name in positions:
            repairs.add("categories of one name merged", f"{where} is another {name!r}")
        category_of[identifier] = positions.setdefault(name, len(positions))
    return tuple(positions), category_of


def _images(entries: list[Any], path: Path, repairs: Repairs) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    files: dict[str, int | str] = {}
    for position, entry in enumerate(entries):
        where = Where(path, "images", position)
        check_object(entry, where)
        identifier = identifier_of(required(entry, "id", where), "id", where)
        if identifier in found:
            raise AnnotationError(
                f"image id {identifier!r} is given twice", where=str(where), remedy="make image ids unique"
            )
        file_name = required(entry, "file_name", where)
        check_name(file_name, where)
        if file_name in files:
            repairs.add("images with one file_name", f"{path}, images {files[file_name]!r} and {identifier!r}")
        files.setdefault(file_name, identifier)
        found[identifier] = entry
    return found


def _declared_size(entry: dict[str, Any], where: Where) -> tuple[int, int] | None:
    """Width and height in pixels as the record says, or None if it does not say or cannot be right."""
    if entry.get("width") is None or entry.get("height") is None:
        return None
    return usable_size(*(number_of(entry[key], key, where) for key in ("width", "height")))


@contextmanager
def _without_collections() -> Iterator[None]:
    """Keep the garbage collector off: of millions of new containers none is garbage, and it would look at all."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
