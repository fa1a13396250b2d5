"""The parser of the command line: values checked by annotations, as in configurations, and errors in our words."""

from __future__ import annotations

import re
from argparse import Action, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser

from openworld.errors import ConfigError
from openworld.runtime.option_trees import Word, keys_below, nearest, typed
from openworld.runtime.options import FilePath, domain, fits, wanted

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"


class Reads:
    """Reads an argument as its annotation wants, see :mod:`openworld.runtime.options`: ``type=Reads(Share)``.

    A list may be written without brackets: ``0,1,2`` or ``0``.
    """

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self._is_list = get_origin(get_args(hint)[0] if get_origin(hint) is Annotated else hint) is list

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, str):  # a default, or read already
            return value
        bare = self._is_list and not value.lstrip().startswith("[")
        try:
            read = typed(self.hint, Word(f"[{value}]" if bare else value))
        except ConfigError as error:
            raise ArgumentTypeError(f"{error.problem}\n{error.remedy}") from None
        if not fits(self.hint, read):
            raise ArgumentTypeError(f"is {value!r}\n{wanted(self.hint)}")
        return read

    def __repr__(self) -> str:
        return domain(self.hint)


PATH = Reads(FilePath)


class Parser(ArgumentParser):
    """A parser that says what is wrong, and what may be meant, in place of its usage."""

    tree: type | None = None
    """Class of the configuration whose keys are options, too."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the error of the command line, without the usage.

        Raises:
            ConfigError: always.
        """
        raise self._explained(message) from None

    def _explained(self, message: str) -> ConfigError:
        command = self.prog.replace(" [options]", "")
        if match := re.match(r"argument (\S+): (.*)", message, re.DOTALL):
            return self._of_argument(match[1], match[2])
        if match := re.match(r"unrecognized arguments: (\S+)", message):
            return self._unknown(match[1], command)
        if match := re.match(r"the following arguments are required: (.*)", message):
            return self._missing(match[1].split(", "))
        if match := re.match(r'expected "([\w.]+)" to be one of ', message):
            verbs = match[1].split(".")[:-1]
            of_verb = next(action for action in _actions_below(self, verbs) if isinstance(action.choices, dict))
            remedy = f"write one behind it: {', '.join(of_verb.choices or ())}"
            return ConfigError(f"`{' '.join((command, *verbs))}` needs a verb", remedy=remedy)
        if match := re.match(r'Parser key "(\w+)".*Got value: (.*)', message, re.DOTALL):
            option = f"--{match[1].replace('_', '-')}"
            return ConfigError(f"{option} is {match[2]}", remedy=f"name what it is for: {option}.NAME VALUE")
        return ConfigError(" ".join(message.split()), remedy=f"see `{command} --help`")

    def _of_argument(self, name: str, text: str) -> ConfigError:
        """The error of an argument that exists."""
        if text.startswith("is "):
            problem, _, remedy = text.partition("\n")
            return ConfigError(f"{name} {problem}", remedy=remedy)
        if text.startswith("expected "):
            return ConfigError(f"{name} has no value", remedy="write the value behind it")
        if text.startswith("ignored explicit argument"):
            return ConfigError(f"{name} takes no value", remedy="leave the value out")
        action = next(action for action in self._actions if name in (*action.option_strings, action.dest))
        choices, given = [str(choice) for choice in action.choices or ()], text.partition("'")[2].partition("'")[0]
        close = nearest(given, choices)
        remedy = f"did you mean {close}?" if close else f"choose from {', '.join(choices)}"
        if action.option_strings:
            return ConfigError(f"{name} is {given!r}", remedy=remedy)
        command = self.prog.replace(" [options]", "")
        return ConfigError(f"`{command}` has no verb {given!r}", remedy=remedy)

    def _unknown(self, word: str, command: str) -> ConfigError:
        option = word.partition("=")[0]
        if word[0] in _DASHES:
            return ConfigError(
                f"{word!r} starts with a dash", remedy=f"write two hyphens: --{word.strip(_DASHES + '-')}"
            )
        if not option.startswith("-"):
            return ConfigError(f"{word!r} is one argument too many for `{command}`", remedy=f"see `{command} --help`")
        first, dot, rest = option.lstrip("-").partition(".")
        known = [name.lstrip("-") for action in self._actions for name in action.option_strings]
        keys: list[str] = []
        if self.tree is not None:
            known += [field.name for field in fields(self.tree)]
            keys = list(keys_below(self.tree, first, ""))
        if not keys and (close := nearest(first, known)):
            keys = [f"{close}{dot}{rest}"]
        hint = f"did you mean --{' or --'.join(keys)}? " if keys else ""
        return ConfigError(f"{option} is not an option of `{command}`", remedy=f"{hint}see `{command} --help`")

    def _missing(self, keys: Sequence[str]) -> ConfigError:
        names = [_spelt(self, key.split(".")) for key in keys]
        are = "is" if len(names) == 1 else "are"
        return ConfigError(f"{' and '.join(names)} {are} missing", remedy="write " + " ".join(map(_example, names)))


def _spelt(parser: ArgumentParser, key: Sequence[str]) -> str:
    """The name of an argument on the command line, from its destination below the verbs."""
    found = next(action for action in _actions_below(parser, key[:-1]) if action.dest == key[-1])
    return found.option_strings[0] if found.option_strings else found.dest


def _actions_below(parser: ArgumentParser, verbs: Sequence[str]) -> Sequence[Action]:
    """The arguments of a verb below a parser, in the order in which they were added."""
    for verb in verbs:
        parser = next(action.choices[verb] for action in parser._actions if isinstance(action.choices, dict))
    return parser._actions


def _example(name: str) -> str:
    return f"{name} {name.lstrip('-').upper()}" if name.startswith("-") else name.upper()
