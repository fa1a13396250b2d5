"""Plots of an evaluation: precision against recall, unknown recall against detections, wilderness impact.

Each public function takes results of :func:`openworld.predictions.score.evaluate_predictions`, or the contents of
metrics.json files, in the order to draw them. It returns inline SVG, or None where the results hold nothing to draw.
:func:`pictures` gives the same plots as PNG. Lines differ in dashes and markers as well as in colour.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from openworld.metrics.owod import DETECTION_BUDGETS, WI_RECALL
from openworld.report import plots
from openworld.report.plots import PALETTE, TASK_COLOURS
from openworld.report.run_folder import mapping, sequence
from openworld.report.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLE = 38
"""Maximum number of characters of a line in a panel's title."""

Reals = npt.NDArray[np.float64]
Result = Mapping[str, Any]

DASHES: dict[str, Any] = {
    "current": "-",
    "previous": (0, (5, 2)),
    "known": "-",
    "unknown": (0, (5, 1.5, 1, 1.5)),
}
MARKERS = "osD^vP"


@dataclass(frozen=True)
class _Plot:
    """How to draw a figure, and its size in inches."""

    name: str
    draw: Callable[[Figure], None]
    width: float
    height: float


@dataclass(frozen=True)
class _Line:
    """One task's line: where its points are, their heights, and the places that get a full or a hollow marker."""

    label: str
    places: tuple[float, ...]
    heights: tuple[float, ...]
    full: frozenset[float]
    hollow: frozenset[float]


def precision_recall(results: Sequence[Result]) -> str | None:
    """Draw one panel per result: envelopes of previous, current and unknown objects; means thick, single classes thin.

    Means count each class as 0 beyond the recall that it reaches, so the area under the line is the mean AP (for
    ``area`` and ``101point`` up to the grid of 101 recalls). A result without ``previous_classes`` has one mean of all
    known classes.
    """
    return _as_svg(_precision_recall(results))


def unknown_recall(results: Sequence[Result]) -> str | None:
    """Draw one panel per protocol, one line per task: unknown recall at the best 1, 2 … 100 detections per image."""
    return _as_svg(_unknown_recall(results))


def wilderness_impact(results: Sequence[Result]) -> str | None:
    """Draw one panel per protocol, one line per task: WI at recall 0.1 … 0.9.

    A level that some known class never reaches has a hollow marker: there, WI takes the class's point of highest
    recall. A result without ``wi_classes_below_recall`` has no markers.
    """
    return _as_svg(_wilderness_impact(results))


def pictures(results: Sequence[Result]) -> dict[str, bytes | None]:
    """Return the three plots as PNG by file name; None where there is nothing to draw."""
    made = {
        "precision_recall.png": _precision_recall(results),
        "unknown_recall.png": _unknown_recall(results),
        "wilderness_impact.png": _wilderness_impact(results),
    }
    return {
        name: None if plot is None else plots.png(plot.draw, plot.width, plot.height) for name, plot in made.items()
    }


def _as_svg(plot: _Plot | None) -> str | None:
    return None if plot is None else plots.svg(plot.name, plot.draw, plot.width, plot.height)


def _precision_recall(results: Sequence[Result]) -> _Plot | None:
    panels = []
    for result in results:
        curves = mapping(result.get("curves"))
        recall = _fractions(curves.get("recall"))
        by_class = {
            name: line
            for name, values in mapping(curves.get("precision")).items()
            if (line := _fractions(values, recall)) is not None
        }
        lines: dict[str, list[Reals]] = {"known": [], "previous": [], "current": []}
        previous = result.get("previous_classes")
        for name, line in by_class.items():
            apart = "previous" if name in sequence(previous) else "current"
            lines["known" if previous is None else apart].append(line)
        unknown = _fractions(curves.get("unknown_precision"), recall)
        lines["unknown"] = [] if unknown is None else [unknown]
        if recall is not None and any(lines.values()):
            panels.append((_title(result), recall, lines))
    if not panels:
        return None
    rows, columns = _grid(len(panels))

    def draw(figure: Figure) -> None:
        used: dict[str, Any] = {}
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, (title, recall, lines) in zip(grid.flat, panels, strict=False):
            for kind, members in lines.items():
                style = {"color": PALETTE[kind], "linestyle": DASHES[kind]}
                for line in members if kind != "unknown" else ():
                    axes.plot(*_reached(recall, line), color=PALETTE[kind], linewidth=0.7, alpha=0.35)
                if members:
                    mean = np.mean(members, axis=0)
                    width = 2.4 if kind == "unknown" else 2.0
                    (used[kind],) = axes.plot(*_reached(recall, mean), **style, linewidth=width)
            axes.set_title(title)
            axes.set_xlim(0, 101)
            axes.set_ylim(0, 104)
        _outer_labels(grid, len(panels), "recall, %", "precision, %")
        texts = {
            "known": "mean of known",
            "previous": "mean of previous",
            "current": "mean of current",
            "unknown": "unknown",
        }
        shown = [kind for kind in texts if kind in used]
        handles = [used[kind] for kind in shown]
        labels = [texts[kind] for kind in shown]
        if shown != ["unknown"]:
            handles.append(_proxy(color=PALETTE["muted"], linewidth=0.7))
            labels.append("single classes")
        figure.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=2.6)

    return _Plot("precision-recall", draw, *_size(len(panels), 6.0))


def _unknown_recall(results: Sequence[Result]) -> _Plot | None:
    panels = _by_protocol(results, _recall_by_detections)
    if not panels:
        return None

    def draw(figure: Figure) -> None:
        grid = _line_panels(figure, panels, percent=True)
        for axes in grid.flat[: len(panels)]:
            axes.set_xscale("log")
            axes.set_xticks((1, 3, *DETECTION_BUDGETS), ["1", "3", *map(str, DETECTION_BUDGETS)])
            axes.minorticks_off()
            axes.set_xlim(0.93, 240)
            axes.spines["bottom"].set_bounds(0.93, 100)
        _outer_labels(grid, len(panels), "best detections kept per image", "U-Recall, %")

    return _Plot("unknown-recall", draw, *_size(len(panels), 4.8))


def _wilderness_impact(results: Sequence[Result]) -> _Plot | None:
    panels = _by_protocol(results, _impact_by_recall)
    if not panels:
        return None
    full, hollow = (any(getattr(line, kind) for _, lines in panels for line in lines) for kind in ("full", "hollow"))

    def draw(figure: Figure) -> None:
        grid = _line_panels(figure, panels, percent=False)
        for axes in grid.flat[: len(panels)]:
            axes.axvline(WI_RECALL, color=PALETTE["muted"], linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
            axes.set_xticks([level / 10 for level in range(1, 10)])
            axes.set_xlim(0.07, 1.1)
            axes.spines["bottom"].set_bounds(0.07, 0.93)
        _outer_labels(grid, len(panels), "recall of each known class", "wilderness impact")
        points = {"marker": "o", "markersize": 5, "linestyle": "", "color": PALETTE["muted"]}
        entries = {f"as in papers ({WI_RECALL:g})": _proxy(color=PALETTE["muted"], linestyle=(0, (1, 2)))}
        if full:
            entries["every class reaches it"] = _proxy(**points)
        if hollow:
            entries["some class never does"] = _proxy(**points, markerfacecolor=PALETTE["card"])
        figure.legend([*entries.values()], [*entries], loc="outside upper left", ncols=3, columnspacing=1.2)

    return _Plot("wilderness-impact", draw, *_size(len(panels), 4.8))


def _recall_by_detections(result: Result) -> _Line | None:
    values = _fractions(mapping(result.get("curves")).get("unknown_recall50_by_detections"))
    if values is None:
        return None
    heights = (100 * values).tolist()
    return _Line(
        _task(result), tuple(range(1, len(heights) + 1)), tuple(heights), frozenset(DETECTION_BUDGETS), frozenset()
    )


def _impact_by_recall(result: Result) -> _Line | None:
    impact, below = mapping(result.get("wi_at_recall")), mapping(result.get("wi_classes_below_recall"))
    levels = {level / 10: f"{level / 10:.1f}" for level in range(1, 10)}
    points = {place: value for place, name in levels.items() if (value := number(impact.get(name))) is not None}
    if not points:
        return None
    told = {place for place in points if isinstance(below.get(levels[place]), list)}
    hollow = frozenset(place for place in told if below[levels[place]])
    return _Line(_task(result), tuple(points), tuple(points.values()), frozenset(told - hollow), hollow)


def _by_protocol(results: Sequence[Result], line_of: Callable[[Result], _Line | None]) -> list[tuple[str, list[_Line]]]:
    """Return the lines of the results by protocol, in their order. Further results of one task are numbered."""
    panels: dict[str, list[_Line]] = {}
    for result in results:
        line = line_of(result)
        if line is not None:
            lines = panels.setdefault(_protocol(result), [])
            same = sum(other.label.split(" #")[0] == line.label for other in lines)
            lines.append(replace(line, label=f"{line.label} #{same + 1}") if same else line)
    return list(panels.items())


def _line_panels(figure: Figure, panels: Sequence[tuple[str, Sequence[_Line]]], *, percent: bool) -> Any:
    """Draw a panel per protocol with its lines, each labelled at its end; return the grid of axes."""
    rows, columns = _grid(len(panels))
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    highest = max(max(line.heights) for _, lines in panels for line in lines)
    top = min(104.0, max(10.0, 1.12 * highest)) if percent else 1.12 * highest or 0.01
    for axes, (protocol, lines) in zip(grid.flat, panels, strict=False):
        ends: list[plots.LineEnd] = []
        for index, line in enumerate(lines):
            colour, marker = TASK_COLOURS[index % len(TASK_COLOURS)], MARKERS[index % len(MARKERS)]
            axes.plot(line.places, line.heights, color=colour, linewidth=1.8)
            for marked, face in ((line.full, colour), (line.hollow, PALETTE["card"])):
                points = [point for point in zip(line.places, line.heights, strict=True) if point[0] in marked]
                if points:
                    axes.plot(*zip(*points, strict=True), marker, color=colour, markerfacecolor=face, markersize=5.5)
            ends.append((line.heights[-1], line.places[-1], line.label, colour))
        plots.label_ends(axes, ends, 0.075 * top)
        axes.set_title(textwrap.fill(protocol, _TITLE))
        axes.set_ylim(0, top)
    return grid


def _outer_labels(grid: Any, num_panels: int, below: str, beside: str) -> None:
    """Label the outer axes, and hide those that hold no panel."""
    columns = grid.shape[1]
    for index, axes in enumerate(grid.flat):
        if index >= num_panels:
            axes.set_visible(False)
            continue
        if index + columns >= num_panels:
            axes.set_xlabel(below)
            axes.tick_params(labelbottom=True)
        if index % columns == 0:
            axes.set_ylabel(beside)


def _proxy(**style: Any) -> Any:
    """Make a line that appears only in the legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _reached(recall: Reals, precision: Reals) -> tuple[Reals, Reals]:
    """Return a line in percent up to the last recall that was reached, and down to 0 if none was."""
    last = int(np.flatnonzero(precision > 0).max(initial=0)) + 1
    return 100 * recall[:last], 100 * precision[:last]


def _fractions(values: Any, like: Reals | None = None) -> Reals | None:
    """Convert a list of numbers to (N,) float64; None if it is not one, or not as long as ``like``."""
    found = [number(value) for value in sequence(values)]
    known = [value for value in found if value is not None]
    if not known or len(known) != len(found) or (like is not None and len(known) != len(like)):
        return None
    return np.array(known, dtype=np.float64)


def _grid(num_panels: int) -> tuple[int, int]:
    """Return the rows and columns of the panels."""
    columns = num_panels if num_panels < 4 else 2 if num_panels == 4 else 3
    return math.ceil(num_panels / columns), columns


def _size(num_panels: int, single: float) -> tuple[float, float]:
    """Return width and height of a figure in inches; ``single`` is the width of one with a single panel."""
    rows, columns = _grid(num_panels)
    return {1: single, 2: 8.2}.get(columns, 9.4), 0.5 + 2.75 * rows


def _title(result: Result) -> str:
    return textwrap.fill(f"{_task(result).capitalize()} · {_protocol(result)}", _TITLE)


def _task(result: Result) -> str:
    task = number(result.get("task"))
    return "result" if task is None else f"task {task:g}"


def _protocol(result: Result) -> str:
    return f"protocol {result.get('protocol', 'not recorded')}"
