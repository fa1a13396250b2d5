"""YAML that people write: read whole, or refused with the line and what to write instead.

PyYAML takes the last of two equal keys, reads ``no`` as false and ``010`` as 8, and says where it stumbled rather than
what is wrong. What :func:`parse` makes of such texts:

=======================================================  =============================================================
a byte order mark of UTF-8, UTF-16 or UTF-32             is read
another encoding, UTF-16 or UTF-32 without a mark        refused, with the line
a key twice in one mapping, in whatever quotes           refused, with both lines; a key that ``<<`` brings may be
                                                         given again
``no``, ``7``, ``1.5``, ``2020-01-01`` without quotes    values as PyYAML reads them; ``as_written``: :class:`Plain`, so
                                                         that a field for texts has the text
a tab as indentation, no blank after a colon,            refused, with the line and the remedy
a no-break space, a backslash in double quotes
several documents, a list or a text in place of keys,    refused
a key that is a list, an alias inside of its own value
=======================================================  =============================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from openworld.runtime.text_files import NotText, decoded

_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"
_TAG = "tag:yaml.org,2002:"
_SHOWN = 60
"""Characters of a line that a message quotes."""


class Plain(str):
    """A scalar without quotes that YAML takes for a number, a truth value or a date, as it is written.

    Attributes:
        value: what YAML takes it for.
    """

    value: Any

    def __new__(cls, text: str, value: Any) -> Plain:
        self = super().__new__(cls, text)
        self.value = value
        return self

    def __repr__(self) -> str:
        return str(self)


class YamlFault(Exception):
    """What is wrong with a text, and what to write instead; None where only the reader of the file knows."""

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy


def parse(data: bytes | str, *, as_written: bool = False) -> Any:
    """Read one YAML document, None if it is empty.

    Args:
        data: content of a file, or a text.
        as_written: give what is neither a text, nor null, nor a collection as :class:`Plain`.

    Raises:
        YamlFault: it cannot be read, see the table above.
    """
    try:
        text = data if isinstance(data, str) else decoded(data)
    except NotText as error:
        raise YamlFault(str(error), "save the file as UTF-8") from None
    try:
        loader = (_AsWritten if as_written else _Values)(text.removeprefix("\ufeff"))
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, set(), set(), as_written)
        if isinstance(node, ScalarNode) and node.style is None:
            # A file of `seed:3` is one text.
            number = node.start_mark.line
            if (fault := _fault_of(text.split("\n")[number], number + 1)) is not None:
                raise fault
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _explained(error, text.split("\n")) from None
    except RecursionError:
        raise YamlFault("is nested too deep") from None


class _Values(yaml.SafeLoader):
    """PyYAML's values; ``=`` and ``<<`` as values are the texts that YAML 1.2 has there."""


class _AsWritten(_Values):
    """Plain scalars keep their text."""


def _value_of(kind: str) -> Callable[[Any, ScalarNode], Any]:
    def construct(loader: Any, node: ScalarNode) -> Any:
        try:
            return yaml.SafeLoader.yaml_constructors[_TAG + kind](loader, node)
        except ValueError as error:
            # 2020-13-45 has the form of a date.
            raise yaml.constructor.ConstructorError(None, None, f"{node.value!r}: {error}", node.start_mark) from None

    return construct


def _plain_of(kind: str) -> Callable[[Any, ScalarNode], Any]:
    def construct(loader: Any, node: ScalarNode) -> Any:
        try:
            value = yaml.SafeLoader.yaml_constructors[_TAG + kind](loader, node)
        except ValueError:
            return node.value
        return value if node.style else Plain(node.value, value)

    return construct


for _kind in ("bool", "int", "float", "timestamp"):
    _Values.add_constructor(_TAG + _kind, _value_of(_kind))
    _AsWritten.add_constructor(_TAG + _kind, _plain_of(_kind))
for _kind in ("value", "merge"):
    _Values.add_constructor(_TAG + _kind, lambda loader, node: node.value)
    _AsWritten.add_constructor(_TAG + _kind, lambda loader, node: node.value)


def _check(node: Node, around: set[int], seen: set[int], as_written: bool) -> None:
    """Refuse what PyYAML lets through: keys given twice, blanks that nobody sees, values inside of themselves."""
    if id(node) in around:
        raise YamlFault(f"line {_line(node)}: an alias (*) stands inside of its own anchor (&)", "write the value out")
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, ScalarNode):
        _check_blanks(node)
        return
    below: list[Node] = [*node.value]
    if isinstance(node, MappingNode):
        _check_keys(node, as_written)
        below = [part for pair in node.value for part in pair]
    for part in below:
        _check(part, around | {id(node)}, seen, as_written)


def _check_blanks(node: ScalarNode) -> None:
    text = node.value
    if node.style is None and text != text.strip().strip(_INVISIBLE):
        raise YamlFault(
            f"line {_line(node)}: {text!r} starts or ends with a blank that is not an ordinary one",
            "write ordinary blanks; put quotes around the text if they belong to it",
        )


def _check_keys(node: MappingNode, as_written: bool) -> None:
    first: dict[str, ScalarNode] = {}
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise YamlFault(f"line {_line(key)}: a key is a list or a mapping", "write keys as texts")
        if key.tag == f"{_TAG}merge":
            continue
        # `yes` and `true` are one key where values count, and two where texts do.
        names = {key.value} if as_written else {key.value, _identity(key)}
        if twin := next((first[name] for name in names if name in first), None):
            also = "" if twin.value == key.value else f" as {twin.value!r}"
            problem = f"line {_line(key)}: the key {key.value!r} is in line {_line(twin)} already{also}"
            raise YamlFault(problem, "keep one of the two")
        first |= dict.fromkeys(names, key)


def _identity(key: ScalarNode) -> str:
    """The value of a key with its type, or the text of a key that is a text."""
    if key.tag == f"{_TAG}str":
        return str(key.value)
    try:
        return f"{key.tag} {_Values('').construct_object(key)!r}"
    except yaml.YAMLError:
        return str(key.value)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _explained(error: yaml.YAMLError, lines: list[str]) -> YamlFault:
    if isinstance(error, yaml.reader.ReaderError):
        line = "\n".join(lines)[: error.position].count("\n") + 1
        remedy = "remove it, or write it as an escape in double quotes"
        return YamlFault(f"line {line} has the control character {chr(error.character)!r}", remedy)
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return YamlFault(f"cannot be read as YAML ({' '.join(str(error).split())})")
    number, problem = error.problem_mark.line, str(error.problem)
    if "single document" in str(error.context):
        return YamlFault(f"line {number + 1} (---) starts another document", "keep one document in a file")
    if "unknown escape character" in problem or "escape sequence" in problem:
        remedy = "in double quotes a backslash starts an escape; use single quotes, or /"
        return YamlFault(f"line {number + 1}: {problem}", remedy)
    # A scanner often stumbles in the line below the culprit.
    for index in (number, number - 1):
        if 0 <= index < len(lines) and (fault := _fault_of(lines[index], index + 1)) is not None:
            return fault
    where = f"line {number + 1}"
    if number < len(lines) and lines[number].strip():
        where += f" ({_quoted(lines[number])})"
    context = f"{error.context}: " if error.context else ""
    return YamlFault(f"{where} cannot be read as YAML: {context}{' '.join(problem.split())}")


def _fault_of(line: str, number: int) -> YamlFault | None:
    """What is wrong with a line in which, or below which, the scanner stumbled; None if it looks well."""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return YamlFault(f"line {number} is indented with a tab", "indent with blanks")
    if odd := next((char for char in line if char in _INVISIBLE or (char.isspace() and char not in " \t")), None):
        return YamlFault(f"line {number} has the blank U+{ord(odd):04X}", "replace it with an ordinary one")
    name, colon, rest = line.strip().partition(":")
    if colon and name.replace("_", "").isalnum() and rest[:1] not in ("", " ", "/"):
        return YamlFault(f"line {number} ({_quoted(line)}) has no blank after the colon", f"write `{name}: …`")
    return None


def _quoted(line: str) -> str:
    line = line.strip()
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
