"""Names of the classes of YOLO data sets: ``names`` of a data.yaml, and files with one name a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openworld.data.formats.yolo_paths import located, text_of
from openworld.errors import DataError
from openworld.repairs import Repairs
from openworld.runtime.files import read_yaml


def names_of_yaml(content: Mapping[str, Any], description: Path, root: Path, repairs: Repairs) -> list[str]:
    """Class names of a data.yaml in the order of their numbers.

    Args:
        content: of the file.
        description: the file.
        root: what paths in it are relative to.
        repairs: counts names that YAML takes for a number, a truth value or a date.

    Raises:
        DataError: no names, numbers with gaps, names that YAML reads as null, or a disagreeing ``nc``.
    """
    value = content.get("names")
    if isinstance(value, str):
        file = located(value, root, f"{description}: names", repairs)
        if file.is_file():
            names = listed_names(file)
            check_count(content.get("nc"), names, description, "nc")
            return names
    value = _in_order(value, description)
    if not isinstance(value, list) or not value:
        raise DataError(
            f"`names` is {value!r}", where=str(description), remedy="write `names: [cat, dog]` or `{0: cat}`"
        )
    written = None
    for number, name in enumerate(value):
        if isinstance(name, str) and name.strip():
            continue
        if name is None or isinstance(name, str | list | dict):
            raise DataError(
                f"the name of class {number} is {'null' if name is None else repr(name)}",
                where=str(description),
                remedy="write a text for each class; a class that is called null needs quotes",
            )
        written = written or _names_as_written(description)
        repairs.add("class name taken as it is written", f"{description}, class {number} is {written[number]}")
        value[number] = written[number]
    check_count(content.get("nc"), value, description, "nc")
    return [name.strip() for name in value]


def _in_order(value: Any, description: Path) -> Any:
    """A mapping of class numbers as a list; anything else as it is."""
    if not isinstance(value, dict):
        return list(value) if isinstance(value, list) else value
    names = {int(key) if isinstance(key, str) and key.isdecimal() else key: name for key, name in value.items()}
    if sorted(names, key=str) != sorted(range(len(value)), key=str):
        raise DataError(
            f"the numbers in `names` are {list(value)[:10]}",
            where=str(description),
            remedy="number the classes 0, 1, 2, … without a gap",
        )
    return [names[number] for number in range(len(names))]


def _names_as_written(description: Path) -> list[str]:
    """The texts of the names: YAML reads no as false, 007 as 7 and 1.10 as 1.1."""
    content = read_yaml(description, remedy="write `names: [cat, dog]`", kind=DataError, as_written=True)
    return [str(name) for name in _in_order(content["names"], description)]


def listed_names(path: Path) -> list[str]:
    """Class names of a file with one a line.

    Raises:
        DataError: an empty line before the last name, or no name.
    """
    names = [line.strip() for line in text_of(path).splitlines()]
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names):
        if not name:
            raise DataError(
                "the line is empty",
                where=f"{path}, line {number + 1}",
                remedy="write one class name per line, in the order of the class numbers",
            )
    if not names:
        raise DataError("names no class", where=str(path), remedy="write one class name per line")
    return names


def check_count(count: Any, names: Sequence[str], description: Path, key: str) -> None:
    """Refuse a number of classes that disagrees with their names: which class a number means is not certain then.

    Raises:
        DataError: ``count`` is another number than the names have.
    """
    if count is None:
        return
    if str(count).strip() != str(len(names)):
        raise DataError(
            f"`{key}` is {count!r}, and {len(names)} classes have a name",
            where=str(description),
            remedy=f"correct the names, or {key}",
        )
