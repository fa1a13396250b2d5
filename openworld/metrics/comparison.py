"""Comparison of variants over seeds: means with their standard errors, differences paired by seed, and what each
variant learned and kept.

*Learned* is the mean AP of the classes that a task taught over the mean AP of the same classes in the detector that
learned all classes at once with the same seed. *Kept* is the mean AP of the classes of earlier tasks over their mean AP
after the task that taught them (:mod:`openworld.metrics.forgetting`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from openworld.metrics.average_precision import mean_present
from openworld.metrics.forgetting import forgetting
from openworld.metrics.table import Metric, headline_metrics, metric_value

ACROSS_TASKS: dict[str, Metric] = {
    "learned": Metric(
        label="Learned",
        about="known objects",
        kind="percent",
        better="higher",
        meaning="Mean AP of the classes that the task taught, over that of the same classes in the detector that "
        "learned all classes at once with the same seed.",
    ),
    "kept": Metric(
        label="Kept",
        about="known objects",
        kind="percent",
        better="higher",
        meaning="Mean AP of the classes of earlier tasks, over their mean AP after the task that taught them.",
    ),
}
"""Metrics of one run that need the results of several tasks or of another run."""

Result = Mapping[str, Any]


def compared_metrics() -> dict[str, Metric]:
    """Return the metrics of a comparison: the headline metrics, and :data:`ACROSS_TASKS` behind those of known
    objects."""
    shown = headline_metrics()
    known = {name: metric for name, metric in shown.items() if metric.about == "known objects"}
    return {**known, **ACROSS_TASKS, **shown}


def compare(
    runs: Mapping[str, Mapping[int, Sequence[Result]]],
    tasks: Sequence[Sequence[str]],
    at_once: Collection[str] = (),
) -> dict[str, Any]:
    """Compare variants after each task, over seeds.

    Args:
        runs: by variant and seed, the results of :func:`openworld.metrics.owod.evaluate` with ``task``, in the order
            of the tasks. The first variant is the one from which differences are measured.
        tasks: class names by task.
        at_once: variants whose one task taught the classes of all tasks. The first of them is the one that ``learned``
            refers to.

    Returns:
        ``{variant: {task: {metric: {"mean", "standard_error", "values", "difference"}}}}``: values by seed, None where
        a metric has none; the standard error is that of the mean (sample deviation over √n, None with fewer than two
        values); ``difference`` has ``mean`` and ``standard_error`` of the differences to the first variant, of the
        seeds that both have. The first variant has none.
    """
    reference = next((runs[name] for name in runs if name in at_once), {})
    complete: dict[str, dict[int, list[Result]]] = {}
    for name, seeds in runs.items():
        complete[name] = {
            seed: _split_by_task(results[0], tasks)
            if name in at_once
            else _with_progress(results, tasks, reference[seed][0] if seed in reference else None)
            for seed, results in seeds.items()
        }
    first = next(iter(complete.values()), {})
    summary: dict[str, Any] = {}
    for name, by_seed in complete.items():
        summary[name] = {}
        for position in range(max(map(len, by_seed.values()), default=0)):
            summary[name][str(position + 1)] = {
                key: _over_seeds(
                    _by_seed(by_seed, position, key), None if by_seed is first else _by_seed(first, position, key)
                )
                for key in compared_metrics()
            }
    return summary


def _by_seed(runs: Mapping[int, Sequence[Result]], position: int, key: str) -> dict[int, float | None]:
    return {
        seed: metric_value(results[position], key) if position < len(results) else None
        for seed, results in runs.items()
    }


def _over_seeds(values: Mapping[int, float | None], first: Mapping[int, float | None] | None) -> dict[str, Any]:
    """Summarise the values of one metric by seed."""
    summary = {**mean_and_error([*values.values()]), "values": [*values.values()]}
    if first is None:
        return summary
    pairs = [(value, first.get(seed)) for seed, value in values.items()]
    apart = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    return {**summary, "difference": mean_and_error(apart)}


def mean_and_error(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return ``mean`` and ``standard_error`` of the values that are not None."""
    present = [float(value) for value in values if value is not None]
    return {
        "mean": statistics.fmean(present) if present else None,
        "standard_error": statistics.stdev(present) / math.sqrt(len(present)) if len(present) > 1 else None,
    }


def _split_by_task(result: Result, tasks: Sequence[Sequence[str]]) -> list[Result]:
    """Return the result of a detector that learned all classes at once, as it is to be read after each task.

    The AP of a class does not depend on what else is known, so that its mean over the classes of some tasks compares
    with that of a detector that knows these alone. All other metrics do depend on it: they are there after the last
    task, where both know the same.
    """
    last = len(tasks)
    split: list[Result] = []
    for task in range(1, last + 1):
        groups = {
            "known_ap50": [name for names in tasks[:task] for name in names],
            "previous_ap50": [name for names in tasks[: task - 1] for name in names],
            "current_ap50": tasks[task - 1],
        }
        means = {key: mean_present([_ap(result, name) for name in names]) for key, names in groups.items()}
        split.append({**(result if task == last else {}), **means, "task": task})
    return split


def _with_progress(results: Sequence[Result], tasks: Sequence[Sequence[str]], reference: Result | None) -> list[Result]:
    """Return the results of a run with ``learned`` and ``kept``, where there is something to measure them by."""
    complete: list[Result] = []
    for result, entry in zip(results, forgetting(results), strict=True):
        learned = None if reference is None else _learned(result, reference, tasks[int(result["task"]) - 1])
        complete.append({**result, "learned": learned, "kept": entry["kept"]})
    return complete


def _learned(result: Result, reference: Result, classes: Sequence[str]) -> float | None:
    """Return the AP of some classes over their AP in a reference; None without classes that both scored."""
    pairs = [(_ap(result, name), _ap(reference, name)) for name in classes]
    both = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
    whole = sum(theirs for _, theirs in both)
    return sum(mine for mine, _ in both) / whole if whole else None


def _ap(result: Result, name: str) -> float | None:
    """AP of a class at IoU 0.5, None if it was not scored."""
    found: float | None = result["classes"].get(name, {}).get("ap50")
    return found
