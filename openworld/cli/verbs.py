"""Functions and types that the groups of verbs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from jsonargparse import ArgumentParser, Namespace

from openworld.cli.parser import PATH, Parser
from openworld.config import RunConfig

Function = Callable[..., None]
"""A verb: takes its arguments, and its configuration if it has one."""


class AddVerb(Protocol):
    """Adds a verb to the command line and returns the parser of its arguments.

    ``options`` is the class of its configuration, which ``--config`` and ``--key value`` fill.
    """

    def __call__(self, name: str, function: Function, help: str, options: type | None = None) -> ArgumentParser: ...


def make_parser(**settings: Any) -> Parser:
    """Make an argument parser without abbreviations: a misspelt key is an error."""
    return Parser(allow_abbrev=False, **settings)


def run_arguments(parser: ArgumentParser, default_output: str | None) -> None:
    """Add the arguments for the folder of a run, and for its continuation."""
    parser.add_argument(
        "--output", type=PATH, required=default_output is None, default=default_output, help="folder of the run"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument(
        "--engine",
        choices=["torchvision", "detectron2"],
        default=None,
        help="short for --model.engine, which it overrides",
    )


def with_engine(config: RunConfig, arguments: Namespace) -> RunConfig:
    """Return the configuration with the engine of :func:`run_arguments`."""
    if arguments.engine is None:
        return config
    return replace(config, model=replace(config.model, engine=arguments.engine))
