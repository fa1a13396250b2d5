"""Where a VOC data set has its XML files, its image lists and its images.

The challenge has ``Annotations/``, ``ImageSets/Main/`` and ``JPEGImages/``. Tools write other layouts, which are read
where only one meaning is possible:

=====================================================  ===========================================================
``annotations/``, ``annotation/``, ``xmls/``,          the folder of the XML files, one in the other as well
``xml/``, and ``labels/`` without .txt files
``images/``, ``image/``, ``imgs/``, ``img/``,          folders of the images; images may lie beside the XML files, or
``data/``                                              in the root, too
no such folder, XML files in the root                  the root is the folder of the XML files
folders called train, val, test and alike that hold    sets, which ``image_set`` names; they are not read as one,
the XML files; or several VOC folders side by side     nor with XML files that lie beside them
one VOC folder in an otherwise empty folder            that one
=====================================================  ===========================================================

Names are compared without regard to case.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openworld.data.formats.file_names import folded
from openworld.data.formats.set_names import OF_ROLE, SET_NAMES
from openworld.runtime.folders import is_hidden, visible_files, visible_folders
from openworld.runtime.images import SUFFIXES

_ANNOTATIONS = ("annotations", "annotation", "xmls", "xml", "labels")
_IMAGES = ("jpegimages", "images", "image", "imgs", "img", "data")
FOLDERS = frozenset(_ANNOTATIONS + _IMAGES)
"""Names of folders that image lists put in front of a name, in lower case."""


@dataclass(frozen=True)
class Layout:
    """The folders of a VOC data set.

    Attributes:
        root: holds the image lists.
        annotations: folder of the XML files.
        images: folders of the images, in the order in which they are looked through.
        sets: names of the folders in ``annotations`` that are sets of their own; empty: all XML files are one set.
        mixed: whether XML files lie beside the folders of sets, so that they belong to none.
    """

    root: Path
    annotations: Path
    images: tuple[Path, ...]
    sets: tuple[str, ...] = ()
    mixed: bool = False

    def set_for_role(self, role: str) -> str | None:
        """The set that a role means, or None."""
        if self.mixed:
            return None
        return next((name for name in self.sets if name.lower() in OF_ROLE[role]), None)

    def only(self, name: str) -> Layout:
        """The layout of one of the sets."""
        folder = self.annotations / name
        if self.annotations == self.root:
            return find_layout(folder) or _layout(folder, folder)
        of_set = [place / name for place in self.images if (place / name).is_dir()]
        return replace(self, annotations=folder, images=(*of_set, *self.images), sets=(), mixed=False)

    def with_images(self, images: Path) -> Layout:
        """The layout with the images in a folder that the user names, or in a folder of the set's name below it."""
        of_set = images / self.annotations.name
        return replace(self, images=(of_set, images) if of_set.is_dir() else (images,))


def find_layout(place: Path) -> Layout | None:
    """Return the layout of a VOC data set, or None for anything else.

    Args:
        place: the root, or the folder of the XML files.
    """
    if not place.is_dir():
        return None
    named = next((folder for folder in visible_folders(place) if folder.name == "Annotations"), None)
    if named is None and _is_yolo(place):
        return None
    named = named or _annotation_folder(place)
    if named is not None:
        return _layout(place, _innermost(named))
    if place.name.lower() in _ANNOTATIONS and _has_xml(place):
        return _layout(place.parent, _innermost(place))
    if _has_xml(place, deep=False):
        return _layout(place, place)
    below = [folder for folder in visible_folders(place) if _has_xml(folder)]
    if not below:
        return None
    if len(below) == 1 and not _names_a_set(below[0]):
        inner = find_layout(below[0])
        if inner is not None and (inner.annotations != below[0] or inner.sets):
            return inner
        if below[0].name.lower() in _IMAGES:
            return _layout(place, below[0])
    whole = [folder for folder in below if _annotation_folder(folder) is not None]
    layout = _layout(place, place)
    return replace(layout, sets=tuple(folder.name for folder in below)) if whole else layout


def default_layout(place: Path) -> Layout:
    """The layout of the challenge, for a folder that holds no VOC data set; what is missing is found on reading."""
    return Layout(place, place / "Annotations", (place / "JPEGImages",))


def list_file(layout: Layout, image_set: str) -> Path | None:
    """The file of an image list by its name or path, or None."""
    name = image_set if image_set.endswith(".txt") else f"{image_set}.txt"
    places = [folder / name for folder in (main_folder(layout), layout.root / "ImageSets", layout.root)]
    if image_set.endswith(".txt"):
        places = [Path(image_set), *places]
    return next((place for place in places if place.is_file()), None)


def main_folder(layout: Layout) -> Path:
    """The folder of the lists for detection."""
    return layout.root / "ImageSets" / "Main"


def _layout(root: Path, annotations: Path) -> Layout:
    inside = {folder.name.lower(): folder for folder in reversed(visible_folders(root))}
    images = [inside[name] for name in _IMAGES if name in inside]
    if not images and annotations != root:
        images = [root / "JPEGImages"]
    places = tuple(dict.fromkeys([*images, annotations, root]))
    below = [folder for folder in visible_folders(annotations) if _has_xml(folder)]
    sets = tuple(folder.name for folder in below) if any(_names_a_set(folder) for folder in below) else ()
    return Layout(root, annotations, places, sets, bool(sets) and _has_xml(annotations, deep=False))


def _annotation_folder(place: Path) -> Path | None:
    """The folder in a folder that is called like one of annotations and holds XML files."""
    found = {
        folder.name.lower(): folder
        for folder in visible_folders(place)
        if folder.name.lower() in _ANNOTATIONS and _has_xml(folder)
    }
    return next((found[name] for name in _ANNOTATIONS if name in found), None)


def _innermost(folder: Path) -> Path:
    """Follow ``annotations/xmls/``, and ``Annotations/Annotations/``, as an archive may unpack."""
    while not _has_xml(folder, deep=False):
        holding = [below for below in visible_folders(folder) if _has_xml(below)]
        if len(holding) != 1 or holding[0].name.lower() not in _ANNOTATIONS:
            break
        (folder,) = holding
    return folder


def _names_a_set(folder: Path) -> bool:
    return folder.name.lower() in SET_NAMES


def _is_yolo(place: Path) -> bool:
    labels = place / "labels"
    return (place / "data.yaml").is_file() or any(visible_files(labels, (".txt",)))


def _has_xml(folder: Path, *, deep: bool = True) -> bool:
    """Whether a folder holds an XML file that is not hidden; stops at the first one."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[-4:].lower() == ".xml" and not is_hidden(entry.name) and not entry.is_dir():
                    return True
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return deep and any(_has_xml(below) for below in visible_folders(folder) if not below.is_symlink())


class ImageFiles:
    """The image files of a layout. Each folder is listed once, which is faster than asking for each file.

    Args:
        folders: of the images, in the order in which they are looked through.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [os.fspath(folder) for folder in folders]
        self._stems: dict[str, dict[str, list[str]]] = {}
        self._spellings: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str, filename: str) -> str | None:
        """The image of an XML file, or None if there is none.

        The stem of the XML file decides, and ``<filename>`` between two images of one stem. Where no image has the
        stem, ``<filename>`` says which it is, or else the only image whose stem differs in case or Unicode form.

        Args:
            name: of the XML file, below the folder of the annotations, without its suffix.
            filename: what its ``<filename>`` holds.
        """
        below, _, stem = name.rpartition("/")
        folder_given, _, given = filename.replace("\\", "/").rpartition("/")
        for folder in self._places(below) if below else self._folders:
            candidates = self._listed(folder).get(stem)
            if candidates:
                return f"{folder}/{given if given in candidates else candidates[0]}"
        in_given = [] if ".." in folder_given.split("/") or folder_given.startswith("/") else [folder_given]
        for folder in self._places(*in_given, below):
            for wanted in filter(None, (given, stem)):  # a stem may be a whole file name: a.jpg.xml
                candidates = self._listed(folder).get(os.path.splitext(wanted)[0])  # noqa: PTH122
                if candidates:
                    return f"{folder}/{wanted if wanted in candidates else candidates[0]}"
        for folder in self._places(below):
            spellings = self._folded(folder).get(folded(stem), ())
            if len(spellings) == 1:
                return f"{folder}/{self._listed(folder)[spellings[0]][0]}"
        return None

    def doubt(self, path: str, name: str, filename: str) -> tuple[str, str] | None:
        """What speaks against the image that was found for an XML file: a kind of repair, and which name it is of.

        None: nothing.
        """
        stem, stem_found = (os.path.basename(text) for text in (name, os.path.splitext(path)[0]))  # noqa: PTH119, PTH122
        if stem != stem_found and folded(stem) == folded(stem_found):
            return "image in other case or Unicode form than its XML file", f"no {stem!r}"
        given = filename.replace("\\", "/").rpartition("/")[2]
        folder, _, found = path.rpartition("/")
        if given == found:
            return None
        others = self._listed(folder)
        of_stem = others.get(os.path.splitext(found)[0], ())  # noqa: PTH122
        if len(of_stem) > 1:
            return "the likeliest of several images of one stem taken", ", ".join(of_stem)
        stem_given = os.path.splitext(given)[0]  # noqa: PTH122
        return ("<filename> of another image", given) if given in others.get(stem_given, ()) else None

    def expected(self, name: str, filename: str) -> str:
        """Where the image of an XML file should be, for messages."""
        suffix = os.path.splitext(filename)[1]  # noqa: PTH122
        return f"{self._folders[0]}/{name}{suffix if suffix.lower() in SUFFIXES else '.jpg'}"

    def _places(self, *below: str) -> list[str]:
        return [
            f"{folder}/{inner}" if inner else folder
            for folder in self._folders
            for inner in dict.fromkeys((*below, ""))
        ]

    def _folded(self, folder: str) -> dict[str, list[str]]:
        """Stems of a folder by their name without case, in one Unicode form."""
        if folder not in self._spellings:
            found: dict[str, list[str]] = {}
            for stem in self._listed(folder):
                found.setdefault(folded(stem), []).append(stem)
            self._spellings[folder] = found
        return self._spellings[folder]

    def _listed(self, folder: str) -> dict[str, list[str]]:
        """Stem to the names of its image files, the likeliest first."""
        if folder not in self._stems:
            found: dict[str, list[tuple[int, bool, str]]] = {}
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122
                        if suffix.lower() in SUFFIXES and entry.is_file():
                            ranked = (SUFFIXES.index(suffix.lower()), suffix != suffix.lower(), entry.name)
                            found.setdefault(stem, []).append(ranked)
            except (OSError, ValueError):  # missing, or a name that no folder can have
                found = {}
            self._stems[folder] = {stem: [name for *_, name in sorted(ranked)] for stem, ranked in found.items()}
        return self._stems[folder]
