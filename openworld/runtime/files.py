"""Files that are either whole or absent (temporary file, fsync, rename), and YAML written by users.

What stands at a path already is kept in its kind: a symbolic link still points to its file, which gets the content; a
device or a pipe is written into; a file keeps its mode. A new file has the mode that the umask leaves. File systems
that cannot flush folders are used as they are.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from openworld.errors import ConfigError, OpenWorldError

_CANNOT_FLUSH = frozenset(
    {
        errno.EINVAL,
        errno.ENOTSUP,
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.EBADF,
        errno.EPERM,
        errno.EACCES,
        errno.EISDIR,
        errno.ENOTTY,
    }
)
"""Answers of file systems without fsync of this kind, such as shared folders; EIO and ENOSPC mean lost data."""

_CANNOT_REPLACE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV})
"""Answers where a file may be written and not replaced: a folder of others, a single file mounted into a container."""


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` so that ``path`` holds, at any moment, either the old content or all of the new one.

    Devices, pipes, and files whose folder admits no second one are written in place.

    Raises:
        OSError: the file cannot be written; it names the path.
    """
    path = Path(path)
    payload = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, payload)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write(path: Path, payload: bytes) -> None:
    try:
        there = path.stat()
    except FileNotFoundError:
        _replace(Path(os.path.realpath(path)), payload, None)
        return
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISBLK(there.st_mode):
        raise OSError(errno.EINVAL, "is a whole disk, not a file")
    if not stat.S_ISREG(there.st_mode) or _own_stream(there) is not None:
        _write_into(path, payload, there)
        return
    try:
        _replace(Path(os.path.realpath(path)), payload, there)
    except OSError as error:
        if error.errno not in _CANNOT_REPLACE:
            raise
        _write_into(path, payload, there)


def _replace(path: Path, payload: bytes, there: os.stat_result | None) -> None:
    """Write a file beside ``path`` and rename it; it gets the mode and the owner of the one that is there."""
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"  # not longer than any name that a file system takes
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
            stream.flush()
            _flush(stream.fileno())
        if there is not None:
            with suppress(OSError, AttributeError):  # another's file, a file system without owners, Windows
                os.chown(temporary, there.st_uid, there.st_gid)
            with suppress(OSError):
                os.chmod(temporary, stat.S_IMODE(there.st_mode))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write_into(path: Path, payload: bytes, there: os.stat_result) -> None:
    """Write into what is at ``path``; into standard output, if it is that, behind what was printed."""
    own = _own_stream(there)
    if own is None:
        with open(path, "wb") as stream:
            stream.write(payload)
        return
    for printed in (sys.stdout, sys.stderr):
        if printed is not None:
            printed.flush()
    with open(own, "wb", closefd=False) as stream:
        stream.write(payload)


def _own_stream(there: os.stat_result) -> int | None:
    """Return the number of the standard stream that is this file, as for ``/dev/stdout``."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(there, os.fstat(number)):
                return number
    return None


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON atomically. Refuses NaN and infinities, which are not JSON."""
    write_atomic(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Flush one written file to the disk, where the file system can.

    Raises:
        OSError: the disk failed or is full.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in _CANNOT_FLUSH:
            return  # a folder that cannot be opened: on Windows, or one without the right to list it
        raise
    try:
        _flush(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (a rename) to the disk, where the file system can."""
    sync_file(folder)


def _flush(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


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
