"""A lock that ends with its process, however it ends; for systems and file systems without locks, a warning."""

from __future__ import annotations

import errno
import logging
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_TAKEN = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF})
"""Answers of file systems without locks, such as Lustre without the option flock, and some network shares."""


def take_lock(stream: IO[str]) -> bool:
    """Lock an open file for this process; return False if another process holds it.

    Where there are no locks, a warning says so and the file counts as locked.

    Raises:
        OSError: the file system failed.
    """
    try:
        problem = lock_problem(stream)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    if problem is not None:
        logger.warning("%s: %s; see to it that no two runs work in this folder", stream.name, problem)
    return True


def lock_problem(stream: IO[str]) -> str | None:
    """Lock an open file; return why there are no locks, None if it is locked.

    Raises:
        OSError: another process holds the lock, or the file system failed.
    """
    if fcntl is None:
        return "this system has no file locks"
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return f"the file system has no locks ({error.strerror})"
        raise
    return None
