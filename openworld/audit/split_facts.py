"""Facts of a split that change scores before any detector has run: repeated images, colliding ids, leaks, ceilings.

Everything here is a function of image ids and annotated objects. An image may be *listed* more than once; a *distinct*
image is one id. Counts are of distinct images unless they are called lines. All results are ready for JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openworld.columns import ImageId
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate
from openworld.metrics.protocol_inputs import as_number, read_list
from openworld.metrics.protocols import UNIQUE, Protocol
from openworld.metrics.scoring import score_detections

Flags = NDArray[np.bool_]

EXAMPLES = 5
"""Maximum number of examples of one fact."""

CEILINGS = ("known_ap50", "previous_ap50", "current_ap50", "unknown_ap50", "unknown_recall50")
"""Metrics of a perfect detector that :func:`ceiling` reports."""

RANKING_SEED = 0
"""Of the order in which the perfect detector ranks what it finds."""


def duplicate_listings(image_ids: Sequence[ImageId]) -> dict[str, Any]:
    """Count the images that a list names more than once.

    Args:
        image_ids: the lines of the list.

    Returns:
        ``lines``; ``images``, the distinct ones; ``duplicate_lines``, the difference; ``images_by_times`` {"2": images
        that are listed twice, …}; ``examples`` [{"id", "times"}, …], the most frequent first.
    """
    times = Counter(image_ids)
    repeated = [(name, count) for name, count in times.most_common() if count > 1]
    by_times = Counter(count for _, count in repeated)
    return {
        "lines": len(image_ids),
        "images": len(times),
        "duplicate_lines": len(image_ids) - len(times),
        "images_by_times": {str(count): by_times[count] for count in sorted(by_times)},
        "examples": [{"id": name, "times": count} for name, count in repeated[:EXAMPLES]],
    }


def id_collisions(image_ids: Iterable[ImageId]) -> dict[str, Any]:
    """Find different ids that an evaluator or a file system may take for one.

    Args:
        image_ids: an id may be listed more than once.

    Returns:
        ``same_number``: ids that ``int`` reads as the same number, as evaluators that key images by number do;
        ``same_text``: ids that differ only in case or in surrounding space. Each has the number of ``groups``, the
        number of ids in them (``images``), and ``examples``, lists of ids in the order of the input.
    """
    distinct = list(dict.fromkeys(image_ids))
    texts = [name for name in distinct if isinstance(name, str)]
    return {
        "same_number": _groups((name, as_number(name)) for name in distinct),
        "same_text": _groups((name, name.strip().casefold()) for name in texts),
    }


def _groups(keyed: Iterable[tuple[ImageId, Hashable]]) -> dict[str, Any]:
    """Group ids by key; a key of None equals nothing."""
    members: dict[Hashable, list[ImageId]] = {}
    for name, key in keyed:
        if key is not None:
            members.setdefault(key, []).append(name)
    groups = [names for names in members.values() if len(names) > 1]
    return {"groups": len(groups), "images": sum(map(len, groups)), "examples": groups[:EXAMPLES]}


def images_without_objects(ground_truth: GroundTruth) -> dict[str, Any]:
    """Count the images on which nothing is annotated, so that every detection is a false positive.

    Returns:
        ``images`` without any object; ``only_ignored``, images whose objects are all difficult or crowds; ``examples``
        of the former.
    """
    distinct = dict.fromkeys(ground_truth.image_ids)
    annotated = {ground_truth.image_ids[index] for index in np.unique(ground_truth.image_index)}
    asked_for = {ground_truth.image_ids[index] for index in np.unique(ground_truth.image_index[~ground_truth.ignore])}
    empty = [name for name in distinct if name not in annotated]
    return {"images": len(empty), "only_ignored": len(annotated - asked_for), "examples": empty[:EXAMPLES]}


def most_objects(ground_truth: GroundTruth) -> int:
    """The largest number of objects of one image, ignored ones left out."""
    return int(np.bincount(ground_truth.image_index[~ground_truth.ignore]).max(initial=0))


def _shared_ids(
    first: Iterable[ImageId], second: Iterable[ImageId]
) -> tuple[list[ImageId], list[tuple[ImageId, ImageId]]]:
    """Find the ids that two sets have in common.

    Returns:
        equal ids, and pairs of unequal ids (one of each set) that are one whole number.
    """
    names, others = dict.fromkeys(first), dict.fromkeys(second)
    by_number: dict[int, list[ImageId]] = {}
    for other in others:
        number = as_number(other)
        if number is not None:
            by_number.setdefault(number, []).append(other)
    equal = [name for name in names if name in others]
    alike = []
    for name in names:
        number = as_number(name)
        if number is not None:
            alike += [(name, other) for other in by_number.get(number, ()) if other != name]
    return equal, alike


def leaks(
    train_ids: Iterable[ImageId], val_ids: Iterable[ImageId], test_ids: Iterable[ImageId]
) -> dict[str, dict[str, Any]]:
    """Find the ids that are in more than one set.

    Returns:
        for ``train_val``, ``train_test`` and ``val_test``: ``images``, ids that are equal, with ``examples``;
        ``same_number``, pairs of unequal ids that are one whole number, with ``same_number_examples``.
    """
    sets = {"train": list(train_ids), "val": list(val_ids), "test": list(test_ids)}
    found = {}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        equal, alike = _shared_ids(sets[first], sets[second])
        found[f"{first}_{second}"] = {
            "images": len(equal),
            "examples": equal[:EXAMPLES],
            "same_number": len(alike),
            "same_number_examples": [list(pair) for pair in alike[:EXAMPLES]],
        }
    return found


def on_first_listing(ground_truth: GroundTruth) -> Flags:
    """(M,) bool: the object is on the first listing of its image, and not a copy."""
    first = read_list(ground_truth.image_ids, UNIQUE).first
    listed: Flags = first[ground_truth.image_index] == ground_truth.image_index
    return listed


def perfect_detections(ground_truth: GroundTruth, lowest_score: float | None = None) -> ScoredBoxes:
    """Detect every annotated object of each distinct image once, with its label and its box.

    Args:
        ground_truth: the objects.
        lowest_score: scores fall from 1 to this in even steps, in a fixed random order that does not depend on the list
            of images. None gives all a score of 1.

    Returns:
        detections by falling score. Those of ignored objects are last, so that a limit of detections spares the others.
    """
    once = np.random.default_rng(RANKING_SEED).permutation(np.flatnonzero(on_first_listing(ground_truth)))
    rows = once[np.argsort(ground_truth.ignore[once], kind="stable")]
    scores = np.ones(len(rows)) if lowest_score is None else np.linspace(1.0, lowest_score, len(rows))
    return ScoredBoxes(ground_truth.image_index[rows], ground_truth.boxes[rows], ground_truth.labels[rows], scores)


def ceiling(ground_truth: GroundTruth, num_previous: int, num_known: int, protocol: Protocol) -> dict[str, Any]:
    """Score a perfect detector under a protocol on this list of images.

    It finds every object and nothing else. How a protocol that repeats detections ranks the copies, which are false
    positives, depends on the scores. With different scores a copy follows its original at once, as it does for every
    real detector. With equal scores all copies come last, and average precision is the highest that any ranking gives.

    Args:
        ground_truth: labels 0 … num_known-1 known, num_known unknown; images as often as the list names them.
        num_previous, num_known: numbers of classes.
        protocol: the rules.

    Returns:
        ``protocol``; the fractions of :data:`CEILINGS` with different scores; ``equal_scores``, the same with score 1
        for all; ``unknown_objects``, which the protocol counts; ``findable_unknown_objects``, each once and without
        those of images whose ids collide, so that they are scored against another image's objects or not at all;
        ``unknown_recall_factor``, the first over the second: unknown recall under this protocol times this factor is
        the recall on distinct images, exactly, as found objects count once in both. None where nothing is to be found.

    Raises:
        DataError: as :func:`openworld.metrics.owod.evaluate`.
    """
    lowest = protocol.score_threshold or 0.0
    spread, equal = (
        evaluate(ground_truth, perfect_detections(ground_truth, score), num_previous, num_known, protocol)
        for score in (lowest, None)
    )
    images = read_list(ground_truth.image_ids, protocol)
    own = images.has_objects & images.has_detections
    rows = np.flatnonzero(own[ground_truth.image_index] & on_first_listing(ground_truth))
    alone = GroundTruth(
        ground_truth.image_ids,
        ground_truth.image_index[rows],
        ground_truth.boxes[rows],
        ground_truth.labels[rows],
        ground_truth.ignore[rows],
        ground_truth.crowd[rows],
    )
    nothing = ScoredBoxes.from_arrays([], [], [], [])
    findable = score_detections(alone, nothing, num_known, protocol).counts["unknown_objects"]
    counted = int(spread["counts"]["unknown_objects"])
    return {
        "protocol": protocol.name,
        **{name: spread[name] for name in CEILINGS},
        "equal_scores": {name: equal[name] for name in CEILINGS},
        "unknown_objects": counted,
        "findable_unknown_objects": findable,
        "unknown_recall_factor": counted / findable if findable else None,
    }


def class_presence(
    ground_truths: Sequence[GroundTruth], spaces: Sequence[LabelSpace], objects_by_class: Mapping[str, int]
) -> dict[str, Any]:
    """Count the objects of each task, and name the classes that have none.

    Args:
        ground_truths: the same images as each task sees them.
        spaces: the label space of each task.
        objects_by_class: objects of each annotated class that are not ignored, on distinct images.

    Returns:
        ``tasks`` [{"task", "known", "previous", "current", "unknown", "ignored"}, …], objects on distinct images,
        the ignored ones in no other count; ``absent`` [{"class", "task"}, …], classes of the schedule without objects;
        ``unnamed`` {class: objects}, classes that no task names, so that they stay unknown for ever.

    Raises:
        DataError: the numbers of ground truths and of label spaces differ.
    """
    if len(ground_truths) != len(spaces):
        raise DataError(
            f"{len(ground_truths)} ground truths and {len(spaces)} label spaces", remedy="give one of each per task"
        )
    tasks = []
    for truth, space in zip(ground_truths, spaces):
        once = on_first_listing(truth)
        objects = np.bincount(truth.labels[once & ~truth.ignore], minlength=space.num_known + 1)
        previous = len(space.previous)
        tasks.append(
            {
                "task": space.task,
                "known": int(objects[: space.num_known].sum()),
                "previous": int(objects[:previous].sum()),
                "current": int(objects[previous : space.num_known].sum()),
                "unknown": int(objects[space.unknown]),
                "ignored": int((once & truth.ignore).sum()),
            }
        )
    schedule = {name: number for space in spaces for number, names in enumerate(space.tasks, 1) for name in names}
    unnamed = {name: count for name, count in objects_by_class.items() if count and name not in schedule}
    return {
        "tasks": tasks,
        "absent": [
            {"class": name, "task": number} for name, number in schedule.items() if not objects_by_class.get(name, 0)
        ],
        "unnamed": dict(sorted(unnamed.items(), key=lambda entry: -entry[1])),
    }
