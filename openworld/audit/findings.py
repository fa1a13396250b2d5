"""Findings: what is wrong with a person's data, where, and what to do. How they are worded, sorted and printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

MARKS = {"problem": "bold red", "warning": "yellow", "note": "cyan"}
"""Levels of a finding, the gravest first, and how each is printed."""

EXAMPLES = 5
"""Most examples in one sentence."""


def make_finding(level: str, where: str, finding: str, remedy: str) -> dict[str, str]:
    """One finding, ready for JSON.

    Args:
        level: one of :data:`MARKS`.
        where: the set, or the pair of sets, that it concerns.
        finding: a sentence.
        remedy: what to do, a sentence.
    """
    return {"level": level, "set": where, "finding": finding, "remedy": remedy}


def by_gravity(findings: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The gravest level first; findings of one level keep their order."""
    return sorted(findings, key=lambda finding: list(MARKS).index(finding["level"]))


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def is_or_are(number: int) -> str:
    return "is" if number == 1 else "are"


def has_or_have(number: int) -> str:
    return "has" if number == 1 else "have"


def shown(names: Sequence[Any], most: int = EXAMPLES) -> str:
    """Names in a row, the first few of many."""
    return ", ".join(str(name) for name in names[:most]) + (", …" if len(names) > most else "")


def listed(names: Sequence[str]) -> str:
    """All names, with "and" before the last."""
    head = ", ".join(names[:-1])
    return f"{head} and {names[-1]}" if head else names[-1]


def print_findings(findings: Sequence[Mapping[str, str]], console: Console, nothing: str) -> None:
    """A line for each finding and below it what to do; ``nothing`` is printed where there is none."""
    from rich.padding import Padding
    from rich.text import Text

    if not findings:
        console.print(Text(nothing, "green"))
    for finding in findings:
        console.print(Text.assemble((f"{finding['level']}: ", MARKS[finding["level"]]), finding["finding"]))
        console.print(Padding(Text(f"What to do: {finding['remedy']}"), (0, 0, 0, 4)))
