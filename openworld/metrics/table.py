"""The metrics of all tables: one entry per metric, which every table of the project reads.

The terminal, the Markdown and LaTeX tables, the report, the ablation and detectron2's log show the entries of
:data:`METRICS` in its order. To add a metric, return it from :func:`openworld.metrics.owod.evaluate` and add one entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Metric:
    """Presentation of one number of a result.

    Args:
        label: head of its column.
        about: what it measures; neighbours of one kind share a group of columns, of which the first is the main one.
        kind: ``percent``, a fraction that is shown times 100; ``ratio``, a fraction that is shown as it is; ``count``.
        better: ``higher`` or ``lower``.
        meaning: a sentence for the reader of a report.
        headline: every table shows it. Otherwise only the report and the second table of ``openworld evaluate`` do.
    """

    label: str
    about: Literal["known objects", "unknown objects", "confusion"]
    kind: Literal["percent", "ratio", "count"]
    better: Literal["higher", "lower"]
    meaning: str
    headline: bool = True


METRICS: dict[str, Metric] = {
    "known_ap50": Metric(
        label="Known mAP@50",
        about="known objects",
        kind="percent",
        better="higher",
        meaning="Mean over all known classes of the average precision at IoU 0.5.",
    ),
    "previous_ap50": Metric(
        label="Prev mAP@50",
        about="known objects",
        kind="percent",
        better="higher",
        meaning="The same mean over the classes that earlier tasks taught.",
    ),
    "current_ap50": Metric(
        label="Curr mAP@50",
        about="known objects",
        kind="percent",
        better="higher",
        meaning="The same mean over the classes that this task taught.",
    ),
    "coco.ap": Metric(
        label="COCO AP",
        about="known objects",
        kind="percent",
        better="higher",
        meaning="COCO's AP of the known classes: the mean over IoU 0.50 to 0.95, computed by pycocotools.",
        headline=False,
    ),
    "unknown_recall50": Metric(
        label="U-Recall",
        about="unknown objects",
        kind="percent",
        better="higher",
        meaning="Share of the objects of classes not taught yet that a detection called unknown covers.",
    ),
    "unknown_ap50": Metric(
        label="U-AP",
        about="unknown objects",
        kind="percent",
        better="higher",
        meaning="Average precision of the label unknown at IoU 0.5.",
    ),
    "unknown_precision50": Metric(
        label="U-Prec",
        about="unknown objects",
        kind="percent",
        better="higher",
        meaning="Share of the detections called unknown that find such an object.",
    ),
    "unknown_f1_50": Metric(
        label="U-F1",
        about="unknown objects",
        kind="percent",
        better="higher",
        meaning="Harmonic mean of U-Recall and U-Prec.",
        headline=False,
    ),
    "wi": Metric(
        label="WI",
        about="confusion",
        kind="ratio",
        better="lower",
        meaning="Wilderness impact: how much the precision on known classes falls because unknown objects are in the "
        "images, at the recall nearest to 0.8.",
    ),
    "a_ose": Metric(
        label="A-OSE",
        about="confusion",
        kind="count",
        better="lower",
        meaning="Absolute open-set error: number of detections that give an unknown object the name of a known class. "
        "It grows with the test set, and one object can count many times.",
    ),
    "a_ose_one_to_one": Metric(
        label="A-OSE 1:1",
        about="confusion",
        kind="count",
        better="lower",
        meaning="The unknown objects behind A-OSE, each counted once however many detections name it.",
        headline=False,
    ),
}
"""Path in a result, and how the number found there is shown."""


def headline_metrics() -> dict[str, Metric]:
    """Return the entries of :data:`METRICS` that every table shows."""
    return {name: metric for name, metric in METRICS.items() if metric.headline}


def metric_value(result: Mapping[str, Any], name: str) -> Any:
    """Return the value of a metric in a result.

    Args:
        result: of :func:`openworld.metrics.owod.evaluate`, or the content of a metrics.json.
        name: key of the result; dots lead into nested mappings, as in ``coco.ap`` or ``wi_at_recall.0.8``.

    Returns:
        the value; None if the result does not have it.
    """
    if name in result:
        return result[name]
    head, _, rest = name.partition(".")
    inner = result.get(head)
    return metric_value(inner, rest) if rest and isinstance(inner, Mapping) else None
