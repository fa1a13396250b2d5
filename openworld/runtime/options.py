"""Options dataclasses: check values against annotations, with errors that name the full key.

A class states the domain of each field in its annotation and calls :func:`check` when an object is made::

    @dataclass(kw_only=True)
    class PhaseOptions:
        optimizer: Literal["adamw", "sgd"] = "adamw"
        lr: Annotated[float, Above(0)]
        milestones: list[Annotated[float, Between(0, 1)]] = field(default_factory=list)

        def __post_init__(self) -> None:
            check(self)

Rules that span fields follow in ``__post_init__`` and end in :func:`refuse`. Standard library only, so that
``openworld --help`` does not wait for torch.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, NoReturn, Protocol, Union, get_args, get_origin, get_type_hints

from openworld.errors import ConfigError

_NUMBER = re.compile(r"[-+]?\.?\d[\d_.:eE+-]*")


class Limit(Protocol):
    """A rule in an annotation, beside the type."""

    def holds(self, value: Any) -> bool:
        """Return whether a value of the right type obeys the rule."""

    def __str__(self) -> str:
        """Return the rule as it follows the name of the type: "an integer" + "of at least 1"."""


@dataclass(frozen=True)
class AtLeast:
    """``value >= least``."""

    least: float

    def holds(self, value: float) -> bool:
        return value >= self.least

    def __str__(self) -> str:
        return f"of at least {_number(self.least)}"


@dataclass(frozen=True)
class Above:
    """``value > limit``."""

    limit: float

    def holds(self, value: float) -> bool:
        return value > self.limit

    def __str__(self) -> str:
        return f"above {_number(self.limit)}"


@dataclass(frozen=True)
class Below:
    """``value < limit``."""

    limit: float

    def holds(self, value: float) -> bool:
        return value < self.limit

    def __str__(self) -> str:
        return f"below {_number(self.limit)}"


@dataclass(frozen=True)
class AtMost:
    """``value <= most``."""

    most: float

    def holds(self, value: float) -> bool:
        return value <= self.most

    def __str__(self) -> str:
        return f"of at most {_number(self.most)}"


@dataclass(frozen=True)
class Between:
    """``least <= value <= most``."""

    least: float
    most: float

    def holds(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"from {_number(self.least)} to {_number(self.most)}"


@dataclass(frozen=True)
class Items:
    """A list of at least ``least`` items, and of at most ``most``."""

    least: int
    most: int | None = None

    def holds(self, value: list[Any]) -> bool:
        return len(value) >= self.least and (self.most is None or len(value) <= self.most)

    def __str__(self) -> str:
        if self.least == self.most:
            return f"of {self.least} items"
        return f"of {self.least} or more items" if self.most is None else f"of {self.least} to {self.most} items"


@dataclass(frozen=True)
class PathRule:
    """Any text; the reader of options fills in ``~`` and environment variables."""

    def holds(self, value: str) -> bool:
        return True

    def __str__(self) -> str:
        return "that is a path"


PositiveInt = Annotated[int, AtLeast(1)]
NonNegativeInt = Annotated[int, AtLeast(0)]
PositiveFloat = Annotated[float, Above(0)]
NonNegativeFloat = Annotated[float, AtLeast(0)]
Share = Annotated[float, Between(0, 1)]
FilePath = Annotated[str, PathRule()]


@dataclass(frozen=True)
class Place:
    """Position of the reader in a tree of options: the class of the object, its key, and the sources of its fields.

    ``sources`` has the file of each given field, None for the command line. A field that it lacks has its default.
    """

    owner: type
    key: str
    sources: Mapping[str, str | None]


_place: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def reading(place: Place) -> Iterator[None]:
    """Make errors of the object that is built inside name the key and the file of a field."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


@cache
def hints_of(owner: type) -> dict[str, Any]:
    """Return the resolved annotation of each field of a dataclass, in the order of the fields."""
    hints = get_type_hints(owner, include_extras=True)
    return {field.name: hints[field.name] for field in fields(owner)}


def given(options: object) -> frozenset[str]:
    """Return the fields that a layer of the tree gives, of an object under construction; none outside of a reader."""
    place = _place.get()
    return frozenset(place.sources if place is not None and place.owner is type(options) else ())


def check(options: object) -> None:
    """Raise an error for the first value that does not fit its annotation.

    Understands ``int``, ``float``, ``bool``, ``str``, ``None``, ``Literal``, unions, ``list``, ``dict``, classes, and
    ``Annotated`` with a :class:`Limit` around each of them. An integer fits ``float``; ``bool`` does not fit ``int``;
    a number must be finite.

    Raises:
        ConfigError: a value does not fit; the message names the key, the value and its domain.
    """
    owner: Any = type(options)
    for name, hint in hints_of(owner).items():
        value = getattr(options, name)
        if not fits(hint, value):
            number = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
            # "6" in quotes, 1e3 for an integer, 010, 1:30
            digits = "; write a number in plain digits, without quotes" if number else ""
            refuse(options, name, remedy=wanted(hint) + digits)


def refuse(options: object, field: str, problem: str | None = None, *, remedy: str) -> NoReturn:
    """Raise the error of one field, for a rule that its annotation cannot hold.

    Args:
        options: the object, which may be under construction.
        field: its name, or a dotted name in a nested section.
        problem: text after the key; None: ``is`` and the value, as :func:`shown`.
        remedy: what to do.

    Raises:
        ConfigError: always. Its text starts with the full key if a tree of options is being read, and otherwise with
            the name of the class: ``PhaseOptions.optimizer is 'adam'``.
    """
    owner, place, value = type(options), _place.get(), options
    for name in field.split("."):
        value = getattr(value, name)
    where, key = None, f"{owner.__name__}.{field}"
    if place is not None and place.owner is owner:
        # A default is refused because of what was given beside it.
        others = next(reversed(list(place.sources.values())), None)
        where, key = place.sources.get(field.partition(".")[0], others), joined(place.key, field)
    raise ConfigError(f"{key} {problem or f'is {shown(value)}'}", where=where, remedy=remedy)


def shown(value: Any) -> str:
    """Return a value for a message; nothing is ``null``, as in YAML."""
    return "null" if value is None else repr(value)


def joined(key: str, name: str) -> str:
    """Return the key of a field in a section; the key of the root is empty."""
    return f"{key}.{name}" if key else name


def fits(hint: Any, value: Any) -> bool:
    """Return whether a value is in the domain of an annotation."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner, *limits = arguments
        return fits(inner, value) and all(limit.holds(value) for limit in limits)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(member, value) for member in arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(arguments[0], item) for item in value)
    if origin is dict:
        of_key, of_item = arguments
        return isinstance(value, dict) and all(fits(of_key, key) and fits(of_item, item) for key, item in value.items())
    if hint is float:
        return fits(int, value) or (isinstance(value, float) and math.isfinite(value))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type):
        return isinstance(value, hint)
    raise TypeError(f"an option cannot be annotated with {hint}")


def wanted(hint: Any) -> str:
    """Return the remedy for a value out of the domain: ``choose adamw or sgd``, ``give a number above 0``."""
    return f"{'choose' if _is_choice(hint) else 'give'} {domain(hint)}"


def domain(hint: Any) -> str:
    """Return the domain of an annotation in words, such as ``an integer of at least 1`` or ``adamw or sgd``."""
    return _either(_members(hint))


def _members(hint: Any) -> list[str]:
    """Return the allowed values in words, one text per alternative."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if any(isinstance(rule, PathRule) for rule in arguments[1:]):
            return ["a path"]
        kind, comma, items = domain(arguments[0]).partition(", each item ")
        return [f"{kind} {' and '.join(str(limit) for limit in arguments[1:])}{comma}{items}"]
    if origin is Literal:
        return [str(choice) for choice in arguments]
    if origin in (Union, types.UnionType):
        return [text for member in arguments for text in _members(member)]
    if origin is list:
        return [f"a list, each item {domain(arguments[0])}"]
    if origin is dict:
        return [f"a mapping from {domain(arguments[0])} to {domain(arguments[1])}"]
    simple = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}
    return [simple.get(hint, "a mapping")]


def _either(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _is_choice(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_choice(member) for member in get_args(hint))
    return get_origin(hint) is Literal


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
