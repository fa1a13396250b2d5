"""Results on the terminal: a table of the headline metrics, and a second one of the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openworld.metrics.forgetting import forgetting
from openworld.metrics.owod import DETECTION_BUDGETS, WI_RECALL
from openworld.metrics.table import METRICS, metric_value
from openworld.report.tables import USES_UNKNOWN_LABELS, protocols_of, result_table, uses_unknown_labels
from openworld.report.text import metric_text, percent
from openworld.runtime.console import as_text, narrow_table

if TYPE_CHECKING:
    from rich.console import Console


def print_table(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the headline metrics, one row per result.

    The title names the protocol, or the rules that several protocols share; rows of several protocols name theirs. It
    also says whether labels of unknown objects were used.

    Args:
        results: of :func:`openworld.predictions.score.evaluate_protocols`.
        console: rich.
    """
    protocols = protocols_of(results)
    shared = _shared_rules(protocols)
    titles = [f"Protocol: {protocols[0]}"] if len(protocols) == 1 else [f"All with{shared}"] if shared else []
    if uses_unknown_labels(results):
        titles.append(USES_UNKNOWN_LABELS)
    heads, rows = result_table(results)
    cells = [tuple(cell.removesuffix(shared) for cell in row) for row in rows]
    console.print(narrow_table(_two_lines(heads), cells, "\n".join(titles) or None, words=["Protocol"]))


def print_details(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print the other metrics, and the cases in which WI rests on classes that do not reach its recall.

    Args:
        results: of :func:`openworld.predictions.score.evaluate_protocols`, several tasks and protocols in any order.
        console: rich.
    """
    protocols = protocols_of(results)
    several = len(protocols) > 1
    shared = _shared_rules(protocols)
    metrics = {name: metric for name, metric in METRICS.items() if not metric.headline}
    lost = _forgetting_by_result(results, protocols)
    heads = (
        *(("Task", "Protocol") if several else ("Task",)),
        *_two_lines([metric.label for metric in metrics.values()]),
        "U-Recall\n@" + " / ".join(map(str, DETECTION_BUDGETS)),
        "U hits unknown\n/known/nothing",
        "Forgot",
    )
    rows = []
    for result in results:
        protocol = str(result["protocol"])
        rows.append(
            (
                str(result["task"]),
                *([protocol.removesuffix(shared)] if several else []),
                *(metric_text(metric, metric_value(result, name)) for name, metric in metrics.items()),
                " / ".join(percent(result["unknown_recall50_at"][str(budget)]) for budget in DETECTION_BUDGETS),
                "/".join(str(result["unknown_hits"][what]) for what in ("unknown", "known", "background")),
                percent(lost[protocol, result["task"]]),
            )
        )
    console.print(narrow_table(heads, rows, words=["Protocol"]))
    for line in _classes_below_recall(results, shared, several=several):
        console.print(as_text(line, console))


def _forgetting_by_result(
    results: Sequence[Mapping[str, Any]], protocols: Sequence[str]
) -> dict[tuple[str, Any], float | None]:
    """Compute the mean forgetting by protocol and task."""
    lost: dict[tuple[str, Any], float | None] = {}
    for protocol in protocols:
        under = sorted((each for each in results if each["protocol"] == protocol), key=lambda each: int(each["task"]))
        lost.update({(protocol, entry["task"]): entry["forgetting"] for entry in forgetting(under)})
    return lost


def _classes_below_recall(results: Sequence[Mapping[str, Any]], shared: str, *, several: bool) -> list[str]:
    """Write one sentence per task with classes that never reach the recall of WI; equal protocols share one."""
    protocols: dict[tuple[Any, int, int], list[str]] = {}
    for result in results:
        below = len(result["wi_classes_below_recall"][f"{WI_RECALL:.1f}"])
        with_objects = sum(1 for summary in result["classes"].values() if summary["ground_truth"])
        if result["wi"] is not None and below:
            under = protocols.setdefault((result["task"], below, with_objects), [])
            under.append(str(result["protocol"]).removesuffix(shared))
    lines = []
    for (task, below, of), names in protocols.items():
        which = f" ({', '.join(names)})" if several else ""
        lines.append(
            f"Task {task}{which}: {below} of {of} known classes never {'reaches' if below == 1 else 'reach'} "
            f"recall {WI_RECALL}; each enters WI with its last detection."
        )
    return lines


def _shared_rules(protocols: Sequence[str]) -> str:
    """Return the suffix " (rule=value, …)" shared by all protocol names, or "" if they differ."""
    ends = {name[name.find(" (") :] if " (" in name else "" for name in protocols}
    return ends.pop() if len(protocols) > 1 and len(ends) == 1 else ""


def _two_lines(heads: Sequence[str]) -> list[str]:
    """Break heads at their first space, so that columns stay narrow."""
    return [head.replace(" ", "\n", 1) for head in heads]
