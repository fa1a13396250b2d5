"""Nested mappings as dotted names, the form of options on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves in order: ``{"arch": {"width": 1}}`` → ``("arch.width", 1)``. Empty mappings have no leaf."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def nested(key: str, value: Any) -> dict[str, Any]:
    """``("arch.width", 1)`` → ``{"arch": {"width": 1}}``."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value  # type: ignore[no-any-return]
