"""Figures: valid SVG, no outside address, names escaped."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from openworld.report import plots
from openworld.report.validation import validation_curves

STEPS = [
    {"event": "step", "stage": "train", "task": 1, "step": n, "loss": 1 / (n + 1), "losses": {"a": 0.1, "box": 0.2}}
    for n in range(700)
]
VALIDATIONS = [
    {"event": "validation", "stage": stage, "task": 1, "step": n, "ap50": n / 9, "best": n < 3}
    for stage in ("train", "replay")
    for n in range(5)
]
METRICS = [
    (1, {"known_ap50": 0.5, "current_ap50": 0.5, "previous_ap50": None, "unknown_recall50": 0.3}),
    (2, {"known_ap50": 0.4}),
]
NASTY = "<script>alert('$x$')</script> & -->"
FIGURES = [
    plots.loss_curves(STEPS),
    plots.results_by_task(METRICS),
    plots.forgetting_lines({1: [0.5, 0.4], 2: [None, 0.6]}, [1, 2]),
    plots.class_heatmap({NASTY: [0.5, 0.4], "b": [None, 0.6]}, {NASTY: 1, "b": 2}, [1, 2]),
    plots.class_heatmap({f"class {n}": [n / 90] for n in range(90)}, {f"class {n}": 1 for n in range(90)}, [1]),
    plots.knn_bars({"trained": 0.6, "untrained": 0.4, "chance": 0.1}),
    validation_curves(VALIDATIONS),
]


@pytest.mark.parametrize("svg", FIGURES)
def test_figure_is_clean_inline_svg(svg: str | None) -> None:
    assert svg is not None and svg.startswith("<svg") and "var(--ink" in svg
    ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert "http" not in svg and "<script" not in svg and "<!--" not in svg


def test_names_stay_as_they_are_in_a_figure() -> None:
    """No TeX, no HTML; and what is rewritten in the tags of a figure (ids, colours, fonts) stays in a name."""
    names = [
        "$x_1$",
        "a_b^c",
        "<b>x</b>",
        "{{ x }}",
        "&amp;",
        'id="x"',
        "#ffffff",
        "url(#a)",
        "font: 1px",
        "\\frac",
    ]
    figure = plots.class_heatmap({name: [0.5] for name in names}, dict.fromkeys(names, 1), [1])
    tree = ElementTree.fromstring((figure or "").replace("xlink:href", "href"))
    texts = [element.text for element in tree.iter() if element.tag.endswith("text")]
    assert [text for text in texts if text in names] == names


def test_ids_differ_between_figures() -> None:
    ids = [
        {part.split('"')[0] for part in (svg or "").split(' id="')[1:]} for svg in (FIGURES[0], FIGURES[1], FIGURES[3])
    ]
    assert all(ids) and not ids[0] & ids[1] and not ids[1] & ids[2]


def test_each_phase_with_validations_has_a_panel() -> None:
    tree = ElementTree.fromstring((FIGURES[-1] or "").replace("xlink:href", "href"))
    texts = [element.text for element in tree.iter() if element.tag.endswith("text")]
    assert [text for text in texts if text in ("Task 1 · train", "Task 1 · replay")] == [
        "Task 1 · train",
        "Task 1 · replay",
    ]


def test_figures_are_reproducible() -> None:
    assert plots.results_by_task(METRICS) == FIGURES[1]


def test_nothing_to_draw() -> None:
    assert plots.loss_curves([]) is None
    assert plots.loss_curves([{"event": "step", "stage": "train", "step": None}]) is None
    assert validation_curves(STEPS) is None
    assert plots.results_by_task([(1, {"known_ap50": None})]) is None
    assert plots.forgetting_lines({1: [0.4]}, [1]) is None
    assert plots.class_heatmap({"a": [None]}, {"a": 1}, [1]) is None
    assert plots.knn_bars({}) is None


def test_odd_numbers_are_drawn() -> None:
    assert plots.loss_curves([{"event": "step", "stage": "train", "task": 1, "step": 1, "loss": None}])
    assert validation_curves([{"event": "validation", "stage": "train", "task": 1, "step": 1, "ap50": None}])
    assert plots.results_by_task([(1, {"known_ap50": 0.0})])
    assert plots.knn_bars({"trained": 0.0})


def test_class_change() -> None:
    assert plots.class_change([0.5, 0.3], 1, [1, 2]) == pytest.approx(-0.2)
    assert plots.class_change([None, 0.3], 2, [1, 2]) is None
    assert plots.class_change([None, 0.3], 1, [1, 2]) is None
