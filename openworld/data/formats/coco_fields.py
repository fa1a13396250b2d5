"""Checked fields of the records of a COCO file. Each error names the file, the record and the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from openworld.columns import ImageId
from openworld.data.formats.file_names import is_encodable
from openworld.errors import AnnotationError
from openworld.repairs import Repairs


class Where(NamedTuple):
    """Where a record stands, put into words once somebody asks: by its id if the record is given, else by position."""

    path: Path
    key: str
    position: int
    entry: Any = None

    def __str__(self) -> str:
        name = self.entry.get("id") if isinstance(self.entry, dict) else None
        if isinstance(name, int | str) and not isinstance(name, bool):
            return f"{self.path}, {self.key.removesuffix('s')} {name!r}"
        return f"{self.path}, {self.key}[{self.position}]"


def check_object(entry: Any, where: Where) -> None:
    if not isinstance(entry, dict):
        raise AnnotationError(
            f"is a {type(entry).__name__}, not an object", where=str(where), remedy="export the file again"
        )


def required(entry: dict[str, Any], key: str, where: Where) -> Any:
    if entry.get(key) is None:
        raise AnnotationError(f"has no {key!r}", where=str(where), remedy=f"add {key!r} or remove the record")
    return entry[key]


def identifier_of(value: Any, key: str, where: Where) -> int | str:
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | str)
        or (isinstance(value, str) and not is_encodable(value))
    ):
        raise AnnotationError(f"{key} is {value!r}", where=str(where), remedy="use whole numbers or texts as ids")
    return value


def number_of(value: Any, key: str, where: Where) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
        except ValueError:
            pass
    raise AnnotationError(
        f"{key} holds {value!r}, which is not a number", where=str(where), remedy="correct or remove the record"
    )


def flag_of(value: Any, key: str, where: Where) -> bool:
    if value is None or isinstance(value, bool | int):
        return bool(value)
    number = number_of(value, key, where)
    if math.isnan(number):
        raise AnnotationError(f"{key} is {value!r}", where=str(where), remedy="give 0 or 1")
    return number != 0


def referred(value: Any, positions: Mapping[ImageId, int], key: str, where: Where, repairs: Repairs) -> int | None:
    """Position of the image or category that a reference means, or None if nothing has this id."""
    wanted = identifier_of(value, key, where)
    if wanted in positions:
        return positions[wanted]
    other: ImageId | None = str(wanted) if isinstance(wanted, int) else None
    if isinstance(wanted, str) and wanted.strip().isdecimal() and len(wanted) < 20:
        other = int(wanted)
    if other is not None and other in positions:
        repairs.add(f"{key} of another type", f"{where} has {wanted!r} for {other!r}")
        return positions[other]
    repairs.add(f"dropped: {key} that nothing has", f"{where} has {key} {wanted!r}")
    return None
