"""Which image of the ground truth a file of predictions means.

An image id is matched as it is written, or else as text (7 and "7"), or else by the name of the image file: as a path
whose last parts are those of an annotated image, or else by the stem ("000000000139" and 000000000139.jpg), in any
Unicode form. Where several images fit equally well, none is taken.

    predicted              annotated                          means
    7                      id 7                               it, whatever the files are called
    "pic_1.jpg"            images/pic_1.jpg                   it
    "a/1.jpg"              a/1.jpg and b/1.jpg                the first: its folder fits, too
    "1.jpg"                a/1.jpg and b/1.jpg                either, so it is refused
    "1.jpg"                1.JPG or 1.png                     it, if no other image has the stem 1
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from openworld.columns import ImageId
from openworld.errors import DataError
from openworld.predictions.arrays import Predictions
from openworld.records import Dataset, Record
from openworld.repairs import Repairs
from openworld.runtime.images import SUFFIXES

BY_FILE = "images matched by the names of their files"
"""Kind of repair: the ids are others."""


class AnnotatedImages:
    """The images of the ground truth, each once, under all names that other files may give them."""

    def __init__(self, dataset: Dataset) -> None:
        by_id: dict[ImageId, Record] = {}
        for record in dataset:
            by_id.setdefault(record.image_id, record)
        self.records = list(by_id.values())
        self.exact = {record.image_id: position for position, record in enumerate(self.records)}
        self._parts = [_parts(str(record.path)) for record in self.records]
        self.by_text: dict[str, list[int]] = {}
        self.by_stem: dict[str, list[int]] = {}
        for position, record in enumerate(self.records):
            self.by_text.setdefault(str(record.image_id), []).append(position)
            self.by_stem.setdefault(PurePosixPath(self._parts[position][0]).stem, []).append(position)

    def matches(self, name: ImageId) -> list[int]:
        """Positions of the images that an id may mean."""
        if name in self.exact:
            return [self.exact[name]]
        text = str(name)
        return self.by_text.get(text) or self.by_stem.get(text) or self.of_file(text)

    def of_file(self, name: str) -> list[int]:
        """Positions of the images that have most of the last parts of a path in common with it, the stem at least."""
        wanted = _parts(name)
        if not wanted:
            return []
        whole = PurePosixPath(wanted[0])
        places = self.by_stem.get(whole.stem if whole.suffix.lower() in SUFFIXES else whole.name, [])
        closeness = {place: _closeness(wanted, self._parts[place]) for place in places}
        best = max(closeness.values(), default=None)
        return [place for place in places if closeness[place] == best]

    def position(self, name: ImageId) -> int:
        """Position of the one image that an id means, or -1."""
        found = self.matches(name)
        return found[0] if len(found) == 1 else -1

    def problem(self, name: ImageId) -> tuple[str, str]:
        """What is wrong with an id that does not mean one image, and what to do."""
        found = self.matches(name)
        if found:
            return (
                f"image_id {name!r} may mean {len(found)} images: {self.shown(found)}",
                "write the ids of the ground truth",
            )
        close = difflib.get_close_matches(str(name), [*self.by_text, *self.by_stem], n=1, cutoff=0.8)
        hint = f"; the nearest is {close[0]!r}" if close else ""
        return (
            f"image_id {name!r} is not in the ground truth, which has {len(self.records)} images{hint}",
            "give the ground truth (and image set) that was predicted, or write its image ids",
        )

    def shown(self, positions: Sequence[int]) -> str:
        """Name a few images with their ids and files, for a message."""
        return ", ".join(
            f"{record.image_id!r} ({record.path})" for record in (self.records[place] for place in positions[:3])
        )


def _parts(path: str) -> list[str]:
    """Name and folders of a path, from its end, in one Unicode form: file systems change it."""
    text = unicodedata.normalize("NFC", path).replace("\\", "/")
    return [part for part in reversed(text.split("/")) if part not in ("", ".")]


def _closeness(wanted: Sequence[str], found: Sequence[str]) -> tuple[bool, int]:
    """Whether two paths have the same file name, suffix and all; and in how many folders above they agree."""
    folders = 0
    for one, other in zip(wanted[1:], found[1:], strict=False):
        if one != other:
            break
        folders += 1
    return wanted[0] == found[0], folders


def matched_by_file(predictions: Predictions, dataset: Dataset, where: Path, repairs: Repairs | None) -> Predictions:
    """Give the images of our own predictions the ids of the ground truth, where their files tell which image it is.

    Ids that the ground truth has stay. What ``openworld predict`` writes has names of files for ids, since it knows no
    others. An image that fits none keeps its id, and is scored as one that is not annotated.

    Args:
        predictions: of one file.
        dataset: the ground truth.
        where: the file, for messages.
        repairs: counts the images that were matched by their files.

    Raises:
        DataError: an image may be several annotated ones, or two may be the same; or an id is that of another image
            than its file.
    """
    images = AnnotatedImages(dataset)
    taken: dict[int, list[int]] = {}
    for number, (name, file) in enumerate(zip(predictions.image_ids, predictions.files, strict=True)):
        found = _places(images, name, file, where)
        if len(found) == 1:
            taken.setdefault(found[0], []).append(number)
    ids = list(predictions.image_ids)
    for place, numbers in taken.items():
        record = images.records[place]
        chosen = _nearest(predictions, numbers, record)
        if len(chosen) > 1:
            first, second = (predictions.files[number] or str(ids[number]) for number in chosen[:2])
            raise DataError(
                f"{first} and {second} may both be the annotated image {record.image_id!r} ({record.path})",
                where=str(where),
                remedy="predict the folder that was annotated alone, or write the ids of the annotations",
            )
        if ids[chosen[0]] != record.image_id:
            if repairs is not None:
                repairs.add(BY_FILE, f"{where}: {predictions.files[chosen[0]]} is {record.image_id!r} ({record.path})")
            ids[chosen[0]] = record.image_id
    return replace(predictions, image_ids=tuple(ids))


def _places(images: AnnotatedImages, name: ImageId, file: str, where: Path) -> list[int]:
    """Positions of the one annotated image that a predicted one is, or of none."""
    by_file = images.of_file(file) if file else []
    if name in images.exact:
        place = images.exact[name]
        if len(by_file) == 1 and by_file[0] != place and _same_name(images, by_file[0], file):
            raise DataError(
                f"image {name!r} is {file}, and the annotations have {images.records[place].path} under this id and "
                f"{images.shown(by_file)}",
                where=str(where),
                remedy="score with the annotations that were predicted: these number the images otherwise",
            )
        return [place]
    found = by_file or (images.of_file(name) if isinstance(name, str) else [])
    if len(found) > 1:
        raise DataError(
            f"image {name!r} ({file}) may be {len(found)} annotated ones: {images.shown(found)}",
            where=str(where),
            remedy="predict the folder that holds the folders of the images, so that their names tell them apart",
        )
    return found


def _same_name(images: AnnotatedImages, place: int, file: str) -> bool:
    return _parts(str(images.records[place].path))[0] == _parts(file)[0]


def _nearest(predictions: Predictions, numbers: Sequence[int], record: Record) -> list[int]:
    """Those of several predicted images that fit an annotated one best: one whose id it is, or the nearest paths."""

    def closeness(number: int) -> tuple[bool, Any]:
        name, file = predictions.image_ids[number], predictions.files[number]
        return name == record.image_id, _closeness(_parts(file or str(name)), _parts(str(record.path)))

    ranked = {number: closeness(number) for number in numbers}
    best = max(ranked.values())
    return [number for number in numbers if ranked[number] == best]
