"""What can go wrong, said so that a person knows what to do next.

Every error that a user can cause is an :class:`OpenWorldError`. Its message names the culprit (file, record, field,
value) and ends with the remedy. The command line prints it without a traceback and exits with ``exit_code``.
"""

from __future__ import annotations


class OpenWorldError(Exception):
    """Base of all errors that are the input's or the environment's, not the program's."""

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
    """A checkpoint or weight file that is missing, damaged or of another model."""


class HandoverError(CheckpointError):
    """A pretrained backbone whose features change when it is put into the detector."""


class NumericsError(OpenWorldError):
    """A loss that is not finite. Training stops before the weights are touched."""

    exit_code = 3


class EnvironmentProblem(OpenWorldError):
    """Something of the installation or the machine is missing or does not fit."""

    exit_code = 4
