"""One table of metrics: a new entry is seen wherever metrics are shown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from openworld.metrics.comparison import compare
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate
from openworld.metrics.table import METRICS, Metric, headline_metrics, metric_value
from openworld.report.build import build_report
from openworld.report.comparison import as_markdown as comparison_markdown
from openworld.report.comparison import terminal_tables
from openworld.report.tables import as_csv, as_latex, as_markdown
from openworld.report.terminal import print_details, print_table

NEW = "unknown_recall75"


@pytest.fixture(params=[True, False], ids=["headline", "detail"])
def new_metric(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Metric:
    """All that a new metric takes, besides the function that computes it."""
    metric = Metric(
        label="U-Recall@75",
        about="unknown objects",
        kind="percent",
        better="higher",
        meaning="U-Recall at IoU 0.75.",
        headline=request.param,
    )
    monkeypatch.setitem(METRICS, NEW, metric)
    return metric


def scored() -> dict[str, Any]:
    """One image with a known and an unknown object, both found; and the new metric."""
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10]]
    truth = GroundTruth.from_arrays(["a"], [0, 0], boxes, [0, 1], 1)
    result = evaluate(truth, ScoredBoxes.from_arrays([0, 0], boxes, [0, 1], [0.9, 0.8]), 0, 1, class_names=["cat"])
    return {"task": 1, **result, "coco": None, NEW: 0.4375}


def printed(*shown: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    for each in shown:
        console.print(each) if not callable(each) else each(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_new_metric_is_shown_everywhere(new_metric: Metric, tmp_path: Path) -> None:
    result = scored()
    (row,) = csv.DictReader(io.StringIO(as_csv([result])))
    assert row[NEW] == "0.4375"
    main = printed(lambda console: print_table([result], console))
    more = printed(lambda console: print_details([result], console))
    assert ("43.8" in main, "43.8" in more) == (new_metric.headline, not new_metric.headline)
    for text in (as_markdown([result]), as_latex([result])):
        assert (new_metric.label in text and "43.8" in text) == new_metric.headline
    summary = compare({"full": {0: [result]}}, [["cat"]])
    time = {"variants": {}, "seconds": 1.0, "cpu_seconds": 1.0}
    for text in (printed(*terminal_tables(summary, [0])), comparison_markdown(summary, [0], time)):
        assert (new_metric.label in text and "43.8" in text) == new_metric.headline


def test_a_new_metric_is_on_the_page_of_a_run(new_metric: Metric, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "task1").mkdir()
    (tmp_path / "task1" / "metrics.json").write_text(json.dumps(scored()))
    text = build_report(tmp_path).read_text()
    assert f'data-metric="{NEW}">43.8<' in text
    assert f">{new_metric.label} ↑<" in text and f"<dd>{new_metric.meaning}</dd>" in text
    members = sum(metric.about == new_metric.about for metric in METRICS.values())
    assert f'colspan="{members - 1}">{new_metric.about}<' in text  # its group is apart: confusion lies between
    assert f'colspan="1">{new_metric.about}<' in text


def test_every_entry_is_in_a_result() -> None:
    result = {**scored(), "coco": {"ap": 0.5}}
    for name, metric in METRICS.items():
        value = metric_value(result, name)
        assert value is None or isinstance(value, int if metric.kind == "count" else float), name
    assert [metric_value(result, name) for name in ("known_ap50", "coco.ap", "a_ose", "nothing")] == [1.0, 0.5, 0, None]
    assert metric_value(result, "wi_at_recall.0.8") == 0.0 and metric_value(result, "wi.x") is None
    assert set(headline_metrics()) < set(METRICS)
