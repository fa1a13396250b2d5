"""Where the time of a step went: profile.json of a run as a table on the terminal and as a section of its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openworld.report.run_folder import mapping, number, sequence
from openworld.runtime.console import narrow_table

if TYPE_CHECKING:
    from rich.console import Console

COLOURS = {
    "data": "#8a6d1f",
    "trunk": "#1d4f9f",
    "FPN": "#4a86dd",
    "RPN": "#0f8a7e",
    "regions": "#5bbcb0",
    "RoI head": "#7a4fd0",
    "method": "#d9600b",
    "backward": "#c2377e",
    "communication": "#d6a021",
    "optimiser": "#7d8f2b",
    "logging": "#66707a",
    "checkpoint": "#9aa3ab",
    "other": "#c3c9cf",
}
"""The parts of a step in the order in which they run, with their colours; a profile may lack some and have others."""
ORDER = tuple(COLOURS)

MEANING = {
    "data": "waiting for the next batch: decoding, augmentation",
    "trunk": "the backbone, with what it is fed: stacking and normalising",
    "FPN": "the feature pyramid",
    "RPN": "proposals, their suppression and their losses",
    "regions": "matching, sampling, losses of the box head",
    "RoI head": "RoIAlign, the box head, the two last layers",
    "method": "what the open-world method adds: relabelling of regions, losses of its own",
    "backward": "gradients of all of it",
    "communication": "between processes: gradients, features, statistics of BatchNorm, with the time of waiting",
    "optimiser": "clipping and the step of the optimiser",
    "logging": "the line in metrics.jsonl and the progress bar",
    "checkpoint": "writing one, if one of the steps did",
    "other": "what no part claims",
}


def profile_phases(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The phases of profile.json with their parts in order; what is malformed is left out.

    Returns:
        of each: ``title``, ``facts``, ``step`` (median seconds) and ``parts`` with ``name``, ``meaning``, ``seconds``
        a step and ``share`` in percent.
    """
    phases = []
    for found in map(mapping, sequence(profile.get("phases"))):
        parts = []
        for part in map(mapping, sequence(found.get("parts"))):
            name, seconds, share = str(part.get("name")), number(part.get("seconds")), number(part.get("share"))
            if seconds is not None and share is not None:
                meaning = MEANING.get(name, "")
                parts.append({"name": name, "meaning": meaning, "seconds": seconds, "share": 100 * share})
        spent = mapping(found.get("step_seconds"))
        median, least, most = (number(spent.get(key)) for key in ("median", "least", "most"))
        if not parts or median is None:
            continue
        parts.sort(key=lambda part: ORDER.index(part["name"]) if part["name"] in ORDER else len(ORDER))
        facts = [f"{found.get('steps')} steps of {found.get('batch_size')} images", str(found.get("device"))]
        if found.get("device") == "cpu":
            facts.append(f"{found.get('threads')} thread{'s' if found.get('threads') != 1 else ''}")
        if number(found.get("processes")) not in (None, 1):
            facts.append(f"{found['processes']} processes, times of the first")
        if least is not None and most is not None:
            facts.append(f"a step took {_milliseconds(least)} to {_milliseconds(most)}")
        title = f"task {found.get('task')}, {found.get('stage')}"
        phases.append({"title": title, "facts": facts, "step": median, "parts": parts})
    return phases


def profile_rows(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of text for each part that some phase has: its name, then milliseconds and percent of each phase."""
    names = dict.fromkeys(part["name"] for phase in phases for part in phase["parts"])
    rows = []
    for name in sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        cells = []
        for phase in phases:
            part = next((part for part in phase["parts"] if part["name"] == name), None)
            cells += ["–", "–"] if part is None else [f"{1000 * part['seconds']:.1f}", f"{part['share']:.1f}"]
        rows.append((name, *cells))
    return rows


def print_profile(run: Path, console: Console) -> None:
    """Print the parts of a step by phase; nothing where the run has no profile.json."""
    path = run / "profile.json"
    if not path.is_file():
        return
    phases = profile_phases(json.loads(path.read_text(encoding="utf-8")))
    for start in range(0, len(phases), 3):
        shown = phases[start : start + 3]
        heads = ["part", *(head for phase in shown for head in (f"{phase['title'].replace(', ', ' ')}\nms", "%"))]
        title = "Where a step's time went"
        console.print(narrow_table(heads, profile_rows(shown), title, words=["part"]))


def profile_section(profile: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What the page shows of each phase: as :func:`profile_phases`, times as text, and the parts' colours."""
    return [
        {
            **phase,
            "step": _milliseconds(phase["step"]),
            "parts": [
                {**part, "colour": COLOURS.get(part["name"], COLOURS["other"]), "time": _milliseconds(part["seconds"])}
                for part in phase["parts"]
            ],
        }
        for phase in profile_phases(mapping(profile))
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}\u00a0ms"
