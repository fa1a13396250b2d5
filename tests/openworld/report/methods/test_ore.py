"""ORE's section: what its panel says of a fit, and what its histogram draws; densities against scipy."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import weibull_min

from openworld.report import plots
from openworld.report.build import build_report
from openworld.report.methods import ore
from openworld.report.plots import PALETTE

ENERGY = {
    "samples": {"known": [5.0, 6.0, 7.0], "unknown": [1.0, 2.0]},
    "known": {"shape": 2.0, "location": 4.0, "scale": 2.0},
    "unknown": None,
    "boundary": 3.5,
    "intervals": [[None, 3.5]],
}


def drawn(monkeypatch: pytest.MonkeyPatch, energy: dict[str, Any]) -> Any:
    """The axes of a histogram."""
    figure = Figure()
    monkeypatch.setattr(plots, "svg", lambda _, draw, *size: draw(figure))
    ore.energy_histogram(energy, 1)
    return figure.axes[0]


def test_histogram_is_reproducible_inline_svg() -> None:
    svg = ore.energy_histogram(ENERGY, 1)
    assert svg is not None and svg.startswith("<svg") and svg == ore.energy_histogram(ENERGY, 1)
    ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert ore.energy_histogram({"samples": {"known": [], "unknown": []}}, 1) is None
    assert ore.energy_histogram({"samples": {"known": [2.0, 2.0]}, "intervals": [[None, 1e9]]}, 1)


@pytest.mark.parametrize(
    ("intervals", "lines", "shaded"),
    [
        ([], [], []),
        ([[None, 3.5]], [3.5], [(None, 3.5)]),
        ([[3.61, 5.21], [6.32, None]], [3.61, 5.21, 6.32], [(3.61, 5.21), (6.32, None)]),
        ([["x", 3.5], [1]], [3.5], [(None, 3.5)]),
    ],
)
def test_intervals_are_shaded_between_lines_at_their_ends(
    monkeypatch: pytest.MonkeyPatch, intervals: list[Any], lines: list[float], shaded: list[Any]
) -> None:
    axes = drawn(monkeypatch, {**ENERGY, "intervals": intervals})
    low, high = axes.get_xlim()
    upright = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2]
    assert upright == lines
    spans = [patch for patch in axes.patches if patch.get_alpha() == 0.06]
    ends = [end for patch in spans for end in (patch.get_x(), patch.get_x() + patch.get_width())]
    wanted = [end for first, last in shaded for end in (first or low, last or high)]
    assert ends == pytest.approx(wanted)


def test_fitted_densities_are_scipys(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = {"shape": 2.3, "location": 4.0, "scale": 1.7}
    axes = drawn(monkeypatch, {**ENERGY, "known": fit, "unknown": {**fit, "shape": 0.0}, "intervals": []})
    (line,) = axes.lines  # a shape of 0 is impossible, so that fit is not drawn
    assert line.get_color() == PALETTE["known"]
    expected = weibull_min.pdf(line.get_xdata(), 2.3, loc=4.0, scale=1.7)
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-9, atol=1e-15)


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    ("changes", "facts", "told"),
    [
        (
            {"fit_on": "auto_labelled", "decision": "density", "rejected": {"known": 0.041, "unknown": 0.8}},
            ("boundary 6.53", "4.1\u00a0% of the known regions and 80.0\u00a0% of the unknown regions"),
            False,
        ),
        (
            {"fit_on": "annotated_unknown", "decision": "window", "uses_unknown_labels": True, "boundary": None},
            (ore.RULES["window"],),
            True,
        ),
        (
            {"fit_on": "known_only", "decision": "threshold", "known_rejection_rate": 0.05, "test_temperature": 2.0},
            (ore.RULES["threshold"], " 5\u00a0% of known regions", "2.00 at prediction"),
            False,
        ),
    ],
)
def test_a_panel_tells_its_rule_and_its_labels(
    fake_run: tuple[Path, Any], open_page: Any, changes: dict[str, Any], facts: tuple[str, ...], told: bool
) -> None:
    run, _ = fake_run
    path = run / "task1" / "calibration.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes, "notes": ["a <poor> fit"]}))
    page = open_page(build_report(run, num_images=0))
    first, second, third = page["method"].all("div", class_="card")
    lines = first.texts("p")
    assert all(any(fact in " ".join(line.split()) for line in lines) for fact in map(_spaced, facts))
    assert ("boundary" in first.text) == (changes["decision"] != "window")
    assert "a <poor> fit" in lines
    assert bool(first.all("p", class_="warning")) == told
    assert [[row.texts("th") for row in panel.all("tr")][1:] for panel in (first, third)] == [
        [["known"], ["unknown"]],
        [["known"]],
    ]
    assert second.all("tr")[1].texts("td") == ["2.600", "6.000", "2.200", "800", "−812.4", "0.031"]
    assert "only 12 unknown regions, 30 are needed" in third.text


def _spaced(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.usefixtures("quick_figures")
def test_a_fallback_is_a_warning_at_the_top(fake_run: tuple[Path, Any], open_page: Any) -> None:
    run, _ = fake_run
    (warning,) = open_page(build_report(run, num_images=0)).root.all("p", role="note")
    assert "In task 3 " in warning.text
