"""What the groups of verbs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from jsonargparse import ArgumentParser, Namespace

from openworld.config import RunConfig
from openworld.configfile import build

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
    parser.add_argument(
        "--engine",
        choices=["torchvision", "detectron2"],
        default=None,
        help="short for --model.engine, over which it wins",
    )
    parser.add_class_arguments(RunConfig, None)


def run_config(arguments: Namespace) -> RunConfig:
    """The configuration out of :func:`run_arguments`."""
    config = build(RunConfig, arguments)
    if arguments.engine is not None:
        config = replace(config, model=replace(config.model, engine=arguments.engine))
    return config
