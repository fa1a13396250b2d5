"""Audit a split before anything is trained on it: what is wrong with it, what that means, and what to do.

The audit reads annotated data sets under a schedule of tasks and compares them: repeated images, ids that collide,
images in two sets, files of equal content, classes without objects, and the scores of a perfect detector. The single
facts are in :mod:`openworld.audit.split_facts`, what is said of them in :mod:`openworld.audit.split_findings`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openworld.audit.duplicates import identical_files
from openworld.audit.split_facts import (
    EXAMPLES,
    ceiling,
    class_presence,
    duplicate_listings,
    id_collisions,
    images_without_objects,
    leaks,
    most_objects,
)
from openworld.audit.split_findings import split_findings
from openworld.data.splits import training_view
from openworld.labels import LabelSpace
from openworld.metrics.ground_truth import GroundTruth
from openworld.metrics.protocols import PROTOCOLS, Protocol
from openworld.records import Dataset


def audit_split(
    test: Dataset,
    tasks: Sequence[Sequence[str]],
    *,
    train: Dataset | None = None,
    val: Dataset | None = None,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
    hash_files: bool = True,
) -> dict[str, Any]:
    """Audit a split under a schedule.

    Args:
        test: images that detectors are scored on.
        tasks: class names that each task introduces.
        train: images for training.
        val: images for energy fitting.
        protocols: the rules to compute ceilings under.
        hash_files: compare image files by content (SHA-256; only files of equal size are read). Missing files are left
            out and counted.

    Returns:
        ready for JSON: ``tasks``; ``sets`` by name, each with ``objects``, ``listings``, ``collisions``,
        ``without_objects``, ``most_objects`` (of one image), ``repairs``, ``repair_examples`` and ``searched`` (what
        the reader says of images that do not exist); ``leaks``; ``files`` or None; ``classes``; ``training``, a list by
        task, or None; ``ceilings``, a list by task and protocol;
        ``findings`` [{"level", "set", "finding", "remedy"}, …], the gravest level first.

    Raises:
        ConfigError: a schedule that cannot be used.
        DataError: a data set contradicts itself.
    """
    spaces = [LabelSpace.of(tasks, number) for number in range(1, max(len(tasks), 1) + 1)]
    sets = {name: dataset for name, dataset in (("train", train), ("val", val), ("test", test)) if dataset is not None}
    truths = [GroundTruth.from_dataset(test, space) for space in spaces]
    lines = {
        name: truths[0] if dataset is test else GroundTruth.from_dataset(dataset, spaces[0])
        for name, dataset in sets.items()
    }
    result: dict[str, Any] = {
        "tasks": [list(names) for names in tasks],
        "sets": {
            name: {
                "objects": dataset.num_annotations,
                "listings": duplicate_listings(lines[name].image_ids),
                "collisions": id_collisions(lines[name].image_ids),
                "without_objects": images_without_objects(lines[name]),
                "most_objects": most_objects(lines[name]),
                "repairs": dict(sorted(dataset.repairs.counts.items())),
                "repair_examples": dataset.repairs.examples,
                "searched": dataset.searched,
            }
            for name, dataset in sets.items()
        },
        "leaks": leaks(*(lines[name].image_ids if name in lines else () for name in ("train", "val", "test"))),
        "files": identical_files(sets) if hash_files else None,
        "classes": class_presence(truths, spaces, _objects_by_class(test)),
        "training": None if train is None else [_training(train, space) for space in spaces],
        "ceilings": [
            {"task": space.task, **ceiling(truth, len(space.previous), space.num_known, protocol)}
            for truth, space in zip(truths, spaces, strict=True)
            for protocol in protocols.values()
        ],
    }
    result["findings"] = split_findings(result, protocols)
    return result


def _objects_by_class(dataset: Dataset) -> dict[str, int]:
    """Objects of each category that are not ignored."""
    counts = np.bincount(dataset.box_categories[~dataset.ignore], minlength=len(dataset.categories))
    return dict(zip(dataset.categories, counts.tolist(), strict=True))


def _training(train: Dataset, space: LabelSpace) -> dict[str, Any]:
    """What a task's training images show, and which of these objects are hidden from the task.

    Objects of previous classes are told by replay only, those of later classes later, those of classes that no task
    names never. Crowds are never told.
    """
    scheduled = {name for names in space.tasks for name in names}
    taught: Counter[str] = Counter()
    hidden: Counter[str] = Counter()
    crowds = images_with_hidden = images_with_later = 0
    examples: list[int | str] = []
    view = training_view(train, space)
    for sample in view:
        taught.update(train.categories[position] for position in sample.record.categories.tolist())
        record = train.find(sample.record.image_id)
        single = (~record.crowd).tolist()
        crowds += single.count(False)
        names = [
            train.categories[position]
            for position, alone in zip(record.categories.tolist(), single, strict=True)
            if alone and train.categories[position] not in space.current
        ]
        hidden.update(names)
        images_with_hidden += bool(names)
        if any(name not in space.previous for name in names):
            images_with_later += 1
            examples += [record.image_id] if len(examples) < EXAMPLES else []
    return {
        "task": space.task,
        "images": len(view),
        "taught_objects": taught.total(),
        "hidden_previous": sum(hidden[name] for name in space.previous),
        "hidden_later": sum(count for name, count in hidden.items() if name in scheduled - set(space.known)),
        "hidden_unnamed": sum(count for name, count in hidden.items() if name not in scheduled),
        "hidden_crowds": crowds,
        "images_with_hidden_objects": images_with_hidden,
        "images_with_unknown_objects": images_with_later,
        "examples": examples,
        "hidden_by_class": dict(hidden.most_common()),
        "absent": [name for name in space.current if not taught[name]],
    }
