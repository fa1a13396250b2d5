"""Parsed annotations: flat arrays of a whole set, and their copy on the disk, so that a large set is parsed once.

I images and N boxes. A reader turns annotation files into an :class:`AnnotationTable`. Sets of ``MIN_RECORDS`` images
or more are kept in the user's cache folder and come from there as long as nothing that they depend on has changed:

- the annotations. COCO: SHA-256 of the file's content. VOC: SHA-256 over the names of the image list, in its order,
  with the size, modification time, change time and inode number of each XML file;
- the path of the annotations as it was given (messages quote it) and the renamed class names;
- the readers: SHA-256 of their source code. Nobody has to raise a version number.

What looks at image files is not kept: whether they exist, and a set in which the size of an image had to be taken from
its file or guessed. VOC files that changed in the ``SETTLED_S`` seconds before they were read are not kept either: a
second change within the resolution of the file system's clock would go unseen.

A cache file is written atomically and begins with the SHA-256 of all that follows. One that is damaged, truncated or of
another version is ignored and replaced. There is one file for each place and renaming, so a set that changes replaces
its own, and the folder may be removed at any time. ``OPENWORLD_CACHE`` names another folder, or switches the cache off.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openworld.data.records import BoolArray, FloatArray, IntArray, Record, Repairs
from openworld.runtime.files import write_atomic

VARIABLE = "OPENWORLD_CACHE"
"""Environment variable: a folder, or ``off`` (also ``0``, ``no`` and nothing)."""
MIN_RECORDS = 1000
"""Smaller sets are parsed again: that takes no longer than a look-up is worth."""
SETTLED_S = 2.0
"""Seconds: the coarsest clock of a common file system (FAT)."""

_MAGIC = b"OPENWORLD ANNOTATIONS\n"
_READERS = ("cache.py", "coco.py", "voc.py", "../records.py")

log = logging.getLogger("openworld.data")


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """All that annotation files say about a set, image after image.

    Args:
        categories: class names.
        image_ids: (I,).
        files: (I,) name of each image's file, as the reader needs it to find the file.
        sizes: (I, 2) int64 width, height in pixels.
        listed: (I,) int64, see :class:`openworld.data.records.Record`.
        offsets: (I + 1,) int64; the boxes of image i are ``offsets[i]`` … ``offsets[i + 1] - 1``.
        boxes: (N, 4) float32, inside their images.
        box_categories: (N,) int64 positions in ``categories``.
        ignore: (N,) bool.
        crowd: (N,) bool, or None where the format knows no crowds.
        annotation_ids: (N,).
        repairs: what was repaired.
        from_images: a size was read from an image file or, for want of one, guessed.
    """

    categories: tuple[str, ...]
    image_ids: Sequence[int | str]
    files: Sequence[str]
    sizes: IntArray
    listed: IntArray
    offsets: IntArray
    boxes: FloatArray
    box_categories: IntArray
    ignore: BoolArray
    crowd: BoolArray | None
    annotation_ids: Sequence[int | str]
    repairs: Repairs = field(default_factory=Repairs)
    from_images: bool = False

    def records(self, paths: Iterable[Path]) -> tuple[Record, ...]:
        """One record an image. Their arrays are views of the table's: processes that fork share them."""
        bounds, sizes, listed = self.offsets.tolist(), self.sizes.tolist(), self.listed.tolist()
        found = []
        for number, (image_id, path) in enumerate(zip(self.image_ids, paths, strict=True)):
            own = slice(bounds[number], bounds[number + 1])
            found.append(
                Record(
                    image_id=image_id,
                    path=path,
                    width=sizes[number][0],
                    height=sizes[number][1],
                    boxes=self.boxes[own],
                    categories=self.box_categories[own],
                    ignore=self.ignore[own],
                    crowd=None if self.crowd is None else self.crowd[own],
                    annotation_ids=tuple(self.annotation_ids[own]),
                    listed=listed[number],
                )
            )
        return tuple(found)


def cache_folder() -> Path | None:
    """Where parsed annotations are kept, or None if they are not.

    ``OPENWORLD_CACHE`` if it is set, or else ``openworld/annotations`` in ``XDG_CACHE_HOME``, or else in ``~/.cache``.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return None if chosen.strip().lower() in ("", "0", "off", "no", "false") else Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        home = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    return home / "openworld" / "annotations"


class AnnotationCache:
    """Cache files in a folder.

    Args:
        folder: made when the first set is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def of_user(cls) -> AnnotationCache | None:
        """The user's cache, or None if it is switched off."""
        folder = cache_folder()
        return None if folder is None else cls(folder)

    def path(self, kind: str, place: Path, names: Mapping[str, Any]) -> Path:
        """The one file for a set: by format, place and what else decides how it is read."""
        identity = json.dumps([kind, str(Path(place).resolve()), str(place), names], sort_keys=True)
        return self.folder / f"{kind}-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.bin"

    def get(
        self,
        kind: str,
        place: Path,
        names: Mapping[str, Any],
        digest: Callable[[], str | None],
        parse: Callable[[], AnnotationTable],
    ) -> AnnotationTable:
        """The table from the cache, or parsed and kept.

        Args:
            kind: name of the format.
            place: the annotations, as given.
            names: what else the table depends on, such as the image list's name and the renamed classes. JSON.
            digest: of the annotations; asked again after parsing. None: in flux, keep nothing.
            parse: reads the annotations.
        """
        before, readers = digest(), _readers()
        if before is None or readers is None:
            return parse()
        path, key = self.path(kind, place, names), f"{readers} {before}"
        found = _read(path, key)
        if found is not None:
            return found
        table = parse()
        if len(table.image_ids) >= MIN_RECORDS and not table.from_images and digest() == before:
            try:
                write_atomic(path, _pack(table, key))
            except OSError as error:
                log.info("parsed annotations are not kept in %s: %s", self.folder, error.strerror)
        return table


def digest_of_files(files: Iterable[str], listed: Iterable[object]) -> str | None:
    """SHA-256 over a list and the state of its files, or None if one is missing or has only just changed.

    Args:
        files: paths, in order. Of each, size, modification time, change time and inode number count.
        listed: what the list says, in order.
    """
    now, newest, states = time.time(), 0.0, []
    for file in files:
        try:
            state = Path(file).stat()
        except (OSError, ValueError):
            return None
        newest = max(newest, state.st_mtime, state.st_ctime)
        states.append((state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino))
    if newest > now - SETTLED_S:
        return None
    return hashlib.sha256(json.dumps([list(listed), states]).encode()).hexdigest()


@cache
def _readers() -> str | None:
    """Digest of the code that makes tables, or None if it cannot be read (a package run from an archive)."""
    digest = hashlib.sha256()
    try:
        for name in _READERS:
            digest.update((Path(__file__).parent / name).read_bytes())
    except OSError:
        return None
    return digest.hexdigest()


def _pack(table: AnnotationTable, key: str) -> bytes:
    arrays: dict[str, NDArray[Any]] = {
        "sizes": table.sizes,
        "listed": table.listed,
        "offsets": table.offsets,
        "boxes": table.boxes,
        "box_categories": table.box_categories,
        "ignore": table.ignore,
    }
    if table.crowd is not None:
        arrays["crowd"] = table.crowd
    texts = {
        "key": key,
        "categories": list(table.categories),
        "image_ids": list(table.image_ids),
        "files": list(table.files),
        "annotation_ids": list(table.annotation_ids),
        "repairs": dict(table.repairs.counts),
        "examples": table.repairs.examples,
    }
    stream = io.BytesIO()
    np.savez(stream, texts=np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    payload = stream.getvalue()
    return _MAGIC + hashlib.sha256(payload).digest() + payload


def _read(path: Path, key: str) -> AnnotationTable | None:
    """The table of a cache file, or None if there is none, or it is damaged or out of date."""
    try:
        content = memoryview(path.read_bytes())
        start = len(_MAGIC) + 32
        payload = content[start:]
        if content[: len(_MAGIC)] != _MAGIC or hashlib.sha256(payload).digest() != content[len(_MAGIC) : start]:
            raise ValueError("checksum")
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            texts = json.loads(arrays["texts"].tobytes())
            if texts["key"] != key:
                return None
            return AnnotationTable(
                categories=tuple(texts["categories"]),
                image_ids=texts["image_ids"],
                files=texts["files"],
                sizes=arrays["sizes"],
                listed=arrays["listed"],
                offsets=arrays["offsets"],
                boxes=arrays["boxes"],
                box_categories=arrays["box_categories"],
                ignore=arrays["ignore"],
                crowd=arrays.get("crowd"),
                annotation_ids=texts["annotation_ids"],
                repairs=Repairs(Counter(texts["repairs"]), texts["examples"]),
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        log.info("the cache file %s is damaged (%s): ignored", path, error)
        return None
