"""Read an annotated set of images in any of the formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from openworld.data.formats import FORMATS, Place, annotations_help
from openworld.data.formats.cache import cache_folder
from openworld.data.options import SourceOptions
from openworld.errors import DataError
from openworld.records import Dataset
from openworld.runtime.folders import visible_files, visible_folders

_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"})


def read_dataset(source: SourceOptions, role: str | None = None) -> Dataset:
    """Read and validate one annotated set of images, with the names and files as they are written there.

    :func:`openworld.records.renamed` brings the class names to those of a schedule, and
    :func:`openworld.records.check_files` makes sure that the image files exist: scoring does not need them. Where the
    annotations do not say the size of an image whose file is missing, it is the extent of its boxes, which is counted
    as a repair.

    Args:
        source: where and in which format.
        role: ``train``, ``val`` or ``test``: the set to take where the source does not name one and the format has sets
            of these names.

    Raises:
        DataError: files that are missing or cannot be used; the docstring of each format says what is repaired instead.
    """
    if source.annotations is None:
        raise DataError("no annotations given", remedy=f"name a {annotations_help()}")
    path = Path(source.annotations)
    if not path.exists():
        raise DataError("no such file or folder", where=str(path), remedy="check the path of the annotations")
    reader = FORMATS[_detected(path, role) if source.format == "auto" else source.format].reader
    images = None if source.images is None else Path(source.images)
    upright = None if source.orientation == "auto" else source.orientation == "upright"
    place = Place(path, images, source.image_set, cache_folder() if source.cache else None, upright)
    if role is not None and place.image_set is None:
        place = replace(place, image_set=reader.set_for_role(place, role))
    return reader.read(place)


def _detected(path: Path, role: str | None) -> str:
    """Name of the first format that detects the annotations."""
    for name, form in FORMATS.items():
        if form.reader.detects(path):
            return name
    files = [file for place in (path, *visible_folders(path)) for file in visible_files(place, (".json",), deep=False)]
    if files:
        likely = [file for file in files if role is not None and role in str(file.relative_to(path))]
        remedy = f"name the file of the annotations, such as {(likely or files)[0]}"
    elif path.suffix.lower() in _ARCHIVES:
        remedy = "unpack it, and name the file or the folder in it"
    elif path.suffix.lower() == ".xml":
        remedy = "name the folder of the .xml files"
    else:
        remedy = f"correct the path, or set `format` to one of: {', '.join(FORMATS)}"
    raise DataError(f"is not a {annotations_help()}", where=str(path), remedy=remedy)
