"""What was repaired while reading a data set or predictions, counted by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Repairs:
    """Repairs made while reading: how often each kind occurred, and its first cases in words.

    Each kind keeps its own cases, so that a frequent one does not crowd out a rare one.
    """

    MAX_CASES = 10_000
    """Most cases that are kept of one kind; about a megabyte."""
    SHOWN = 3
    """Cases of each kind among the examples."""
    HARMFUL = ("dropped", "class numbers begin at 1")
    """How the kinds are called that cost records or leave them wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    cases: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, message: str, times: int = 1) -> None:
        """Count a repair, or several that one message names; the message names file, record and value."""
        self.counts[kind] += times
        kept = self.cases.setdefault(kind, [])
        if len(kept) < self.MAX_CASES:
            kept.append(message)

    def extend(self, other: Repairs) -> None:
        """Add the repairs of another part of the set."""
        self.counts += other.counts
        for kind, messages in other.cases.items():
            kept = self.cases.setdefault(kind, [])
            kept += messages[: self.MAX_CASES - len(kept)]

    @property
    def harmful(self) -> dict[str, int]:
        """The kinds that took records out of the set or leave them wrong, by their names, and how often each occurred.

        All others brought a record into the form that was meant.
        """
        return {kind: count for kind, count in self.counts.items() if kind.startswith(self.HARMFUL)}

    @property
    def examples(self) -> list[str]:
        """The first cases of every kind, each with its kind."""
        return [f"{kind}: {message}" for kind, messages in self.cases.items() for message in messages[: self.SHOWN]]

    def as_json(self) -> dict[str, Any]:
        return {"repairs": dict(sorted(self.counts.items())), "examples": self.examples}
