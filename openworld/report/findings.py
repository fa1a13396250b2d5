"""Which detections are worth drawing, which of them are right, and on which images they tell the most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from openworld.labels import UNKNOWN_NAME
from openworld.report.run_folder import mapping, sequence
from openworld.report.text import number

Evidence = tuple[str, str]
"""A finding on some image: ("known" | "unknown" | "named", class name)."""

_FOR_THRESHOLD = 500
"""Number of test images that the smallest score of a drawn unknown detection is taken from."""
_WORTH = {"known": 1.0, "unknown": 2.0, "named": 4.0}
"""Weight of a right name, of an unknown object found, and of an object found as unknown and later named."""


@dataclass(frozen=True)
class Objects:
    """Annotated objects of one image: ``boxes`` (N, 4) float64 x1 y1 x2 y2 and N class names."""

    boxes: npt.NDArray[np.float64]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """Detections of one image to draw: ``boxes`` (N, 4) float64 x1 y1 x2 y2, sorted by falling score."""

    boxes: npt.NDArray[np.float64]
    names: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def is_unknown(self) -> list[bool]:
        return [name == UNKNOWN_NAME for name in self.names]

    def rows(self, chosen: Sequence[int]) -> Shown:
        """Return some of the detections, in the order given."""
        boxes = self.boxes[np.array(chosen, dtype=np.int64)]
        return Shown(boxes, tuple(self.names[row] for row in chosen), tuple(self.scores[row] for row in chosen))


def shown_detections(
    entry: Mapping[str, Any], known_threshold: float, unknowns: int, unknown_threshold: float = 0.0
) -> Shown:
    """Choose the detections of one image that are worth drawing.

    An unknown detection that overlaps a better known one by half is left out: the object has a name.

    Args:
        entry: one element of ``images`` in predictions.json.
        known_threshold: smallest score of a known detection.
        unknowns: maximum number of unknown detections, best first.
        unknown_threshold: smallest score of an unknown detection.
    """
    found = _detections(entry)
    scores, unknown = np.array(found.scores), np.array(found.is_unknown, dtype=np.bool_)
    known = ~unknown & (scores >= known_threshold)
    unknown &= (scores >= unknown_threshold) & ~on_better(found.boxes, known)
    unknown &= np.cumsum(unknown) <= unknowns
    return found.rows(np.flatnonzero(known | unknown).tolist())


def on_better(boxes: npt.NDArray[np.float64], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which boxes overlap a known one with a higher score by at least half.

    Args:
        boxes: (N, 4) x1 y1 x2 y2 in pixels, by falling score.
        known: (N,) which of them are drawn under the name of a class.

    Returns:
        (N,) bool.
    """
    return np.asarray((np.tril(_iou(boxes, boxes) >= 0.5, k=-1) & known[None]).any(axis=1))


def _detections(entry: Mapping[str, Any]) -> Shown:
    """Read the detections of one image that have a box and a score, by falling score."""
    usable = []
    for item in map(mapping, sequence(entry.get("detections"))):
        box, score = [number(value) for value in sequence(item.get("bbox"))], number(item.get("score"))
        if len(box) == 4 and None not in box and score is not None:
            usable.append((score, str(item.get("label")), box))
    usable.sort(key=lambda item: -item[0])
    boxes = np.array([box for _, _, box in usable], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Shown(boxes, tuple(name for _, name, _ in usable), tuple(score for score, _, _ in usable))


def best_unknown_threshold(
    entries: Mapping[str, Mapping[str, Any]], objects: Mapping[str, Objects], known: frozenset[str]
) -> float:
    """Return the score from which on unknown detections agree best with the objects that the task does not know.

    It is the score with the largest F1 at IoU 0.5 (van Rijsbergen, 1979) over the first images; 0 where no unknown
    detection is right.

    Args:
        entries: elements of ``images`` in predictions.json, by id.
        objects: annotated objects, by id.
        known: classes of the task.
    """
    scores, right, wanted = list[float](), list[bool](), 0
    for key in sorted(entries.keys() & objects.keys(), key=natural_order)[:_FOR_THRESHOLD]:
        found, truth = _detections(entries[key]), objects[key]
        found = found.rows([row for row, name in enumerate(found.names) if name == UNKNOWN_NAME])
        wanted += sum(name not in known for name in truth.names)
        scores += found.scores
        right += _is_right(found, truth, known)
    order = np.argsort(-np.array(scores), kind="stable")
    hits = np.cumsum(np.array(right, dtype=np.float64)[order]) if scores else np.zeros(0)
    if not len(hits) or not hits[-1]:
        return 0.0
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + wanted)
    return float(np.array(scores)[order][int(f1.argmax())])


def image_evidence(
    shown: Mapping[int, Shown], objects: Objects | None, known: Mapping[int, frozenset[str]]
) -> Counter[Evidence]:
    """Count the findings on one image, over all tasks.

    With annotations only correct detections count. They are matched greedily by falling score at IoU >= 0.5: known ones
    to objects of their class, unknown ones to objects of classes that the task does not know. Without annotations every
    drawn detection counts.
    """
    counted: Counter[Evidence] = Counter()
    found_as_unknown: set[int] = set()
    for task in sorted(shown):
        detections = shown[task]
        if objects is None:
            counted.update(("unknown" if name == UNKNOWN_NAME else "known", name) for name in detections.names)
            continue
        for position, name in _matches(detections, objects, known[task]):
            true_name = objects.names[position]
            if name == UNKNOWN_NAME:
                counted["unknown", true_name] += 1
                found_as_unknown.add(position)
            else:
                counted["known", true_name] += 1
                if position in found_as_unknown:
                    counted["named", true_name] += 1
    return counted


def choose(evidence: Mapping[str, Counter[Evidence]], count: int) -> list[str]:
    """Choose ``count`` images, the most telling first; findings of earlier images count less and less."""
    seen: Counter[Evidence] = Counter()
    left = sorted(evidence, key=natural_order)
    chosen: list[str] = []

    def gain(key: str) -> float:
        return sum(_WORTH[item[0]] * min(times, 2) / (1 + seen[item]) for item, times in evidence[key].items())

    while left and len(chosen) < count:
        if len(chosen) >= 64:
            return chosen + left[: count - len(chosen)]
        best = max(left, key=gain)
        left.remove(best)
        chosen.append(best)
        seen.update(dict.fromkeys(evidence[best], 1))
    return chosen


def _matches(detections: Shown, objects: Objects, known: frozenset[str]) -> list[tuple[int, str]]:
    """Return (position of the object, label of the detection) of every correct detection."""
    each = zip(_matched(detections, objects, known), detections.names, strict=True)
    return [(position, name) for position, name in each if position is not None]


def _is_right(detections: Shown, objects: Objects, known: frozenset[str]) -> list[bool]:
    return [position is not None for position in _matched(detections, objects, known)]


def _matched(detections: Shown, objects: Objects, known: frozenset[str]) -> list[int | None]:
    """Return the position of the object of every detection, None for a wrong one."""
    overlap = _iou(detections.boxes, objects.boxes)
    free = [True] * len(objects.names)
    right: list[int | None] = []
    for row, name in enumerate(detections.names):
        fits = [
            position
            for position, true_name in enumerate(objects.names)
            if free[position]
            and overlap[row, position] >= 0.5
            and (true_name not in known if name == UNKNOWN_NAME else true_name == name)
        ]
        best = max(fits, key=lambda position: float(overlap[row, position])) if fits else None
        if best is not None:
            free[best] = False
        right.append(best)
    return right


def _iou(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the (N, M) intersection over union of (N, 4) and (M, 4) boxes x1 y1 x2 y2."""
    corner = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(one[:, None, :2], other[None, :, :2])
    shared = np.prod(np.clip(corner, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def natural_order(key: str) -> tuple[int, str]:
    """Return a sort key with shorter names first, so that "9" comes before "10"."""
    return len(key), key
