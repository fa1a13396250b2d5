"""Layouts of YOLO data sets: which file says what the classes are called, and where the images of a set are.

==============================================  =======================================================================
``data.yaml``, ``dataset.yaml``, or the only    Ultralytics, Roboflow, CVAT (Ultralytics YOLO), FiftyOne (YOLOv5)
.yaml file with ``names``; or its folder
``obj.data``, or its folder                     Darknet, CVAT (YOLO 1.1), Datumaro: ``key = value`` lines that name
                                                ``names`` and a list of images for each set
a folder with ``obj.names`` and ``images.txt``  FiftyOne (YOLOv4): the lists ``train.txt``, ``valid.txt``, … are sets
a folder with ``images/`` and ``labels/``       Label Studio: ``classes.txt`` or ``obj.names`` there or in ``labels/``;
                                                Roboflow's ``train/``: data.yaml one folder above, if it names images
                                                that are in here
a folder of images with their labels            labelImg, Roboflow (Darknet): ``classes.txt``, ``_darknet.labels``
a folder called ``labels`` or ``images``, or    the one above it, and of its images those of this folder
one below
==============================================  =======================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openworld.data.formats.file_names import check_inside
from openworld.data.formats.set_names import OF_ROLE, SET_NAMES
from openworld.data.formats.yolo_evidence import KEYPOINT_DIMENSIONS, Keypoints
from openworld.data.formats.yolo_names import check_count, listed_names, names_of_yaml
from openworld.data.formats.yolo_paths import listed_images, located, text_of
from openworld.errors import DataError
from openworld.repairs import Repairs
from openworld.runtime.files import read_yaml
from openworld.runtime.folders import visible_files
from openworld.runtime.images import find_images

CLASS_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
"""Files with one class name a line."""
_YAML = (".yaml", ".yml")
_REMEDY = "a data.yaml has `names` and, for each set, `train`, `val` or `test`"


@dataclass(frozen=True)
class Layout:
    """Where a data set has its classes and its images.

    Args:
        where: the file that describes it, or the folder, for messages.
        root: what its paths are relative to.
        names: of the classes, in the order of their numbers.
        sets: folders or lists of images by the name of the set, as they are written; none where the set is empty. None:
            folders below ``images``.
        images: folder of the images, without sets.
        keypoints: what ``kpt_shape`` says; None: nothing.
    """

    where: Path
    root: Path
    names: Sequence[str]
    sets: Mapping[str, Sequence[str]] | None = None
    images: Path = field(default_factory=Path)
    keypoints: Keypoints | None = None

    def set_for_role(self, role: str) -> str | None:
        """The set that has the role's name, or what tools call it; None: there is none."""
        for name in OF_ROLE[role]:
            if name in self.sets if self.sets is not None else (self.images / name).is_dir():
                return name
        return None

    def files(self, image_set: str | None, repairs: Repairs) -> list[Path]:
        """Image files of a set.

        Raises:
            DataError: no such set, or a folder or list that is missing or leaves the root.
        """
        if self.sets is not None:
            name, entries = self._named(self.sets, image_set)
            return [file for entry in entries for file in self._images(entry, f"{self.where}: {name}", repairs)]
        if image_set is None:
            return _images_in(self.images, str(self.root))
        if image_set.endswith(".txt"):
            return listed_images(Path(image_set), self.root, repairs)
        check_inside(image_set, str(self.root))
        return _images_in(self.images / image_set, str(self.root))

    def _named(self, sets: Mapping[str, Sequence[str]], image_set: str | None) -> tuple[str, Sequence[str]]:
        full = [name for name, entries in sets.items() if entries]
        wanted = full[0] if image_set is None and len(full) == 1 else image_set
        if wanted is None:
            raise DataError(
                "which of its sets is meant is not said" if full else "names no set of images",
                where=str(self.where),
                remedy=f"set image_set to one of: {', '.join(full)}" if full else "add `train: images/train`",
            )
        if wanted not in full:
            raise DataError(
                f"has no set {wanted!r}",
                where=str(self.where),
                remedy=f"choose one of: {', '.join(full)}" if full else f"add `{wanted}: images/{wanted}`",
            )
        return wanted, sets[wanted]

    def _images(self, entry: str, where: str, repairs: Repairs) -> list[Path]:
        place = located(entry, self.root, where, repairs)
        if place.suffix.lower() == ".txt":
            return listed_images(place, self.root, repairs)
        return _images_in(place, str(self.where))


def is_yolo(path: Path) -> bool:
    """Whether a path looks like a YOLO data set: one of the layouts above."""
    if path.is_file():
        return path.suffix.lower() in (*_YAML, ".data")
    return (
        any(_yaml_files(path))
        or any(visible_files(path, (".data", ".names"), deep=False))
        or (path / "labels").is_dir()
        or any((path / name).is_file() or any(path.glob(f"*/{name}")) for name in CLASS_LISTS)
        or _above(path) is not None
    )


def find_layout(path: Path, images: Path | None, repairs: Repairs) -> Layout:
    """Read what describes a data set.

    Args:
        path: a file or folder of the table above.
        images: folder of the images; only for a folder that no file describes.
        repairs: counts what had to be changed.

    Raises:
        DataError: nothing says what the classes are called, or what says it cannot be used.
    """
    description = path if path.is_file() else _description_in(path)
    if description is None:
        return _folder(path, images, repairs)
    if images is not None:
        raise DataError(
            f"images={str(images)!r} has no meaning beside a {description.name}",
            where=str(description),
            remedy=f"name the folders in {description.name}, or give the folder with labels/ instead",
        )
    if description.suffix == ".names":
        lists = {
            file.stem: [file.name]
            for file in visible_files(path, (".txt",), deep=False)
            if file.stem in (*SET_NAMES, "images")
        }
        return Layout(description, path, listed_names(description), lists)
    return (_of_darknet if description.suffix.lower() == ".data" else _of_yaml)(description, repairs)


# -- files that describe -----------------------------------------------------------------------------------------------


def _yaml_files(folder: Path) -> Iterator[Path]:
    """data.yaml and dataset.yaml by their name, then all others that have ``names``."""
    named = [folder / f"{stem}{suffix}" for stem in ("data", "dataset") for suffix in _YAML]
    yield from (file for file in named if file.is_file())
    for file in visible_files(folder, _YAML, deep=False):
        if file not in named:
            try:
                content = read_yaml(file, remedy=_REMEDY, kind=DataError)
            except DataError:
                continue
            if "names" in content:
                yield file


def _description_in(folder: Path) -> Path | None:
    """The file that describes the sets of a folder."""
    found = list(_yaml_files(folder)) or _described(folder, ".data")
    if not found and any((folder / f"{name}.txt").is_file() for name in (*SET_NAMES, "images")):
        found = _described(folder, ".names")
    if len(found) > 1 and found[0].stem not in ("data", "dataset", "obj"):
        raise DataError(
            f"{', '.join(file.name for file in found[:5])} describe data sets",
            where=str(folder),
            remedy="give the file instead of the folder",
        )
    return found[0] if found else None


def _described(folder: Path, suffix: str) -> list[Path]:
    """Files with a suffix, ``obj`` first."""
    return sorted(visible_files(folder, (suffix,), deep=False), key=lambda file: file.stem != "obj")


def _of_yaml(description: Path, repairs: Repairs) -> Layout:
    content = read_yaml(description, remedy=_REMEDY, kind=DataError)
    root = _root(content, description, repairs)
    names = names_of_yaml(content, description, root, repairs)
    return Layout(
        description, root, names, _yaml_sets(content, description), keypoints=_keypoints(content, description)
    )


def _yaml_sets(content: Mapping[str, Any], description: Path) -> dict[str, list[str]]:
    sets: dict[str, list[str]] = {}
    for key in SET_NAMES:
        if key not in content:
            continue
        value = content[key] or []
        sets[key] = value if isinstance(value, list) else [value]
        for entry in sets[key]:
            if not isinstance(entry, str) or not entry.strip():
                raise DataError(
                    f"`{key}` holds {entry!r}", where=str(description), remedy="name folders of images or .txt lists"
                )
    return sets


def _root(content: Mapping[str, Any], description: Path, repairs: Repairs) -> Path:
    value = content.get("path")
    if value is not None and not isinstance(value, str):
        raise DataError(f"`path` is {value!r}", where=str(description), remedy="give the root folder of the data set")
    root = located(_home_expanded(value) if value else ".", description.parent, f"{description}: path", repairs)
    if not root.is_dir():
        raise DataError(
            f"`path` names {root}, which is not a folder",
            where=str(description),
            remedy=f"make `path` relative to {description.name}, or remove it where both are one folder",
        )
    return root


def _home_expanded(entry: str) -> str:
    """The path with the home folder in place of ``~``; as it is where nobody knows of such a home."""
    try:
        return str(Path(entry).expanduser())
    except RuntimeError:  # of another user, ~name, that this machine does not have
        return entry


def _keypoints(content: Mapping[str, Any], description: Path) -> Keypoints | None:
    if "kpt_shape" not in content:
        return None
    shape = content["kpt_shape"]
    if shape is None:
        return Keypoints(0, KEYPOINT_DIMENSIONS[0])
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(value) is int for value in shape)
    if not whole or shape[0] < 1 or shape[1] not in KEYPOINT_DIMENSIONS:
        raise DataError(
            f"`kpt_shape` is {shape!r}",
            where=str(description),
            remedy="write [K, 2] for K keypoints x y, [K, 3] for x y visibility; remove it where labels have none",
        )
    return Keypoints(*shape)


def _of_darknet(description: Path, repairs: Repairs) -> Layout:
    """``key = value`` lines. A value with the suffix .txt is a list of images."""
    content: dict[str, str] = {}
    for line in text_of(description).splitlines():
        key, equals, value = line.partition("=")
        if equals and not key.lstrip().startswith("#"):
            content[key.strip()] = value.strip()
    root = description.parent
    if not content.get("names"):
        raise DataError(
            "has no line `names = …`", where=str(description), remedy="name the file with one class name per line"
        )
    names = listed_names(located(content["names"], root, f"{description}: names", repairs))
    check_count(content.get("classes"), names, description, "classes")
    sets = {key: [value] for key, value in content.items() if value.endswith(".txt")}
    return Layout(description, root, names, sets)


# -- folders that no file describes ------------------------------------------------------------------------------------


def _above(path: Path) -> Path | None:
    """The folder ``images`` or ``labels`` that a path is or lies in, where the other one lies beside it."""
    for folder in (path, path.parent):
        if folder.name in ("images", "labels") and all(
            (folder.parent / name).is_dir() for name in ("images", "labels")
        ):
            return folder
    return None


def _folder(path: Path, images: Path | None, repairs: Repairs) -> Layout:
    """A folder of images and labels; its class names may be one folder above."""
    root, part = path, _above(path)
    if part is not None:
        root = part.parent
        images = root / "images" / path.relative_to(part) if images is None else images
    elif images is None:
        images = path / "images" if (path / "images").is_dir() or (path / "labels").is_dir() else path
    else:
        images = Path(images)
    for folder in (root, root / "labels", path, root.parent):
        description = next(_yaml_files(folder), None) if folder in (root, root.parent) else None
        if description is not None and (folder == root or _names_images_in(description, root)):
            layout = _of_yaml(description, repairs)
            if folder != root:
                repairs.add("classes named one folder above", f"{root} has its classes from {description}")
            return Layout(layout.where, root, layout.names, None, images, layout.keypoints)
        lists = [file for name in CLASS_LISTS if (file := folder / name).is_file()] or _described(folder, ".names")
        if lists and folder != root.parent:
            return Layout(path, root, listed_names(lists[0]), None, images)
    beside = sorted(file.parent.name for name in CLASS_LISTS for file in root.glob(f"*/{name}"))
    raise DataError(
        "neither data.yaml nor classes.txt says what the classes are called",
        where=str(path),
        remedy=f"give one of its folders {', '.join(beside)} instead"
        if beside
        else "write classes.txt with one class name per line, in the order of the class numbers",
    )


def _names_images_in(description: Path, folder: Path) -> bool:
    """Whether a data.yaml names a set whose images are in a folder."""
    try:
        content = read_yaml(description, remedy=_REMEDY, kind=DataError)
        root = _root(content, description, Repairs())
        entries = [entry for value in _yaml_sets(content, description).values() for entry in value]
        places = [located(entry, root, str(description), Repairs()) for entry in entries]
    except DataError:
        return False
    return any(place.resolve().is_relative_to(folder.resolve()) for place in places)


def _images_in(folder: Path, where: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"the folder {folder} does not exist", where=where, remedy="correct the path of the images")
    return find_images(folder)
