"""Pascal VOC folders: ``Annotations/*.xml``, ``ImageSets/Main/*.txt``, ``JPEGImages/``.

VOC counts pixels from 1 and its boxes include both corners, so ``xmin`` and ``ymin`` become one less and ``xmax`` and
``ymax`` stay. ``difficult`` objects are marked ``ignore``: evaluation does not ask for them, training uses them.

DataError: a list, XML file or (where images are needed) image that is missing, XML that cannot be parsed, an object
without name or bndbox, a coordinate that is no number, an id that leaves the folder. Repaired and counted: a size that
is missing (read from the image or, without it, the extent of the boxes), an image that the list repeats (read once,
``Record.listed`` keeps the count), and boxes after :func:`openworld.data.records.clean_boxes`.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openworld.data.coco import check_inside
from openworld.data.images import image_size
from openworld.data.records import Dataset, Record, Repairs, check_files, clean_boxes, size_of_boxes
from openworld.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def read_voc(
    root: Path,
    images: Path | None = None,
    image_set: str | None = None,
    rename: Mapping[str, str] | None = None,
    *,
    need_images: bool = True,
) -> Dataset:
    """Read a VOC folder.

    Args:
        root: holds ``Annotations/``.
        images: folder of the images. Default: ``JPEGImages/`` in ``root``.
        image_set: a list in ``ImageSets/Main`` without its suffix, or the path of a .txt file. None: every XML file.
        rename: class names to the names that the schedule uses.
        need_images: False, image files may be missing.

    Returns:
        categories sorted by name, records in the order of the list, each id the stem of its file.

    Raises:
        DataError: see above.
    """
    root = Path(root)
    images = root / "JPEGImages" if images is None else Path(images)
    repairs = Repairs()
    stems = _listed(root, image_set, repairs)
    absent = [stem for stem in stems if not (root / "Annotations" / f"{stem}.xml").is_file()]
    if absent:
        shown = ", ".join(f"{stem}.xml" for stem in absent[:3]) + (", …" if len(absent) > 3 else "")
        raise DataError(
            f"{len(absent)} of {len(stems)} annotation files do not exist: {shown}",
            where=str(root / "Annotations"),
            remedy="fetch the annotations or correct the image list",
        )
    parsed = [_read_xml(root / "Annotations" / f"{stem}.xml", images, repairs, rename or {}) for stem in stems]
    categories = sorted({name for _, names in parsed for name in names})
    position = {name: number for number, name in enumerate(categories)}
    records = [
        replace(record, categories=np.array([position[name] for name in names], dtype=np.int64), listed=stems[stem])
        for stem, (record, names) in zip(stems, parsed, strict=True)
    ]
    if need_images:
        check_files(records, root)
    return Dataset(tuple(categories), tuple(records), repairs)


def _listed(root: Path, image_set: str | None, repairs: Repairs) -> Counter[str]:
    """Stems in the order of the list, with the number of times that the list names each."""
    if image_set is None:
        stems = sorted(file.stem for file in (root / "Annotations").glob("*.xml"))
        where = root / "Annotations"
    else:
        where = Path(image_set) if image_set.endswith(".txt") else root / "ImageSets" / "Main" / f"{image_set}.txt"
        if not where.is_file():
            available = ", ".join(sorted(file.stem for file in (root / "ImageSets" / "Main").glob("*.txt"))[:12])
            raise DataError(
                f"the image list {image_set!r} does not exist",
                where=str(where),
                remedy=f"choose one of: {available}" if available else "give the path of a .txt file",
            )
        lines = where.read_text(encoding="utf-8-sig").splitlines()
        stems = [line.split()[0] for line in lines if line.strip()]
    if not stems:
        raise DataError("names no image", where=str(where), remedy="give a list or folder with at least one image")
    counts = Counter(stems)
    for stem, times in counts.items():
        check_inside(stem, str(where))
        for _ in range(times - 1):
            repairs.add("image listed again", f"{where.name} names {stem} {times} times")
    return counts


def _read_xml(path: Path, images: Path, repairs: Repairs, rename: Mapping[str, str]) -> tuple[Record, list[str]]:
    """One image's record, its categories still 0, and the category names of its boxes."""
    try:
        tree = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"cannot be parsed ({error})", where=str(path), remedy="export the file again") from None
    file = next(
        (found for suffix in SUFFIXES if (found := images / f"{path.stem}{suffix}").is_file()),
        images / f"{path.stem}.jpg",
    )
    names: list[str] = []
    corners: list[list[float]] = []
    difficult: list[bool] = []
    for number, element in enumerate(tree.iterfind("object")):
        where = f"{path}, object {number}"
        name = (element.findtext("name") or "").strip()
        box = element.find("bndbox")
        if not name or box is None:
            missing = "bndbox" if name else "name"
            raise DataError(f"has no <{missing}>", where=where, remedy="complete or remove the object")
        x1, y1, x2, y2 = (_number(box, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        names.append(rename.get(name, name))
        corners.append([x1 - 1, y1 - 1, x2, y2])
        difficult.append(element.find("difficult") is not None and _number(element, "difficult", where) != 0)
    table = np.array(corners, dtype=np.float64).reshape(-1, 4)
    width, height = _size(tree, path, file, table, repairs)
    boxes, kept = clean_boxes(table, width, height, repairs, lambda number: f"{path.name}, object {number}")
    record = Record(
        image_id=path.stem,
        path=file,
        width=width,
        height=height,
        boxes=boxes,
        categories=np.zeros(len(kept), dtype=np.int64),
        ignore=np.array(difficult, dtype=np.bool_)[kept],
        annotation_ids=tuple(f"{path.stem}/{number}" for number in kept),
    )
    return record, [names[number] for number in kept]


def _size(
    tree: ElementTree.Element, path: Path, file: Path, corners: NDArray[np.float64], repairs: Repairs
) -> tuple[int, int]:
    declared = [tree.findtext(f"size/{key}") for key in ("width", "height")]
    try:
        width, height = (round(float(text or 0)) for text in declared)
    except (ValueError, OverflowError):
        width = height = 0
    if 1 <= width <= 1e6 and 1 <= height <= 1e6:
        return width, height
    if not file.is_file():
        repairs.add("size taken from the boxes", f"{path.name} declares {declared[0]!r} x {declared[1]!r}")
        return size_of_boxes(corners)
    repairs.add("size read from the image file", f"{path.name} declares {declared[0]!r} x {declared[1]!r}")
    return image_size(file)


def _number(element: ElementTree.Element, key: str, where: str) -> float:
    text = element.findtext(key)
    try:
        return float(text or "")
    except ValueError:
        raise DataError(
            f"<{key}> holds {text!r}, which is no number", where=where, remedy="correct or remove the object"
        ) from None
