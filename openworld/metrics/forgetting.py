"""Forgetting from task to task, measured on the results of all tasks.

Forgetting of each class is its best AP after an earlier task minus its AP now (Chaudhry et al., ECCV 2018, section 3,
with AP in place of accuracy); it is negative where later tasks helped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openworld.errors import DataError


def forgetting(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measure forgetting after each task.

    Args:
        results: of :func:`openworld.metrics.owod.evaluate` with ``task``, in the order of the tasks, of one protocol.

    Returns:
        per task: ``task``; ``forgetting``, the mean over the classes that an earlier one of these tasks scored;
        ``kept``, their mean AP now over their mean AP when they were first scored; ``classes`` by name with
        ``taught_ap50`` (first), ``best_ap50`` (before now), ``ap50`` (now) and ``forgetting``. Classes without an AP
        now or before are left out. Without classes ``forgetting`` and ``kept`` are None; ``kept`` is also None if the
        first mean is 0.

    Raises:
        DataError: the results are of several protocols, or a task appears twice.
    """
    protocols = list(dict.fromkeys(str(result["protocol"]) for result in results))
    if len(protocols) > 1:
        raise DataError(
            f"results under {', '.join(protocols)} cannot be compared", remedy="give the results of one protocol"
        )
    taught: dict[str, float] = {}
    best: dict[str, float] = {}
    seen: set[int] = set()
    told = []
    for result in results:
        if result["task"] in seen:
            raise DataError(f"task {result['task']} comes twice", remedy="give one result per task")
        seen.add(result["task"])
        now = {name: summary["ap50"] for name, summary in result["classes"].items() if summary["ap50"] is not None}
        classes = {
            name: {
                "taught_ap50": taught[name],
                "best_ap50": best[name],
                "ap50": value,
                "forgetting": best[name] - value,
            }
            for name, value in now.items()
            if name in best
        }
        before = sum(entry["taught_ap50"] for entry in classes.values())
        told.append(
            {
                "task": result["task"],
                "forgetting": sum(entry["forgetting"] for entry in classes.values()) / len(classes)
                if classes
                else None,
                "kept": sum(entry["ap50"] for entry in classes.values()) / before if before else None,
                "classes": classes,
            }
        )
        for name, value in now.items():
            taught.setdefault(name, value)
            best[name] = max(value, best.get(name, value))
    return told
