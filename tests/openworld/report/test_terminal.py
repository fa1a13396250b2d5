"""The two tables of results on the terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from openworld.metrics.table import METRICS
from openworld.report.tables import USES_UNKNOWN_LABELS
from openworld.report.terminal import print_details, print_table

Results = list[dict[str, Any]]


def printed(show: Any, results: Results) -> list[list[str]]:
    """Words of each line."""
    out = io.StringIO()
    show(results, Console(file=out, width=160))
    return [line.split() for line in out.getvalue().splitlines()]


def test_headline_metrics_by_task(results: Results) -> None:
    lines = printed(print_table, results)
    assert lines[0] == ["Protocol:", "unique"]
    heads = [metric.label.split()[-1] for metric in METRICS.values() if metric.headline]
    assert ["Task", *heads] in lines
    assert ["1", "33.3", "–", "25.0", "55.0", "10.0", "20.0", "0.0400", "1234"] in lines
    assert ["3", "33.3", "40.0", "25.0", "–", "–", "–", "–", "–"] in lines
    assert not any(USES_UNKNOWN_LABELS in " ".join(line) for line in lines)
    results[1]["uses_unknown_labels"] = True
    assert USES_UNKNOWN_LABELS.split() in printed(print_table, results)
    printed(print_table, [])


def test_the_rules_that_all_protocols_share_are_said_once(results: Results) -> None:
    for result, name in zip(results, ("ore", "unique", "ore"), strict=True):
        result["protocol"] = f"{name} (iou_threshold=0.6)"
    lines = printed(print_table, results)
    assert lines[0] == ["All", "with", "(iou_threshold=0.6)"]
    assert [line[1] for line in lines if line and line[0] in "123"] == ["ore", "unique", "ore"]
    results[1]["protocol"] = "unique"
    assert ["3", "ore", "(iou_threshold=0.6)", "33.3"] in [line[:4] for line in printed(print_table, results)]


def test_details(results: Results) -> None:
    """Old classes fall from AP 50 to 40; cube and gear never reach recall 0.8; ghost has no objects."""
    results[0]["coco"] = {"ap": 0.125}
    lines = printed(print_details, results)
    assert ["1", "12.5", "29.3", "321", "30.0", "/", "50.0", "/", "55.0", "31/12/27", "–"] in lines
    assert ["2", "–", "29.3", "321", "30.0", "/", "50.0", "/", "55.0", "31/12/27", "10.0"] in lines
    assert ["3", "–", "–", "–", "–", "/", "–", "/", "–", "0/12/27", "10.0"] in lines
    said = [line for line in lines if line[:1] == ["Task"] and line[-1].endswith(".")]
    assert [(line[1], line[2], line[4]) for line in said] == [("1:", "1", "2"), ("2:", "2", "3")]
