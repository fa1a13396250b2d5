"""The command line: one function per verb, one module per group. Heavy imports wait until a verb runs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

from jsonargparse import ArgumentParser, Namespace

from openworld import __version__
from openworld.cli import backbone, data, evaluation, options, probe, runs
from openworld.cli.verbs import AddVerb, Function, make_parser
from openworld.configfile import dump_config
from openworld.errors import OpenWorldError, file_problem
from openworld.runtime.console import printable, printable_streams
from openworld.runtime.option_trees import construct

DESCRIPTION = "Open-world object detection: know what was taught, say unknown on the rest, learn it as the next task."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the console script. Exit with the error's code if the user's input or the machine is at fault."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    rank = os.environ.get("RANK")  # of a process that torchrun started
    who = "" if rank is None else f" in process {rank}"
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(f"%(levelname)s{who} %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    with printable_streams():
        try:
            run_verb(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
        except OpenWorldError as error:
            if debug:
                raise
            _fail(error, who)
        except KeyboardInterrupt:
            print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)
        except ModuleNotFoundError as error:
            if debug:
                raise
            print(f"error: {error}\nWhat to do: run `openworld doctor`", file=sys.stderr)
            sys.exit(4)
        except BrokenPipeError:  # nobody reads on, as behind `| head`
            _write_no_more()
            sys.exit(1)
        except OSError as error:
            if debug or error.errno is None:
                raise
            try:
                sys.stdout.flush()
            except OSError:
                _write_no_more()
            _fail(file_problem(error), who)


class PrintableFormatter(logging.Formatter):
    """Formats lines of the log in which names from files cannot control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), "utf-8")


def _fail(error: OpenWorldError, who: str) -> NoReturn:
    """Print an error and exit with its code. What it quotes from files cannot control the terminal."""
    print(printable(f"error{who}: {error}", "utf-8"), file=sys.stderr)
    sys.exit(error.exit_code)


def _write_no_more() -> None:
    """Send the rest of the output, which Python writes at its end, to nowhere."""
    with suppress(OSError):  # a stream that is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Verb(NamedTuple):
    """A verb of the command line."""

    function: Function
    options: type | None
    """Class of its configuration."""
    parser: ArgumentParser


def run_verb(arguments: Sequence[str]) -> None:
    """Read the command line and call the function of its verb."""
    parser, verbs = build_parser()
    verb = verbs.get(tuple(arguments[:1]))
    if verb is None or verb.options is None:
        parsed = parser.instantiate(parser.parse_args(arguments))
        chosen, names = parsed[parsed.verb], [parsed.verb]
        if "what" in chosen:
            names.append(chosen.what)
            chosen = chosen[chosen.what]
        verbs[tuple(names)].function(chosen)
        return
    layers, words = options.split(arguments[1:], verb.options)
    if not {"-h", "--help"}.isdisjoint(words):
        usage = verb.parser.format_usage().removeprefix("usage: ").rstrip()
        verb.parser.usage = f"{usage} [--KEY VALUE ...]"
        options.list_options(verb.parser, verb.options, layers)
    if "--print_config" in words:
        print(dump_config(construct(verb.options, layers)), end="")
        return
    parsed = parser.instantiate(parser.parse_args([*arguments[:1], *words]))
    verb.function(parsed[parsed.verb], construct(verb.options, layers))


def build_parser() -> tuple[ArgumentParser, dict[tuple[str, ...], Verb]]:
    """Build the parser of all verbs; return it with each verb by its name, or by its names below another verb."""
    parser = make_parser(prog="openworld", description=DESCRIPTION, version=__version__)
    commands = parser.add_subcommands(dest="verb")
    verbs: dict[tuple[str, ...], Verb] = {}

    def below(*names: str, to: object) -> AddVerb:
        def verb(name: str, function: Function, help: str, options: type | None = None) -> ArgumentParser:
            sub = make_parser(description=help)
            to.add_subcommand(name, sub, help=help)  # type: ignore[attr-defined]
            verbs[*names, name] = Verb(function, options, sub)
            if options is not None:
                sub.tree = options
                sub.add_argument("--config", help="a YAML file, see configs/; given again, later files win")
                sub.add_argument("--print_config", action="store_true", help="print the configuration and exit")
            return sub

        return verb

    top = below(to=commands)
    runs.add_verbs(top)
    evaluation.add_verbs(top)
    groups = (
        ("data", data, "prepare and check annotated data: prepare, check, tasks, audit"),
        ("backbone", backbone, "work with a pretrained backbone: inspect, export, verify"),
        ("probe", probe, "measure a pretrained backbone: knn, linear, semi, transform, suppress"),
    )
    for name, group, help in groups:
        of_group = make_parser(description=help)
        commands.add_subcommand(name, of_group, help=help)
        group.add_verbs(below(name, to=of_group.add_subcommands(dest="what")))
    top("doctor", doctor, "explain a broken installation")
    return parser, verbs


def doctor(arguments: Namespace) -> None:
    """Print findings about the installation; exit with 4 if something is broken."""
    from rich.text import Text

    from openworld.runtime.console import open_console
    from openworld.runtime.doctor import examine

    console = open_console()
    checks = examine()
    for check in checks:
        mark = Text("ok ", "green") if check.ok else Text("BAD", "red")
        console.print(mark.append(f" {check.name}: {check.finding}", "default"))
        if check.remedy:
            console.print(f"    What to do: {check.remedy}")
    if not all(check.ok for check in checks):
        sys.exit(4)
