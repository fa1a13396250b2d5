"""Folders of data, and the files in them that nobody put there as data.

Such are ``._a.jpg`` beside ``a.jpg`` and ``__MACOSX/`` from archives made on macOS, ``.ipynb_checkpoints/`` with copies
and ``Thumbs.db``. Everything that walks a folder of data leaves them out. A list or an annotation that names such a
file is believed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

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
