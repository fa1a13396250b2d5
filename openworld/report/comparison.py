"""Tables of an ablation, on the terminal and as Markdown: means per task, differences paired by seed, and the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openworld.metrics.comparison import ACROSS_TASKS, compared_metrics
from openworld.metrics.table import Metric
from openworld.report.tables import markdown_text
from openworld.report.text import ABSENT, change_text, decimal, duration, metric_text
from openworld.runtime.console import NarrowTable, narrow_table

Summary = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""As :func:`openworld.metrics.comparison.compare` returns it."""


MOST_COLUMNS = 8
"""Most metrics of one table on the terminal, which has eighty characters."""


def terminal_tables(summary: Summary, seeds: Sequence[int]) -> list[NarrowTable]:
    """Make the tables for the terminal; a wide one becomes two, known objects and all else."""
    known = {metric.label for metric in compared_metrics().values() if metric.about == "known objects"}
    result = []
    for title, heads, rows in _tables(summary, seeds):
        split = sum(head in known for head in heads) if len(heads) > MOST_COLUMNS else len(heads)
        for part in (slice(0, split), slice(split, None)):
            if heads[part]:
                columns = ("variant", *(head.replace(" ", "\n") for head in heads[part]))
                lines = [(name, *(cell.replace(" ± ", "\n± ") for cell in cells[part])) for name, cells in rows]
                result.append(narrow_table(columns, lines, title, words=["variant"]))
    return result


def as_markdown(summary: Summary, seeds: Sequence[int], time: Mapping[str, Any]) -> str:
    """Format the tables as Markdown, with what the columns across tasks mean, and how long the runs took.

    Args:
        summary: of the variants.
        seeds: of the runs.
        time: ``variants``, each with ``seconds`` and ``cpu_seconds`` by seed, and both for all runs together.
    """
    lines: list[str] = []
    shown: set[str] = set()
    for title, heads, rows in _tables(summary, seeds):
        shown |= set(heads)
        lines += [title, "", *_grid(("variant", *heads), [(name, *cells) for name, cells in rows]), ""]
    meanings = [f"{metric.label}: {metric.meaning}" for metric in ACROSS_TASKS.values() if metric.label in shown]
    lines += [line for meaning in meanings for line in (meaning, "")]
    times = [
        (name, *(_minutes(each[key]) for key in ("seconds", "cpu_seconds"))) for name, each in time["variants"].items()
    ]
    lines += ["Time", "", *_grid(("variant", "minutes per run", "CPU minutes per run"), times), "", time_text(time), ""]
    return "\n".join(lines)


def time_text(time: Mapping[str, Any]) -> str:
    """Say how long all runs took together."""
    cpu = "" if time["cpu_seconds"] is None else f", {duration(time['cpu_seconds'])} of CPU time"
    return f"In all {duration(time['seconds'])} of runs{cpu}; what several runs share counts once."


def _tables(summary: Summary, seeds: Sequence[int]) -> list[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """Return title, heads and named rows of each table."""
    over = f"{len(seeds)} seeds ({', '.join(map(str, seeds))})" if len(seeds) > 1 else f"seed {seeds[0]}"
    error = " ± standard error" if len(seeds) > 1 else ""
    first, *others = summary
    tables = []
    for task, metrics in _metrics_by_task(summary).items():
        present = {name: by_task[task] for name, by_task in summary.items() if task in by_task}
        heads = [metric.label for metric in metrics.values()]
        rows = [
            (name, [_cell(metric, values[key]) for key, metric in metrics.items()]) for name, values in present.items()
        ]
        mean = f"mean{error} over " if error else ""
        tables.append((f"After task {task}: {mean}{over}", heads, rows))
        apart = [
            (name, [_difference(metric, present[name][key]["difference"]) for key, metric in metrics.items()])
            for name in others
            if name in present and task in summary[first]
        ]
        if apart:
            title = f"After task {task}: difference from {first}" + (f", paired by seed: mean{error}" if error else "")
            tables.append((title, heads, apart))
    return tables


def _metrics_by_task(summary: Summary) -> dict[str, dict[str, Metric]]:
    """Return the metrics that at least one variant has at each task.

    Without previous classes the current classes are all known classes, so one column shows both.
    """
    shown = {}
    for task in sorted({task for by_task in summary.values() for task in by_task}, key=int):
        present = {
            key: metric
            for key, metric in compared_metrics().items()
            if any(by_task[task][key]["mean"] is not None for by_task in summary.values() if task in by_task)
        }
        if "previous_ap50" not in present:
            present.pop("current_ap50", None)
        shown[task] = present
    return shown


def _cell(metric: Metric, value: Mapping[str, Any]) -> str:
    mean, error = metric_text(metric, value["mean"]), value["standard_error"]
    return mean if error is None else f"{mean} ± {metric_text(metric, error)}"


def _difference(metric: Metric, value: Mapping[str, Any]) -> str:
    mean, error = change_text(metric, value["mean"]), value["standard_error"]
    return mean if error is None else f"{mean} ± {metric_text(metric, error)}"


def _minutes(seconds: Sequence[float | None]) -> str:
    """The mean in minutes."""
    present = [each for each in seconds if each is not None]
    return decimal(sum(present) / len(present) / 60, 1) if present else ABSENT


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    return [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(f"| {' | '.join((markdown_text(name), *cells))} |" for name, *cells in rows),
    ]
