"""Errors with messages that say what to do next.

Every error that a user can cause is an :class:`OpenWorldError`. Its message names the culprit (file, record, field,
value) and ends with the remedy. The command line prints it without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations

import errno
import os


class OpenWorldError(Exception):
    """Base of all errors whose cause is the input or the environment, not the program."""

    exit_code = 2

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.problem = problem
        self.where = where
        self.remedy = remedy
        parts = [f"{where}: {problem}" if where else problem]
        if remedy:
            parts.append(f"What to do: {remedy}")
        super().__init__("\n".join(parts))


class ConfigError(OpenWorldError):
    """A configuration key or value that cannot be used."""


class DataError(OpenWorldError):
    """An image, an annotation file or a class name that cannot be used."""


class AnnotationError(DataError):
    """An annotation file, or one of its records, that cannot be used."""


class CheckpointError(OpenWorldError):
    """A checkpoint or weight file that is missing, damaged or belongs to another model."""


class HandoverError(CheckpointError):
    """A pretrained backbone whose features change when it is put into the detector."""


class NumericsError(OpenWorldError):
    """A loss that is not finite. Training stops before the weights change."""

    exit_code = 3


class FileProblem(OpenWorldError):
    """A file or folder that the system refuses to read or to write."""


class EnvironmentProblem(OpenWorldError):
    """A part of the installation or the machine that is missing or does not fit."""

    exit_code = 4


_WHOSE = "let your user read and write it (`ls -ld` shows who may), or choose another path"
_IN_THE_WAY = "a file is in the place of a folder, or the reverse: remove it, or choose another path"
_NO_SPACE = "free some space, or choose another disk; a run that has begun goes on with --resume"
_REMEDIES = {
    errno.EACCES: _WHOSE,
    errno.EPERM: _WHOSE,
    errno.EROFS: "nothing can be written to this disk: choose another path",
    errno.ENOSPC: _NO_SPACE,
    errno.EDQUOT: _NO_SPACE,
    errno.EFBIG: "raise the limit for the size of files (`ulimit -f`), or choose another disk",
    errno.ENOENT: "check the path",
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links lead back to themselves: mend them, or choose another path",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.EIO: "the disk or the network share failed: check it, then give the command again",
    errno.ESTALE: "the network share has changed: mount it again, then give the command again",
}


def file_problem(error: OSError) -> FileProblem:
    """Say what the system refused, with the path and what to do about it.

    Args:
        error: with a number (``errno``).
    """
    number, named = error.errno or 0, error.filename is not None
    remedy = "check the path, or choose another one" if named else "add --debug to see where this happened"
    return FileProblem(
        error.strerror or os.strerror(number),
        where=os.fsdecode(error.filename) if named else None,
        remedy=_REMEDIES.get(number, remedy),
    )
