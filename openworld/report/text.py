"""Numbers and lists as text, formatted alike on the terminal, in files and on pages.

Everything that is not a finite number is shown as :data:`ABSENT`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from openworld.metrics.table import Metric

ABSENT = "–"
"""Shown in place of a value that does not exist."""


def number(value: Any) -> float | None:
    """Convert a finite number to float; everything else, booleans included, is None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def decimal(value: Any, digits: int) -> str:
    """Format a number with a fixed number of digits: "1,234.50", "−0.3"."""
    found = number(value)
    return ABSENT if found is None else f"{found:,.{digits}f}".replace("-", "−")


def count(value: Any) -> str:
    """Format a whole number: "1,234"."""
    return decimal(value, 0)


def percent(value: Any, digits: int = 1) -> str:
    """Format a fraction times 100, without the percent sign: "12.3"."""
    found = number(value)
    return ABSENT if found is None else decimal(100 * found, digits)


def points(change: Any) -> str:
    """Format a change of a fraction in percentage points, with its sign: "+1.2", "−0.3"; "0.0" if it rounds to 0."""
    found = number(change)
    if found is None:
        return ABSENT
    text = f"{100 * found:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def metric_text(metric: Metric, value: Any) -> str:
    """Format a metric's value by its kind: "12.3" percent, "0.0123" as a ratio, "1234" as a count."""
    if metric.kind == "percent":
        return percent(value)
    found = number(value)
    return ABSENT if found is None else f"{found:.{4 if metric.kind == 'ratio' else 0}f}"


def change_text(metric: Metric, change: Any) -> str:
    """Format a change of a metric by its kind, with its sign: "+1.2", "−12"; without one if it rounds to 0."""
    found = number(change)
    if found is None:
        return ABSENT
    size = metric_text(metric, abs(found))
    return size if not size.strip("0.") else f"{'+' if found > 0 else '−'}{size}"


def duration(seconds: float) -> str:
    """Format seconds as "8.3 s", "2 min 51 s" or "1 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def milliseconds(seconds: float) -> str:
    """Format seconds as "1,234.5 ms"."""
    return f"{decimal(1000 * seconds, 1)}\u00a0ms"


def value_text(value: Any) -> str:
    """Format a value of a JSON file: yes and no for booleans, lists in brackets."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return str(value)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Format a number with its noun: "1 image", "2,000 images"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """Join all names, with "and" before the last."""
    head = ", ".join(names[:-1])
    return f"{head} and {names[-1]}" if head else names[-1]


def first_of(names: Sequence[Any], most: int) -> str:
    """Join the first of many names: "a, b and 3 more"."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "")


def shortened(text: str, length: int) -> str:
    """Cut the text to ``length`` characters, with "…" at its end."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
