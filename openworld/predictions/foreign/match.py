"""Match the images and classes of a foreign file with the ground truth and the schedule.

Foreign files do not list images without detections, so every image of the ground truth counts as predicted. They have
neither extra columns nor a best known class.

Image ids are matched as :mod:`openworld.predictions.images` says. The class *unknown* is named so. Scores that rounding
brought beyond 0 or 1 are brought back.

I images, D detections.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from openworld.columns import ImageId
from openworld.errors import ConfigError, DataError
from openworld.labels import UNKNOWN_NAME, LabelSpace
from openworld.predictions.arrays import Predictions, Reals, Whole, wrong_numbers
from openworld.predictions.images import BY_FILE, AnnotatedImages
from openworld.predictions.rounding import BEYOND, within_rounding
from openworld.records import Dataset
from openworld.repairs import Repairs

Value = TypeVar("Value", bound=Hashable)

Unseen = Literal["error", "drop", "unknown"]
"""What becomes of a detection of a class that a later task introduces, or that the ground truth has and no task names:
refused, dropped and counted, or taken as a detection of *unknown* and counted."""

_UNSEEN = -1
_NOT_KNOWN = -2
"""In place of a head row: a class that :data:`Unseen` is about, and a class that neither schedule nor ground truth has.
"""


@dataclass(frozen=True)
class Quote:
    """A detection as its file writes it, for messages: where it stands, its class and its box."""

    where: str
    label: str
    box: str


@dataclass(frozen=True, eq=False)
class ForeignDetections:
    """What a foreign file holds: values of the right type, not yet checked otherwise.

    Args:
        image_ids: (D) as the file writes them.
        class_index: (D,) int64, positions in ``class_names``.
        class_names: in the names of the schedule; None is a class without a name.
        boxes: (D, 4) float64 ``x1 y1 x2 y2``, 0-based.
        scores: (D,) float64.
        quote: gives detection ``d`` as the file has it.
    """

    image_ids: Sequence[ImageId]
    class_index: Whole
    class_names: Sequence[str | None]
    boxes: Reals
    scores: Reals
    quote: Callable[[int], Quote]


def as_predictions(
    found: ForeignDetections,
    dataset: Dataset,
    space: LabelSpace,
    *,
    unseen: Unseen,
    repairs: Repairs | None,
    source: str,
) -> Predictions:
    """Check foreign detections and match them with the ground truth and the schedule.

    Args:
        found: the detections.
        dataset: the ground truth; its records have ``image_id``, ``path``, ``width`` and ``height``.
        space: the task whose model predicted.
        unseen: see :data:`Unseen`.
        repairs: counts the detections of unseen classes, images that were matched by their files and scores that
            rounding brought out of range.
        source: names the file in ``repairs``.

    Raises:
        ConfigError: ``unseen`` is not one of its values.
        DataError: an image, class, score or box is not possible; names the first such record.
    """
    if unseen not in get_args(Unseen):
        raise ConfigError(f"unseen={unseen!r}", remedy=f"choose one of: {', '.join(get_args(Unseen))}")
    space = space.growing
    images = AnnotatedImages(dataset)
    ids, id_index = distinct(found.image_ids)
    places = [images.position(name) for name in ids]
    image_index = np.array(places, dtype=np.int64)[id_index]
    scores, rounded = within_rounding(found.scores)
    row_of = class_rows(space, dataset)
    rows = [_NOT_KNOWN if name is None else row_of.get(name, _NOT_KNOWN) for name in found.class_names]
    labels = np.array(rows, dtype=np.int64)[found.class_index]

    wrong_score, wrong_box = wrong_numbers(found.boxes, scores)
    wrong_class = (labels == _NOT_KNOWN) | ((labels == _UNSEEN) & (unseen == "error"))
    wrong = (image_index < 0) | wrong_class | wrong_score | wrong_box
    if wrong.any():
        first = int(np.argmax(wrong))
        quote = found.quote(first)
        if image_index[first] < 0:
            problem, remedy = images.problem(found.image_ids[first])
        elif wrong_class[first]:
            problem, remedy = _class_problem(found.class_names[found.class_index[first]], quote, space, row_of)
        elif wrong_score[first]:
            problem = f"score {found.scores[first]}"
            remedy = "a score is a probability from 0 to 1: divide percent by 100, turn logits into probabilities"
        else:
            problem = quote.box
            remedy = "a box has finite coordinates, and a width and height of at least 0"
        raise DataError(problem, where=quote.where, remedy=remedy)

    hidden = labels == _UNSEEN
    if repairs is not None:
        _count_unseen(found, hidden, unseen, repairs, source)
        _count_repaired(found, dict(zip(ids, places, strict=True)), images, rounded, repairs)
    kept = np.flatnonzero(~hidden) if unseen == "drop" else np.arange(len(labels))
    kept = kept[np.lexsort((-scores[kept], image_index[kept]))]
    return Predictions(
        tasks=space.tasks,
        task=space.task,
        image_ids=tuple(record.image_id for record in images.records),
        files=tuple(str(record.path) for record in images.records),
        widths=np.array([record.width for record in images.records], dtype=np.int64),
        heights=np.array([record.height for record in images.records], dtype=np.int64),
        image_index=image_index[kept],
        boxes=found.boxes[kept],
        labels=np.where(hidden, space.unknown, labels)[kept],
        scores=scores[kept],
        best_known=np.full(len(kept), -1, dtype=np.int64),
    )


def distinct(values: Sequence[Value]) -> tuple[list[Value], Whole]:
    """Distinct values by first occurrence, and the position of each value among them, (D,) int64."""
    codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return list(codes), np.fromiter(map(codes.__getitem__, values), dtype=np.int64, count=len(values))


def class_rows(space: LabelSpace, dataset: Dataset) -> dict[str, int]:
    """The head row of every class of the schedule, of the ground truth, and *unknown*; -1 for one that is unseen."""
    rows = dict.fromkeys((*dataset.categories, *chain.from_iterable(space.tasks)), _UNSEEN)
    rows.update({name: row for row, name in enumerate(space.known)})
    rows[UNKNOWN_NAME] = space.unknown
    return rows


def nearest_class(name: str, known: Sequence[str]) -> str:
    """A remedy for a class that is not known: the nearest name, and all names."""
    lowered = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"did you mean {lowered[close[0]]!r}? " if close else ""
    return f"{hint}map the name with `rename`; known are: {', '.join(known)}"


def _class_problem(name: str | None, quote: Quote, space: LabelSpace, row_of: dict[str, int]) -> tuple[str, str]:
    """What is wrong with a class, and what to do."""
    if name is None:
        return (
            f"{quote.label} is not a category of the ground truth",
            "give the ground truth whose `categories` the results use; if the id stands for unknown objects, give it "
            "as unknown_category",
        )
    named = quote.label if repr(name) in quote.label else f"{quote.label} ({name!r})"
    if name not in row_of:
        return f"{named} is not known", nearest_class(name, list(row_of))
    later = next((number for number, names in enumerate(space.tasks, start=1) if name in names), None)
    reason = f"is of task {later}" if later else "is in the ground truth, but of no task"
    return (
        f"{named} {reason}, and this is a detector of task {space.task}",
        'correct the task or the schedule, or set unseen to "drop" or "unknown"',
    )


def _count_unseen(
    found: ForeignDetections, hidden: np.ndarray[Any, Any], unseen: Unseen, repairs: Repairs, source: str
) -> None:
    """Count the detections of unseen classes, with one example per class."""
    kind = "detections of unseen classes " + ("dropped" if unseen == "drop" else "taken as unknown")
    for name, count in zip(found.class_names, np.bincount(found.class_index[hidden], minlength=len(found.class_names))):
        if count:
            repairs.add(kind, f"{source} has {count} of {name!r}", times=int(count))


def _count_repaired(
    found: ForeignDetections, places: Mapping[ImageId, int], images: AnnotatedImages, rounded: Whole, repairs: Repairs
) -> None:
    """Count images that were matched by their files, and scores that rounding brought out of range."""
    for name, place in places.items():
        record = images.records[place]
        if str(name) not in (str(record.image_id), record.path.stem):
            repairs.add(BY_FILE, f"{name!r} is {record.image_id!r} ({record.path})")
    for row in rounded.tolist():
        repairs.add(BEYOND, f"{found.quote(row).where} has the score {found.scores[row]!r}")
