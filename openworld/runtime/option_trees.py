"""Build options dataclasses from nested mappings: files in order, then the command line; errors name the key.

A *section* is a field whose type is a dataclass. The class of a *chosen* section depends on its key ``name``: its
declared type has ``named(cls, name) -> type[Self]`` (:class:`Chosen`), and each class that it returns has a field
``name``. ``method: ore`` is short for ``method: {name: ore}``.

Every layer holds some keys; the last layer that has a key wins. For a section, ``null`` and another ``name`` discard
the values of earlier layers. Keys that no layer has keep the default of the *enclosing* object, so that a change of one
leaf of ``train`` leaves the other defaults of ``train``, which are not those of the bare class.
"""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, Self, TypeVar, Union, cast, get_args, get_origin

from openworld.errors import ConfigError
from openworld.runtime.dotted import nested
from openworld.runtime.options import PathRule, Place, domain, fits, hints_of, joined, reading, shown, wanted
from openworld.runtime.yaml_text import Plain, YamlFault, parse

T = TypeVar("T")
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_VARIABLE = re.compile(r"(?:^|/)\$(\w+|\{\w+\})")


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
            values[field.name] = latest(hint, given, standard, here)
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
                raise _unknown(owner, str(name), layer.value[name], key, layer.file)
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
            raise ConfigError(f"{key} is {shown(content)}", where=file, remedy=remedy)
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
    return str(value) if isinstance(parsed, str) else parsed


def latest(hint: Any, given: Sequence[Given], default: Any, key: str) -> Any:
    """Return the value of an option: the last one given, or the default.

    ``--train.steps_by_task.2 7`` on the command line adds an item to the mapping of earlier layers.

    Raises:
        ConfigError: a path names an environment variable that is not set.
    """
    value = default
    for layer in given:
        try:
            new = typed(hint, layer.value)
        except ConfigError as error:
            raise ConfigError(f"{key} {error.problem}", where=layer.file, remedy=error.remedy) from None
        adds = layer.file is None and isinstance(layer.value, Mapping) and isinstance(value, Mapping)
        value = {**value, **new} if adds else new
    return value


def typed(hint: Any, value: Any) -> Any:
    """Convert a value to its annotated type; return it as it is if it does not fit.

    A :class:`Word` is read as YAML unless it is meant as a string, and so is a
    :class:`openworld.runtime.yaml_text.Plain`: in a list of strings, ``no`` and ``007`` are texts. Where a float is
    meant, integers become floats, and so does ``1e-3``, which YAML 1.1 takes for a string. Where a path is meant, ``~``
    and environment variables are filled in.

    Raises:
        ConfigError: a path names an environment variable that is not set; the problem lacks the key.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(value, Word | Plain):
        parsed = typed(hint, _parsed(value))
        if fits(hint, parsed) and not isinstance(parsed, str):
            return parsed
        meant = typed(hint, str(value))
        # A message says `yes` of `yes`, and not True.
        return meant if fits(hint, meant) else value if isinstance(parsed, bool) else parsed
    if origin is Annotated:
        inner = typed(arguments[0], value)
        is_path = isinstance(inner, str) and any(isinstance(rule, PathRule) for rule in arguments[1:])
        return expanded(inner) if is_path else inner
    if origin in (Union, types.UnionType):
        candidates = [typed(member, value) for member in arguments]
        return next((item for item, member in zip(candidates, arguments, strict=True) if fits(member, item)), value)
    if origin is list and isinstance(value, list):
        return [typed(arguments[0], item) for item in value]
    if origin is dict and isinstance(value, Mapping):
        # The command line has its keys as text: --train.steps_by_task.2 7.
        keys = [typed(arguments[0], Word(key) if type(key) is str else key) for key in value]
        if len(set(keys)) < len(keys):  # such as 1 and 0x1
            return value
        return {key: typed(arguments[1], item) for key, item in zip(keys, value.values(), strict=True)}
    exponent = isinstance(value, str) and _EXPONENT.fullmatch(value)
    return float(value) if hint is float and (fits(int, value) or exponent) else value


def expanded(path: str) -> str:
    """Fill in the home folder for a leading ``~``, and environment variables for ``$NAME`` and ``${NAME}``.

    A path that exists as it is written stays as it is, and so does a ``$`` inside of a name.

    Raises:
        ConfigError: there is no such user, or a variable at the start of a name is not set; the problem lacks the key.
    """
    if ("$" not in path and not path.startswith("~")) or os.path.lexists(path):
        return path
    try:
        full = os.path.expandvars(str(Path(path).expanduser()) if path.startswith("~") else path)
    except RuntimeError:
        problem = f"is {path!r}, and there is no user {path.partition('/')[0][1:]}"
        raise ConfigError(problem, remedy=f"write ./{path} for a name that starts with ~") from None
    if unset := next((name for name in _VARIABLE.findall(full) if name.strip("{}") not in os.environ), None):
        raise ConfigError(
            f"is {path!r}, and the environment variable {unset.strip('{}')} is not set",
            remedy="set it, or write the path out",
        )
    return full


def _parsed(word: Word | Plain) -> Any:
    """Read a text as YAML. 010, which is 8 in YAML 1.1, and 1:30, which is 90, stay texts."""
    if isinstance(word, Plain):
        text = word.replace("_", "")
        octal = isinstance(word.value, int) and text.lstrip("+-").isdigit() and int(text) != word.value
        return str(word) if octal or (":" in word and isinstance(word.value, int | float)) else word.value
    try:
        return parse(word, as_written=True)
    except YamlFault:
        return str(word)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that is spelt most alike, in whatever case, with hyphens for underscores; or None."""
    plain = {other.lower().replace("-", "_"): other for other in known}
    close = get_close_matches(name.strip().lower().replace("-", "_"), plain, n=1)
    return plain[close[0]] if close else None


def _unknown(owner: type, name: str, value: Any, section: str, file: str | None) -> ConfigError:
    """The error of a key that a class does not have, with the key that may be meant."""
    known = list(hints_of(owner))
    first, dot, rest = name.partition(".")
    if dot and first in known and file is not None:
        inner = f"{{{rest.replace('.', ': {')}: …{'}' * (1 + rest.count('.'))}"
        remedy = f"write the sections as mappings: {first}: {inner}"
    elif ":" in name and value is None and nearest(name.partition(":")[0], known):
        remedy = f"put a blank behind the colon: {name.replace(':', ': ', 1)}"
    elif below := list(keys_below(owner, name, section)):
        remedy = f"did you mean {' or '.join(below)}?"
    elif close := nearest(name, known):
        remedy = f"did you mean {joined(section, close)}?"
    else:
        remedy = f"choose from {', '.join(known)}"
    return ConfigError(f"{joined(section, name)} is not an option", where=file, remedy=remedy)


def keys_below(owner: type, name: str, section: str) -> Iterator[str]:
    """Yield the full keys of this name in the sections of a class, but for those whose class a name chooses."""
    for field, hint in hints_of(owner).items():
        declared, key = declared_section(hint), joined(section, field)
        if declared is not None and not hasattr(declared, "named"):
            if name in hints_of(declared):
                yield joined(key, name)
            yield from keys_below(declared, name, key)


def _file(layers: Sequence[Given]) -> str | None:
    return layers[-1].file if layers else None


def _text(name: Any) -> Any:
    return str(name) if isinstance(name, Word | Plain) else name
