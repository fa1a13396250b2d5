"""Numbers and lists as text, worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from openworld.metrics.table import METRICS
from openworld.report import text

NOT_NUMBERS = (None, True, "1", float("nan"), float("inf"), [1])


@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_what_is_no_finite_number_is_absent(value: Any) -> None:
    assert text.number(value) is None
    shown = [text.decimal(value, 2), text.count(value), text.percent(value), text.points(value)]
    assert {*shown, *(text.metric_text(metric, value) for metric in METRICS.values())} == {text.ABSENT}


def test_numbers() -> None:
    assert text.decimal(-1234.567, 1) == "−1,234.6" and text.count(1234.0) == "1,234"
    assert text.percent(0.12345) == "12.3" and text.percent(0.996, 0) == "100"
    assert [text.points(change) for change in (0.0123, -0.0123, 0.0004, -0.0004)] == ["+1.2", "−1.2", "0.0", "0.0"]
    assert [text.duration(seconds) for seconds in (8.34, 171, 3900.2)] == ["8.3 s", "2 min 51 s", "1 h 05 min"]
    assert text.milliseconds(1.23456) == "1,234.6\u00a0ms"


def test_metrics_by_kind() -> None:
    shown = {name: text.metric_text(METRICS[name], value) for name, value in (("wi", 0.0123), ("a_ose", 12345))}
    assert shown == {"wi": "0.0123", "a_ose": "12345"}
    assert text.metric_text(METRICS["unknown_recall50"], 0.25) == "25.0"


def test_changes_by_kind() -> None:
    def changes(name: str, *values: float | None) -> list[str]:
        return [text.change_text(METRICS[name], value) for value in values]

    assert changes("unknown_recall50", 0.25, -0.012, -0.0001, 0.0, None) == ["+25.0", "−1.2", "0.0", "0.0", "–"]
    assert changes("wi", -0.0123, 0.00001) == ["−0.0123", "0.0000"]
    assert changes("a_ose", 100, -12.4, 0.4) == ["+100", "−12", "0"]


def test_words() -> None:
    assert [text.listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert text.counted(1, "class", "classes") == "1 class" and text.counted(2000, "image") == "2,000 images"
    assert text.first_of("abcd", 2) == "a, b and 2 more" and text.first_of("ab", 2) == "a, b"
    assert text.shortened("abcde", 4) == "abc…" and text.shortened("abcd", 4) == "abcd"
    assert text.value_text([1, None, True, 0.50]) == "[1, –, yes, 0.5]"
