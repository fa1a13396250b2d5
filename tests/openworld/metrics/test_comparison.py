"""Means, standard errors, paired differences, and what was learned and kept, worked by hand."""

import math
from typing import Any

import pytest

from openworld.metrics.comparison import compare, compared_metrics, mean_and_error

TASKS = (("cat", "dog"), ("cow",))


def result(task: int, recall: float | None = None, **classes: float | None) -> dict[str, Any]:
    """A result whose known mAP is the mean of the classes that have an AP."""
    present = [value for value in classes.values() if value is not None]
    return {
        "task": task,
        "protocol": "unique",
        "known_ap50": sum(present) / len(present),
        "unknown_recall50": recall,
        "classes": {name: {"ap50": value} for name, value in classes.items()},
    }


def test_standard_errors_are_those_of_the_mean() -> None:
    found = mean_and_error([0.1, None, 0.2, 0.6])
    assert found["mean"] == pytest.approx(0.3)
    assert found["standard_error"] == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2 / 3))
    assert mean_and_error([0.1, None]) == {"mean": 0.1, "standard_error": None}
    assert mean_and_error([None]) == {"mean": None, "standard_error": None}


def test_differences_are_paired_by_seed() -> None:
    runs = {
        "plain": {5: [result(1, 0.3, cat=0.5)], 7: [result(1, None, cat=0.7)], 8: [result(1, 0.5, cat=0.9)]},
        "better": {8: [result(1, 0.9, cat=0.95)], 5: [result(1, 0.4, cat=0.6)], 7: [result(1, 0.2, cat=0.8)]},
    }
    summary = compare(runs, (("cat",),))
    plain, better = (summary[name]["1"] for name in runs)
    assert plain["known_ap50"]["mean"] == pytest.approx(0.7) and "difference" not in plain["known_ap50"]
    assert plain["known_ap50"]["standard_error"] == pytest.approx(0.2 / math.sqrt(3))
    assert better["known_ap50"]["values"] == [0.95, 0.6, 0.8]  # in the order of its seeds
    # 0.05, 0.1, 0.1: the mean is 1/12, the squares of the deviations sum to 1/600
    difference = better["known_ap50"]["difference"]
    assert difference["mean"] == pytest.approx(1 / 12)
    assert difference["standard_error"] == pytest.approx(math.sqrt(1 / 600 / 2 / 3))
    # Seed 7 has no recall in the first variant: 0.4 and 0.1.
    assert better["unknown_recall50"]["difference"] == {
        "mean": pytest.approx(0.25),
        "standard_error": pytest.approx(0.15),
    }
    assert plain["learned"]["mean"] is None and plain["kept"]["mean"] is None


def test_what_was_learned_and_kept() -> None:
    joint = {0: [result(1, 0.2, cat=0.8, dog=0.4, cow=0.5)], 1: [result(1, 0.4, cat=0.6, dog=0.6, cow=None)]}
    runs = {
        "ore": {
            0: [result(1, 0.1, cat=0.6, dog=0.3), result(2, 0.3, cat=0.3, dog=0.15, cow=0.4)],
            1: [result(1, 0.1, cat=0.5, dog=0.4), result(2, 0.3, cat=0.5, dog=None, cow=0.4)],
        },
        "at once": joint,
        "short": {0: [result(1, cat=0.0, dog=0.0)], 1: [result(1, cat=0.3, dog=0.0)]},
    }
    summary = compare(runs, TASKS, at_once={"at once"})
    ore, bound, short = (summary[name] for name in runs)
    # 0.9 / 1.2 and 0.9 / 1.2; after task 2 0.4 / 0.5, and the class that has no AP to compare with
    assert ore["1"]["learned"]["values"] == pytest.approx([0.75, 0.75])
    assert ore["2"]["learned"]["values"] == [pytest.approx(0.8), None]
    # 0.45 / 0.9, and 0.5 / 0.5: a class that has no AP any more is left out
    assert ore["1"]["kept"]["values"] == [None, None]
    assert ore["2"]["kept"]["values"] == pytest.approx([0.5, 1.0])
    assert short["1"]["learned"]["values"] == pytest.approx([0.0, 0.25]) and "2" not in short
    # The upper bound, read after each task: the mean AP of the classes that are known, taught before and taught then.
    means = {key: [bound[task][f"{key}_ap50"]["values"] for task in "12"] for key in ("known", "previous", "current")}
    assert means["current"] == [pytest.approx([0.6, 0.6]), [0.5, None]]
    assert means["previous"] == [[None, None], pytest.approx([0.6, 0.6])]
    assert means["known"] == [pytest.approx([0.6, 0.6]), pytest.approx([1.7 / 3, 0.6])]
    # Unknown objects are the same ones after the last task alone.
    assert [bound[task]["unknown_recall50"]["values"] for task in "12"] == [[None, None], [0.2, 0.4]]
    assert bound["2"]["learned"]["mean"] is None and bound["2"]["kept"]["mean"] is None
    assert bound["2"]["known_ap50"]["difference"]["mean"] == pytest.approx((1.7 / 3 - 0.85 / 3 + 0.6 - 0.45) / 2)


def test_metrics_of_known_objects_stand_together() -> None:
    about = [metric.about for metric in compared_metrics().values()]
    assert about == sorted(about, key=["known objects", "unknown objects", "confusion"].index)
    assert list(compared_metrics())[:5] == ["known_ap50", "previous_ap50", "current_ap50", "learned", "kept"]
