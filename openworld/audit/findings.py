"""Findings: what is wrong with data, where, and what to do. How they are worded and sorted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Finding = dict[str, str]
"""``level``, ``set``, ``finding`` and ``remedy``, as :func:`make_finding` makes it."""

MARKS = {"problem": "bold red", "warning": "yellow", "note": "cyan"}
"""Levels of a finding, the gravest first, and how each is printed."""

EXAMPLES = 5
"""Most examples in one sentence."""


def make_finding(level: str, where: str, finding: str, remedy: str) -> Finding:
    """Make one finding, ready for JSON.

    Args:
        level: one of :data:`MARKS`.
        where: the set, or the pair of sets, that it concerns.
        finding: a sentence.
        remedy: what to do, a sentence.
    """
    return {"level": level, "set": where, "finding": finding, "remedy": remedy}


def by_gravity(findings: Iterable[Finding]) -> list[Finding]:
    """Sort the gravest level first; findings of one level keep their order."""
    return sorted(findings, key=lambda finding: list(MARKS).index(finding["level"]))


def is_or_are(number: int) -> str:
    return "is" if number == 1 else "are"


def has_or_have(number: int) -> str:
    return "has" if number == 1 else "have"


def shown(names: Sequence[Any], most: int = EXAMPLES) -> str:
    """The first names, with "…" where there are more."""
    return ", ".join(str(name) for name in names[:most]) + (", …" if len(names) > most else "")
