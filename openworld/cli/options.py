"""A tree of options on the command line: its arguments, its configuration files, and its part of --help."""

from __future__ import annotations

import ast
import inspect
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import MISSING, fields
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Any, cast

from jsonargparse import ArgumentParser

from openworld.configfile import layers_of
from openworld.errors import ConfigError
from openworld.runtime.option_trees import Given, Section, declared_section, from_words, latest, resolve, walk
from openworld.runtime.options import domain, fits, joined


def split(words: Sequence[str], owner: type) -> tuple[list[Given], list[str]]:
    """Split the words of a verb into options of a tree and all others.

    Args:
        words: of the command line.
        owner: the class at the root of the tree. ``--config`` and words that start with one of its fields belong to the
            tree: ``--train.lr 0.1``, ``--train.lr=0.1``, ``--pretrain null``.

    Returns:
        The layers of the tree, first the files and then the options, each kind in the order given; the other words.

    Raises:
        ConfigError: an option has no value, or a file does not exist or is not YAML.
    """
    names = {field.name for field in fields(owner)} | {"config"}
    files, options, others = list[str](), list[tuple[str, str]](), list[str]()
    following = iter(words)
    for word in following:
        key, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or key.partition(".")[0] not in names:
            others.append(word)
            continue
        if not equals:
            value = next(following, "--")
            if value.startswith("--"):
                raise ConfigError(f"--{key} has no value", remedy="write the value behind it")
        if key == "config":
            files.append(value)
        else:
            options.append((key, value))
    return [*layers_of(files), *from_words(options)], others


def list_options(
    parser: ArgumentParser, owner: type, layers: Sequence[Given], key: str = "", default: object | None = None
) -> None:
    """Add the options of a tree to the output of --help, with the classes that the layers choose.

    Args:
        parser: of the verb, which prints its help and does not parse these options.
        owner: the class of the tree.
        layers: as in :func:`openworld.runtime.option_trees.construct`.
        key: of the tree, empty for the root.
        default: an object that holds the defaults; None: those of the class.
    """
    group = parser.add_argument_group(key or "options of the configuration", _summary(owner))
    docs, below = field_docs(owner), list[tuple[str, Section]]()

    def add(name: str, values: str) -> None:
        text = f"{docs.get(name, '')} ({values})".strip().replace("%", "%%")
        group.add_argument(f"--{joined(key, name)}", metavar=name.upper(), default=SUPPRESS, help=text)

    for field, hint, given, standard in walk(owner, layers, key, default):
        declared = declared_section(hint)
        if declared is None:
            value = latest(hint, given, standard, joined(key, field.name))
            add(field.name, f"{domain(hint)}; {'required' if value is MISSING else f'default: {_text(value)}'}")
            continue
        chosen = hasattr(declared, "named")
        section = resolve(hint, declared, given, standard, joined(key, field.name))
        if chosen or fits(hint, None):
            state = "null" if section is None else getattr(section.default, "name", "as follows")
            add(field.name, f"{'a name, ' if chosen else ''}{domain(hint)}; default: {state}")
        if section is not None or not chosen:
            below.append((joined(key, field.name), section or Section(declared, [], None)))
    for name, section in below:
        list_options(parser, section.owner, section.layers, name, section.default)


@cache
def field_docs(owner: type) -> dict[str, str]:
    """Return the text below each field of a dataclass, in one line; empty if the source is not available."""
    docs = {}
    for part in reversed(owner.__mro__[:-1]):
        try:
            tree = ast.parse(dedent(inspect.getsource(part)))
        except (OSError, TypeError):
            continue
        body = cast(ast.ClassDef, tree.body[0]).body
        for field, text in pairwise(body):
            match (field, text):
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[name] = " ".join(doc.split())
    return docs


def _summary(owner: type) -> str:
    return (inspect.getdoc(owner) or "").partition("\n\n")[0].replace("\n", " ")


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
