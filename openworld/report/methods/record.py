"""The default section of a method: its calibration record, as it is written."""

from __future__ import annotations

from collections.abc import Sequence

from openworld.report.methods.base import MethodPage
from openworld.report.page import render
from openworld.report.run_folder import TaskArtefacts, flatten, mapping
from openworld.report.text import listed, value_text

MOST_ENTRIES = 40
"""Entries of a record that are shown."""


def record_panels(tasks: Sequence[TaskArtefacts]) -> list[str]:
    """Make one table per task with a calibration.json."""
    panels = []
    for task in tasks:
        if task.calibration is not None:
            entries = [(key, value_text(value)) for key, value in flatten(task.calibration)]
            left_out = max(len(entries) - MOST_ENTRIES, 0)
            panels.append(
                render("methods/record.html", task=task.number, entries=entries[:MOST_ENTRIES], left_out=left_out)
            )
    return panels


def record_warnings(tasks: Sequence[TaskArtefacts]) -> list[str]:
    """Return a warning that names the tasks in which the calibration fell back."""
    fallen = [str(task.number) for task in tasks if mapping(task.calibration).get("status") == "fallback"]
    if not fallen:
        return []
    return [f"The method could not be calibrated in task{'s' if len(fallen) > 1 else ''} {listed(fallen)}."]


def record_page(name: str) -> MethodPage:
    """Make the section of the method of this name."""
    return MethodPage(
        link="Method",
        title=f"The open-world method: {name}",
        lead="What the calibration on held-out images recorded (calibration.json).",
        panels=record_panels,
        warnings=record_warnings,
    )
