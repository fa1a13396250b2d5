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


def read_yaml(path: Path, *, remedy: str, kind: type[OpenWorldError] = ConfigError) -> dict[str, Any]:
    """Read the mapping in a YAML file, empty for an empty file. A byte order mark is allowed.

    Args:
        remedy: remedy of the error: what such a file holds.
        kind: class of the error.

    Raises:
        OpenWorldError: of this kind; the file does not exist, is not YAML, or does not hold a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise kind("there is no such file", where=str(path), remedy=remedy) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise kind(f"cannot be read as YAML ({error})", where=str(path), remedy=remedy) from None
    if content is not None and not isinstance(content, dict):
        raise kind(f"holds a {type(content).__name__}, not a mapping", where=str(path), remedy=remedy)
    return content or {}
