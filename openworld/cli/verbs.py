"""What the groups of verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jsonargparse import ArgumentParser, Namespace

from openworld.config import RunConfig

Function = Callable[[Namespace], None]


class AddVerb(Protocol):
    """Adds a verb to the command line and returns the parser of its arguments."""

    def __call__(self, name: str, function: Function, help: str) -> ArgumentParser: ...


def run_arguments(parser: ArgumentParser, default_output: str | None) -> None:
    """The configuration of a run, from files and from options, and the folder of the run."""
    parser.add_argument("--config", action="config", help="a YAML file; see configs/")
    parser.add_argument(
        "--output", type=str, required=default_output is None, default=default_output, help="folder of the run"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    parser.add_class_arguments(RunConfig, None)
