"""Formats of annotations. A new one is a module with a :class:`Reader`, and a line in :data:`FORMATS`.

Everything that has to know the formats asks this table: the reader of data sets, the check of the options, messages
and the help of the command line. The module of a format is imported when it is needed, so that the table costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openworld.records import Dataset


@dataclass(frozen=True)
class Place:
    """Where a data set lies.

    Args:
        annotations: the file or folder, which exists.
        images: folder of the images, or None for where the format has them.
        image_set: which part of the data set; None: all of it, or what the format takes without one.
        cache: folder for parsed annotations, or None to parse them each time.
        upright: whether the pictures were annotated as their EXIF tags turn them; None: as the format has it.
    """

    annotations: Path
    images: Path | None = None
    image_set: str | None = None
    cache: Path | None = None
    upright: bool | None = None


def _no_set(place: Place, role: str) -> str | None:
    return None


@dataclass(frozen=True)
class Reader:
    """What a format's module defines under the name ``READER``.

    Args:
        detects: whether a file or folder is in this format.
        read: reads a data set as the files have it, without renaming classes or looking for image files.
        set_for_role: name of the image set that a role (``train``, ``val`` or ``test``) means where none is named, or
            None. Formats without such names leave it out.
    """

    detects: Callable[[Path], bool]
    read: Callable[[Place], Dataset]
    set_for_role: Callable[[Place, str], str | None] = _no_set


@dataclass(frozen=True)
class Format:
    """A format of annotations.

    Args:
        annotations: what to name as the annotations, in words that follow "a".
        image_set: what to name as the image set.
        module: defines ``READER``.
    """

    annotations: str
    image_set: str
    module: str

    @property
    def reader(self) -> Reader:
        """The format's reader; imports its module."""
        found: Reader = import_module(self.module).READER
        return found


FORMATS: dict[str, Format] = {
    "coco": Format("COCO .json file", "field=value, as in fold=train", "openworld.data.formats.coco"),
    "voc": Format("VOC folder", "name or path of the list of images", "openworld.data.formats.voc"),
    "yolo": Format("YOLO data.yaml", "which set, by default the one of the same name", "openworld.data.formats.yolo"),
}
"""The formats by name. Where the format is not named, the first one that detects the annotations is taken."""


def annotations_help() -> str:
    """What can be named as annotations, for messages and help."""
    names = [form.annotations for form in FORMATS.values()]
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def image_set_help() -> str:
    """What can be named as an image set, for messages and help."""
    return "; ".join(f"{name.upper()}: {form.image_set}" for name, form in FORMATS.items())
