"""Audits and checks on the terminal: tables, and a line per finding with what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from openworld.audit.findings import MARKS
from openworld.audit.images_and_boxes import ASPECT_EDGES, SIDE_EDGES
from openworld.audit.split_facts import CEILINGS
from openworld.report.text import ABSENT, decimal, percent, value_text
from openworld.runtime.console import as_text, narrow_table

if TYPE_CHECKING:
    from rich.console import Console

CLASS_ROWS = 40
"""Maximum number of classes in a table; check.json has all."""
_BAR = 12
"""Characters of a full bar."""


def print_findings(findings: Sequence[Mapping[str, str]], console: Console, nothing: str) -> None:
    """Print a line per finding and below it what to do; print ``nothing`` if there are none."""
    from rich.padding import Padding
    from rich.text import Text

    if not findings:
        console.print(Text(nothing, "green"))
    for finding in findings:
        level = Text(f"{finding['level']}: ", MARKS[finding["level"]])
        console.print(level.append_text(as_text(finding["finding"], console)))
        console.print(Padding(as_text(f"What to do: {finding['remedy']}", console), (0, 0, 0, 4)))


# -- a split -----------------------------------------------------------------------------------------------------------


def print_audit(result: Mapping[str, Any], console: Console) -> None:
    """Print an audit: the sets, a line per finding with what to do, then the tables.

    Args:
        result: of :func:`openworld.audit.split.audit_split`.
        console: rich.
    """
    from rich.text import Text

    sets = [
        (name, *(f"{number:,}" for number in (listings["lines"], listings["images"], facts["objects"])))
        for name, facts in result["sets"].items()
        if (listings := facts["listings"])
    ]
    console.print(narrow_table(("Set", "Lines", "Images", "Objects"), sets, "The sets", words=["Set"]))
    console.print()
    print_findings(result["findings"], console, "Nothing was found that distorts scores.")
    console.print()

    kinds: tuple[str, ...] = ("previous", "current", "unknown", "ignored")
    heads: tuple[str, ...] = ("Task", "Previous", "Current", "Unknown", "Ignored")
    console.print(narrow_table(heads, _numbers(result["classes"]["tasks"], kinds), "Objects of test"))
    if result["training"] is not None:
        kinds = ("images", "taught_objects", "hidden_previous", "hidden_later", "hidden_unnamed")
        heads = ("Task", "Images", "Taught", "Hidden:\nprevious", "Hidden:\nlater tasks", "Hidden:\nno task")
        console.print()
        console.print(narrow_table(heads, _numbers(result["training"], kinds), "Objects of train, as the task is told"))
    console.print()
    console.print(
        narrow_table(
            CEILING_HEADS, ceiling_rows(result["ceilings"]), "What a perfect detector scores", words=["Protocol"]
        )
    )
    console.print(
        Text(
            "Percent. Best order: the mAP if every repeated detection ranked last. Factor: unknown recall times this "
            "is unknown recall on distinct images.",
            "dim",
        )
    )


CEILING_HEADS = ("Task", "Protocol", "Known\nmAP", "Best\norder", "Prev", "Curr", "U-AP", "U-Recall", "Factor")


def ceiling_rows(ceilings: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row of text under :data:`CEILING_HEADS` per task and protocol."""
    rows: list[tuple[str, ...]] = []
    for entry in ceilings:
        known, previous, current, unknown_ap, unknown_recall = (percent(entry[name]) for name in CEILINGS)
        rows.append(
            (
                str(entry["task"]),
                str(entry["protocol"]),
                known,
                percent(entry["equal_scores"]["known_ap50"]),
                previous,
                current,
                unknown_ap,
                unknown_recall,
                decimal(entry["unknown_recall_factor"], 4),
            )
        )
    return rows


def _numbers(entries: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(f"{entry[kind]:,}" for kind in ("task", *kinds)) for entry in entries]


# -- images and boxes --------------------------------------------------------------------------------------------------


def print_check(result: Mapping[str, Any], console: Console) -> None:
    """Print a check: the sets, classes, tasks, distributions with bars, and findings with what to do.

    Args:
        result: of :func:`openworld.audit.images_and_boxes.check_data`.
        console: rich.
    """
    sets = result["sets"]
    rows = [
        (
            name,
            f"{facts['images']:,}",
            f"{facts['objects']:,}",
            f"{facts['objects'] / max(1, facts['images']):.1f}",
            f"{facts['without_objects']['images']:,}",
            f"{facts['unreadable']['images']:,}",
            _sizes(facts["image_sizes"]),
        )
        for name, facts in sets.items()
    ]
    heads = ("Set", "Images", "Objects", "Objects\nper image", "Without\nobjects", "Not\nreadable", "Pixels")
    console.print(narrow_table(heads, rows, "The sets", words=["Set"]))
    console.print()
    console.print(_class_table(result))
    if result["task_objects"]:
        console.print()
        columns = ("Task", *(f"{name}\n{kind}" for name in sets for kind in ("images", "objects")))
        lines = [
            (
                "none" if row["task"] is None else str(row["task"]),
                *(f"{row[name][kind]:,}" for name in sets for kind in ("images", "objects")),
            )
            for row in result["task_objects"]
        ]
        console.print(narrow_table(columns, lines, "Tasks: images that show their classes, and objects"))
    for key, title, head, edges in (
        ("box_sides", "Size of the boxes", "√area, px", SIDE_EDGES),
        ("box_aspects", "Shape of the boxes", "Width/height", ASPECT_EDGES),
    ):
        console.print()
        used = [number for number in range(len(edges) - 1) if any(facts[key][number] for facts in sets.values())]
        lines = [
            (_bin(low, high), *(_bar(facts[key][number], sum(facts[key])) for facts in sets.values()))
            for number, (low, high) in enumerate(pairwise(edges))
            if used and used[0] <= number <= used[-1]
        ]
        console.print(narrow_table((head, *(f"{name:<{_BAR + 8}}" for name in sets)), lines, title))
    console.print()
    print_findings(result["findings"], console, "Nothing was found that looks wrong.")


def _sizes(sizes: Mapping[str, Any]) -> str:
    if sizes["smallest"] is None:
        return ABSENT
    smallest, largest = ("x".join(map(str, sizes[name])) for name in ("smallest", "largest"))
    return smallest if sizes["distinct"] == 1 else f"{smallest} to\n{largest}"


def _class_table(result: Mapping[str, Any]) -> Any:
    sets, classes = list(result["sets"]), result["classes"]
    has_tasks = bool(result["tasks"])
    most = max((row[sets[0]] for row in classes), default=0)
    rows = [
        (
            row["class"],
            *((value_text(row["task"]),) if has_tasks else ()),
            *(f"{row[name]:,}" for name in sets),
            _blocks(row[sets[0]] / most if most else 0.0),
        )
        for row in classes[:CLASS_ROWS]
    ]
    heads = ("Class", *(("Task",) if has_tasks else ()), *sets, "")
    title = "Objects by class" + (f": the first {CLASS_ROWS} of {len(classes)}" if len(classes) > CLASS_ROWS else "")
    return narrow_table(heads, rows, title, words=["Class", ""])


def _bin(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g}"
    return f"from {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def _bar(number: int, total: int) -> str:
    """A bar as long as the share, and the share in percent; blank where there is nothing."""
    share = number / total if total else 0.0
    text = "" if not number else "<0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"
    return f"{_blocks(share):<{_BAR}} {text:>7}"


def _blocks(share: float) -> str:
    """A bar of eighths of a character, at most ``_BAR`` long; at least one eighth unless the share is 0."""
    whole, part = divmod(max(1, round(share * _BAR * 8)) if share else 0, 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[part].strip()
