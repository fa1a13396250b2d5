"""Which images are kept for replay (ORE, section 4.4), by five strategies, or as a list that somebody else chose.

The strategies are pure functions of image ids, head rows, features and scores. Their result depends on the seed and on
the set of images, never on the order in which these come. N annotated boxes (instances), D feature dimension.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openworld.columns import ImageId
from openworld.data.options import ExemplarOptions
from openworld.errors import DataError, NumericsError
from openworld.labels import LabelSpace
from openworld.runtime.text_files import NotText, read_text

ImageRows = tuple[ImageId, Sequence[int]]
"""An image id and the head rows of its annotations."""
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

COVERS = ("current", "known")
"""What an exemplar list stands for: the classes that its task introduced, so that replay joins the lists of all tasks
up to its own; or all classes known at its task, so that replay uses this list alone."""


@dataclass(frozen=True, eq=False)
class Instances:
    """Annotated boxes as a trained detector sees them.

    Args:
        image_ids: of the image of each box, N.
        rows: (N,) int64 head rows.
        features: (N, D) float32 region features; D may be 0 where nobody asks for them.
        scores: (N,) float32, how sure the detector is that the box holds an object of its class, from 0 to 1.
        found: (N,) bool, false for a box that no proposal overlaps: its features mean nothing and its score is 0.
    """

    image_ids: tuple[ImageId, ...]
    rows: IntArray
    features: FloatArray
    scores: FloatArray
    found: BoolArray


# -- strategies -------------------------------------------------------------------------------------------------------


def select_balanced(
    images: Iterable[ImageRows], num_known: int, *, per_class: int, seed: int
) -> tuple[list[ImageId], list[int]]:
    """Choose images until every class has ``per_class`` instances, or all that there are (paper, section 4.4).

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
    shuffled = _shuffled(counts, seed)

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


def select_greedy(images: Iterable[ImageRows], num_known: int, *, per_class: int, seed: int) -> list[ImageId]:
    """Walk through shuffled images until every class is full (reference code, datasets/coco_utils/balanced_ft.py).

    A class keeps the ids of the last ``per_class`` instances that came by: an image is remembered once for each of its
    instances, and a full class forgets its oldest. The walk ends with the first image after which every class is full,
    or with the last image. A class therefore may end with fewer than ``per_class`` images of its own.

    Args:
        images: as in :func:`select_balanced`, but an image may come more than once, as it does in the reference where
            the training lists of two tasks name it; it is then walked past as often.
        num_known, per_class, seed: as in :func:`select_balanced`.

    Returns:
        The ids that any class remembers, in sorted order.
    """
    listed = sorted(images, key=lambda image: _order(image[0]))
    remembered: list[deque[ImageId]] = [deque(maxlen=per_class) for _ in range(num_known)]
    for position in np.random.default_rng(seed).permutation(len(listed)):
        image_id, rows = listed[position]
        for row in rows:
            if 0 <= row < num_known:
                remembered[row].append(image_id)
        if all(len(ids) == per_class for ids in remembered):
            break
    return sorted({image_id for ids in remembered for image_id in ids}, key=_order)


def select_random(
    image_ids: Sequence[ImageId], rows: IntArray, num_known: int, *, per_class: int, seed: int
) -> list[ImageId]:
    """Draw ``per_class`` instances of each class, each with the same chance, and keep their images.

    The control for a strategy that chooses: PROB (Zohar et al., CVPR 2023), main_open_world.py, create_ft_dataset with
    ``--exemplar_replay_random``, which takes the first ``per_class + 3`` in the order of its shuffled loader.

    Args:
        image_ids: N, of the image of each annotated box, in any order.
        rows: (N,) int64 head rows; rows from ``num_known`` on do not count.
        num_known: known classes.
        per_class: instances drawn of each class, where there are as many.
        seed: of the draw.

    Returns:
        The ids in sorted order.
    """
    chosen: set[ImageId] = set()
    for row, members in _members(image_ids, rows, num_known):
        drawn = np.random.default_rng([seed, row]).permutation(len(members))[:per_class]
        chosen.update(image_ids[members[position]] for position in drawn)
    return sorted(chosen, key=_order)


def select_herding(
    image_ids: Sequence[ImageId], rows: IntArray, features: FloatArray, num_known: int, *, per_class: int
) -> list[ImageId]:
    """Choose instances whose mean feature follows the mean of their class, and keep their images.

    Herding of iCaRL (Rebuffi et al., CVPR 2017, algorithm 4): one after the other, the instance is taken with which
    the mean of all taken so far comes nearest to the class mean. Features are first scaled to length 1 (section 2.1
    there); a feature of zeros stays as it is. Of equally near instances the first by image id, then by feature, wins.

    Cost of a class with n instances: ``per_class`` products of an (n, D) matrix with a vector, and the matrix in
    float64.

    Args:
        image_ids, rows, num_known, per_class: as in :func:`select_random`.
        features: (N, D) floating.

    Returns:
        The ids in sorted order.

    Raises:
        NumericsError: a feature is not finite.
    """
    _check_finite(features, image_ids, "feature")
    chosen: set[ImageId] = set()
    for _, unsorted in _members(image_ids, rows, num_known):
        members = sorted(unsorted, key=lambda index: (_order(image_ids[index]), features[index].tobytes()))
        vectors_nD = features[members].astype(np.float64)
        lengths_n1 = np.linalg.norm(vectors_nD, axis=1, keepdims=True)
        vectors_nD /= np.where(lengths_n1 > 0, lengths_n1, 1.0)
        squares_n, mean_D = (vectors_nD**2).sum(axis=1), vectors_nD.mean(axis=0)
        free, total_D = np.ones(len(members), dtype=np.bool_), np.zeros_like(mean_D)
        for count in range(1, min(per_class, len(members)) + 1):
            missing_D = count * mean_D - total_D  # |mean - (total + v) / count| = |missing - v| / count
            distances = np.where(free, squares_n - 2 * (vectors_nD @ missing_D), np.inf)
            best = int(distances.argmin())
            free[best] = False
            total_D += vectors_nD[best]
            chosen.add(image_ids[members[best]])
    return sorted(chosen, key=_order)


def select_by_score(
    image_ids: Sequence[ImageId], rows: IntArray, scores: FloatArray, num_known: int, *, per_class: int, seed: int
) -> list[ImageId]:
    """Keep the images of the instances that a detector is least and most sure of.

    PROB (Zohar et al., CVPR 2023), main_open_world.py, create_ft_dataset: with the scores of a class in rising order
    s_0 … s_(n-1), instances up to s_h, h = per_class // 2, and from s_(n-g), g = per_class - h, on are kept. The lower
    bound lets h + 1 instances in and ties more, so the walk through the images takes up to ``per_class + 3`` instances
    of a class and then no more. A class with no more than ``per_class`` instances keeps all.

    Args:
        image_ids, rows, num_known, per_class: as in :func:`select_random`.
        scores: (N,) floating. In PROB (models/prob_deformable_detr.py, ExemplarSelection): probability of an object
            times probability of the annotated class, at the query that is matched to the box.
        seed: of the order in which images are walked through.

    Returns:
        The ids in sorted order.

    Raises:
        NumericsError: a score is not finite.
    """
    _check_finite(scores, image_ids, "score")
    place = {image_id: position for position, image_id in enumerate(_shuffled(set(image_ids), seed))}
    chosen: set[ImageId] = set()
    for _, members in _members(image_ids, rows, num_known):
        ranked = np.sort(scores[members])
        low, high = ranked[-1], ranked[0]
        if len(members) > per_class:
            half = per_class // 2
            low, high = ranked[half], ranked[half - per_class]
        wanted = [index for index in members if scores[index] <= low or scores[index] >= high]
        wanted.sort(key=lambda index: place[image_ids[index]])
        chosen.update(image_ids[index] for index in wanted[: per_class + 3])
    return sorted(chosen, key=_order)


# -- the record of a task ---------------------------------------------------------------------------------------------


def exemplar_record(
    images: Iterable[ImageRows],
    label_space: LabelSpace,
    options: ExemplarOptions,
    seed: int,
    instances: Instances | None = None,
) -> dict[str, Any]:
    """The exemplars of one task as they are written to exemplars.json.

    Args:
        images: the images to choose from, with the annotations that the task may see. ``greedy`` chooses among the
            images of all tasks so far with all known classes, and takes an image that comes twice twice; the others
            choose among those of the task with its own classes, and refuse it.
        label_space: of the task.
        options: how many, and how they are chosen.
        seed: of the choice.
        instances: of the same images; ``herding`` and ``by_score`` choose by them.

    Returns:
        task, per_class, strategy, covers (see :data:`COVERS`), seed, images (ids), instances (class name -> count in
        these images, every known class).
    """
    listed, known = list(images), label_space.num_known
    flat_ids = [image_id for image_id, rows in listed for _ in rows]
    flat_rows = np.array([row for _, rows in listed for row in rows], dtype=np.int64)
    if options.strategy == "greedy":
        chosen = select_greedy(listed, known, per_class=options.per_class, seed=seed)
    elif options.strategy == "random":
        chosen = select_random(flat_ids, flat_rows, known, per_class=options.per_class, seed=seed)
    elif options.strategy == "balanced":
        chosen, _ = select_balanced(listed, known, per_class=options.per_class, seed=seed)
    else:
        assert instances is not None
        ids, rows = instances.image_ids, instances.rows
        if options.strategy == "herding":
            found = np.flatnonzero(instances.found)
            ids, rows, features = tuple(ids[index] for index in found), rows[found], instances.features[found]
            chosen = select_herding(ids, rows, features, known, per_class=options.per_class)
        else:
            chosen = select_by_score(ids, rows, instances.scores, known, per_class=options.per_class, seed=seed)
    return {
        "task": label_space.task,
        "per_class": options.per_class,
        "strategy": options.strategy,
        "covers": "known" if options.strategy == "greedy" else "current",
        "seed": seed,
        "images": chosen,
        "instances": _count_instances(listed, chosen, label_space),
    }


def listed_record(
    path: Path, images: Iterable[ImageRows], label_space: LabelSpace, names: Mapping[str, ImageId], held_out: set[str]
) -> dict[str, Any]:
    """The exemplars of one task out of a list, as they are written to exemplars.json.

    Args:
        path: an exemplars.json, or a text file with one image id a line. Blank lines are passed over. A text list is
            one of all classes known at the task, as the published ones are.
        images: training images with the annotations of all known classes, to count the instances.
        label_space: of the task.
        names: how an image may be called in a list -> its id in the training data.
        held_out: what the images are called that are kept out of training. They are left out of the list.

    Returns:
        As :func:`exemplar_record`, with strategy ``list``, and: list (the path), repeats (entries that an earlier one
        names too), held_out (the ids left out, as written).

    Raises:
        DataError: the file cannot be read, or an entry names no image of the training data.
    """
    content = _read_list(path)
    chosen: dict[ImageId, None] = {}
    left_out: list[ImageId] = []
    repeats = 0
    for where, entry in content["images"]:
        name = str(entry)
        image_id = names.get(name, names.get(_as_number(name)))
        if image_id is None and held_out.isdisjoint((name, _as_number(name))):
            raise DataError(
                f"image id {entry!r} is not in the training data",
                where=f"{path}, {where}",
                remedy="train on the data that the list was chosen from, or remove the entry",
            )
        if image_id is None:
            left_out.append(entry)
            continue
        repeats += image_id in chosen
        chosen[image_id] = None
    ids = sorted(chosen, key=_order)
    return {
        "task": label_space.task,
        "per_class": content["per_class"],
        "strategy": "list",
        "covers": content["covers"],
        "seed": content["seed"],
        "images": ids,
        "instances": _count_instances(images, ids, label_space),
        "list": str(path),
        "repeats": repeats,
        "held_out": left_out,
    }


def _read_list(path: Path) -> dict[str, Any]:
    """The images of a list, each with where it stands, and what an exemplars.json says of them."""
    try:
        text = read_text(path)
    except (OSError, NotText) as error:
        raise DataError(
            f"the exemplar list cannot be read ({error})",
            where=str(path),
            remedy="correct exemplars.list; {task} in it stands for the number of the task",
        ) from None
    if path.suffix.lower() != ".json":
        lines = enumerate(text.splitlines(), start=1)
        named = [(f"line {number}", line.strip()) for number, line in lines if line.strip()]
        return {"images": named, "covers": "known", "per_class": None, "seed": None}
    remedy = "give an exemplars.json of a run, or a .txt file with one image id a line"
    try:
        content = json.loads(text)
    except ValueError as error:
        raise DataError(f"is not JSON ({error})", where=str(path), remedy=remedy) from None
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError("has no list `images`", where=str(path), remedy=remedy)
    covers = content.get("covers", "current")
    if covers not in COVERS:
        raise DataError(f"covers is {covers!r}", where=str(path), remedy=f"write {' or '.join(COVERS)}")
    images: list[tuple[str, ImageId]] = []
    for number, entry in enumerate(content["images"], start=1):
        if isinstance(entry, bool) or not isinstance(entry, int | str):
            raise DataError(
                f"image id {entry!r} is neither number nor name", where=f"{path}, image {number}", remedy=remedy
            )
        images.append((f"image {number}", entry))
    return {
        "images": images,
        "covers": covers,
        "per_class": content.get("per_class"),
        "seed": content.get("seed"),
    }


# -- shared -----------------------------------------------------------------------------------------------------------


def _count_instances(images: Iterable[ImageRows], chosen: Iterable[ImageId], label_space: LabelSpace) -> dict[str, int]:
    """Annotations of every known class in the chosen images; an image that comes twice counts once."""
    rows_of = dict(images)
    kept: Counter[int] = Counter()
    for image_id in chosen:
        kept.update(int(row) for row in rows_of.get(image_id, ()))
    return {name: kept[row] for row, name in enumerate(label_space.known)}


def _members(image_ids: Sequence[ImageId], rows: IntArray, num_known: int) -> Iterator[tuple[int, list[int]]]:
    """Row and instances of each known class that has any, the instances in the order of their image ids."""
    of_row: dict[int, list[int]] = {}
    for index in sorted(range(len(image_ids)), key=lambda index: _order(image_ids[index])):
        of_row.setdefault(int(rows[index]), []).append(index)
    for row in range(num_known):
        if row in of_row:
            yield row, of_row[row]


def _shuffled(image_ids: Iterable[ImageId], seed: int) -> list[ImageId]:
    """Distinct ids in the order that the seed gives, whatever the order they come in."""
    ordered = sorted(image_ids, key=_order)
    return [ordered[position] for position in np.random.default_rng(seed).permutation(len(ordered))]


def _order(image_id: ImageId) -> tuple[bool, int, str]:
    return (True, 0, image_id) if isinstance(image_id, str) else (False, int(image_id), "")


def _as_number(name: str) -> str:
    """``000000000139`` -> ``139``; what is not all digits stays."""
    return str(int(name)) if name.isascii() and name.isdecimal() else name


def _check_finite(values: FloatArray, image_ids: Sequence[ImageId], what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if len(bad):
        raise NumericsError(
            f"the {what} of an annotated box is not finite ({len(bad)} boxes)",
            where=f"image {image_ids[bad[0]]!r}",
            remedy="the detector has diverged: train with a lower learning rate",
        )
