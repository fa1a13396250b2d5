"""Build options dataclasses from nested mappings: files in order, then the command line; errors name the key.

A *section* is a field whose type is a dataclass. The class of a *chosen* section depends on its key ``name``: its
declared type has ``named(cls, name) -> type[Self]`` (:class:`Chosen`), and each class that it returns has a field
``name``. ``method: ore`` is short for ``method: {name: ore}``.

Every layer holds some keys; the last layer that has a key wins. For a section, ``null`` and another ``name`` discard
the values of earlier layers. Keys that no layer has keep the default of the *enclosing* object, so that a change of one
leaf of ``train`` leaves the other defaults of ``train``, which are not those of the bare class.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, Protocol, Self, TypeVar, Union, cast, get_args, get_origin

from openworld.errors import ConfigError
from openworld.runtime.dotted import nested
from openworld.runtime.options import Place, domain, fits, hints_of, joined, reading, wanted

T = TypeVar("T")
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class Chosen(Protocol):
    """The declared type of a section whose class its ``name`` chooses."""

    name: str

    @classmethod
    def named(cls, name: str) -> type[Self]:
        """Return the subclass of this name.

        Raises:
            ConfigError: the name is not known; the remedy lists the known names.
        """
        ...


class Word(str):
    """A value from the command line. The annotation of its option decides what it means."""


class Given(NamedTuple):
    """A value from a layer, and the file of the layer; None for the command line."""

    value: Any
    file: str | None


@dataclass(frozen=True)
class Section:
    """A resolved section: its class, its layers, and the object that holds its defaults."""

    owner: type
    layers: list[Given]
    default: object | None


def from_words(options: Sequence[tuple[str, str]]) -> list[Given]:
    """Layers of the command line: one for each pair of a dotted key and a value."""
    return [Given(nested(key, Word(text)), None) for key, text in options]


def construct(owner: type[T], layers: Sequence[Given], key: str = "", default: object | None = None) -> T:
    """Build an options object from layers of nested mappings.

    Args:
        owner: its class.
        layers: mappings; later ones override earlier ones.
        key: position of the object in the whole tree, for messages.
        default: an object of the class with the values for keys that no layer has; None: the class's defaults.

    Raises:
        ConfigError: a key does not exist or is missing, or a value is out of its domain; the message names the full
            key, and the file that gave it, if any.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str | None] = {}
    for field, hint, given, standard in walk(owner, layers, key, default):
        here = joined(key, field.name)
        if given:
            sources[field.name] = given[-1].file
        if given and (declared := declared_section(hint)) is not None:
            section = resolve(hint, declared, given, standard, here)
            values[field.name] = section and construct(section.owner, section.layers, here, section.default)
        else:
            values[field.name] = latest(hint, given, standard)
        if values[field.name] is MISSING:
            raise ConfigError(f"{here} is missing", where=_file(layers), remedy=wanted(hint))
    with reading(Place(owner, key, sources)):
        return owner(**values)


def walk(
    owner: type, layers: Sequence[Given], key: str, default: object | None
) -> Iterator[tuple[Field[Any], Any, list[Given], Any]]:
    """Yield each field of a class, its annotation, its values from the layers, and its default or ``MISSING``.

    Raises:
        ConfigError: a key of some layer is not a field.
    """
    hints = hints_of(owner)
    for layer in layers:
        for name in layer.value:
            if name not in hints:
                raise _unknown(joined(key, str(name)), str(name), key, list(hints), layer.file)
    for field in fields(cast(Any, owner)):
        given = [Given(layer.value[field.name], layer.file) for layer in layers if field.name in layer.value]
        yield field, hints[field.name], given, default_of(field, default)


def default_of(field: Field[Any], default: object | None) -> Any:
    """Return the default value of a field: that of a default object, or that of its class, or ``MISSING``."""
    if default is not None:
        return getattr(default, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def declared_section(hint: Any) -> type | None:
    """Return the dataclass that an annotation names, alone or beside ``None``; None for the annotation of a leaf."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((member for member in members if isinstance(member, type) and is_dataclass(member)), None)


def resolve(hint: Any, declared: type, given: Sequence[Given], default: Any, key: str) -> Section | None:
    """Return the class of a section and the layers that count; None if the section is ``null``.

    Args:
        hint: the annotation of the field.
        declared: the class in it.
        given: values of the field in the layers.
        default: the field's default, or ``MISSING``.
        key: of the field.

    Raises:
        ConfigError: a value is neither a mapping, nor an allowed ``null``, nor a name; or the name does not exist or is
            missing.
    """
    chosen, default = hasattr(declared, "named"), None if default is MISSING else default
    first = default.name if chosen and default is not None else None
    name, layers, null = first, list[Given](), default is None
    for value, file in given:
        content = _content(value)
        if isinstance(content, str) and chosen:
            content = {"name": content}
        if content is None and fits(hint, None):
            name, layers, null = first, [], True
        elif isinstance(content, Mapping):
            own = _text(content.get("name", name)) if chosen else None
            layers = [*(layers if own == name else ()), Given(content, file)]
            name, null = own, False
        else:
            remedy = f"give {'a name, ' if chosen else ''}{domain(hint)}"
            raise ConfigError(f"{key} is {content!r}", where=file, remedy=remedy)
    if null:
        return None
    owner = _named(declared, name, key, layers) if chosen else declared
    return Section(owner, layers, default if type(default) is owner else None)


def _named(declared: Any, name: Any, key: str, layers: Sequence[Given]) -> type:
    try:
        return cast(type, declared.named(name if isinstance(name, str) else ""))
    except ConfigError as error:
        problem = "is missing" if name is None else f"is {name!r}: {error.problem}"
        named = [layer for layer in layers if "name" in layer.value]
        raise ConfigError(f"{key}.name {problem}", where=_file(named or layers), remedy=error.remedy) from None


def _content(value: Any) -> Any:
    """Parse a section's value from the command line: ``null``, a mapping in YAML, or a name."""
    if not isinstance(value, Word):
        return value
    parsed = _parsed(value)
    return str(value) if not isinstance(parsed, Mapping | None) else parsed


def latest(hint: Any, given: Sequence[Given], default: Any) -> Any:
    """Return the value of an option: the last one given, or the default.

    ``--train.steps_by_task.2 7`` on the command line adds an item to the mapping of earlier layers.
    """
    value = default
    for layer in given:
        new = typed(hint, layer.value)
        adds = layer.file is None and isinstance(layer.value, Mapping) and isinstance(value, Mapping)
        value = {**value, **new} if adds else new
    return value


def typed(hint: Any, value: Any) -> Any:
    """Convert a value to its annotated type; return it as it is if it does not fit.

    A :class:`Word` is read as YAML unless it is meant as a string. Where a float is meant, integers become floats, and
    so does ``1e-3``, which YAML 1.1 takes for a string.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(value, Word):
        parsed = typed(hint, _parsed(value))
        meant = parsed if fits(hint, parsed) and not isinstance(parsed, str) else str(value)
        return meant if fits(hint, meant) else parsed
    if origin is Annotated:
        return typed(arguments[0], value)
    if origin in (Union, types.UnionType):
        candidates = [typed(member, value) for member in arguments]
        return next((item for item, member in zip(candidates, arguments, strict=True) if fits(member, item)), value)
    if origin is list and isinstance(value, list):
        return [typed(arguments[0], item) for item in value]
    if origin is dict and isinstance(value, Mapping):
        # The command line has its keys as text: --train.steps_by_task.2 7.
        keys = (typed(arguments[0], Word(key) if isinstance(key, str) else key) for key in value)
        return {key: typed(arguments[1], item) for key, item in zip(keys, value.values(), strict=True)}
    exponent = isinstance(value, str) and _EXPONENT.fullmatch(value)
    return float(value) if hint is float and (fits(int, value) or exponent) else value


def _parsed(word: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return str(word)


def _unknown(key: str, name: str, section: str, known: list[str], file: str | None) -> ConfigError:
    close = [joined(section, match) for match in get_close_matches(name, known, n=1)]
    remedy = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
    return ConfigError(f"{key} is not an option", where=file, remedy=remedy)


def _file(layers: Sequence[Given]) -> str | None:
    return layers[-1].file if layers else None


def _text(name: Any) -> Any:
    return str(name) if isinstance(name, Word) else name
