"""Pascal VOC folders: ``Annotations/*.xml``, ``ImageSets/Main/*.txt``, ``JPEGImages/``.

VOC counts pixels from 1 and its boxes include both corners, so ``xmin`` and ``ymin`` become one less and ``xmax`` and
``ymax`` stay. ``difficult`` objects are marked ``ignore``: evaluation does not ask for them, training uses them.

What the reader does with defects:

=====================================================  ===========================================================
list or XML file that is missing or not text           AnnotationError
XML that cannot be parsed, or that declares entities   AnnotationError
object without name or bndbox, a value that is not a   AnnotationError naming file, object and element
number
name of the list that leaves the folder                AnnotationError
width or height missing or not positive                read from the image file or, without it, the extent of the
                                                       boxes; counted
image that the list repeats                            read once, counted; ``Record.listed`` keeps the number
coordinates that are not finite, huge or inverted,     dropped or clipped, counted:
other boxes                                            :func:`openworld.data.boxes.clean_boxes`
=====================================================  ===========================================================
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openworld.data.boxes import clean_boxes
from openworld.data.formats import Reader
from openworld.data.formats.cache import cached
from openworld.data.formats.file_names import check_inside
from openworld.data.formats.sizes import found_size, usable_size
from openworld.errors import AnnotationError
from openworld.records import Dataset, Names, Repairs, file_exists
from openworld.runtime.images import SUFFIXES


def read_voc(
    root: Path,
    images: Path | None = None,
    image_set: str | None = None,
    *,
    cache: Path | None = None,
    upright: bool | None = None,
) -> Dataset:
    """Read a VOC folder.

    Args:
        root: holds ``Annotations/``.
        images: folder of the images. Default: ``JPEGImages/`` in ``root``.
        image_set: a list in ``ImageSets/Main`` without its suffix, or the path of a .txt file. None: every XML file.
        cache: folder for parsed annotations. None: parse them.
        upright: whether the pictures were annotated as their EXIF tags turn them; None: the annotated sizes tell.

    Returns:
        categories sorted by name; images in the order of the list, each id the name in the list: the file's stem.

    Raises:
        AnnotationError: see the table above.
        DataError: an image file whose size is needed cannot be read.
    """
    root = Path(root)
    folder = root / "JPEGImages" if images is None else Path(images)
    where, counts = _listed(root, image_set)
    file_of = {stem: f"{root}/Annotations/{stem}.xml" for stem in counts}
    image_of = _image_files(folder, counts)

    def parse() -> Dataset:
        _check_present(file_of, root / "Annotations")
        return _parse(counts, where, file_of, image_of, upright)

    listed = {file_of[stem]: times for stem, times in counts.items()}
    dataset = cached(cache, root, {"format": "voc", "list": str(where)}, listed, parse)
    return replace(dataset, paths=Names(image_of[str(stem)] for stem in dataset.paths), upright=upright)


READER = Reader(
    detects=lambda path: (path / "Annotations").is_dir(),
    read=lambda place: read_voc(
        place.annotations, place.images, place.image_set, cache=place.cache, upright=place.upright
    ),
)


class _Object(NamedTuple):
    """One object: positions of its image and in its file, name, corners x1 y1 x2 y2, difficult."""

    image: int
    position: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def _parse(
    counts: Counter[str],
    where: Path,
    file_of: Mapping[str, str],
    image_of: Mapping[str, str],
    upright: bool | None,
) -> Dataset:
    """The data set of the listed XML files; its paths are the stems."""
    repairs = Repairs()
    stems = list(counts)
    for stem, times in counts.items():
        for _ in range(times - 1):
            repairs.add("image listed again", f"{where.name} names {stem} {times} times")

    # All objects, image after image, and the size of each image.
    found: list[_Object] = []
    sizes = np.ones((len(stems), 2), dtype=np.int64)
    for image, stem in enumerate(stems):
        tree = _parse_xml(file_of[stem])
        objects = [
            _object(element, image, position, file_of[stem]) for position, element in enumerate(tree.iterfind("object"))
        ]
        found += objects
        declared = [tree.findtext(f"size/{key}") for key in ("width", "height")]
        sizes[image] = _declared_size(declared) or found_size(
            Path(image_of[stem]),
            np.array([one.box for one in objects], dtype=np.float64).reshape(-1, 4),
            f"{stem}.xml declares {declared[0]!r} x {declared[1]!r}",
            repairs,
            upright=upright,
        )

    # The policy for boxes, and the columns of those that stay.
    image_index = np.array([one.image for one in found], dtype=np.int64)
    given = np.array([one.box for one in found], dtype=np.float64).reshape(-1, 4)

    def describe(number: int) -> str:
        return f"{stems[found[number].image]}.xml, object {found[number].position}"

    boxes, kept = clean_boxes(given, sizes[image_index, 0], sizes[image_index, 1], repairs, describe)
    chosen = [found[number] for number in kept.tolist()]
    categories = sorted({one.name for one in chosen})
    position_of = {name: position for position, name in enumerate(categories)}
    return Dataset(
        categories=tuple(categories),
        image_ids=Names(stems),
        paths=Names(stems),
        sizes=sizes,
        listed=np.array(list(counts.values()), dtype=np.int64),
        offsets=np.searchsorted(image_index[kept], np.arange(len(stems) + 1)).astype(np.int64),
        boxes=boxes,
        box_categories=np.array([position_of[one.name] for one in chosen], dtype=np.int64),
        ignore=np.array([one.difficult for one in chosen], dtype=np.bool_),
        crowd=np.zeros(len(chosen), dtype=np.bool_),
        annotation_ids=Names(f"{stems[one.image]}/{one.position}" for one in chosen),
        repairs=repairs,
    )


def _check_present(file_of: Mapping[str, str], folder: Path) -> None:
    absent = [f"{stem}.xml" for stem, file in file_of.items() if not file_exists(file)]
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        raise AnnotationError(
            f"{len(absent)} of {len(file_of)} annotation files do not exist: {shown}",
            where=str(folder),
            remedy="fetch the annotations or correct the image list",
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
                f"cannot be read as text ({error})", where=str(where), remedy="give a list with one name per line"
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


def _image_files(images: Path, stems: Iterable[str]) -> dict[str, str]:
    """The image file of each stem: of those with a known suffix the likeliest, or STEM.jpg where there is none."""
    found: dict[str, dict[str, str]] = {}
    paths = {}
    for stem in stems:
        folder, _, name = f"{images}/{stem}".rpartition("/")
        if folder not in found:
            found[folder] = _images_in(folder)
        paths[stem] = found[folder].get(name, f"{folder}/{name}.jpg")
    return paths


def _images_in(folder: str) -> dict[str, str]:
    """Stem to path of the image files of a folder; it is listed once, which is faster than asking for each file."""
    chosen: dict[str, tuple[int, bool, str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122
                if suffix.lower() in SUFFIXES and entry.is_file():
                    candidate = (SUFFIXES.index(suffix.lower()), suffix != suffix.lower(), entry.path)
                    chosen[stem] = min(chosen.get(stem, candidate), candidate)
    except (OSError, ValueError):  # missing, or a name that no folder can have
        return {}
    return {stem: path for stem, (*_, path) in chosen.items()}


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


def _object(element: ElementTree.Element, image: int, position: int, file: str) -> _Object:
    where = f"{file}, object {position}"
    name = (element.findtext("name") or "").strip()
    box = element.find("bndbox")
    if not name or box is None:
        missing = "bndbox" if name else "name"
        raise AnnotationError(f"has no <{missing}>", where=where, remedy="complete or remove the object")
    x1, y1, x2, y2 = (_number(box, key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
    difficult = element.find("difficult") is not None and _number(element, "difficult", where) != 0
    return _Object(image, position, name, (x1 - 1, y1 - 1, x2, y2), difficult)


def _declared_size(texts: list[str | None]) -> tuple[int, int] | None:
    """Width and height in pixels as the file says, or None if it does not say or cannot be right."""
    try:
        width, height = (float(text or 0) for text in texts)
    except ValueError:
        return None
    return usable_size(width, height)


def _number(element: ElementTree.Element, key: str, where: str) -> float:
    text = element.findtext(key)
    try:
        return float(text or "")
    except ValueError:
        raise AnnotationError(
            f"<{key}> holds {text!r}, which is not a number", where=where, remedy="correct or remove the object"
        ) from None
