"""Forgetting: mean AP of each task's classes after every task, and the AP of every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openworld.metrics.average_precision import mean_present
from openworld.metrics.forgetting import forgetting
from openworld.report import plots
from openworld.report.page import markup
from openworld.report.run_folder import RunArtefacts, class_ap, mapping
from openworld.report.sections.results import protocols
from openworld.report.text import percent, points

_LEAST_LOSS = 0.005
"""Classes that lost less are not named."""
_MOST_LOSERS = 3


def forgotten(run: RunArtefacts) -> dict[str, Any]:
    """Return the table and lines of means, the classes that lost most, and the heat map of single classes."""
    tasks = [task for task, _ in run.scored]
    taught = {name: task for task, names in enumerate(run.schedule, start=1) for name in names}
    values = {
        name: [class_ap(metrics, name) if task >= taught[name] else None for task, metrics in run.scored]
        for name in taught
        if any(class_ap(metrics, name) is not None for _, metrics in run.scored)
    }
    means = {
        group: [mean_present([row[index] for row in rows]) for index in range(len(tasks))]
        for group in tasks
        if (rows := [row for name, row in values.items() if taught[name] == group])
    }
    return {
        "tasks": tasks,
        "rows": [_row(group, row, tasks) for group, row in means.items()],
        "measured": _measured(run),
        "protocols": protocols(run),
        "losers": _losers(values, taught, tasks),
        "figure": markup(plots.forgetting_lines(means, tasks)),
        "heatmap": markup(plots.class_heatmap(values, taught, tasks)),
    }


def _row(group: int, means: Sequence[float | None], tasks: Sequence[int]) -> dict[str, Any]:
    """Format the means of one task's classes as text; ``tone`` colours the change."""
    change = points(plots.class_change(means, group, tasks))
    return {
        "task": group,
        "cells": [percent(mean) if task >= group else "" for task, mean in zip(tasks, means, strict=True)],
        "change": change,
        "tone": {"−": "worse", "+": "better"}.get(change[0], ""),
    }


def _measured(run: RunArtefacts) -> list[dict[str, Any]]:
    """Return forgetting and kept share after each task; nothing if the results do not share a protocol."""
    results = [
        {
            "task": task,
            "protocol": metrics.get("protocol"),
            "classes": {name: {"ap50": class_ap(metrics, name)} for name in mapping(metrics.get("classes"))},
        }
        for task, metrics in run.scored
    ]
    if len({str(result["protocol"]) for result in results}) > 1:
        return []
    measured = forgetting(results)
    if all(entry["forgetting"] is None for entry in measured):
        return []
    return [
        {
            "id": "forgetting",
            "name": "forgetting",
            "cells": [points(entry["forgetting"]).lstrip("+") for entry in measured],
        },
        {"id": "kept", "name": "kept, %", "cells": [percent(entry["kept"]) for entry in measured]},
    ]


def _losers(
    values: Mapping[str, Sequence[float | None]], taught: Mapping[str, int], tasks: Sequence[int]
) -> list[tuple[str, str]]:
    """Return the classes that lost most since they were taught, and their loss in points, the largest first."""
    changes = {name: plots.class_change(row, taught[name], tasks) for name, row in values.items()}
    lost = sorted((change, name) for name, change in changes.items() if change is not None and change <= -_LEAST_LOSS)
    return [(name, percent(-change)) for change, name in lost[:_MOST_LOSERS]]
