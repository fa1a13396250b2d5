"""Which images are kept for replay (ORE, section 4.4): a balanced set with enough instances of every class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.ore.options import ExemplarOptions

ImageId = int | str


def select_balanced(
    images: Iterable[tuple[ImageId, Sequence[int]]], num_known: int, *, per_class: int, seed: int
) -> tuple[list[ImageId], list[int]]:
    """Choose images until every class has ``per_class`` instances, or all that there are.

    The rarest class chooses first, among the images in an order that the seed gives. All instances of a chosen image
    count, so a common class may end with more.

    Args:
        images: (image id, head rows of its annotations) of every image to choose from, in any order; rows from
            ``num_known`` on (unknown) do not count.
        num_known: known classes.
        per_class: fewest instances of each class.
        seed: of the order of the images; the result depends on it and on the set of images only.

    Returns:
        The chosen ids in sorted order (numbers before names), and the instances of each class in them.

    Raises:
        DataError: an image id comes twice.
    """
    counts: dict[ImageId, Counter[int]] = {}
    for image_id, rows in images:
        if image_id in counts:
            raise DataError(f"image id {image_id!r} comes twice", remedy="give every image once")
        counts[image_id] = Counter(int(row) for row in rows if 0 <= row < num_known)
    ordered = sorted(counts, key=_order)
    shuffled = [ordered[position] for position in np.random.default_rng(seed).permutation(len(ordered))]

    available: Counter[int] = Counter()
    for of_image in counts.values():
        available.update(of_image)
    chosen: set[ImageId] = set()
    kept: Counter[int] = Counter()
    for row in sorted(range(num_known), key=lambda row: (available[row], row)):
        for image_id in shuffled:
            if kept[row] >= per_class:
                break
            if counts[image_id][row] and image_id not in chosen:
                chosen.add(image_id)
                kept.update(counts[image_id])
    return sorted(chosen, key=_order), [kept[row] for row in range(num_known)]


def exemplar_record(
    images: Iterable[tuple[ImageId, Sequence[int]]], label_space: LabelSpace, options: ExemplarOptions, seed: int
) -> dict[str, Any]:
    """The exemplars of one task as they are written to exemplars.json.

    Args:
        images: as in :func:`select_balanced`; the images and annotations that the task was trained with.
        label_space: of the task.
        options: how many, and how they are chosen.
        seed: of the choice.

    Returns:
        task, per_class, strategy, seed, images (ids), instances (class name -> count, every known class).
    """
    chosen, kept = select_balanced(images, label_space.num_known, per_class=options.per_class, seed=seed)
    return {
        "task": label_space.task,
        "per_class": options.per_class,
        "strategy": options.strategy,
        "seed": seed,
        "images": chosen,
        "instances": dict(zip(label_space.known, kept, strict=True)),
    }


def _order(image_id: ImageId) -> tuple[bool, int, str]:
    return (True, 0, image_id) if isinstance(image_id, str) else (False, int(image_id), "")
