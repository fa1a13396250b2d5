"""The top of the page: three big numbers, one sentence that reads them, and warnings that come before both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openworld.report.run_folder import RunArtefacts, class_ap, mapping
from openworld.report.text import counted, listed, number, percent

_LEAST_TAUGHT = 0.005
"""A mean AP below this when taught is too small for a share of it to mean something."""


@dataclass(frozen=True)
class _Summary:
    """Numbers at the top of the page; a number that does not exist is None.

    Args:
        task: the last evaluated one.
        num_known: classes known after it, 0 where that is not recorded.
        known: mAP@50 of them.
        recall: U-Recall after ``recall_task``, the last task that has one.
        kept: mAP@50 of the previous classes.
        taught: mean of their AP@50 when each was taught.
    """

    task: int
    num_known: int
    known: float | None
    recall_task: int
    recall: float | None
    kept: float | None
    taught: float | None


def headline(run: RunArtefacts) -> dict[str, Any]:
    """Return the big numbers, each with its meaning, and the sentence."""
    if not run.scored:
        return {"figures": [], "sentence": "This run has no metrics.json yet: nothing has been evaluated."}
    summary = _summary(run)
    return {"figures": _figures(summary), "sentence": _sentence(summary)}


def warnings(run: RunArtefacts) -> list[str]:
    """Return what a reader must know before quoting a number, whatever the method."""
    told = [str(task) for task, metrics in run.scored if metrics.get("uses_unknown_labels")]
    if not told:
        return []
    return [
        f"The results of task{'s' if len(told) > 1 else ''} {listed(told)} use labels of unknown objects: annotated "
        "objects of classes not taught helped to decide what is unknown. Compare them only with results that do the "
        "same."
    ]


def _summary(run: RunArtefacts) -> _Summary:
    last, metrics = run.scored[-1]
    recalls = [(task, number(found.get("unknown_recall50"))) for task, found in run.scored]
    recall_task, recall = next(((task, value) for task, value in reversed(recalls) if value is not None), (last, None))
    return _Summary(
        task=last,
        num_known=len(run.known(last)),
        known=number(metrics.get("known_ap50")),
        recall_task=recall_task,
        recall=recall,
        kept=number(metrics.get("previous_ap50")),
        taught=_taught(run),
    )


def _taught(run: RunArtefacts) -> float | None:
    """Compute the mean AP@50 of the classes of earlier tasks when each was taught.

    None unless every class that is scored now was scored then, so that kept over taught compares the same classes.
    """
    last, metrics = run.scored[-1]
    by_task = dict(run.scored)
    values = [
        class_ap(mapping(by_task.get(task)), name)
        for task, names in enumerate(run.schedule[: last - 1], start=1)
        for name in names
        if class_ap(metrics, name) is not None
    ]
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known and len(known) == len(values) else None
    return mean if mean is not None and mean >= _LEAST_TAUGHT else None


def _figures(summary: _Summary) -> list[dict[str, str]]:
    after = f"after task {summary.task}"
    known_note = f"{counted(summary.num_known, 'class', 'classes')} known {after}" if summary.num_known else after
    recall_note = "no evaluated task has objects that were not taught"
    if summary.recall is not None:
        recall_note = f"of the objects never taught, after task {summary.recall_task}"
    kept_note = "no class is old yet" if summary.kept is None else after
    if summary.kept is not None and summary.taught is not None:
        share = percent(summary.kept / summary.taught, 0)
        kept_note = f"{share}\u00a0% of the {percent(summary.taught)} that they had when taught"
    return [
        {"kind": "known", "name": "Known mAP@50", "value": percent(summary.known), "note": known_note},
        {"kind": "unknown", "name": "U-Recall", "value": percent(summary.recall), "note": recall_note},
        {"kind": "previous", "name": "Kept mAP of old classes", "value": percent(summary.kept), "note": kept_note},
    ]


def _sentence(summary: _Summary) -> str:
    parts: list[str] = []
    if summary.known is not None:
        value = percent(summary.known)
        classes = counted(summary.num_known, "class", "classes")
        parts.append(
            f"names the {classes} it was taught at {value} mAP@50" if summary.num_known else f"reaches {value} mAP@50"
        )
    if summary.recall is not None:
        when = f" (after task {summary.recall_task}, the last one with such objects)"
        parts.append(
            f"marks {percent(summary.recall, 0)} of 100 objects that nobody taught it as unknown"
            + (when if summary.recall_task != summary.task else "")
        )
    if summary.kept is not None and summary.taught is not None:
        share = f"{percent(summary.kept / summary.taught, 0)}\u00a0%"
        parts.append(
            f"keeps {share} of what its old classes scored when they were taught"
            if summary.kept < summary.taught
            else f"has forgotten nothing on average (its old classes stand at {share} of what they scored when taught)"
        )
    what = listed(parts) if parts else "has no score: its metrics are all empty"
    return f"After {counted(summary.task, 'task')} the detector {what}."
