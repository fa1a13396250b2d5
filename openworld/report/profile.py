"""Time per part of a training step: profile.json of a run as a table on the terminal and as a section of its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openworld.report.run_folder import mapping, sequence
from openworld.report.text import ABSENT, counted, milliseconds, number
from openworld.runtime.console import narrow_table

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Part:
    """Presentation of one part of a training step: its colour, and what it includes."""

    colour: str
    meaning: str


PARTS = {
    "data": Part("#8a6d1f", "waiting for the next batch: decoding, augmentation"),
    "trunk": Part("#1d4f9f", "the backbone, and stacking and normalising its input"),
    "FPN": Part("#4a86dd", "the feature pyramid"),
    "RPN": Part("#0f8a7e", "proposals, their suppression and their losses"),
    "regions": Part("#5bbcb0", "matching, sampling, losses of the box head"),
    "RoI head": Part("#7a4fd0", "RoIAlign, the box head, the two last layers"),
    "method": Part("#d9600b", "additions of the open-world method: relabelling of regions, its own losses"),
    "backward": Part("#c2377e", "gradients of all of it"),
    "communication": Part(
        "#d6a021", "between processes: gradients, features, statistics of BatchNorm, and waiting for each other"
    ),
    "optimiser": Part("#7d8f2b", "clipping, the step of the optimiser, and the average of the weights"),
    "logging": Part("#66707a", "the line in metrics.jsonl and the progress bar"),
    "checkpoint": Part("#9aa3ab", "writing one, if one of the steps did"),
    "validation": Part("#b07aa1", "detecting and scoring on the held-out images, if one of the steps did"),
    "other": Part("#c3c9cf", "time that no part claims"),
}
"""The parts of each step, in running order. A profile may lack some; parts that are not listed come last."""


def profile_phases(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the phases of profile.json with their parts in order; malformed ones are left out.

    Returns:
        per phase: ``title``, ``facts``, ``step`` (median seconds) and ``parts`` with ``name``, ``meaning``, ``seconds``
        per step and ``share`` in percent.
    """
    phases = []
    for found in map(mapping, sequence(profile.get("phases"))):
        parts = []
        for part in map(mapping, sequence(found.get("parts"))):
            name, seconds, share = str(part.get("name")), number(part.get("seconds")), number(part.get("share"))
            if seconds is not None and share is not None:
                meaning = PARTS[name].meaning if name in PARTS else ""
                parts.append({"name": name, "meaning": meaning, "seconds": seconds, "share": 100 * share})
        spent = mapping(found.get("step_seconds"))
        median, least, most = (number(spent.get(key)) for key in ("median", "least", "most"))
        if not parts or median is None:
            continue
        parts.sort(key=lambda part: _position(str(part["name"])))
        facts = [f"{found.get('steps')} steps of {found.get('batch_size')} images", str(found.get("device"))]
        if found.get("device") == "cpu":
            facts.append(counted(int(number(found.get("threads")) or 1), "thread"))
        if number(found.get("processes")) not in (None, 1):
            facts.append(f"{found['processes']} processes, times of the first")
        if least is not None and most is not None:
            facts.append(f"{milliseconds(least)} to {milliseconds(most)} per step")
        title = f"task {found.get('task')}, {found.get('stage')}"
        phases.append({"title": title, "facts": facts, "step": median, "parts": parts})
    return phases


def profile_rows(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return one row of text per part: its name, then milliseconds and percent in each phase."""
    names = dict.fromkeys(part["name"] for phase in phases for part in phase["parts"])
    rows = []
    for name in sorted(names, key=_position):
        cells = []
        for phase in phases:
            part = next((part for part in phase["parts"] if part["name"] == name), None)
            cells += [ABSENT] * 2 if part is None else [f"{1000 * part['seconds']:.1f}", f"{part['share']:.1f}"]
        rows.append((name, *cells))
    return rows


def print_profile(run: Path, console: Console) -> None:
    """Print the time per part and phase; print nothing if the run has no profile.json."""
    path = run / "profile.json"
    if not path.is_file():
        return
    phases = profile_phases(json.loads(path.read_text(encoding="utf-8")))
    for start in range(0, len(phases), 3):
        shown = phases[start : start + 3]
        heads = ["part", *(head for phase in shown for head in (f"{phase['title'].replace(', ', ' ')}\nms", "%"))]
        title = "Time per part of a training step"
        console.print(narrow_table(heads, profile_rows(shown), title, words=["part"]))


def profile_section(profile: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the phases for the page: :func:`profile_phases` with times as text and the colours of the parts."""
    return [
        {
            **phase,
            "step": milliseconds(phase["step"]),
            "parts": [
                {
                    **part,
                    "colour": PARTS.get(part["name"], PARTS["other"]).colour,
                    "time": milliseconds(part["seconds"]),
                }
                for part in phase["parts"]
            ],
        }
        for phase in profile_phases(mapping(profile))
    ]


def _position(name: str) -> int:
    """Return the position of a part in the running order; parts that are not listed come last."""
    return list(PARTS).index(name) if name in PARTS else len(PARTS)
