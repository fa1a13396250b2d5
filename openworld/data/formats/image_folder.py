"""Where the image files of an annotation file lie: which folder, and under which spelling of their names.

Annotation tools agree on the records of a COCO file and on nothing else. Where nobody names the folder of the images,
the ones that tools write are tried in a fixed order, and the files decide: the first folder that holds the images is
taken. Names are read as they are written, or else in the spelling under which the file exists, which is counted.

Layouts, for ``annotations/instances_train2017.json`` or ``train.json``:

=====================================================  ===========================================================
images/, or else the file's own folder                 the default: taken where half of the images are there, or
                                                       where no other folder has one
the file's own folder, data/                           Label Studio (names begin with images/), Roboflow; FiftyOne
images/<split>, <split>, data/<split>                  images beside train.json
../images/<split>, ../<split>, ../data/<split>         CVAT and Datumaro (images/default); COCO itself (train2017)
../images, ../data, .. of a folder annotations/        Supervisely; names that begin with the folder of the split
a folder above, whose end file names repeat            data/set/images/a.jpg in data/set/
=====================================================  ===========================================================

A split is what the name of the file ends or begins with: train2017 of instances_train2017.json.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from urllib.parse import unquote

from openworld.data.formats.file_names import check_inside, folded, is_inside
from openworld.errors import AnnotationError
from openworld.records import file_exists
from openworld.repairs import Repairs

PROBES = 48
"""File names that are looked for in each folder, spread over all of them."""
LISTED = 8
"""Maximum number of folders that a message lists."""
REPEATED = "folder of the images repeated in file_name"
BELOW = "image in a folder below the one that `images` names"
OTHER_CASE = "file_name in other case than the file"
OTHER_FORM = "file_name in another Unicode form than the file"
QUERY = "query after file_name left out"
"""Kinds of repair, beside those of ``_CHANGES``."""

_CHANGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("backslashes of file_name read as slashes", lambda name: name.replace("\\", "/")),
    ("path of file_name taken out of an address", lambda name: name.rpartition("?d=")[2]),  # Label Studio's local files
    ("slash before file_name left out", lambda name: name.removeprefix("/")),
    (QUERY, lambda name: name.partition("?")[0]),
    ("file_name decoded as in a URL", unquote),
)
"""What tools do to file names, and what undoes it, in the order in which it is undone."""
_LOSSY = frozenset((QUERY, OTHER_CASE))
"""What can make one name of two that name different files."""
_PLAIN = re.compile(r"[^/\\%?\x80-\U0010ffff][^\\%?\x80-\U0010ffff]*")
"""Names that have no other spelling than the one in which they are written."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SEPARATOR = re.compile("[-_.]")
_ANNOTATIONS = ("annotations", "annotation", "anns", "ann", "labels")
"""Names of folders that hold annotations, beside the images and not above them."""


class Located(NamedTuple):
    """The image files of an annotation file: ``paths``, one per image, of which some may not exist.

    ``searched`` says what was looked at, after "which was"; empty where nothing is amiss.
    """

    paths: list[str]
    searched: str


class _Place(NamedTuple):
    """A folder that may hold the images, and the kind of repair that it is to take it, if any."""

    folder: Path
    kind: str | None = None


def locate_images(annotations: Path, images: Path | None, names: Sequence[str], repairs: Repairs) -> Located:
    """Find the image files of an annotation file.

    At most ``PROBES`` names are looked for in each folder. All names are looked for only where some of these are
    missing; otherwise only those that may be meant in another spelling.

    Args:
        annotations: the annotation file.
        images: folder of the images, or None for where tools put it.
        names: (I,) file names as the annotations have them.
        repairs: counts names that are read in another spelling than the one in which they are written.

    Raises:
        AnnotationError: a name that climbs out of the folder or lies on a drive, or is absolute and elsewhere; or two
            names that may both mean one file.
    """
    local = [name for name in names if not _URL.match(name)]
    probes = local[:: max(1, -(-len(local) // PROBES))]
    places = _usual_places(annotations, probes) if images is None else _named_places(annotations, images, probes)
    files, kind, hits = _choose(places, probes, set(names))
    some_missing = 0 < hits < len(probes)
    paths = []
    assumed_files = set()
    for position, name in enumerate(names):
        found = _Found(name, ())
        if some_missing or not (_PLAIN.fullmatch(name) and is_inside(name)):
            found = files.find(name, any_case=some_missing) or files.as_written(name)
            check_inside(found.name, f"{annotations}, images[{position}]")
        path = f"{files.folder}/{found.name}"
        for assumed in found.kinds if kind is None else (kind, *found.kinds):
            repairs.add(assumed, f"{annotations}, images[{position}]: {name!r} is taken for {path}")
        if not _LOSSY.isdisjoint(found.kinds):
            assumed_files.add(path)
        paths.append(path)
    if assumed_files:
        _check_told_apart(annotations, names, paths, assumed_files)
    return Located(paths, _searched(names, probes, places, hits))


def _check_told_apart(annotations: Path, names: Sequence[str], paths: Sequence[str], assumed: AbstractSet[str]) -> None:
    """Refuse two names for one file that was found by leaving out what may tell them apart."""
    owners: dict[str, str] = {}
    for position, (name, path) in enumerate(zip(names, paths, strict=True)):
        if path in assumed and owners.setdefault(path, name) != name:
            raise AnnotationError(
                f"file names {owners[path]!r} and {name!r} may both mean {path}",
                where=f"{annotations}, images[{position}]",
                remedy="write the names as the files are called, each image's own",
            )


def _searched(names: Sequence[str], probes: Sequence[str], places: Sequence[_Place], hits: int) -> str:
    """What to say of images that do not exist."""
    if url := next((name for name in names if _URL.match(name)), None):
        return f"file names are URLs, such as {url!r}: download the images"
    if hits == len(probes):
        return ""
    folders = [str(place.folder) for place in places if place.folder.is_dir()]
    if not folders:
        return f"the folder {places[0].folder} does not exist"
    return f"looked in {', '.join(folders[:LISTED])}{', …' if len(folders) > LISTED else ''}"


# -- which folder ------------------------------------------------------------------------------------------------------


def _choose(places: Sequence[_Place], probes: Sequence[str], taken: AbstractSet[str]) -> tuple[_Files, str | None, int]:
    """The folder that holds the images, the kind of repair that it is to take it, and how many of the probes it has."""
    tried = [(_Files(place.folder, taken), place.kind) for place in places]
    for any_case in (False, True):
        best, most = tried[0], 0
        for number, (files, kind) in enumerate(tried):
            hits = sum(files.find(name, any_case=any_case) is not None for name in probes) if files.exist else 0
            if hits == len(probes) or (number == 0 and 2 * hits >= len(probes)):
                return files, kind, hits
            if hits > most:
                best, most = (files, kind), hits
        if most:
            return *best, most
    return tried[0][0], None, 0


def _named_places(annotations: Path, images: Path, probes: Sequence[str]) -> list[_Place]:
    """The folder that was named; those above it whose end file names repeat; those of the split below it."""
    return [
        _Place(images),
        *(_Place(folder, REPEATED) for folder in _above(images, probes)),
        *(_Place(images / split, BELOW) for split in _splits(annotations)),
    ]


def _usual_places(annotations: Path, probes: Sequence[str]) -> list[_Place]:
    """Where tools put the images of an annotation file; the first is the one to name where none has them."""
    own = annotations.parent
    root = own / ".." if own.name in ("", "..") else own.parent
    default = own / "images" if (own / "images").is_dir() else own
    folders = [default, own / "images", own, own / "data"]
    for split in _splits(annotations):
        folders += [own / "images" / split, own / split, own / "data" / split]
        folders += [root / "images" / split, root / split, root / "data" / split]
    folders += [root / "images", root / "data"]
    if own.absolute().name.lower() in _ANNOTATIONS:
        folders.append(root)
    folders += _above(own, probes)
    return [_Place(folder) for folder in dict.fromkeys(folders)]


def _splits(annotations: Path) -> list[str]:
    """What the name of a file ends or begins with, the longest first: ``train2017`` of ``instances_train2017``."""
    stem = annotations.stem
    cuts = list(_SEPARATOR.finditer(stem))
    ends = [stem[cut.end() :] for cut in cuts]
    beginnings = [stem[: cut.start()] for cut in reversed(cuts)]
    return [split for split in dict.fromkeys([stem, *ends, *beginnings]) if split.strip(".")]


def _above(folder: Path, probes: Sequence[str]) -> list[Path]:
    """The folder above, to which file names are relative if they begin with the end of its own path."""
    if not probes:
        return []
    named = PurePosixPath(probes[0].replace("\\", "/").lstrip("/")).parent.parts
    own = folder.absolute()
    return [
        (folder if len(folder.parents) >= count else own).parents[count - 1]
        for count in range(len(named), 0, -1)
        if own.parts[-count:] == named[:count]
    ]


# -- which file --------------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """A name below a folder, and the kinds of repair that it took to read it so."""

    name: str
    kinds: tuple[str, ...]


class _Files:
    """The files of a folder, as annotations name them.

    Args:
        folder: which need not exist.
        taken: all names of the annotations: a file that one of them names is not taken for another's.
    """

    def __init__(self, folder: Path, taken: AbstractSet[str]) -> None:
        self.folder = folder
        self.exist = folder.is_dir()
        self._taken = taken
        self._roots = {f"{folder.absolute()}/", f"{folder.resolve()}/"}
        self._entries: dict[str, dict[str, list[str]]] = {}

    def as_written(self, name: str) -> _Found:
        """The name itself, relative to the folder if it is absolute and below it."""
        for root in self._roots:
            if name.startswith(root) and is_inside(name.removeprefix(root)):
                return _Found(name.removeprefix(root), ())
        return _Found(name, ())

    def find(self, name: str, *, any_case: bool) -> _Found | None:
        """The file that a name means, in the first of its spellings that exists; None if there is none."""
        spellings = [found for found in self._spellings(name) if is_inside(found.name)]
        for found in spellings:
            if file_exists(f"{self.folder}/{found.name}"):
                return found
        for found in spellings if any_case else ():
            other = self._in_other_case(found.name)
            if other is not None and other not in self._taken and file_exists(f"{self.folder}/{other}"):
                return _Found(other, (*found.kinds, OTHER_CASE))
        return None

    def _spellings(self, name: str) -> Iterator[_Found]:
        """The name as it is written, then with one change after the other undone, then in both Unicode forms."""
        text, kinds = self.as_written(name)
        yield _Found(text, kinds)
        if PureWindowsPath(name).drive or _URL.match(name):
            return
        for kind, change in _CHANGES:
            if (changed := change(text)) != text:
                text, kinds = changed, (*kinds, kind)
                yield _Found(text, kinds)
        for form in ("NFC", "NFD"):
            if (changed := unicodedata.normalize(form, text)) != text:
                yield _Found(changed, (*kinds, OTHER_FORM))

    def _in_other_case(self, name: str) -> str | None:
        """The only entry of the folder whose name differs in case at most, or None."""
        place = ""
        for part in PurePosixPath(name).parts:
            entries = self._folded(place).get(folded(part), [])
            if part not in entries and len(entries) != 1:
                return None
            place = f"{place}/{part if part in entries else entries[0]}"
        return place.removeprefix("/")

    def _folded(self, below: str) -> dict[str, list[str]]:
        """Entries of a folder below this one, by their name without case; listed once."""
        if below not in self._entries:
            found: dict[str, list[str]] = {}
            try:
                for entry in sorted(os.listdir(f"{self.folder}{below}")):  # noqa: PTH208
                    found.setdefault(folded(entry), []).append(entry)
            except OSError:
                pass
            self._entries[below] = found
        return self._entries[below]
