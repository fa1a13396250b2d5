"""Figures of the report as inline SVG, or as PNG for a file.

Every colour of the palette is written as a CSS variable with its light value as fallback, so that the page's light and
dark theme reach into the figures, and text stays text. A function returns None where there is nothing to draw.
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

from openworld.report.run_folder import mapping, number, sequence

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

TASK_COLOURS = [PALETTE[name] for name in ("known", "previous", "current", "rose", "ochre", "muted")]
LineEnd = tuple[float, float, str, str]
"""Height and place of the last point of a line, its label, its colour."""

_LOSSES = {
    "objectness": "known",
    "rpn_box": "previous",
    "classification": "current",
    "box": "ochre",
    "clustering": "rose",
}
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
"""Most points of one loss curve; longer logs are averaged in as many bins."""


def loss_curves(log: Sequence[Mapping[str, Any]]) -> str | None:
    """One panel for every phase with steps: the total loss and, thinner, its parts. ``log`` is metrics.jsonl."""
    phases: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for entry in log:
        if entry.get("event") == "step" and number(entry.get("step")) is not None:
            phases.setdefault((str(entry.get("stage")), entry.get("task")), []).append(entry)
    if not phases:
        return None
    columns = min(3, len(phases))
    rows = math.ceil(len(phases) / columns)

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
            axes.set_title(_phase_name(stage, task))
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
            [_short(name.replace("_", " "), 24) for name in names],
            loc="outside upper left",
            ncols=6,
        )

    return svg("losses", draw, 9.0, 0.45 + 2.15 * rows)


def results_by_task(metrics: Sequence[tuple[int, Mapping[str, Any]]]) -> str | None:
    """Left mAP@50 of previous, current and all known classes, right U-Recall; one group of bars a task, in percent.

    Args:
        metrics: (task, content of its metrics.json) in rising order of the task.
    """
    series = {
        "previous": [_percent(content.get("previous_ap50")) for _, content in metrics],
        "current": [_percent(content.get("current_ap50")) for _, content in metrics],
        "known": [_percent(content.get("known_ap50")) for _, content in metrics],
    }
    recall = [_percent(content.get("unknown_recall50")) for _, content in metrics]
    if not any(value is not None for values in (*series.values(), recall) for value in values):
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
        for axes, values in ((left, [value for kind in series.values() for value in kind]), (right, recall)):
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.6, len(names) - 0.4)
            top = max((value for value in values if value is not None), default=0.0)
            axes.set_ylim(0, min(104.0, max(10.0, 1.18 * top)))
            axes.set_ylabel("%")

    return svg("results", draw, 9.0, 2.9)


def forgetting_lines(groups: Mapping[int, Sequence[float | None]], tasks: Sequence[int]) -> str | None:
    """One line for the classes of each task: their mean AP@50 when taught and after every later task.

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
    """AP@50 of every class (rows) after every task (columns), and the change since it was taught.

    Args:
        values: class -> AP@50 after each of ``tasks``, fractions or None, in the order to be drawn.
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


def energy_histogram(energy: Mapping[str, Any], task: int) -> str | None:
    """Negative free energies of known and unknown regions, the fitted Weibull densities, and what is called unknown.

    Args:
        energy: content of energy.json.
        task: names the figure.
    """
    samples = {
        kind: np.array(
            [value for value in map(number, sequence(mapping(energy.get("samples")).get(kind))) if value is not None]
        )
        for kind in ("known", "unknown")
    }
    everything = np.concatenate(list(samples.values()))
    if not everything.size:
        return None
    low, high = (float(value) for value in np.quantile(everything, (0.002, 0.998)))
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    intervals = unknown_intervals(energy)
    reach = low - (high - low), high + (high - low)
    ends = [end for interval in intervals for end in interval if end is not None and reach[0] < end < reach[1]]
    low, high = min([low, *(end - margin for end in ends)]), max([high, *(end + margin for end in ends)])
    alone = intervals[0][1] if len(intervals) == 1 and intervals[0][0] is None else None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        rare = min((values.size for values in samples.values() if values.size), default=0) < 100
        edges = np.linspace(low, high, 25 if rare else 46).tolist()
        at = np.linspace(low, high, 400)
        peak = 0.0
        for kind, values in samples.items():
            if not values.size:
                continue
            heights, _, _ = axes.hist(
                values, edges, density=True, color=PALETTE[kind], alpha=0.3, label=f"{kind} regions ({values.size:,})"
            )
            peak = max(peak, float(np.max(heights)))
        for kind in ("known", "unknown"):
            density = weibull_density(at, mapping(energy.get(kind)))
            if density is not None:
                axes.plot(at, density, color=PALETTE[kind], linewidth=1.8, label=f"Weibull of {kind}")
        top = 1.25 * peak or 1.0
        for first, last in intervals:
            left, right = low if first is None else max(low, first), high if last is None else min(high, last)
            if left < right:
                axes.axvspan(left, right, color=PALETTE["unknown"], alpha=0.06, linewidth=0)
        for end in (end for end in ends if low <= end <= high):
            axes.axvline(end, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
            side = "right" if end - low > 0.35 * (high - low) else "left"
            if alone is None:
                text = f"{end:.2f}"
            elif side == "right":
                text = f"◂ called unknown  |  {end:.2f}"
            else:
                text = f"{end:.2f}  |  unknown is left of this"
            axes.annotate(
                text,
                (end, 0.965 * top),
                (-6 if side == "right" else 6, 0),
                textcoords="offset points",
                ha=side,
                va="top",
                fontsize=8,
            )
        if alone is None and ends:
            note = "shaded: called unknown"
            axes.annotate(note, (0.995, 0.85), xycoords="axes fraction", ha="right", va="top", fontsize=8)
        axes.set_xlim(low, high)
        axes.set_ylim(0, top)
        axes.set_yticks([])
        axes.set_ylabel("density")
        axes.set_xlabel("negative free energy  T · logsumexp(g / T)")
        axes.set_title(f"Task {task}: the less the hills overlap, the better", pad=24)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, borderaxespad=0.1, columnspacing=1.4)

    return svg(f"energy{task}", draw, 9.0, 2.9)


def unknown_intervals(energy: Mapping[str, Any]) -> list[tuple[float | None, float | None]]:
    """Pairs of negative energies between which a detection is called unknown, None where open.

    Args:
        energy: content of energy.json; one without ``intervals`` is unknown left of its ``boundary``.
    """
    pairs = [sequence(pair) for pair in sequence(energy.get("intervals"))]
    found = [(number(pair[0]), number(pair[1])) for pair in pairs if len(pair) == 2]
    boundary = number(energy.get("boundary"))
    return found or ([] if boundary is None else [(None, boundary)])


def knn_bars(accuracies: Mapping[str, float]) -> str | None:
    """Bars of k-nearest-neighbour accuracy: pretrained, untrained, and always saying the commonest class.

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


def weibull_density(at: npt.NDArray[np.float64], fit: Mapping[str, Any]) -> npt.NDArray[np.float64] | None:
    """Density of a three-parameter Weibull minimum distribution.

    ``(k / c) z^(k-1) exp(-z^k)`` with ``z = (x - location) / c``, shape ``k``, scale ``c``, and 0 left of the location.

    Args:
        at: (N,) float64.
        fit: ``shape``, ``location`` and ``scale``.

    Returns:
        (N,) float64, or None where a parameter is missing or not positive.
    """
    shape, location, scale = (number(fit.get(key)) for key in ("shape", "location", "scale"))
    if shape is None or location is None or scale is None or shape <= 0 or scale <= 0:
        return None
    z = np.clip((at - location) / scale, 1e-12, None)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        density = shape / scale * np.exp((shape - 1) * np.log(z) - z**shape)
    return np.where((at > location) & np.isfinite(density), density, 0.0)


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
        axes.text(-0.12, y + 0.5, _short(name, 20), ha="right", va="center", fontsize=8)
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
    """AP after the last task minus AP after the task that taught the class; None where either is not known."""
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


def _bars(axes: Axes, values: Sequence[float | None], colour: str, offset: float, width: float, label: str) -> None:
    places = [index + offset for index in range(len(values))]
    axes.bar(places, [0.0 if value is None else value for value in values], width, color=colour, label=label)
    for place, value in zip(places, values, strict=True):
        text = "–" if value is None else f"{value:.1f}"
        axes.annotate(
            text,
            (place, value or 0.0),
            (0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=PALETTE["ink"],
        )


def binned(
    steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of at most ``_POINTS`` consecutive chunks; a chunk without a finite value is a gap."""
    if len(steps) <= _POINTS:
        return steps, values
    pairs = list(zip(np.array_split(steps, _POINTS), np.array_split(values, _POINTS), strict=True))
    means = [np.nanmean(chunk) if np.isfinite(chunk).any() else np.nan for _, chunk in pairs]
    return np.array([chunk.mean() for chunk, _ in pairs]), np.array(means)


def numbers(values: Any) -> npt.NDArray[np.float64]:
    """(N,) float64; what is not a finite number is NaN."""
    return np.array([math.nan if (found := number(value)) is None else found for value in values], dtype=np.float64)


def _percent(value: Any) -> float | None:
    found = number(value)
    return None if found is None else 100 * found


def _loss_colour(name: str) -> str:
    return PALETTE[_LOSSES.get(name, "muted")]


def _phase_name(stage: str, task: Any) -> str:
    return _short(f"Task {task} · {stage}" if task is not None else stage.capitalize(), 30)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def png(draw: Callable[[Figure], None], width: float, height: float) -> bytes:
    """PNG of a figure on white, ``width`` x ``height`` inches, 160 dots an inch; the same bytes for the same figure."""
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
    """Inline SVG of a figure, ``width`` x ``height`` inches, that scales with its column up to 1.3 times its size.

    ``name`` is unique on the page: it is the prefix of every id.
    """
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    text = _saved(draw, width, height, {"svg.hashsalt": name}, format="svg", metadata=empty).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", r"font: \1\2 var(--font, sans-serif)", text)
    for variable, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{variable}, {colour})")
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:width|height|version|xmlns(?::xlink)?)="[^"]*"', "", head)
    return f'{head} role="img" class="figure" style="max-width: {round(width * 96 * 1.3)}px">{rest}'
