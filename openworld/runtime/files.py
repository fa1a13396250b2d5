"""Files that are either whole or absent (temporary file, fsync, rename), YAML written by users, and folders of data.

Folders of data hold files that nobody put there as data: ``._a.jpg`` beside ``a.jpg`` and ``__MACOSX/`` from archives
made on macOS, ``.ipynb_checkpoints/`` with copies, ``Thumbs.db``. Everything that walks a folder of data leaves them
out. A list or an annotation that names such a file is believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from openworld.errors import ConfigError, OpenWorldError

_LEFT_BY_SYSTEMS = frozenset(
    (
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("lost+found", "@eadir", "#recycle"),  # Linux, and network drives of Synology
    )
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not data: it begins with a dot, or an operating system left it."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def visible_files(folder: Path, suffixes: Collection[str] | None = None, *, deep: bool = True) -> Iterator[Path]:
    """Yield the files of a folder that are not hidden, in the same order on every machine.

    The folder itself may be hidden. Symbolic links to folders are not followed. A link that leads nowhere is yielded.

    Args:
        folder: a folder; one that does not exist or may not be read holds nothing.
        suffixes: of the wanted files, in lower case; files in upper case count as well. None: all files.
        deep: whether to walk the folders below, too.
    """
    folders = [os.fspath(folder)]
    while folders:
        below = []
        for entry in _visible_entries(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            elif suffixes is None or os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122  # much faster than a Path
                yield Path(entry.path)
        folders += reversed(below) if deep else []


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted by name. Links to folders count."""
    return [Path(entry.path) for entry in _visible_entries(os.fspath(folder)) if entry.is_dir()]


def _visible_entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that ``path`` holds, at any moment, either the old content or all of the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode() if isinstance(data, str) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically. Refuses NaN and infinities, which are not JSON."""
    write_atomic(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Flush one written file to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (a rename) to the disk."""
    sync_file(folder)


def read_yaml(
    path: Path, *, remedy: str, kind: type[OpenWorldError] = ConfigError, as_written: bool = False
) -> dict[str, Any]:
    """Read the mapping in a YAML file, empty for an empty file.

    Args:
        remedy: remedy of the error where the text does not tell: what such a file holds.
        kind: class of the error.
        as_written: give what YAML takes for a number, a truth value or a date as
            :class:`openworld.runtime.yaml_text.Plain`, which :func:`openworld.runtime.option_trees.typed` turns into
            what is meant: in a list of class names, ``no`` and ``007`` are texts.

    Raises:
        OpenWorldError: of this kind; the file does not exist, cannot be read (see :mod:`openworld.runtime.yaml_text`),
            or does not hold a mapping.
    """
    from openworld.runtime.yaml_text import YamlFault, parse

    try:
        content = parse(path.read_bytes(), as_written=as_written)
    except FileNotFoundError:
        raise kind("there is no such file", where=str(path), remedy=remedy) from None
    except IsADirectoryError:
        raise kind("is a folder", where=str(path), remedy=f"give a file in it; {remedy}") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise kind(problem, where=str(path), remedy="make the file readable") from None
    except YamlFault as fault:
        raise kind(fault.problem, where=str(path), remedy=fault.remedy or remedy) from None
    if content is not None and not isinstance(content, dict):
        what = "a list" if isinstance(content, list) else f"the value {str(content)[:40]!r}"
        raise kind(f"holds {what}, not a mapping", where=str(path), remedy=remedy)
    return content or {}
