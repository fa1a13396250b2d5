"""Files that are either whole or absent (temporary file, fsync, rename), and YAML written by users."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from openworld.errors import ConfigError, OpenWorldError


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
