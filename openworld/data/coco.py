"""COCO annotation files: reader and writer.

What the reader does with defects:

=====================================================  ===========================================================
not JSON, no images/categories/annotations list        DataError
record without id, file_name, name, image_id,          DataError naming file, record and field
category_id or bbox; a number that is no number
image id or category id given twice                    DataError
file_name that is absolute or climbs out of the root   DataError
image file that does not exist                         DataError naming the first few, if images are needed
byte order mark, numbers written as text               read
iscrowd, area or annotation id missing                 read; area is not used, ids become the position
width or height missing or not positive                read from the image file or, without it, the extent of the
                                                       boxes; counted
image_id or category_id of another type ("7" for 7)    matched, counted
image_id or category_id that nothing has               annotation dropped, counted
two categories of one name                             merged, counted
two images with one file_name                          kept, counted
boxes                                                  :func:`openworld.data.records.clean_boxes`
=====================================================  ===========================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from openworld.data.images import image_size
from openworld.data.records import Dataset, Record, Repairs, check_files, clean_boxes, size_of_boxes
from openworld.errors import DataError
from openworld.runtime.files import write_json

Value = TypeVar("Value")


def read_coco(
    path: Path, images: Path | None = None, rename: Mapping[str, str] | None = None, *, need_images: bool = True
) -> Dataset:
    """Read a COCO detection file.

    Args:
        path: the .json file.
        images: folder that file names are relative to. Default: ``images/`` beside the file, or else its folder.
        rename: category names to the names that the schedule uses.
        need_images: False, image files may be missing.

    Raises:
        DataError: see the table above.
    """
    path = Path(path)
    content = _load(path)
    if images is None:
        images = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    repairs = Repairs()
    names, category_of = _categories(content["categories"], path, repairs, rename or {})
    entries = _images(content["images"], path, repairs)

    grouped: dict[int | str, list[tuple[int, list[float], int, bool, bool, int | str]]] = {key: [] for key in entries}
    ids: set[int | str] = set()
    for position, entry in enumerate(content["annotations"]):
        where = f"{path}, annotations[{position}]"
        _check_object(entry, where)
        annotation_id = _identifier(entry["id"], "id", where) if entry.get("id") is not None else position
        where = f"{path}, annotation {annotation_id!r}"
        if annotation_id in ids:
            repairs.add("annotation id given twice", where)
        ids.add(annotation_id)
        box = _box(entry, where)
        crowd = _flag(entry.get("iscrowd"), "iscrowd", where)
        ignore = crowd or _flag(entry.get("ignore"), "ignore", where)
        image_id = _resolve(_required(entry, "image_id", where), entries, "image_id", where, repairs)
        category_id = _resolve(_required(entry, "category_id", where), category_of, "category_id", where, repairs)
        if image_id is None or category_id is None:
            continue
        grouped[image_id].append((position, box, category_of[category_id], ignore, crowd, annotation_id))

    pending: list[Record] = []
    for image_id, entry in entries.items():
        file = images / entry["file_name"]
        rows = grouped[image_id]
        corners = np.array([row[1] for row in rows], dtype=np.float64).reshape(-1, 4)
        width, height = _size(entry, file, corners, f"{path}, image {image_id!r}", repairs)

        def describe(number: int, rows: Any = rows, image_id: Any = image_id) -> str:
            return f"{path.name}, image {image_id!r}, annotation {rows[number][5]!r}"

        boxes, kept = clean_boxes(corners, width, height, repairs, describe)
        chosen = [rows[number] for number in kept]
        pending.append(
            Record(
                image_id=image_id,
                path=file,
                width=width,
                height=height,
                boxes=boxes,
                categories=np.array([row[2] for row in chosen], dtype=np.int64),
                ignore=np.array([row[3] for row in chosen], dtype=np.bool_),
                crowd=np.array([row[4] for row in chosen], dtype=np.bool_),
                annotation_ids=tuple(row[5] for row in chosen),
            )
        )
    if need_images:
        check_files(pending, path)
    return Dataset(names, tuple(pending), repairs)


def coco_category_names(path: Path, rename: Mapping[str, str] | None = None) -> dict[int, str]:
    """Category id to class name, as a results file of the same data set uses the ids.

    Args:
        path: a COCO detection file, such as the ground truth.
        rename: category names to the names that the schedule uses.

    Raises:
        DataError: a file that is no COCO detection file, or a category id that is no whole number.
    """
    path = Path(path)
    names, category_of = _categories(_load(path)["categories"], path, Repairs(), rename or {})
    found: dict[int, str] = {}
    for identifier, position in category_of.items():
        if isinstance(identifier, str) and not (identifier.strip().isdecimal() and len(identifier) < 20):
            raise DataError(
                f"category id {identifier!r} of {names[position]!r} is no whole number",
                where=str(path),
                remedy="number the categories; results refer to them by number",
            )
        if int(identifier) in found:
            raise DataError(f"category id {identifier!r} is given twice", where=str(path), remedy="make ids unique")
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


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), remedy="check the path") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not valid JSON ({error})", where=str(path), remedy="export the file again") from None
    if not isinstance(content, dict):
        raise DataError(
            f"holds a {type(content).__name__} where COCO has an object",
            where=str(path),
            remedy="give a COCO detection file (a results file is a list and has no images)",
        )
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise DataError(f"has no list {key!r}", where=str(path), remedy="give a COCO detection file")
    return content


def _categories(
    entries: list[Any], path: Path, repairs: Repairs, rename: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Names in the order of the file, and category id to position."""
    positions: dict[str, int] = {}
    category_of: dict[int | str, int] = {}
    for position, entry in enumerate(entries):
        where = f"{path}, categories[{position}]"
        _check_object(entry, where)
        identifier = _identifier(_required(entry, "id", where), "id", where)
        name = _required(entry, "name", where)
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"name is {name!r}", where=where, remedy="give every category a name")
        if identifier in category_of:
            problem = f"category id {identifier!r} is given twice"
            raise DataError(problem, where=where, remedy="make category ids unique")
        name = rename.get(name.strip(), name.strip())
        if name in positions:
            repairs.add("categories of one name merged", f"{where} is another {name!r}")
        category_of[identifier] = positions.setdefault(name, len(positions))
    return tuple(positions), category_of


def _images(entries: list[Any], path: Path, repairs: Repairs) -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {}
    files: dict[str, int | str] = {}
    for position, entry in enumerate(entries):
        where = f"{path}, images[{position}]"
        _check_object(entry, where)
        identifier = _identifier(_required(entry, "id", where), "id", where)
        if identifier in found:
            raise DataError(f"image id {identifier!r} is given twice", where=where, remedy="make image ids unique")
        file_name = _required(entry, "file_name", where)
        check_inside(file_name, where)
        if file_name in files:
            repairs.add("images with one file_name", f"{path}, images {files[file_name]!r} and {identifier!r}")
        files.setdefault(file_name, identifier)
        found[identifier] = entry
    return found


def check_inside(file_name: Any, where: str) -> None:
    """Refuse a file name that could reach outside its folder: absolute, or with a ``..`` part."""
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise DataError(f"file name {file_name!r} is no file name", where=where, remedy="give the image's file name")
    windows, posix = PureWindowsPath(file_name), PurePosixPath(file_name)
    if windows.drive or windows.root or posix.is_absolute() or ".." in windows.parts:
        raise DataError(
            f"file name {file_name!r} leaves the folder of the images",
            where=where,
            remedy="make file names relative to the folder that `images` names",
        )


def _size(
    entry: dict[str, Any], file: Path, corners: NDArray[np.float64], where: str, repairs: Repairs
) -> tuple[int, int]:
    """Width and height in pixels, from the record, or else from the image file, or else from the boxes."""
    declared = [entry.get(key) for key in ("width", "height")]
    if None not in declared:
        width, height = (_number(value, key, where) for value, key in zip(declared, ("width", "height"), strict=True))
        if 1 <= width <= 1e6 and 1 <= height <= 1e6:
            return round(width), round(height)
    if not file.is_file():
        repairs.add("size taken from the boxes", f"{where} declares {declared[0]!r} x {declared[1]!r}")
        return size_of_boxes(corners)
    repairs.add("size read from the image file", f"{where} declares {declared[0]!r} x {declared[1]!r}")
    return image_size(file)


def _box(entry: dict[str, Any], where: str) -> list[float]:
    """Corners x1 y1 x2 y2 of a COCO ``[x, y, width, height]``."""
    box = _required(entry, "bbox", where)
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"bbox is {box!r}", where=where, remedy="give [x, y, width, height] in pixels")
    x, y, width, height = (_number(value, "bbox", where) for value in box)
    return [x, y, x + width, y + height]


def _check_object(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"is a {type(entry).__name__}, not an object", where=where, remedy="export the file again")


def _required(entry: dict[str, Any], key: str, where: str) -> Any:
    if entry.get(key) is None:
        raise DataError(f"has no {key!r}", where=where, remedy=f"add {key!r} or remove the record")
    return entry[key]


def _identifier(value: Any, key: str, where: str) -> int | str:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{key} is {value!r}", where=where, remedy="use whole numbers or texts as ids")
    return value


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
        except ValueError:
            pass
    raise DataError(f"{key} holds {value!r}, which is no number", where=where, remedy="correct or remove the record")


def _flag(value: Any, key: str, where: str) -> bool:
    return bool(value) if value is None or isinstance(value, bool) else _number(value, key, where) != 0


def _resolve(value: Any, table: Mapping[int | str, Value], key: str, where: str, repairs: Repairs) -> int | str | None:
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
