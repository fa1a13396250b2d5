"""Errors with messages that say what to do next.

Every error that a user can cause is an :class:`OpenWorldError`. Its message names the culprit (file, record, field,
value) and ends with the remedy. The command line prints it without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations


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


class EnvironmentProblem(OpenWorldError):
    """A part of the installation or the machine that is missing or does not fit."""

    exit_code = 4
