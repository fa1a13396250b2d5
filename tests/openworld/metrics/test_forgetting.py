"""Forgetting, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from openworld.errors import DataError
from openworld.metrics.forgetting import forgetting


def result(task: int, protocol: str = "unique", **aps: float | None) -> dict[str, Any]:
    return {"task": task, "protocol": protocol, "classes": {name: {"ap50": value} for name, value in aps.items()}}


def test_by_hand() -> None:
    told = forgetting(
        [result(1, cat=0.8, dog=0.4), result(2, cat=0.9, dog=0.1, cow=0.5), result(3, cat=0.6, dog=0.3, cow=0.7)]
    )
    assert told[0] == {"task": 1, "forgetting": None, "kept": None, "classes": {}}
    assert told[1]["forgetting"] == pytest.approx((-0.1 + 0.3) / 2)
    assert told[1]["kept"] == pytest.approx(1.0 / 1.2)
    # The best earlier AP of cat is the one after task 2; cow improved.
    assert told[2]["forgetting"] == pytest.approx((0.3 + 0.1 - 0.2) / 3)
    assert told[2]["kept"] == pytest.approx((0.6 + 0.3 + 0.7) / (0.8 + 0.4 + 0.5))
    assert told[2]["classes"]["cat"] == {
        "taught_ap50": 0.8,
        "best_ap50": 0.9,
        "ap50": 0.6,
        "forgetting": pytest.approx(0.3),
    }


def test_absent_classes_and_nothing_learned() -> None:
    told = forgetting([result(1, cat=None, dog=0.0), result(2, cat=0.5, dog=0.0)])
    assert told[1]["classes"].keys() == {"dog"}
    assert told[1]["forgetting"] == 0.0 and told[1]["kept"] is None
    assert forgetting([]) == []


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match="unique, ore"):
        forgetting([result(1, cat=0.1), result(2, "ore", cat=0.1)])
    with pytest.raises(DataError, match="task 2 comes twice"):
        forgetting([result(2), result(2)])
