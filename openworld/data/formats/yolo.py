"""YOLO text: one .txt file per image, one line per object, ``class cx cy width height`` in fractions of the image.

Two layouts are the usual ones. A ``data.yaml`` names the classes and the sets::

    path: .                      # root of the data set; default: the folder of the file
    train: images/train          # a folder of images, a .txt list of images, or several of them
    val: images/val
    test: images/test
    names: [cat, dog]            # or {0: cat, 1: dog}
    kpt_shape: [17, 3]           # only where labels hold keypoints: how many, of x y (2) or x y visibility (3)

Without one, ``images/`` and ``labels/`` lie side by side, and ``classes.txt`` (in the root or in ``labels/``) names one
class a line; ``image_set`` then names a folder below ``images/``. :mod:`openworld.data.formats.yolo_layout` has the
layouts of other tools, Darknet's ``obj.data`` among them. The labels of ``…/images/…/a.jpg`` are in
``…/labels/…/a.txt``, or beside the image where no folder of its path is called ``images``, or there is no such
``labels`` and .txt files lie there.

What the reader does with defects:

=====================================================  ===========================================================
data.yaml that is not YAML or has no names, a set that DataError
it does not name, a folder or list that is missing
several files that describe sets, none of them         DataError; one called data, dataset or obj is taken
data.yaml, dataset.yaml or obj.data
``nc`` or ``classes`` that is not the number of names  DataError
a class name that YAML reads as a number, a date or a  its text as written, counted
boolean
a class name that YAML reads as null                   DataError
a line with another number of fields, or a field that  DataError naming file and line
is not a number, or a class that is not a whole number
coordinates that are not fractions (beyond 2)          DataError naming file and line
scores and track ids after an object                   DataError naming file and line
boxes that seem to be x1 y1 x2 y2: read as they        DataError
should be, many leave their image
two images with one label file; a set without labels   DataError
an image of a list that leaves the root                DataError
byte order mark, empty lines, CRLF, tabs, upper case   read
suffixes, of label files too; comments in lists
backslashes and quotes in paths, ``../`` or ``data/``  :mod:`openworld.data.formats.yolo_paths`: read, counted
in front of what is in the root; drives of Windows     or DataError
polygon (three or more points), oriented box           becomes its box, counted
pose: keypoints after the box                          left out, counted; ``kpt_shape`` says that they are keypoints
long lines that can be one or the other, in a set      DataError naming file and line:
without ``kpt_shape``                                  :mod:`openworld.data.formats.yolo_evidence` has the rule
class number that nothing has                          object dropped, counted
class numbers from 1 to the number of names            the same, and said to be one too large
two classes of one name                                merged, counted
image that a list repeats                              read once, counted; ``Record.listed`` keeps the count
label file whose name differs from that of the image   read, counted; names of lists in another Unicode form, too
in case or Unicode form only
image without a label file                             no objects, counted
label file without an image                            left out, counted
image whose file is missing or whose size cannot be    image dropped, counted; missing ones are in
read                                                   ``Dataset.dropped_files``
photographs with an EXIF orientation tag               the tag is applied, unless ``orientation`` is ``stored``
boxes                                                  :func:`openworld.data.boxes.clean_boxes`
=====================================================  ===========================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from openworld.data.boxes import clean_boxes
from openworld.data.formats import Place, Reader
from openworld.data.formats.class_numbers import note_numbers_from_one
from openworld.data.formats.file_names import folded
from openworld.data.formats.set_names import SET_NAMES
from openworld.data.formats.yolo_evidence import Evidence
from openworld.data.formats.yolo_layout import CLASS_LISTS, find_layout, is_yolo
from openworld.data.formats.yolo_lines import Lines, check_order, read_lines
from openworld.data.formats.yolo_paths import below, text_of
from openworld.errors import DataError
from openworld.records import Dataset, Record, file_exists
from openworld.repairs import Repairs
from openworld.runtime.folders import is_hidden, visible_files
from openworld.runtime.images import image_size


def set_for_role(place: Place, role: str) -> str | None:
    """What the data set calls the image set of a role: by the role itself or, for ``val``, as other tools do."""
    return find_layout(place.annotations, place.images, Repairs()).set_for_role(role)


def read_yolo(path: Path, images: Path | None = None, image_set: str | None = None, *, upright: bool = True) -> Dataset:
    """Read a YOLO data set.

    Args:
        path: ``data.yaml`` or ``obj.data``, or the folder that holds it, or a folder with ``labels/``.
        images: folder of the images, only where no file describes the sets. Default: ``images/`` in ``path``.
        image_set: with data.yaml or obj.data its key, such as ``train``; may be left out where it names one set only.
            Otherwise a folder below ``images``, or the path of a .txt list; None: all images below ``images``.
        upright: the labels are of the pictures as their EXIF tags turn them, as Ultralytics takes them.

    Returns:
        categories in the order of the class numbers; images sorted by path, or in the order of the list. An id is the
        stem of the file or, where two images of the set share a stem, the path below the root without its suffix.

    Raises:
        DataError: see the table above.
    """
    path, repairs = Path(path), Repairs()
    layout = find_layout(path, images, repairs)
    files = layout.files(image_set, repairs)
    categories, category_of = _merge(layout.names, layout.where, repairs)
    counts = Counter(files)
    for file, times in counts.items():
        if times > 1:
            repairs.add("image listed again", f"{path}: {file.name} is listed {times} times", times - 1)
    labels = _label_files(list(counts), path, repairs)
    evidence = Evidence()
    lines = {
        file: read_lines(label or label_file(file), text_of(label) if label else "", evidence)
        for file, label in labels.items()
    }
    pose = evidence.are_boxes(layout.keypoints)
    check_order(lines.values(), path)
    stems = Counter(file.stem for file in counts)
    unique = max(stems.values(), default=1) == 1
    records: list[Record] = []
    missing: list[str] = []
    for file in labels:
        identifier = file.stem if unique else below(file, layout.root).with_suffix("").as_posix()
        record = _record(identifier, file, lines[file], pose, category_of, repairs, upright=upright)
        if record is not None:
            records.append(replace(record, listed=counts[file]))
        elif not file_exists(file):
            missing.append(str(file))
    seen = (number for of_file in lines.values() for number in of_file.classes)
    note_numbers_from_one(seen, len(layout.names), path, repairs)
    if not records:
        raise DataError(
            f"none of its {len(labels)} images can be read, such as {next(iter(labels))}",
            where=str(path),
            remedy="put the images there, or export the data set with its images",
        )
    return replace(Dataset.from_records(categories, records, repairs), dropped_files=tuple(missing))


READER = Reader(
    detects=is_yolo,
    read=lambda place: read_yolo(place.annotations, place.images, place.image_set, upright=place.upright is not False),
    set_for_role=set_for_role,
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


OTHER_SPELLING = "label file in other case or Unicode form than the image"
"""Kind of repair."""
_NO_LABELS = frozenset((*CLASS_LISTS, *(f"{name}.txt" for name in (*SET_NAMES, "images"))))
"""Names of class lists and lists of images, which lie among the labels of some layouts."""


# -- labels ------------------------------------------------------------------------------------------------------------


def label_file(image: Path) -> Path:
    """Where the labels of an image lie: the last folder called ``images`` becomes ``labels``, the suffix ``.txt``."""
    parts = list(image.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts) / f"{image.stem}.txt"


def _has_labels_beside(images: Path) -> bool:
    """Whether labels lie beside the images, although a folder of their path is called ``images``, as labelImg does."""
    if label_file(images / "a.jpg").parent.is_dir():
        return False
    return any(file.name not in _NO_LABELS for file in visible_files(images, (".txt",), deep=False))


def _label_files(files: Sequence[Path], where: Path, repairs: Repairs) -> dict[Path, Path | None]:
    """The label file of each image, None where there is none."""
    owners: dict[Path, Path] = {}
    beside = {folder for folder in {file.parent for file in files} if _has_labels_beside(folder)}
    for file in files:
        label = file.with_suffix(".txt") if file.parent in beside else label_file(file)
        if label in owners:
            raise DataError(
                f"{owners[label].name} and {file.name} share {label.name}",
                where=str(label),
                remedy="give the images different names, or remove one of them",
            )
        owners[label] = file
    present: dict[Path, Path] = {}
    for folder in sorted({label.parent for label in owners}):
        for label in visible_files(folder, (".txt",), deep=False):  # .TXT sorts first, and is replaced
            if label.is_file():
                present[label.with_suffix(".txt")] = label
    for label in owners:
        if is_hidden(label.name) and label.is_file():  # a list names the image
            present[label] = label
    suffixes = {file.suffix for file in files}
    _take_other_spellings(present, owners, suffixes, repairs)
    if present.keys().isdisjoint(owners):
        raise DataError(
            f"none of its {len(files)} images has a label file, such as {next(iter(owners), 'labels/a.txt')}",
            where=str(where),
            remedy="put the labels into labels/ beside images/, under the same names with the suffix .txt",
        )
    for label in owners:
        if label not in present:
            repairs.add("image without a label file", f"{label} does not exist")
    for label in present:
        if label not in owners and label.name not in _NO_LABELS and not _belongs_to_another_set(label, suffixes):
            repairs.add("label file without an image", str(label))
    return {file: present.get(label) for label, file in owners.items()}


def _take_other_spellings(
    present: dict[Path, Path], owners: Mapping[Path, Path], suffixes: Collection[str], repairs: Repairs
) -> None:
    """Give images without a label file the one whose name differs in case or Unicode form, where only one does.

    Args:
        present: label files by the name that they should have; changed.
        owners: image of each label file that there should be.
        suffixes: of the images.
        repairs: counts it.
    """
    wanted: dict[tuple[Path, str], list[Path]] = {}
    for label in owners:
        if label not in present:
            wanted.setdefault((label.parent, folded(label.name)), []).append(label)
    found: dict[tuple[Path, str], list[Path]] = {}
    for label in present if wanted else ():
        if label not in owners:
            found.setdefault((label.parent, folded(label.name)), []).append(label)
    for key, labels in wanted.items():
        others = found.get(key, [])
        if len(labels) == len(others) == 1 and not _belongs_to_another_set(others[0], suffixes):
            present[labels[0]] = present.pop(others[0])
            repairs.add(OTHER_SPELLING, f"{present[labels[0]]} is taken for {owners[labels[0]]}")


def _belongs_to_another_set(label: Path, suffixes: Collection[str]) -> bool:
    """Lists cut one folder into sets: its other images exist, but are not of this set, which has these suffixes."""
    parts = list(label.parent.parts)
    if "labels" in parts:
        parts[len(parts) - 1 - parts[::-1].index("labels")] = "images"
    folder = Path(*parts)
    return any((folder / f"{label.stem}{suffix}").is_file() for suffix in suffixes)


def _record(
    identifier: str,
    file: Path,
    lines: Lines,
    pose: bool,
    category_of: Sequence[int],
    repairs: Repairs,
    *,
    upright: bool,
) -> Record | None:
    """One image's record, or None if its size is not known.

    Args:
        lines: of its label file; none without one.
        pose: long lines are boxes with keypoints, and not polygons.
        category_of: position of each class number.
    """
    rows = _usable_rows(lines, pose, len(category_of), repairs)
    try:
        width, height = image_size(file, upright=upright)
    except DataError as error:
        repairs.add("dropped: image whose size cannot be read", str(error).splitlines()[0])
        return None
    fractions = (lines.boxes if pose else lines.extents)[rows]
    corners = fractions * np.array([width, height, width, height], dtype=np.float64)
    numbers = [lines.numbers[row] for row in rows]
    boxes, kept = clean_boxes(corners, width, height, repairs, lambda place: f"{lines.path}, line {numbers[place]}")
    return Record(
        image_id=identifier,
        path=file,
        width=width,
        height=height,
        boxes=boxes,
        categories=np.array([category_of[lines.classes[rows[place]]] for place in kept], dtype=np.int64),
        ignore=np.zeros(len(kept), dtype=np.bool_),
        annotation_ids=tuple(f"{identifier}/{numbers[place]}" for place in kept),
        upright=upright,
    )


def _usable_rows(lines: Lines, pose: bool, count: int, repairs: Repairs) -> list[int]:
    """Rows with a class number below ``count``; counts the others as dropped, and what was done to long lines."""
    kind = "keypoints left out" if pose else "polygon turned into its box"
    rows = []
    for row, (number, category) in enumerate(zip(lines.numbers, lines.classes, strict=True)):
        where = f"{lines.path}, line {number}"
        if not 0 <= category < count:
            repairs.add(
                "dropped: class number that nothing has",
                f"{where} has class {category} of {count}, which are numbered from 0",
            )
            continue
        if lines.long[row]:
            repairs.add(kind, where)
        rows.append(row)
    return rows
