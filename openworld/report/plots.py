"""Figures of the report as inline SVG, or as PNG for a file.

Colours of the palette are written as CSS variables with their light values as fallback, so that figures follow the
page's light or dark theme. Text stays text. A function returns None where there is nothing to draw.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from openworld.report.run_folder import mapping
from openworld.report.text import ABSENT, number, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {
    "card": "#ffffff",
    "ink": "#1c2126",
    "muted": "#66707a",
    "grid": "#dde1e6",
    "known": "#2563c9",
    "unknown": "#d9600b",
    "previous": "#0f8a7e",
    "current": "#7a4fd0",
    "rose": "#c2377e",
    "ochre": "#8a6d1f",
}
"""CSS variable (``--ink`` …) and its value in the light theme."""

Reals = npt.NDArray[np.float64]

TASK_COLOURS = [PALETTE[name] for name in ("known", "previous", "current", "rose", "ochre", "muted")]
LineEnd = tuple[float, float, str, str]
"""The last point of a line as height and place, its label, and its colour."""

_LOSSES = {
    "objectness": "known",
    "rpn_box": "previous",
    "classification": "current",
    "box": "ochre",
}
"""Colours of the engine's losses; those of a method are rose."""
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.labelsize": 8.5,
    "axes.edgecolor": PALETTE["grid"],
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_POINTS = 240
"""Maximum number of points of one loss curve; longer logs are averaged in this many bins."""


def entries_by_phase(log: Sequence[Mapping[str, Any]], event: str) -> dict[tuple[str, Any], list[Mapping[str, Any]]]:
    """Return the entries of one kind that have a step, by stage and task, in the order of the log."""
    phases: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for entry in log:
        if entry.get("event") == event and number(entry.get("step")) is not None:
            phases.setdefault((str(entry.get("stage")), entry.get("task")), []).append(entry)
    return phases


def panel_grid(panels: int) -> tuple[int, int]:
    """Return the rows and columns of a figure with this many panels."""
    columns = min(3, panels)
    return math.ceil(panels / columns), columns


def loss_curves(log: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw one panel per phase with steps: the total loss and, thinner, its parts. ``log`` is metrics.jsonl."""
    phases = entries_by_phase(log, "step")
    if not phases:
        return None
    rows, columns = panel_grid(len(phases))

    def draw(figure: Figure) -> None:
        used: dict[str, Any] = {}
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, ((stage, task), entries) in zip(grid.flat, phases.items(), strict=False):
            steps = np.array([number(entry.get("step")) for entry in entries], dtype=np.float64)
            parts = {name: None for entry in entries for name in mapping(entry.get("losses"))}
            for name in parts if len(parts) > 1 else ():
                values = numbers(mapping(entry.get("losses")).get(name) for entry in entries)
                (used[name],) = axes.plot(*binned(steps, values), color=_loss_colour(name), linewidth=1.0, alpha=0.85)
            total = numbers(entry.get("loss") for entry in entries)
            (used["total"],) = axes.plot(*binned(steps, total), color=PALETTE["ink"], linewidth=1.7)
            axes.set_title(phase_name(stage, task))
            axes.set_xlabel("step")
            top = np.nanmax(total) if np.isfinite(total).any() else 1.0
            axes.set_ylim(
                bottom=min(0.0, float(np.nanmin(total)) if np.isfinite(total).any() else 0.0), top=1.06 * top or 1
            )
            axes.margins(x=0.02)
        for axes in grid.flat[len(phases) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel("loss")
        names = ["total", *(name for name in used if name != "total")]
        figure.legend(
            [used[name] for name in names],
            [shortened(name.replace("_", " "), 24) for name in names],
            loc="outside upper left",
            ncols=6,
        )

    return svg("losses", draw, 9.0, 0.45 + 2.15 * rows)


def results_by_task(metrics: Sequence[tuple[int, Mapping[str, Any]]]) -> str | None:
    """Draw mAP@50 of previous, current and all known classes (left) and U-Recall (right) as bars by task, in percent.

    Args:
        metrics: (task, content of its metrics.json) in rising order of the task.
    """
    series = {
        kind: 100 * numbers(content.get(f"{kind}_ap50") for _, content in metrics)
        for kind in ("previous", "current", "known")
    }
    recall = 100 * numbers(content.get("unknown_recall50") for _, content in metrics)
    if not any(np.isfinite(values).any() for values in (*series.values(), recall)):
        return None
    names = [f"task {task}" for task, _ in metrics]

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
        for offset, (kind, values) in zip((-0.27, 0.0, 0.27), series.items(), strict=True):
            _bars(left, values, PALETTE[kind], offset, 0.25, {"known": "all known"}.get(kind, kind))
        _bars(right, recall, PALETTE["unknown"], 0.0, 0.42, "unknown")
        left.set_title("Known objects: mAP@50", pad=22)
        right.set_title("Unknown objects: U-Recall", pad=22)
        handles, texts = left.get_legend_handles_labels()
        left.legend(handles, texts, loc="lower left", bbox_to_anchor=(-0.01, 0.985), ncols=3, borderaxespad=0.1)
        for axes, values in ((left, np.concatenate(list(series.values()))), (right, recall)):
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.6, len(names) - 0.4)
            top = float(np.nan_to_num(values).max())
            axes.set_ylim(0, min(104.0, max(10.0, 1.18 * top)))
            axes.set_ylabel("%")

    return svg("results", draw, 9.0, 2.9)


def forgetting_lines(groups: Mapping[int, Sequence[float | None]], tasks: Sequence[int]) -> str | None:
    """Draw one line per task that taught classes: their mean AP@50 then and after every later task.

    Args:
        groups: task that taught the classes -> mean AP@50 after each of ``tasks``, fractions or None.
        tasks: the evaluated tasks, rising.
    """
    drawn = {taught: values for taught, values in groups.items() if any(value is not None for value in values)}
    if not drawn or len(tasks) < 2:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends: list[LineEnd] = []
        for index, (taught, values) in enumerate(drawn.items()):
            points = [(task, 100 * value) for task, value in zip(tasks, values, strict=True) if value is not None]
            colour = TASK_COLOURS[index % len(TASK_COLOURS)]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=2, marker="o", markersize=5)
            ends.append((points[-1][1], points[-1][0], f"taught in task {taught}", colour))
        top = max(10.0, 1.15 * max(100 * value for values in drawn.values() for value in values if value is not None))
        label_ends(axes, ends, 0.085 * top)
        axes.set_title("A falling line is forgetting")
        axes.set_xticks(list(tasks), [f"after task {task}" for task in tasks])
        axes.set_xlim(tasks[0] - 0.15, tasks[-1] + 0.5 * max(1, tasks[-1] - tasks[0]))
        axes.set_ylim(0, top)
        axes.set_ylabel("mean AP@50, %")

    return svg("forgetting", draw, 5.6, 2.8)


def class_heatmap(
    values: Mapping[str, Sequence[float | None]], taught: Mapping[str, int], tasks: Sequence[int]
) -> str | None:
    """Draw AP@50 of every class (rows) after every task (columns), and the change since it was taught.

    Args:
        values: class -> AP@50 after each of ``tasks``, fractions or None, in the order to draw them.
        taught: class -> task that taught it.
        tasks: the evaluated tasks, rising.
    """
    names = [name for name, row in values.items() if any(value is not None for value in row)]
    if not names:
        return None
    panels = min(4, math.ceil(len(names) / 20))
    if panels == 1 and len(names) > 8:
        panels = 2
    length = math.ceil(len(names) / panels)
    changes = len(tasks) > 1

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, panels, squeeze=False)
        for index, axes in enumerate(grid[0]):
            part = names[index * length : (index + 1) * length]
            _heat_panel(axes, part, values, taught, tasks, length, changes=changes)

    return svg("classes", draw, min(9.6, (2.6 + 0.5 * len(tasks)) * panels), 0.45 + 0.26 * length)


def knn_bars(accuracies: Mapping[str, float]) -> str | None:
    """Draw k-nearest-neighbour accuracy as bars: pretrained, untrained, and a constant guess of the commonest class.

    Args:
        accuracies: fractions under ``trained``, ``untrained`` and ``chance``, whichever are known.
    """
    rows = [(name, 100 * accuracies[name]) for name in ("trained", "untrained", "chance") if name in accuracies]
    if not rows:
        return None
    texts = {"trained": "pretrained backbone", "untrained": "same net, untrained", "chance": "commonest class"}
    colours = {"trained": PALETTE["known"], "untrained": PALETTE["muted"], "chance": PALETTE["grid"]}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.barh(
            [texts[name] for name, _ in rows],
            [value for _, value in rows],
            0.62,
            color=[colours[name] for name, _ in rows],
        )
        for index, (_, value) in enumerate(rows):
            axes.annotate(
                f"{value:.1f}", (value, index), (5, 0), textcoords="offset points", va="center", fontweight="bold"
            )
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
        axes.set_xlim(0, 1.16 * max(value for _, value in rows) or 1.0)
        axes.set_title("kNN accuracy, %")

    return svg("knn", draw, 6.4, 0.55 + 0.36 * len(rows))


def _heat_panel(
    axes: Axes,
    names: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    taught: Mapping[str, int],
    tasks: Sequence[int],
    length: int,
    *,
    changes: bool,
) -> None:
    from matplotlib.patches import Rectangle

    word = "task " if len(tasks) < 4 else "T"

    for y, name in enumerate(names):
        axes.text(-0.12, y + 0.5, shortened(name, 20), ha="right", va="center", fontsize=8)
        row = values[name]
        for x, value in enumerate(row):
            if value is not None:
                shade = 0.06 + 0.5 * min(1.0, max(0.0, value))
                axes.add_patch(Rectangle((x + 0.03, y + 0.05), 0.94, 0.9, facecolor=PALETTE["known"], alpha=shade))
                axes.text(x + 0.5, y + 0.53, f"{100 * value:.0f}", ha="center", va="center", fontsize=8)
        change = class_change(row, taught.get(name), tasks)
        if changes and change is not None:
            mark, colour = (
                ("▼", "unknown") if change <= -0.005 else ("▲", "previous") if change >= 0.005 else ("=", "muted")
            )
            text = mark if mark == "=" else f"{mark} {abs(100 * change):.0f}"
            axes.text(len(tasks) + 0.12, y + 0.53, text, va="center", fontsize=8, color=PALETTE[colour])
    axes.set_xlim(-2.6, len(tasks) + (0.9 if changes else 0.1))
    axes.set_ylim(length, 0)
    axes.set_xticks([x + 0.5 for x in range(len(tasks))], [f"{word}{task}" for task in tasks])
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def class_change(row: Sequence[float | None], taught: int | None, tasks: Sequence[int]) -> float | None:
    """Return AP after the last task minus AP after the task that taught the class; None if either is not known."""
    if taught is None or taught not in tasks or taught == tasks[-1]:
        return None
    before, after = row[list(tasks).index(taught)], row[-1]
    return None if before is None or after is None else after - before


def label_ends(axes: Axes, ends: Sequence[LineEnd], gap: float) -> None:
    """Write each line's label to the right of its last point; labels of close ends are moved ``gap`` apart."""
    at = -math.inf
    for height, place, text, colour in sorted(ends):
        at = max(height, at + gap)
        axes.annotate(
            text, (place, at), (9, 0), textcoords="offset points", color=colour, va="center", fontweight="bold"
        )


def _bars(axes: Axes, values: Reals, colour: str, offset: float, width: float, label: str) -> None:
    """Draw bars in percent with their numbers above; NaN has no bar."""
    places = np.arange(len(values)) + offset
    heights = np.nan_to_num(values)
    axes.bar(places, heights, width, color=colour, label=label)
    for place, height, value in zip(places, heights, values, strict=True):
        axes.annotate(
            f"{value:.1f}" if math.isfinite(value) else ABSENT,
            (place, height),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=PALETTE["ink"],
        )


def binned(steps: Reals, values: Reals) -> tuple[Reals, Reals]:
    """Average into at most ``_POINTS`` consecutive chunks; a chunk without a finite value is a gap."""
    if len(steps) <= _POINTS:
        return steps, values
    pairs = list(zip(np.array_split(steps, _POINTS), np.array_split(values, _POINTS), strict=True))
    means = [np.nanmean(chunk) if np.isfinite(chunk).any() else np.nan for _, chunk in pairs]
    return np.array([chunk.mean() for chunk, _ in pairs]), np.array(means)


def numbers(values: Any) -> Reals:
    """Convert to (N,) float64, with NaN for everything that is not a finite number."""
    return np.array([math.nan if (found := number(value)) is None else found for value in values], dtype=np.float64)


def _loss_colour(name: str) -> str:
    return PALETTE[_LOSSES.get(name, "rose")]


def phase_name(stage: str, task: Any) -> str:
    """Return the title of a phase's panel."""
    return shortened(f"Task {task} · {stage}" if task is not None else stage.capitalize(), 30)


def png(draw: Callable[[Figure], None], width: float, height: float) -> bytes:
    """Render a figure as PNG on white, ``width`` x ``height`` inches, 160 dots per inch. Deterministic."""
    return _saved(draw, width, height, format="png", dpi=160, facecolor=PALETTE["card"], metadata={"Software": None})


def _saved(
    draw: Callable[[Figure], None], width: float, height: float, settings: Mapping[Any, Any] | None = None, **form: Any
) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with matplotlib.rc_context({**_RC, **(settings or {})}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # text stays text; the reader's fonts draw it
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, **form)
    return buffer.getvalue()


def svg(name: str, draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Render a figure as inline SVG, ``width`` x ``height`` inches; it scales with its column up to 1.3 times.

    ``name`` must be unique on the page; it is the prefix of every id.
    """
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    text = _saved(draw, width, height, {"svg.hashsalt": name}, format="svg", metadata=empty).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style.*?</style>|<[^>]*>", lambda tag: _themed(tag[0], name), text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height|version|xmlns(?::xlink)?)="[^"]*"', "", head)
    return (
        f'{head} role="img" data-figure="{name}" class="figure" style="max-width: {round(width * 96 * 1.3)}px">{rest}'
    )


def _themed(tag: str, name: str) -> str:
    """Rewrite a tag for the page: its ids, font and colours. Text between tags, such as names of classes, stays."""
    tag = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", r"font: \1\2 var(--font, sans-serif)", tag)
    for variable, colour in PALETTE.items():
        tag = tag.replace(colour, f"var(--{variable}, {colour})")
    return tag
