"""What tells one set of files from another, wherever it lies and whoever reads it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence


def digest(parts: Iterable[bytes]) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of byte strings; where one ends and the next begins counts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()[:32]


def relative_names(paths: Sequence[str]) -> list[str]:
    """Return the paths below the deepest folder that holds all of them, with ``/`` between folders.

    They stay the same when the whole folder moves.
    """
    names = [path.replace(os.sep, "/") for path in paths]
    # Of texts, and of the outermost two: far quicker than path by path.
    shared = os.path.commonprefix([min(names), max(names)]) if names else ""  # noqa: RUF071
    folder = shared.rfind("/") + 1
    return [name[folder:] for name in names]


def names_digest(paths: Sequence[str]) -> str:
    """Return the digest of the names and of the order of files, independent of where their folder lies."""
    return digest(name.encode("utf-8", "surrogateescape") for name in relative_names(paths))


def bytes_of_files(paths: Iterable[str]) -> int:
    """Return the size of all files together in bytes; a file that does not exist has none."""
    total = 0
    for path in paths:
        try:
            total += os.stat(path).st_size  # noqa: PTH116  # of many files: a Path for each takes longer
        except (OSError, ValueError):
            continue
    return total
