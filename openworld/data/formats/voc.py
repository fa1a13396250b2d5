"""Pascal VOC folders: ``Annotations/*.xml``, ``ImageSets/Main/*.txt``, ``JPEGImages/``.

VOC counts pixels from 1 and its boxes include both corners, so ``xmin`` and ``ymin`` become one less and ``xmax`` and
``ymax`` stay. ``difficult`` objects are marked ``ignore``: evaluation does not ask for them, training uses them.

What the reader does with defects:

=====================================================  ===========================================================
list or XML file that is missing or is no text         AnnotationError
XML that cannot be parsed, or that declares entities   AnnotationError
object without name or bndbox, a number that is none   AnnotationError naming file, object and element
name of the list that leaves the folder, or no text    AnnotationError
image file that does not exist                         DataError naming the first few, if images are needed
width or height missing or not positive                read from the image file or, without it, the extent of the
                                                       boxes; counted
image that the list repeats                            read once, counted; ``Record.listed`` keeps the number
coordinates that are not finite, huge or inverted,     dropped or clipped, counted:
other boxes                                            :func:`openworld.data.records.clean_boxes`
=====================================================  ===========================================================
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openworld.data.formats.cache import AnnotationCache, AnnotationTable, digest_of_files
from openworld.data.formats.coco import check_inside
from openworld.data.records import Dataset, Repairs, check_files, clean_boxes, file_exists, size_of_boxes
from openworld.errors import AnnotationError
from openworld.runtime.images import image_size

SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def read_voc(
    root: Path,
    images: Path | None = None,
    image_set: str | None = None,
    rename: Mapping[str, str] | None = None,
    *,
    need_images: bool = True,
    cache: AnnotationCache | None = None,
) -> Dataset:
    """Read a VOC folder.

    Args:
        root: holds ``Annotations/``.
        images: folder of the images. Default: ``JPEGImages/`` in ``root``.
        image_set: a list in ``ImageSets/Main`` without its suffix, or the path of a .txt file. None: every XML file.
        rename: class names to the names that the schedule uses.
        need_images: False, image files may be missing.
        cache: where parsed annotations are kept. None: nowhere.

    Returns:
        categories sorted by name, records in the order of the list, each id the name in the list: the file's stem.

    Raises:
        AnnotationError: see the table above.
        DataError: image files that are missing or, where their size is needed, cannot be read.
    """
    root, renamed = Path(root), rename or {}
    folder = root / "JPEGImages" if images is None else Path(images)
    where, counts = _listed(root, image_set)
    files = [f"{root}/Annotations/{stem}.xml" for stem in counts]

    def parse() -> AnnotationTable:
        absent = [stem for stem, file in zip(counts, files, strict=True) if not file_exists(file)]
        if absent:
            shown = ", ".join(f"{stem}.xml" for stem in absent[:3]) + (", …" if len(absent) > 3 else "")
            raise AnnotationError(
                f"{len(absent)} of {len(counts)} annotation files do not exist: {shown}",
                where=str(root / "Annotations"),
                remedy="fetch the annotations or correct the image list",
            )
        return _parse(counts, where, files, folder, renamed)

    if cache is None:
        table = parse()
    else:
        names = {"list": str(where), "rename": dict(renamed)}
        table = cache.get("voc", root, names, lambda: digest_of_files(files, counts.items()), parse)
    records = table.records(_image_file(str(folder), stem) for stem in table.files)
    if need_images:
        check_files([record.path for record in records], root)
    return Dataset(table.categories, records, table.repairs)


def _parse(
    counts: Counter[str], where: Path, files: Sequence[str], images: Path, rename: Mapping[str, str]
) -> AnnotationTable:
    repairs = Repairs()
    for stem, times in counts.items():
        for _ in range(times - 1):
            repairs.add("image listed again", f"{where.name} names {stem} {times} times")
    names: list[str] = []
    difficult: list[bool] = []
    found: list[tuple[float, float, float, float]] = []
    starts, sizes, from_images = [0], np.ones((len(counts), 2), dtype=np.int64), False
    for number, (stem, file) in enumerate(zip(counts, files, strict=True)):
        tree = _parse_xml(file)
        for position, element in enumerate(tree.iterfind("object")):
            name, box, hard = _object(element, file, position)
            names.append(rename.get(name, name))
            found.append(box)
            difficult.append(hard)
        declared = _declared_size(tree)
        if declared is None:
            own = np.array(found[starts[-1] :], dtype=np.float64).reshape(-1, 4)
            declared, from_images = _found_size(tree, file, _image_file(str(images), stem), own, repairs), True
        sizes[number] = declared
        starts.append(len(names))

    owner = np.repeat(np.arange(len(counts)), np.diff(starts))
    stems = list(counts)

    def position_in_file(number: int) -> int:
        return number - starts[int(owner[number])]

    def describe(number: int) -> str:
        return f"{stems[owner[number]]}.xml, object {position_in_file(number)}"

    table = np.array(found, dtype=np.float64).reshape(-1, 4)
    boxes, kept = clean_boxes(table, sizes[owner, 0], sizes[owner, 1], repairs, describe)
    chosen = kept.tolist()
    categories = sorted({names[number] for number in chosen})
    index = {name: number for number, name in enumerate(categories)}
    return AnnotationTable(
        categories=tuple(categories),
        image_ids=stems,
        files=stems,
        sizes=sizes,
        listed=np.array(list(counts.values()), dtype=np.int64),
        offsets=np.searchsorted(owner[kept], np.arange(len(counts) + 1)).astype(np.int64),
        boxes=boxes,
        box_categories=np.array([index[names[number]] for number in chosen], dtype=np.int64),
        ignore=np.array(difficult, dtype=np.bool_)[kept],
        crowd=None,
        annotation_ids=[f"{stems[owner[number]]}/{position_in_file(number)}" for number in chosen],
        repairs=repairs,
        from_images=from_images,
    )


def _listed(root: Path, image_set: str | None) -> tuple[Path, Counter[str]]:
    """The list's file or folder, and stems in its order, with the number of times that it names each."""
    if image_set is None:
        where = root / "Annotations"
        stems = sorted(file.stem for file in where.glob("*.xml"))
    else:
        where = Path(image_set) if image_set.endswith(".txt") else root / "ImageSets" / "Main" / f"{image_set}.txt"
        if not where.is_file():
            available = ", ".join(sorted(file.stem for file in (root / "ImageSets" / "Main").glob("*.txt"))[:12])
            raise AnnotationError(
                f"the image list {image_set!r} does not exist",
                where=str(where),
                remedy=f"choose one of: {available}" if available else "give the path of a .txt file",
            )
        try:
            lines = where.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise AnnotationError(
                f"cannot be read as text ({error})", where=str(where), remedy="give a list with one name a line"
            ) from None
        stems = [line.split()[0] for line in lines if line.strip()]
    if not stems:
        raise AnnotationError(
            "names no image", where=str(where), remedy="give a list or folder with at least one image"
        )
    counts = Counter(stems)
    for stem in counts:
        check_inside(stem, where)
    return where, counts


def _image_file(images: str, stem: str) -> Path:
    """The image of a name: the first suffix that exists, or .jpg."""
    names = (f"{images}/{stem}{suffix}" for suffix in SUFFIXES)
    return Path(next((name for name in names if file_exists(name)), f"{images}/{stem}.jpg"))


def _parse_xml(file: str) -> ElementTree.Element:
    try:
        data = Path(file).read_bytes()
        if b"<!ENTITY" in data.replace(b"\0", b""):  # in any encoding of Unicode
            raise ValueError("it declares entities, which an annotation has no need of")
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise AnnotationError(f"cannot be parsed ({error})", where=file, remedy="export the file again") from None
    except OSError as error:
        raise AnnotationError(f"cannot be read ({error.strerror})", where=file, remedy="check the file") from None


def _object(
    element: ElementTree.Element, file: str, position: int
) -> tuple[str, tuple[float, float, float, float], bool]:
    """Name, corners and difficult of an object."""
    where = f"{file}, object {position}"
    name = (element.findtext("name") or "").strip()
    box = element.find("bndbox")
    if not name or box is None:
        missing = "bndbox" if name else "name"
        raise AnnotationError(f"has no <{missing}>", where=where, remedy="complete or remove the object")
    x1, y1, x2, y2 = (_number(box, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
    difficult = element.find("difficult") is not None and _number(element, "difficult", where) != 0
    return name, (x1 - 1, y1 - 1, x2, y2), difficult


def _declared_size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height in pixels as the file says, or None if it does not say or cannot be right."""
    try:
        width, height = (round(float(tree.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if 1 <= width <= 1e6 and 1 <= height <= 1e6 else None


def _found_size(
    tree: ElementTree.Element, file: str, image: Path, corners: NDArray[np.float64], repairs: Repairs
) -> tuple[int, int]:
    """Width and height in pixels from the image file, or else from the boxes."""
    declared = [tree.findtext(f"size/{key}") for key in ("width", "height")]
    message = f"{Path(file).name} declares {declared[0]!r} x {declared[1]!r}"
    if not file_exists(image):
        repairs.add("size taken from the boxes", message)
        return size_of_boxes(corners)
    repairs.add("size read from the image file", message)
    return image_size(image)


def _number(element: ElementTree.Element, key: str, where: str) -> float:
    text = element.findtext(key)
    try:
        return float(text or "")
    except ValueError:
        raise AnnotationError(
            f"<{key}> holds {text!r}, which is no number", where=where, remedy="correct or remove the object"
        ) from None
