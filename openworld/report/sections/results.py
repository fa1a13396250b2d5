"""The results by task: the table of metrics, the curves, and what the unknown detections hit."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from openworld.metrics.owod import WI_RECALL
from openworld.metrics.table import METRICS, metric_value
from openworld.report import curves, plots
from openworld.report.page import markup
from openworld.report.run_folder import RunArtefacts, flatten, mapping, sequence
from openworld.report.text import count, first_of, metric_text, number, value_text

MOST_NAMES = 12
"""Largest number of classes to list by name; more are only counted."""


def results(run: RunArtefacts) -> dict[str, Any]:
    """Return the table of :data:`openworld.metrics.table.METRICS`, its figure and the curves."""
    contents = [{"task": task, **metrics} for task, metrics in run.scored]
    rows = [_row(task.number, task.metrics) for task in run.tasks]
    return {
        "groups": [
            {"about": about, "metrics": list(metrics)}
            for about, metrics in groupby(METRICS.values(), key=lambda metric: metric.about)
        ],
        "num_metrics": len(METRICS),
        "rows": rows,
        "scored": [row for row in rows if not row["missing"]],
        "uses_unknown_labels": any(metrics.get("uses_unknown_labels") for _, metrics in run.scored),
        "protocols": protocols(run),
        "figure": markup(plots.results_by_task(run.scored)),
        "precision_recall": markup(curves.precision_recall(contents)),
        "unknown_recall": markup(curves.unknown_recall(contents)),
        "wilderness_impact": markup(curves.wilderness_impact(contents)),
    }


def classes(run: RunArtefacts) -> list[dict[str, Any]]:
    """Return the schedule: the classes that each task teaches."""
    return [
        {"task": task, "num_classes": len(names), "names": first_of(names, MOST_NAMES)}
        for task, names in enumerate(run.schedule, start=1)
        if names
    ]


def protocols(run: RunArtefacts) -> list[str]:
    """Return the names of the protocols that the tasks were scored under, sorted."""
    return sorted({str(metrics["protocol"]) for _, metrics in run.scored if metrics.get("protocol") is not None})


def _row(task: int, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Format one task's numbers as text."""
    if metrics is None:
        return {"task": task, "missing": True}
    return {
        "task": task,
        "missing": False,
        "cells": {name: metric_text(metric, metric_value(metrics, name)) for name, metric in METRICS.items()},
        "hits": _hits(mapping(metrics.get("unknown_hits"))),
        "below": _classes_below_recall(metrics),
        "counts": [(key, value_text(value)) for key, value in flatten(mapping(metrics.get("counts")))],
    }


def _hits(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the detections called unknown hit, with shares in percent; nothing without such detections."""
    hits = {kind: number(found.get(kind)) for kind in ("unknown", "known", "background")}
    total = sum(value or 0.0 for value in hits.values())
    if not total:
        return []
    return [
        {"kind": kind, "count": count(value), "share": 100 * (value or 0.0) / total} for kind, value in hits.items()
    ]


def _classes_below_recall(metrics: Mapping[str, Any]) -> str | None:
    """Name the classes that never reach the recall at which papers print WI; None without such classes or WI."""
    names = sequence(mapping(metrics.get("wi_classes_below_recall")).get(f"{WI_RECALL:.1f}"))
    return first_of(names, MOST_NAMES) if names and number(metrics.get("wi")) is not None else None
