"""Settings of the run: configuration, machine, repairs of the data, exemplars and times; and how to repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from openworld.report.profile import profile_section
from openworld.report.run_folder import RunArtefacts, flatten, mapping, sequence
from openworld.report.text import count, duration, number, value_text


def what_was_run(run: RunArtefacts) -> dict[str, Any]:
    """Return settings and facts of the run as text."""
    return {
        "config": settings(run.config),
        "environment": settings(run.environment),
        "data": [
            _data_set(str(name), mapping(found))
            for name, found in (run.data or {}).items()
            if "annotations" in mapping(found)  # lists of exemplars have none
        ],
        "exemplars": [_exemplars(task.number, task.exemplars) for task in run.tasks if task.exemplars is not None],
        "times": _times(run.log),
        "profile": profile_section(run.profile),
    }


def settings(tree: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return the leaves of a file as (dotted key, text)."""
    return [(key, value_text(value)) for key, value in flatten(tree or {})]


def commands(run: RunArtefacts) -> list[dict[str, str]]:
    """Return the command lines that repeat the run, or rebuild the page."""
    folder = shlex.quote(str(run.path))
    again = shlex.quote(f"{str(run.path).rstrip('/')}-again")
    return [
        {
            "what": "the whole run again, into a new folder",
            "line": f"openworld run --config {folder}/config.yaml --output {again}",
        },
        {"what": "this page again", "line": f"openworld report {folder}"},
    ]


def _data_set(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "images": count(found.get("images")),
        "annotations": count(found.get("annotations")),
        "repairs": [(str(kind), count(times)) for kind, times in mapping(found.get("repairs")).items()],
        "examples": [str(example) for example in sequence(found.get("examples"))],
    }


def _exemplars(task: int, found: Mapping[str, Any]) -> dict[str, Any]:
    instances = mapping(found.get("instances"))
    return {
        "task": task,
        "images": len(sequence(found.get("images"))),
        "per_class": value_text(found.get("per_class")),
        "strategy": value_text(found.get("strategy")),
        "instances": ", ".join(f"{name} {count(kept)}" for name, kept in instances.items()),
    }


def _times(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum the time by task and phase, in the order of the log. All parts of a resumed phase count."""
    spent: dict[Any, dict[str, float]] = {}
    for entry in log:
        seconds = number(entry.get("seconds"))
        if entry.get("event") == "phase" and seconds is not None:
            stages = spent.setdefault(entry.get("task"), {})
            stage = str(entry.get("stage"))
            stages[stage] = stages.get(stage, 0.0) + seconds
    totals = {task: sum(stages.values()) for task, stages in spent.items()}
    longest = max(totals.values(), default=0.0)
    rows = [
        {
            "task": "before task 1" if task is None else f"task {task}",
            "total": duration(totals[task]),
            "phases": [
                {"stage": stage, "time": duration(seconds), "share": 100 * seconds / longest if longest else 0.0}
                for stage, seconds in stages.items()
            ],
        }
        for task, stages in spent.items()
    ]
    return {"rows": rows, "total": duration(sum(totals.values())) if rows else None}
