"""What the plots draw, read from the drawn figures and worked by hand; what they leave out; hostile contents."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from openworld.report import curves
from openworld.report.plots import PALETTE

Results = list[dict[str, Any]]


def _drawn(plot: Any) -> Figure:
    assert plot is not None
    figure = Figure(figsize=(plot.width, plot.height))
    plot.draw(figure)
    return figure


def _lines(axes: Any, colour: str, *, thin: bool) -> list[Any]:
    return [line for line in axes.lines if line.get_color() == PALETTE[colour] and (line.get_linewidth() < 1) == thin]


def test_means_of_previous_current_and_unknown(results: Results) -> None:
    panels = _drawn(curves._precision_recall(results)).axes
    assert [axes.get_title() for axes in panels] == [f"Task {task} · protocol unique" for task in (1, 2, 3)]
    first, second, last = panels
    (mean,) = _lines(first, "current", thin=False)  # ball at 50 % to recall 100, cube at 50 % to recall 70
    np.testing.assert_allclose(mean.get_xdata(), np.arange(101))
    np.testing.assert_allclose(mean.get_ydata(), [50.0] * 71 + [25.0] * 30)
    assert len(_lines(first, "current", thin=True)) == 2 and not _lines(first, "previous", thin=False)
    assert sorted(len(line.get_xdata()) for line in _lines(first, "current", thin=True)) == [71, 101]
    (unknown,) = _lines(first, "unknown", thin=False)
    np.testing.assert_allclose(unknown.get_xydata(), [(recall, 20.0) for recall in range(56)])
    (previous,) = _lines(second, "previous", thin=False)
    (current,) = _lines(second, "current", thin=False)  # ghost has no objects, so gear is alone
    assert previous.get_ydata()[-1] == 25.0 and len(current.get_xdata()) == 71
    assert previous.get_linestyle() != current.get_linestyle()
    assert not _lines(last, "unknown", thin=False)


def test_a_result_that_does_not_tell_previous_classes_has_one_mean(results: Results) -> None:
    del results[1]["previous_classes"]
    (axes,) = _drawn(curves._precision_recall(results[1:2])).axes
    assert len(_lines(axes, "known", thin=False)) == 1 and not _lines(axes, "current", thin=False)


def test_unknown_recall_by_detections(results: Results) -> None:
    (axes,) = _drawn(curves._unknown_recall(results)).axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 100]
    assert len(lines) == 2  # nothing is unknown in the last task
    assert lines[0].get_ydata()[[0, 24, 99]] == pytest.approx([1.1, 27.5, 55.0])
    marks = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [list(mark.get_xdata()) for mark in marks] == [[10, 30, 100]] * 2
    assert len({mark.get_marker() for mark in marks}) == 2
    assert [text.get_text() for text in axes.texts] == ["task 1", "task 2"]


def test_levels_that_some_class_never_reaches_are_hollow(results: Results) -> None:
    (axes,) = _drawn(curves._wilderness_impact(results[:1])).axes
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    places = {line.get_markerfacecolor() == PALETTE["card"]: list(line.get_xdata()) for line in marks}
    assert places == {False: [step / 10 for step in range(1, 8)], True: [0.8, 0.9]}
    results[0]["wi_at_recall"]["0.8"] = None
    del results[0]["wi_classes_below_recall"]["0.9"]
    (axes,) = _drawn(curves._wilderness_impact(results[:1])).axes
    assert [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"] == [7]


def test_a_panel_for_each_protocol_and_a_number_for_each_repeat(results: Results) -> None:
    longer = copy.deepcopy(results)
    for result in longer:
        result["protocol"] = "ore (iou_threshold=0.6, score_threshold=0.05)"
    figure = _drawn(curves._wilderness_impact([*results, *longer, results[0]]))
    titles = [axes.get_title().split() for axes in figure.axes]  # a long name is broken into lines, and told whole
    assert titles == [["protocol", "unique"], ["protocol", "ore", "(iou_threshold=0.6,", "score_threshold=0.05)"]]
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["task 1", "task 1 #2", "task 2"]


@pytest.mark.parametrize("plot", [curves.precision_recall, curves.unknown_recall, curves.wilderness_impact])
def test_svg_and_nothing_to_draw(plot: Any, results: Results) -> None:
    results[0]["protocol"] = "<script>alert('$x$')</script> -->"
    svg = plot(results)
    ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert svg.startswith("<svg") and "var(--ink" in svg
    assert "<script" not in svg and "<!--" not in svg
    assert plot([]) is None
    assert plot([{"task": 1, "protocol": "unique"}]) is None
    broken: dict[str, Any] = {"recall": [0.0, "x"], "precision": {"a": [1.0]}, "unknown_recall50_by_detections": "?"}
    for content in (None, 3, broken, {**broken, "recall": [0.0, 0.5]}):
        assert plot([{"task": None, "curves": content, "wi_at_recall": content}]) is None


def test_a_detector_that_found_nothing(results: Results) -> None:
    first = results[0]
    first["curves"]["precision"] = dict.fromkeys(first["classes"], [0.0] * 101)
    first["curves"]["unknown_precision"] = [0.0] * 101
    first["curves"]["unknown_recall50_by_detections"] = [0.0] * 100
    first["wi_at_recall"] = dict.fromkeys(first["wi_at_recall"], 0.0)
    assert all(content is not None for content in curves.pictures([first]).values())
