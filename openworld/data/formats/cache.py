"""Parsed annotations on the disk, so that a large set is parsed once.

Sets of ``MIN_IMAGES`` images or more are kept in the user's cache folder, one file for each place and its settings. A
kept set is taken as long as the annotation files have the same size, modification time, change time and inode number,
and the code of the readers is the same. A damaged file is ignored and replaced; the folder may be removed at any time.
``OPENWORLD_CACHE`` names another folder, or switches the cache off.

What depends on image files is not kept: whether they exist, and a set in which the size of an image had to be taken
from its file or guessed. Annotations that changed in the ``SETTLED_S`` seconds before they were read are not kept
either: a second change within the resolution of the file system's clock would go unseen.
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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openworld import __version__
from openworld.columns import Names
from openworld.data.formats.sizes import FROM_BOXES, FROM_FILE, FROM_TAGGED_FILE
from openworld.records import Dataset
from openworld.repairs import Repairs
from openworld.runtime.files import write_atomic

VARIABLE = "OPENWORLD_CACHE"
"""Environment variable: a folder, or ``off`` (also ``0``, ``no`` and nothing)."""
MIN_IMAGES = 1000
"""Smaller sets are parsed each time: that takes no longer than a look-up is worth."""
SETTLED_S = 2.0
"""Seconds: the coarsest clock of a common file system (FAT)."""

_ARRAYS = ("sizes", "listed", "offsets", "boxes", "box_categories", "ignore", "crowd")
_NAMES = ("image_ids", "paths", "annotation_ids")

log = logging.getLogger("openworld.data")


def cache_folder() -> Path | None:
    """Return the folder of parsed annotations, or None if they are not kept.

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


def cached(
    folder: Path | None,
    place: Path,
    settings: Mapping[str, Any],
    files: Mapping[str, int],
    parse: Callable[[], Dataset],
) -> Dataset:
    """Return the data set from the cache, or parse and keep it.

    Args:
        folder: of the cache; None: there is none.
        place: the annotations, as given.
        settings: what else tells sets of one place apart, such as the format and the image set. JSON.
        files: the annotation files, and the number of times that each is listed.
        parse: reads the annotations.
    """
    state = None if folder is None else state_of(files)
    if folder is None or state is None:
        return parse()
    identity = json.dumps([str(Path(place).resolve()), str(place), settings], sort_keys=True)
    path = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
    key = f"{_code_state()} {state}"
    found = _read(path, key)
    if found is not None:
        return found
    dataset = parse()
    from_images = {FROM_BOXES, FROM_FILE, FROM_TAGGED_FILE} & dataset.repairs.counts.keys()
    if len(dataset) >= MIN_IMAGES and not from_images and state_of(files) == state:
        try:
            write_atomic(path, _packed(dataset, key))
        except OSError as error:
            log.info("parsed annotations are not kept in %s: %s", folder, error.strerror)
    return dataset


def state_of(files: Mapping[str, int]) -> str | None:
    """Digest of a list of files and their state; None if one is missing or has only just changed."""
    try:
        states = [(times, _stat(file)) for file, times in files.items()]
    except (OSError, ValueError):
        return None
    newest = max((max(modified, changed) for _, (_, modified, changed, _) in states), default=0)
    return None if newest > (time.time() - SETTLED_S) * 1e9 else _digest([list(files), states])


def _stat(file: str | Path) -> tuple[int, int, int, int]:
    """Size, modification time, change time (both in ns) and inode number."""
    found = os.stat(file)  # noqa: PTH116  # of many files: a Path for each takes longer than the call
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _code_state() -> str:
    """Digest of the state of the modules that readers are made of, so that nobody has to raise a version."""
    package = Path(__file__).parents[1]
    ground = [file for name in ("columns", "records", "repairs") for file in package.parent.glob(f"{name}.py")]
    modules = [*sorted(package.rglob("*.py")), *ground]
    return _digest([__version__, [(str(module), _stat(module)[:2]) for module in modules]])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _packed(dataset: Dataset, key: str) -> bytes:
    about = {
        "key": key,
        "categories": dataset.categories,
        "repairs": dataset.repairs.counts,
        "cases": dataset.repairs.cases,
    }
    arrays = {name: getattr(dataset, name) for name in _ARRAYS}
    for name in _NAMES:
        column: Names = getattr(dataset, name)
        arrays |= {f"{name}.text": column.text, f"{name}.ends": column.ends}
    stream = io.BytesIO()
    np.savez(stream, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), **arrays)
    return stream.getvalue()


def _read(path: Path, key: str) -> Dataset | None:
    """The data set of a cache file, or None if there is none, or it is damaged or out of date."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # numpy alone may stop before the checksum
                raise ValueError("checksum")
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            if about["key"] != key:
                return None
            columns: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
            for name in _NAMES:
                columns[name] = Names.of_arrays(arrays[f"{name}.text"], arrays[f"{name}.ends"])
            repairs = Repairs(Counter(about["repairs"]), about["cases"])
            return Dataset(categories=tuple(about["categories"]), repairs=repairs, **columns)
    except Exception as error:  # damage shows as almost any exception
        log.info("the cache file %s is damaged (%s): ignored", path, error)
        return None
