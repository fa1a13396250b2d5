"""YOLO text: one .txt file per image, one line per object, ``class cx cy width height`` in fractions of the image.

Two layouts are read. A ``data.yaml`` names the classes and the sets::

    path: .                      # root of the data set; default: the folder of the file
    train: images/train          # a folder of images, a .txt list of images, or several of them
    val: images/val
    test: images/test
    names: [cat, dog]            # or {0: cat, 1: dog}

Without one, ``images/`` and ``labels/`` lie side by side, and ``classes.txt`` (in the root or in ``labels/``) names one
class a line; ``image_set`` then names a folder below ``images/``. The labels of ``…/images/…/a.jpg`` are in
``…/labels/…/a.txt``, or beside the image where no folder of its path is called ``images``.

What the reader does with defects:

=====================================================  ===========================================================
data.yaml that is not YAML or has no names, a set that DataError
it does not name, a folder or list that is missing
a line with another number of fields, or a field that  DataError naming file and line
is not a number, or a class that is not a whole number
coordinates that are not fractions (beyond 2)          DataError naming file and line
two images with one label file; a set without labels   DataError
an image of a list that leaves the root                DataError
byte order mark, empty lines, upper case suffixes      read
``../`` in front of a set that is in the root          read without it, counted
polygon (three or more points)                         becomes its box, counted
class number that nothing has                          object dropped, counted
class numbers from 1 to the number of names            the same, and said to be one too large
two classes of one name                                merged, counted
image that a list repeats                              read once, counted; ``Record.listed`` keeps the count
image without a label file                             no objects, counted
label file without an image                            left out, counted
image whose file is missing or whose size cannot be    image dropped, counted; missing ones are in
read                                                   ``Dataset.dropped_files``
boxes                                                  :func:`openworld.data.boxes.clean_boxes`
=====================================================  ===========================================================
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openworld.data.boxes import clean_boxes
from openworld.data.formats import Place, Reader
from openworld.data.formats.class_numbers import note_numbers_from_one
from openworld.data.formats.file_names import check_inside
from openworld.errors import DataError
from openworld.records import Dataset, Record, Repairs, file_exists
from openworld.runtime.files import read_yaml
from openworld.runtime.images import find_images, image_size

SETS = ("train", "val", "test")
"""Keys of a data.yaml that name images."""
_REMEDY = "a data.yaml has `names` and, for each set, `train`, `val` or `test`"
MAX_FRACTION = 2.0
"""Coordinates beyond this are pixels or damage, not fractions of the image."""


def is_yolo(path: Path) -> bool:
    """Whether a path looks like a YOLO data set: a .yaml file, or a folder with ``data.yaml`` or ``labels/``."""
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    return (path / "data.yaml").is_file() or (path / "labels").is_dir()


def set_for_role(place: Place, role: str) -> str | None:
    """The role itself, where the data set has an image set of this name."""
    description = _description_file(place.annotations)
    if description is not None:
        named = role in read_yaml(description, remedy=_REMEDY, kind=DataError)
    else:
        named = ((place.images or place.annotations / "images") / role).is_dir()
    return role if named else None


def read_yolo(path: Path, images: Path | None = None, image_set: str | None = None) -> Dataset:
    """Read a YOLO data set.

    Args:
        path: ``data.yaml``, or the folder that holds it, or a folder with ``labels/``.
        images: folder of the images, without data.yaml only. Default: ``images/`` in ``path``.
        image_set: with data.yaml its key, such as ``train``; may be left out where it names one set only. Otherwise a
            folder below ``images``, or the path of a .txt list of images; None: all images below ``images``.

    Returns:
        categories in the order of the class numbers; images sorted by path, or in the order of the list. An id is the
        stem of the file or, where two images of the set share a stem, the path below the root without its suffix.

    Raises:
        DataError: see the table above.
    """
    path, repairs = Path(path), Repairs()
    description = _description_file(path)
    if description is not None:
        if images is not None:
            raise DataError(
                f"images={str(images)!r} has no meaning beside a data.yaml",
                where=str(description),
                remedy="name the folders in data.yaml, or give the folder with labels/ instead",
            )
        content = read_yaml(description, remedy=_REMEDY, kind=DataError)
        names = _names(content.get("names"), description)
        root = _root(content, description)
        files = _named_set(content, image_set, root, description, repairs)
    else:
        root = path
        names = _class_list(path)
        files = _files_below(path / "images" if images is None else Path(images), image_set, root)
    categories, category_of = _merge(names, description or path, repairs)
    counts = Counter(files)
    for file, times in counts.items():
        for _ in range(times - 1):
            repairs.add("image listed again", f"{path}: {file.name} is listed {times} times")
    labels = _label_files(list(counts), path, repairs)
    stems = Counter(file.stem for file in counts)
    unique = max(stems.values(), default=1) == 1
    records: list[Record] = []
    missing: list[str] = []
    numbers: set[int] = set()
    for file, label in labels.items():
        identifier = file.stem if unique else _below(file, root).with_suffix("").as_posix()
        record = _record(identifier, file, label, len(names), category_of, numbers, repairs)
        if record is not None:
            records.append(replace(record, listed=counts[file]))
        elif not file_exists(file):
            missing.append(str(file))
    note_numbers_from_one(numbers, len(names), path, repairs)
    if not records:
        raise DataError(
            f"none of its {len(labels)} images can be read, such as {next(iter(labels))}",
            where=str(path),
            remedy="check the image files",
        )
    return replace(Dataset.from_records(categories, records, repairs), dropped_files=tuple(missing))


READER = Reader(
    detects=is_yolo,
    read=lambda place: read_yolo(place.annotations, place.images, place.image_set),
    set_for_role=set_for_role,
)


# -- which images, which classes ---------------------------------------------------------------------------------------


def _description_file(path: Path) -> Path | None:
    """data.yaml, if there is one."""
    if path.is_file():
        return path
    return path / "data.yaml" if (path / "data.yaml").is_file() else None


def _names(value: Any, path: Path) -> list[str]:
    """Class names in the order of their numbers, from a list or from a mapping of numbers."""
    if isinstance(value, dict):
        if sorted(value, key=str) != sorted(range(len(value)), key=str):
            raise DataError(
                f"the numbers in `names` are {list(value)[:10]}",
                where=str(path),
                remedy="number the classes 0, 1, 2, … without a gap",
            )
        value = [value[number] for number in range(len(value))]
    if not isinstance(value, list) or not value:
        raise DataError(f"`names` is {value!r}", where=str(path), remedy="write `names: [cat, dog]` or `{0: cat}`")
    for number, name in enumerate(value):
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"the name of class {number} is {name!r}", where=str(path), remedy="put quotes around no, yes and 7"
            )
    return [name.strip() for name in value]


def _class_list(root: Path) -> list[str]:
    """Class names of classes.txt."""
    for file in (root / "classes.txt", root / "labels" / "classes.txt"):
        if file.is_file():
            names = [line.strip() for line in _text(file).splitlines()]
            while names and not names[-1]:
                names.pop()
            return _names(names, file)
    raise DataError(
        "neither data.yaml nor classes.txt says what the classes are called",
        where=str(root),
        remedy="write classes.txt with one class name per line, in the order of the class numbers",
    )


def _merge(names: Sequence[str], where: Path, repairs: Repairs) -> tuple[tuple[str, ...], list[int]]:
    """Names, each once, and for each class number its position among them."""
    positions: dict[str, int] = {}
    category_of = []
    for number, name in enumerate(names):
        if name in positions:
            repairs.add("categories of one name merged", f"{where}, class {number} is another {name!r}")
        category_of.append(positions.setdefault(name, len(positions)))
    return tuple(positions), category_of


def _root(content: Mapping[str, Any], description: Path) -> Path:
    value = content.get("path")
    if value is not None and not isinstance(value, str):
        raise DataError(f"`path` is {value!r}", where=str(description), remedy="give the root folder of the data set")
    root = description.parent / (value or ".")
    if not root.is_dir():
        raise DataError(
            f"`path` names {root}, which is not a folder",
            where=str(description),
            remedy="make `path` relative to data.yaml, or remove it where both are one folder",
        )
    return root


def _named_set(
    content: Mapping[str, Any], image_set: str | None, root: Path, description: Path, repairs: Repairs
) -> list[Path]:
    """Image files of one set of a data.yaml."""
    available = [key for key in SETS if content.get(key)]
    wanted = available[0] if image_set is None and len(available) == 1 else image_set
    if wanted is None:
        raise DataError(
            "which of its sets is meant is not said" if available else "names no set of images",
            where=str(description),
            remedy=f"set image_set to one of: {', '.join(available)}" if available else "add `train: images/train`",
        )
    if wanted not in available:
        raise DataError(
            f"has no set {wanted!r}",
            where=str(description),
            remedy=f"choose one of: {', '.join(available)}" if available else f"add `{wanted}: images/{wanted}`",
        )
    value = content[wanted]
    files: list[Path] = []
    for entry in value if isinstance(value, list) else [value]:
        if not isinstance(entry, str) or not entry.strip():
            raise DataError(
                f"`{wanted}` holds {entry!r}", where=str(description), remedy="name folders of images or .txt lists"
            )
        place = root / entry
        if not place.exists() and entry.startswith("../") and (root / entry.removeprefix("../")).exists():
            place = root / entry.removeprefix("../")
            repairs.add("../ left out of a folder", f"{description}: {wanted} is {entry}, and {place} exists")
        files += _listed(place, root) if place.suffix.lower() == ".txt" else _images(place, str(description))
    return files


def _files_below(images: Path, image_set: str | None, root: Path) -> list[Path]:
    """Image files of a folder without data.yaml."""
    if image_set is None:
        return _images(images, str(root))
    if image_set.endswith(".txt"):
        return _listed(Path(image_set), root)
    check_inside(image_set, str(root))
    return _images(images / image_set, str(root))


def _images(folder: Path, where: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist", where=where, remedy="correct the path of the images")
    return find_images(folder)


def _listed(path: Path, root: Path) -> list[Path]:
    """Image files of a list, relative to the root, with ``./`` to the list's folder, or absolute inside the root."""
    if not path.is_file():
        raise DataError("the list of images does not exist", where=str(path), remedy="correct the path of the list")
    files = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        entry = line.strip()
        if not entry:
            continue
        where = f"{path}, line {number}"
        if Path(entry).is_absolute():
            entry = str(_below(Path(entry), root.resolve()))
        check_inside(entry, where)
        files.append((path.parent if entry.startswith("./") else root) / entry)
    if not files:
        raise DataError("names no image", where=str(path), remedy="give a list with at least one image")
    return files


def _below(file: Path, root: Path) -> Path:
    """The path relative to the root, or as it is."""
    return file.relative_to(root) if file.is_relative_to(root) else file


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read as text ({error})", where=str(path), remedy="save it as UTF-8") from None


# -- labels ------------------------------------------------------------------------------------------------------------


def label_file(image: Path) -> Path:
    """Where the labels of an image lie: the last folder called ``images`` becomes ``labels``, the suffix ``.txt``."""
    parts = list(image.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts) / f"{image.stem}.txt"


def _label_files(files: Sequence[Path], where: Path, repairs: Repairs) -> dict[Path, Path | None]:
    """The label file of each image, None where there is none."""
    owners: dict[Path, Path] = {}
    for file in files:
        label = label_file(file)
        if label in owners:
            raise DataError(
                f"{owners[label].name} and {file.name} share {label.name}",
                where=str(label),
                remedy="give the images different names, or remove one of them",
            )
        owners[label] = file
    present = {label for label in owners if label.is_file()}
    if not present:
        raise DataError(
            f"none of its {len(files)} images has a label file, such as {next(iter(owners), 'labels/a.txt')}",
            where=str(where),
            remedy="put the labels into labels/ beside images/, under the same names with the suffix .txt",
        )
    for label in owners:
        if label not in present:
            repairs.add("image without a label file", f"{label} does not exist")
    for folder in sorted({label.parent for label in present}):
        for label in sorted(folder.glob("*.txt")):
            if label not in owners and label.name != "classes.txt" and not _belongs_to_another_set(label, files):
                repairs.add("label file without an image", str(label))
    return {file: label if label in present else None for label, file in owners.items()}


def _belongs_to_another_set(label: Path, files: Sequence[Path]) -> bool:
    """Lists cut one folder into sets: its other images exist, but are not of this set."""
    parts = list(label.parent.parts)
    if "labels" in parts:
        parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
    folder = Path(*parts)
    suffixes = {file.suffix for file in files}
    return any((folder / f"{label.stem}{suffix}").is_file() for suffix in suffixes)


def _record(
    identifier: str,
    file: Path,
    label: Path | None,
    count: int,
    category_of: Sequence[int],
    numbers: set[int],
    repairs: Repairs,
) -> Record | None:
    """One image's record, or None if its size is not known. ``count``: of the class numbers; ``numbers``: those met."""
    rows = [] if label is None else _read_lines(label, count, numbers, repairs)
    try:
        width, height = image_size(file)
    except DataError as error:
        repairs.add("dropped: image whose size cannot be read", str(error).splitlines()[0])
        return None
    fractions = np.array([box for _, _, box in rows], dtype=np.float64).reshape(-1, 4)
    corners = fractions * np.array([width, height, width, height], dtype=np.float64)
    boxes, kept = clean_boxes(corners, width, height, repairs, lambda number: f"{label}, line {rows[number][0]}")
    return Record(
        image_id=identifier,
        path=file,
        width=width,
        height=height,
        boxes=boxes,
        categories=np.array([category_of[rows[number][1]] for number in kept], dtype=np.int64),
        ignore=np.zeros(len(kept), dtype=np.bool_),
        annotation_ids=tuple(f"{identifier}/{rows[number][0]}" for number in kept),
    )


def _read_lines(path: Path, count: int, numbers: set[int], repairs: Repairs) -> list[tuple[int, int, list[float]]]:
    """Line number, class number and corners ``x1 y1 x2 y2`` in fractions of the image, for each object."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{path}, line {number}"
        values = [_number(field, where) for field in fields[1:]]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            hint = "; a sixth field is a score: these are predictions, not annotations" if len(values) == 5 else ""
            raise DataError(
                f"has {len(fields)} fields: {line.strip()[:80]!r}",
                where=where,
                remedy=f"write `class cx cy width height`, or the class and the points of a polygon{hint}",
            )
        finite = [abs(value) for value in values if math.isfinite(value)]
        if max(finite, default=0.0) > MAX_FRACTION:
            raise DataError(
                f"{line.strip()[:80]!r} holds {max(finite):g}, which is not a fraction of the image",
                where=where,
                remedy="divide x and width by the width of the image, y and height by its height",
            )
        category = _class_number(fields[0], where)
        numbers.add(category)
        if not 0 <= category < count:
            repairs.add("dropped: class number that nothing has", f"{where} has class {category} of {count}")
            continue
        if len(values) == 4:
            x, y, width, height = values
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        else:
            repairs.add("polygon turned into its box", where)
            box = _extent(np.array(values, dtype=np.float64).reshape(-1, 2))
        rows.append((number, category, box))
    return rows


def _extent(points: NDArray[np.float64]) -> list[float]:
    """The box around (P, 2) points; a point that is not finite makes the box so."""
    return [*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"holds {text!r}, which is not a number", where=where, remedy="correct the line") from None


def _class_number(text: str, where: str) -> int:
    value = _number(text, where)
    if not value.is_integer():
        raise DataError(
            f"the class is {text!r}", where=where, remedy="begin the line with the number of the class, from 0"
        )
    return int(value)
