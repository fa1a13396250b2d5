"""Files and folders that a command is to write, tried before it does any work."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

from openworld.errors import ConfigError

_PAGE = b"\0" * 4096
"""What a disk without space has no room for."""


def output_folder(name: str) -> Path:
    """Return the path of a folder to write into. Neither it nor anything else is left on the disk by the check.

    Raises:
        ConfigError: no name is given.
        OSError: the folder cannot be made, or nothing can be written there; it names the path.
    """
    if not name:
        raise ConfigError("no folder is named", where="--output", remedy="give a folder; . is the current one")
    _try_folder(Path(name))
    return Path(name)


def output_file(name: str) -> Path:
    """Return the path of a file to write. A device or a pipe is a file, too; nothing is changed by the check.

    Raises:
        ConfigError: the name is empty, is that of a folder, or is ``-``.
        OSError: the file cannot be written; it names the path.
    """
    path = Path(name)
    if name in ("", "-"):
        raise ConfigError(f"{name!r} is not a file", where="--output", remedy="give the name of a file, or /dev/stdout")
    if path.is_dir():
        raise ConfigError("there is a folder of this name", where=name, remedy="choose another name for the file")
    if name.endswith(("/", os.sep)):
        raise ConfigError("is the name of a folder", where=name, remedy="give the name of a file")
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        _try_folder(Path(os.path.realpath(path)).parent)
        return path
    if stat.S_ISREG(kind):
        with open(path, "r+b"):
            pass
    elif not stat.S_ISCHR(kind) and not stat.S_ISFIFO(kind):
        raise OSError(errno.EINVAL, "neither a file nor a pipe", str(path))
    return path


def _try_folder(folder: Path) -> None:
    """Write and remove a file without a name in a folder, or in the nearest one above it that exists."""
    there = _nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as stream:
            stream.write(_PAGE)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def _nearest(folder: Path) -> Path:
    for there in (folder, *folder.parents):
        try:
            kind = there.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            if there.is_symlink():
                raise FileNotFoundError(errno.ENOENT, "is a link that leads nowhere", str(there)) from None
            continue
        if not stat.S_ISDIR(kind):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        return there
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
