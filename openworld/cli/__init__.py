"""The command line: one function a verb, in a module for each group. Heavy imports wait until a verb runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace

from openworld import __version__
from openworld.cli import backbone, data, evaluation, probe, runs
from openworld.cli.verbs import AddVerb, Function
from openworld.configfile import make_parser
from openworld.errors import OpenWorldError

DESCRIPTION = "Open-world object detection: know what was taught, say unknown on the rest, learn it as the next task."


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script. Exits with the error's code when a user's input or machine is at fault."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    rank = os.environ.get("RANK")  # of a process that torchrun started
    who = "" if rank is None else f" in process {rank}"
    logging.basicConfig(level=logging.WARNING, format=f"%(levelname)s{who} %(message)s")
    try:
        parser, functions = build_parser()
        parsed = parser.instantiate(parser.parse_args(arguments))
        chosen, names = parsed[parsed.verb], [parsed.verb]
        if "what" in chosen:
            names.append(chosen.what)
            chosen = chosen[chosen.what]
        functions[tuple(names)](chosen)
    except OpenWorldError as error:
        if debug:
            raise
        print(f"error{who}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if debug:
            raise
        print(f"error: {error}\nWhat to do: run `openworld doctor`", file=sys.stderr)
        sys.exit(4)


def build_parser() -> tuple[ArgumentParser, dict[tuple[str, ...], Function]]:
    """The parser of all verbs, and the function of each by its name, or names below another verb."""
    parser = make_parser(prog="openworld", description=DESCRIPTION, version=__version__)
    commands = parser.add_subcommands(dest="verb")
    functions: dict[tuple[str, ...], Function] = {}

    def below(*names: str, to: object) -> AddVerb:
        def verb(name: str, function: Function, help: str) -> ArgumentParser:
            sub = make_parser(description=help)
            to.add_subcommand(name, sub, help=help)  # type: ignore[attr-defined]
            functions[*names, name] = function
            return sub

        return verb

    top = below(to=commands)
    runs.add_verbs(top)
    evaluation.add_verbs(top)
    groups = (
        ("data", data, "look after annotated data: prepare, check, tasks, audit"),
        ("backbone", backbone, "hand a pretrained backbone over: inspect, export, verify"),
        ("probe", probe, "measure a pretrained backbone: knn, linear, semi, transform, suppress"),
    )
    for name, group, help in groups:
        of_group = make_parser(description=help)
        commands.add_subcommand(name, of_group, help=help)
        group.add_verbs(below(name, to=of_group.add_subcommands(dest="what")))
    top("doctor", doctor, "explain a broken installation")
    return parser, functions


def doctor(arguments: Namespace) -> None:
    """Findings about the installation; exits with 4 if something is broken."""
    from rich.console import Console

    from openworld.runtime.environment import examine

    console = Console()
    checks = examine()
    for check in checks:
        console.print(
            f"[{'green' if check.ok else 'red'}]{'ok ' if check.ok else 'BAD'}[/] {check.name}: {check.finding}"
        )
        if check.remedy:
            console.print(f"    What to do: {check.remedy}")
    if not all(check.ok for check in checks):
        sys.exit(4)
