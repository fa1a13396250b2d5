"""COCO annotation files: reader and writer.

What the reader does with defects:

=====================================================  ===========================================================
not JSON, no images/categories/annotations list        AnnotationError
record without id, file_name, name, image_id,          AnnotationError naming file, record and field
category_id or bbox; a number that is no number
image id or category id given twice                    AnnotationError
file_name that is absolute or climbs out of the root,  AnnotationError
in the form of any system
id, name or file_name with half a surrogate pair       AnnotationError
image file that does not exist                         DataError naming the first few, if images are needed
byte order mark, numbers written as text, id 0,        read
symbolic links in the folder of the images
a key given twice in one record                        read; the last counts, as JSON readers do
iscrowd, area or annotation id missing                 read; area is not used, ids become the position
width or height missing or not positive                read from the image file or, without it, the extent of the
                                                       boxes; counted
image_id or category_id of another type ("7" for 7)    matched, counted
image_id or category_id that nothing has               annotation dropped, counted
two categories of one name                             merged, counted
two images with one file_name                          kept, counted
coordinates that are not finite, huge or inverted,     dropped or clipped, counted:
other boxes                                            :func:`openworld.data.records.clean_boxes`
=====================================================  ===========================================================
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from openworld.data.formats.cache import AnnotationCache, AnnotationTable
from openworld.data.records import Dataset, IntArray, Repairs, check_files, clean_boxes, file_exists, size_of_boxes
from openworld.errors import AnnotationError
from openworld.runtime.files import write_json
from openworld.runtime.images import image_size

Value = TypeVar("Value")

_HARMLESS = re.compile(r"\w[\w-]*(\.\w+)*")
"""File names that need no further look; nearly all are such."""


def read_coco(
    path: Path,
    images: Path | None = None,
    rename: Mapping[str, str] | None = None,
    *,
    image_set: str | None = None,
    need_images: bool = True,
    whole_pixels: bool = False,
    cache: AnnotationCache | None = None,
) -> Dataset:
    """Read a COCO detection file.

    Args:
        path: the .json file.
        images: folder that file names are relative to. Default: ``images/`` beside the file, or else its folder.
        rename: category names to the names that the schedule uses.
        image_set: ``field=value`` takes the images that have this value, for files that hold several sets.
        need_images: False, image files may be missing.
        whole_pixels: boxes as :func:`widen_to_pixels` makes them, before those that are too thin are dropped.
        cache: where parsed annotations are kept. None: nowhere.

    Raises:
        AnnotationError: see the table above.
        DataError: image files that are missing or, where their size is needed, cannot be read.
    """
    path, renamed = Path(path), rename or {}
    if images is None:
        images = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    content, folder = _read_bytes(path), images

    def parse() -> AnnotationTable:
        return _parse(content, path, folder, renamed, image_set, whole_pixels)

    if cache is None:
        table = parse()
    else:
        digest = hashlib.sha256(content).hexdigest()
        settings = {"rename": dict(renamed), "set": image_set, "whole pixels": whole_pixels}
        table = cache.get("coco", path, settings, lambda: digest, parse)
    records = table.records(images / name for name in table.files)
    if need_images:
        check_files([record.path for record in records], path)
    return Dataset(table.categories, records, table.repairs)


def _parse(
    content: bytes, path: Path, images: Path, rename: Mapping[str, str], image_set: str | None, whole_pixels: bool
) -> AnnotationTable:
    root = _decode(content, path)
    if image_set is not None:
        root = _one_set(root, image_set, path)
    repairs = Repairs()
    names, category_of = _categories(root["categories"], path, repairs, rename)
    entries = _images(root["images"], path, repairs)
    position_of: dict[int | str, int] = {image_id: number for number, image_id in enumerate(entries)}

    owners: list[int] = []
    corners: list[tuple[float, float, float, float]] = []
    categories: list[int] = []
    crowds: list[bool] = []
    ignored: list[bool] = []
    annotation_ids: list[int | str] = []
    seen: set[int | str] = set()
    for position, entry in enumerate(root["annotations"]):
        where = _Place(path, "annotations", position)
        _check_object(entry, where)
        annotation_id = _identifier(entry["id"], "id", where) if entry.get("id") is not None else position
        where.name = annotation_id
        if annotation_id in seen:
            repairs.add("annotation id given twice", str(where))
        seen.add(annotation_id)
        box = _box(entry, where)
        crowd = _flag(entry.get("iscrowd"), "iscrowd", where)
        ignore = crowd or _flag(entry.get("ignore"), "ignore", where)
        image_id = _resolve(_required(entry, "image_id", where), position_of, "image_id", where, repairs)
        category_id = _resolve(_required(entry, "category_id", where), category_of, "category_id", where, repairs)
        if image_id is None or category_id is None:
            continue
        owners.append(position_of[image_id])
        corners.append(box)
        categories.append(category_of[category_id])
        crowds.append(crowd)
        ignored.append(ignore)
        annotation_ids.append(annotation_id)

    owner = np.array(owners, dtype=np.int64)
    order = np.argsort(owner, kind="stable")  # image after image, each in the order of the file
    owner, given = owner[order], np.array(corners, dtype=np.float64).reshape(-1, 4)[order]
    bounds = np.searchsorted(owner, np.arange(len(entries) + 1))
    sizes, from_images = np.ones((len(entries), 2), dtype=np.int64), False
    for number, (image_id, entry) in enumerate(entries.items()):
        declared = _declared_size(entry, _Place(path, "images", number, image_id))
        if declared is None:
            own, where = given[bounds[number] : bounds[number + 1]], _Place(path, "images", number, image_id)
            declared, from_images = _found_size(entry, images / entry["file_name"], own, where, repairs), True
        sizes[number] = declared

    image_ids = list(entries)

    def describe(number: int) -> str:
        return f"{path.name}, image {image_ids[owner[number]]!r}, annotation {annotation_ids[order[number]]!r}"

    width, height = sizes[owner, 0], sizes[owner, 1]
    given = widen_to_pixels(given, width, height) if whole_pixels else given
    boxes, kept = clean_boxes(given, width, height, repairs, describe)
    chosen = order[kept]
    return AnnotationTable(
        categories=names,
        image_ids=image_ids,
        files=[entry["file_name"] for entry in entries.values()],
        sizes=sizes,
        listed=np.ones(len(entries), dtype=np.int64),
        offsets=np.searchsorted(owner[kept], np.arange(len(entries) + 1)).astype(np.int64),
        boxes=boxes,
        box_categories=np.array(categories, dtype=np.int64)[chosen],
        ignore=np.array(ignored, dtype=np.bool_)[chosen],
        crowd=np.array(crowds, dtype=np.bool_)[chosen],
        annotation_ids=[annotation_ids[number] for number in chosen.tolist()],
        repairs=repairs,
        from_images=from_images,
    )


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


def _one_set(root: dict[str, Any], image_set: str, path: Path) -> dict[str, Any]:
    """The file as if it held only the images whose field has the value, ``field=value``, and their annotations."""
    field, equals, value = image_set.partition("=")
    entries = [entry for entry in root["images"] if isinstance(entry, dict)]
    chosen = [entry for entry in entries if str(entry.get(field)) == value]
    if not equals or not chosen:
        found = sorted({str(entry[field]) for entry in entries if field in entry})[:12]
        raise AnnotationError(
            f"image_set={image_set!r} chooses no image",
            where=str(path),
            remedy=f"write field=value; {field!r} is {' or '.join(found)}"
            if found
            else "write field=value, such as fold=train, with a field that the images have; or leave it out",
        )
    others = {str(entry.get("id")) for entry in entries} - {str(entry.get("id")) for entry in chosen}
    annotations = [
        entry
        for entry in root["annotations"]
        if not isinstance(entry, dict) or str(entry.get("image_id")) not in others
    ]
    return {**root, "images": chosen, "annotations": annotations}


def coco_category_names(path: Path, rename: Mapping[str, str] | None = None) -> dict[int, str]:
    """Category id to class name, as a results file of the same data set uses the ids.

    Args:
        path: a COCO detection file, such as the ground truth.
        rename: category names to the names that the schedule uses.

    Raises:
        AnnotationError: a file that is no COCO detection file, or a category id that is no whole number.
    """
    path = Path(path)
    names, category_of = _categories(_decode(_read_bytes(path), path)["categories"], path, Repairs(), rename or {})
    found: dict[int, str] = {}
    for identifier, position in category_of.items():
        if isinstance(identifier, str) and not (identifier.strip().isdecimal() and len(identifier) < 20):
            raise AnnotationError(
                f"category id {identifier!r} of {names[position]!r} is no whole number",
                where=str(path),
                remedy="number the categories; results refer to them by number",
            )
        if int(identifier) in found:
            raise AnnotationError(
                f"category id {identifier!r} is given twice", where=str(path), remedy="make ids unique"
            )
        found[int(identifier)] = names[position]
    return found


def write_coco(path: Path, dataset: Dataset, images: Path) -> None:
    """Write a data set as a COCO file. Category ids count from 1, annotation ids as the records have them.

    Args:
        path: the .json file, replaced atomically.
        dataset: difficult boxes are written with ``ignore: 1``.
        images: folder that file names become relative to.
    """
    annotations: list[dict[str, Any]] = []
    for record in dataset.records:
        crowd = record.crowd if record.crowd is not None else np.zeros(len(record), dtype=np.bool_)
        for number, corners in enumerate(record.boxes.astype(np.float64).tolist()):
            x1, y1, x2, y2 = corners
            entry = {
                "id": record.annotation_ids[number] if record.annotation_ids else len(annotations) + 1,
                "image_id": record.image_id,
                "category_id": int(record.categories[number]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(crowd[number]),
            }
            if record.ignore[number] and not crowd[number]:
                entry["ignore"] = 1
            annotations.append(entry)
    content = {
        "images": [
            {
                "id": record.image_id,
                "file_name": record.path.relative_to(images).as_posix(),
                "width": record.width,
                "height": record.height,
            }
            for record in dataset.records
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(dataset.categories, start=1)],
        "annotations": annotations,
    }
    write_json(path, content, indent=None)


class _Place:
    """Where a record stands, in words once somebody asks."""

    __slots__ = ("key", "name", "path", "position")

    def __init__(self, path: Path, key: str, position: int, name: int | str | None = None) -> None:
        self.path, self.key, self.position, self.name = path, key, position, name

    def __str__(self) -> str:
        if self.name is None:
            return f"{self.path}, {self.key}[{self.position}]"
        return f"{self.path}, {self.key.removesuffix('s')} {self.name!r}"


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"cannot be read ({error.strerror})", where=str(path), remedy="check the path") from None


def _decode(data: bytes, path: Path) -> dict[str, Any]:
    collecting = gc.isenabled()
    gc.disable()  # millions of new containers, none of them garbage: searching them takes longer than making them
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"is not valid JSON ({error})", where=str(path), remedy="export the file again") from None
    finally:
        if collecting:
            gc.enable()
    if not isinstance(content, dict):
        raise AnnotationError(
            f"holds a {type(content).__name__} where COCO has an object",
            where=str(path),
            remedy="give a COCO detection file (a results file is a list and has no images)",
        )
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise AnnotationError(f"has no list {key!r}", where=str(path), remedy="give a COCO detection file")
    return content


def _categories(
    entries: list[Any], path: Path, repairs: Repairs, rename: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Names in the order of the file, and category id to position."""
    positions: dict[str, int] = {}
    category_of: dict[int | str, int] = {}
    for position, entry in enumerate(entries):
        where = _Place(path, "categories", position)
        _check_object(entry, where)
        identifier = _identifier(_required(entry, "id", where), "id", where)
        name = _required(entry, "name", where)
        if not isinstance(name, str) or not name.strip() or not _encodable(name):
            raise AnnotationError(f"name is {name!r}", where=str(where), remedy="give every category a name")
        if identifier in category_of:
            problem = f"category id {identifier!r} is given twice"
            raise AnnotationError(problem, where=str(where), remedy="make category ids unique")
        name = rename.get(name.strip(), name.strip())
        if name in positions:
            repairs.add("categories of one name merged", f"{where} is another {name!r}")
        category_of[identifier] = positions.setdefault(name, len(positions))
    return tuple(positions), category_of


def _images(entries: list[Any], path: Path, repairs: Repairs) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    files: dict[str, int | str] = {}
    for position, entry in enumerate(entries):
        where = _Place(path, "images", position)
        _check_object(entry, where)
        identifier = _identifier(_required(entry, "id", where), "id", where)
        if identifier in found:
            raise AnnotationError(
                f"image id {identifier!r} is given twice", where=str(where), remedy="make image ids unique"
            )
        file_name = _required(entry, "file_name", where)
        check_inside(file_name, where)
        if file_name in files:
            repairs.add("images with one file_name", f"{path}, images {files[file_name]!r} and {identifier!r}")
        files.setdefault(file_name, identifier)
        found[identifier] = entry
    return found


def check_inside(file_name: Any, where: object) -> None:
    """Refuse a file name that could reach outside its folder: absolute, or with a ``..`` part, on any system.

    Symbolic links are followed: who made the folder made them too.

    Args:
        file_name: as the annotations have it.
        where: names the record in the message.

    Raises:
        AnnotationError: such a name, or one that no file can have.
    """
    if not isinstance(file_name, str) or not file_name or "\0" in file_name or not _encodable(file_name):
        raise AnnotationError(
            f"file name {file_name!r} is no file name", where=str(where), remedy="give the image's file name"
        )
    if _HARMLESS.fullmatch(file_name):
        return
    windows, posix = PureWindowsPath(file_name), PurePosixPath(file_name)
    if windows.drive or windows.root or posix.is_absolute() or ".." in windows.parts:
        raise AnnotationError(
            f"file name {file_name!r} leaves the folder of the images",
            where=str(where),
            remedy="make file names relative to the folder that `images` names",
        )


def _encodable(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and no file, terminal or report can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _declared_size(entry: dict[str, Any], where: _Place) -> tuple[int, int] | None:
    """Width and height in pixels as the record says, or None if it does not say or cannot be right."""
    if entry.get("width") is None or entry.get("height") is None:
        return None
    width, height = (_number(entry[key], key, where) for key in ("width", "height"))
    return (round(width), round(height)) if 1 <= width <= 1e6 and 1 <= height <= 1e6 else None


def _found_size(
    entry: dict[str, Any], file: Path, corners: NDArray[np.float64], where: _Place, repairs: Repairs
) -> tuple[int, int]:
    """Width and height in pixels from the image file, or else from the boxes."""
    message = f"{where} declares {entry.get('width')!r} x {entry.get('height')!r}"
    if not file_exists(file):
        repairs.add("size taken from the boxes", message)
        return size_of_boxes(corners)
    repairs.add("size read from the image file", message)
    return image_size(file)


def _box(entry: dict[str, Any], where: _Place) -> tuple[float, float, float, float]:
    """Corners x1 y1 x2 y2 of a COCO ``[x, y, width, height]``."""
    box = _required(entry, "bbox", where)
    if not isinstance(box, list) or len(box) != 4:
        raise AnnotationError(f"bbox is {box!r}", where=str(where), remedy="give [x, y, width, height] in pixels")
    x, y, width, height = [value if type(value) is float else _number(value, "bbox", where) for value in box]
    return x, y, x + width, y + height


def _check_object(entry: Any, where: _Place) -> None:
    if not isinstance(entry, dict):
        raise AnnotationError(
            f"is a {type(entry).__name__}, not an object", where=str(where), remedy="export the file again"
        )


def _required(entry: dict[str, Any], key: str, where: _Place) -> Any:
    if entry.get(key) is None:
        raise AnnotationError(f"has no {key!r}", where=str(where), remedy=f"add {key!r} or remove the record")
    return entry[key]


def _identifier(value: Any, key: str, where: _Place) -> int | str:
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or (isinstance(value, str) and not _encodable(value))
    ):
        raise AnnotationError(f"{key} is {value!r}", where=str(where), remedy="use whole numbers or texts as ids")
    return value


def _number(value: Any, key: str, where: _Place) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
        except ValueError:
            pass
    raise AnnotationError(
        f"{key} holds {value!r}, which is no number", where=str(where), remedy="correct or remove the record"
    )


def _flag(value: Any, key: str, where: _Place) -> bool:
    if value is None or isinstance(value, bool | int):
        return bool(value)
    number = _number(value, key, where)
    if math.isnan(number):
        raise AnnotationError(f"{key} is {value!r}", where=str(where), remedy="give 0 or 1")
    return number != 0


def _resolve(
    value: Any, table: Mapping[int | str, Value], key: str, where: _Place, repairs: Repairs
) -> int | str | None:
    """The key of ``table`` that a reference means, or None if nothing has it."""
    wanted = _identifier(value, key, where)
    if wanted in table:
        return wanted
    other: int | str | None = str(wanted) if isinstance(wanted, int) else None
    if isinstance(wanted, str) and wanted.strip().isdecimal() and len(wanted) < 20:
        other = int(wanted)
    if other is not None and other in table:
        repairs.add(f"{key} of another type", f"{where} has {wanted!r} for {other!r}")
        return other
    repairs.add(f"dropped: {key} that nothing has", f"{where} has {key} {wanted!r}")
    return None
