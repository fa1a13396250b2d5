"""Pascal VOC folders: ``Annotations/*.xml``, ``ImageSets/Main/*.txt``, ``JPEGImages/``, and the layouts of other tools.

VOC counts pixels from 1 and its boxes include both corners, so ``xmin`` and ``ymin`` become one less and ``xmax`` and
``ymax`` stay. ``difficult`` objects are marked ``ignore``: evaluation does not ask for them, training uses them.

:mod:`openworld.data.formats.voc_layout` says which layouts are read, :mod:`openworld.data.formats.voc_lists` which
image lists. What the reader does with defects:

=====================================================  ===========================================================
list or XML file that is missing or not text           AnnotationError
XML that cannot be parsed, that declares entities, or  AnnotationError
that is not of VOC; bytes that are not in the
encoding that it declares, or UTF-8
object without name, without bndbox and polygon;       AnnotationError naming file, object and element
a coordinate that is not a number
several sets, of which none is named                   AnnotationError
two XML files of one image                             AnnotationError
name of the list that leaves the folder, or that may   AnnotationError
mean two files
hidden files and folders                               left out, unless a list names them
XML files in folders below                             read; names keep the folder
suffix of the image                                    any; ``<filename>`` decides between images of one stem, or
                                                       else the likeliest suffix, counted
``<filename>`` of another image that is there          the stem counts, counted
image whose name differs from that of the XML file in  read where there is one such image, counted; names of lists
case or Unicode form only                              in another Unicode form, too
XML file in the root beside ``Annotations/``           left out, counted
encodings UTF-8, UTF-16, UTF-32, of one byte per       read
character, and of Chinese, Japanese and Korean
``difficult`` in words                                 read; neither yes nor no: taken for no, counted
polygon without bndbox                                 becomes its box, counted
object that LabelMe marks as deleted                   left out, counted
corner at pixel 0, of tools that count from 0          taken for the edge of the image, counted
width or height missing or not positive                read from the image file or, without it, the extent of the
                                                       boxes; counted
image that the list repeats                            read once, counted; ``Record.listed`` keeps the number
coordinates that are not finite, huge or inverted,     dropped or clipped, counted:
other boxes                                            :func:`openworld.data.boxes.clean_boxes`
=====================================================  ===========================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from openworld.columns import Names
from openworld.data.boxes import clean_boxes
from openworld.data.formats import Place, Reader
from openworld.data.formats.cache import cached
from openworld.data.formats.sizes import found_size, size_text
from openworld.data.formats.voc_layout import ImageFiles, Layout, default_layout, find_layout, list_file
from openworld.data.formats.voc_lists import listed_files, missing_list, xml_files
from openworld.data.formats.voc_xml import VocObject, read_voc_image
from openworld.errors import AnnotationError
from openworld.records import Dataset
from openworld.repairs import Repairs
from openworld.runtime.folders import visible_files


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
        root: holds ``Annotations/``, or the XML files themselves, or folders of sets.
        images: folder of the images. Default: ``JPEGImages/`` in ``root``, or where else the layout has them.
        image_set: a list in ``ImageSets/Main`` without its suffix, or the path of a .txt file, or the folder of a set.
            None: every XML file.
        cache: folder for parsed annotations. None: parse them.
        upright: whether the pictures were annotated as their EXIF tags turn them; None: the annotated sizes tell.

    Returns:
        categories sorted by name; images in the order of the list. An id is the path of the XML file below the folder
        of the annotations without its suffix: without folders in it, the file's stem.

    Raises:
        AnnotationError: see the table above.
        DataError: an image file whose size is needed cannot be read.
    """
    root = Path(root)
    where, layout = _set(find_layout(root) or default_layout(root), image_set)
    if images is not None:
        layout = layout.with_images(Path(images))
    names = xml_files(layout.annotations)
    if where == layout.annotations:
        counts, file_of = Counter(dict.fromkeys(names, 1)), names
        if not counts:
            raise AnnotationError(
                "names no image", where=str(where), remedy="give a list or folder with at least one image"
            )
    else:
        counts, file_of = listed_files(where, layout, names)
    finder = ImageFiles(layout.images)

    def parse() -> Dataset:
        return _parse(counts, where, file_of, finder, upright)

    listed = {file_of[name]: times for name, times in counts.items()}
    dataset = cached(cache, root, {"format": "voc", "list": str(where)}, listed, parse)
    if layout.root != layout.annotations:
        for stray in visible_files(layout.root, (".xml",), deep=False):
            dataset.repairs.add("XML file outside the folder of the annotations left out", str(stray))
    return replace(dataset, paths=Names(_image_paths(counts, dataset, finder)), upright=upright)


def _set_for_role(place: Place, role: str) -> str | None:
    layout = find_layout(place.annotations)
    return None if layout is None else layout.set_for_role(role)


READER = Reader(
    detects=lambda path: find_layout(path) is not None,
    read=lambda place: read_voc(
        place.annotations, place.images, place.image_set, cache=place.cache, upright=place.upright
    ),
    set_for_role=_set_for_role,
)


def _set(layout: Layout, image_set: str | None) -> tuple[Path, Layout]:
    """The list, or the folder of which all XML files are read, and the layout of that part."""
    if image_set is None:
        if layout.sets:
            problem = "which of its sets is meant is not said"
            if layout.mixed:
                problem += ", and XML files lie beside their folders"
            raise AnnotationError(
                problem,
                where=str(layout.annotations),
                remedy=f"set image_set to one of: {', '.join(layout.sets)}; or give the folder of the set",
            )
        return layout.annotations, layout
    where = list_file(layout, image_set)
    if where is not None:
        return where, layout
    if image_set in layout.sets:
        layout = layout.only(image_set)
        return _set(layout, None)
    raise missing_list(image_set, layout)


def _parse(
    counts: Counter[str], where: Path, file_of: Mapping[str, str], finder: ImageFiles, upright: bool | None
) -> Dataset:
    """The data set of the listed XML files; its paths are their file names of the images."""
    repairs = Repairs()
    names = list(counts)
    for name, times in counts.items():
        if times > 1:
            repairs.add("image listed again", f"{where.name} names {name} {times} times", times - 1)

    # All objects, image after image, and the size of each image.
    found: list[VocObject] = []
    image_of: list[int] = []
    filenames: list[str] = []
    sizes = np.ones((len(names), 2), dtype=np.int64)
    for image, name in enumerate(names):
        content = read_voc_image(file_of[name], name, repairs)
        found += content.objects
        image_of += [image] * len(content.objects)
        filenames.append(content.filename)
        sizes[image] = content.size or found_size(
            Path(finder.find(name, content.filename) or finder.expected(name, content.filename)),
            np.array([one.box for one in content.objects], dtype=np.float64).reshape(-1, 4),
            f"{name}.xml declares {size_text(*content.declared)}",
            repairs,
            upright=upright,
        )

    # The policy for boxes, and the columns of those that stay.
    image_index = np.array(image_of, dtype=np.int64)
    given = np.array([one.box for one in found], dtype=np.float64).reshape(-1, 4)

    def describe(number: int) -> str:
        return f"{names[image_of[number]]}.xml, object {found[number].position}"

    from_zero = given[:, :2] == -1.0
    for number in np.flatnonzero(from_zero.any(axis=1)).tolist():
        repairs.add("corner at pixel 0, though VOC counts from 1", describe(number))
    given[:, :2][from_zero] = 0.0
    boxes, kept = clean_boxes(given, sizes[image_index, 0], sizes[image_index, 1], repairs, describe)
    chosen = [found[number] for number in kept.tolist()]
    categories = sorted({one.name for one in chosen})
    position_of = {name: position for position, name in enumerate(categories)}
    return Dataset(
        categories=tuple(categories),
        image_ids=Names(names),
        paths=Names(filenames),
        sizes=sizes,
        listed=np.array(list(counts.values()), dtype=np.int64),
        offsets=np.searchsorted(image_index[kept], np.arange(len(names) + 1)).astype(np.int64),
        boxes=boxes,
        box_categories=np.array([position_of[one.name] for one in chosen], dtype=np.int64),
        ignore=np.array([one.difficult for one in chosen], dtype=np.bool_),
        crowd=np.zeros(len(chosen), dtype=np.bool_),
        annotation_ids=Names(f"{names[image_of[number]]}/{found[number].position}" for number in kept.tolist()),
        repairs=repairs,
    )


def _image_paths(names: Iterable[str], dataset: Dataset, finder: ImageFiles) -> list[str]:
    """The image of each XML file, or where it should be."""
    owners: dict[str, str] = {}
    for name, filename in zip(names, map(str, dataset.paths), strict=True):
        path = finder.find(name, filename)
        doubt = None if path is None else finder.doubt(path, name, filename)
        if path is not None and doubt is not None:
            kind, other = doubt
            dataset.repairs.add(kind, f"{name}.xml: {path} is taken, and there is {other}")
        path = path or finder.expected(name, filename)
        if path in owners:
            raise AnnotationError(
                f"{owners[path]}.xml and {name}.xml are annotations of one image",
                where=path,
                remedy="remove one of them, or correct their <filename>",
            )
        owners[path] = name
    return list(owners)
