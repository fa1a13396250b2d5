"""What a task may see, in one place.

A data set knows all of its categories. A task does not: training sees the classes that it introduces, replay and
energy fitting see the known ones, and only evaluation sees that there is more, as *unknown*. No label of a later task
and no category outside the schedule leaves this module towards training.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from openworld.columns import ImageId, IntArray
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.records import Dataset, Record
from openworld.runtime.seeding import derive_seed


class Sample(NamedTuple):
    """One image with what a task sees of it: K boxes.

    Args:
        record: the image, with the annotations that the view shows and no others.
        labels: (K,) int64 head rows of its boxes.
    """

    record: Record
    labels: IntArray


@dataclass(frozen=True, eq=False)
class View:
    """What a task sees of a data set: some of its images, and of their boxes those that it may see; N boxes.

    Args:
        images: the images with the annotations that the view shows. The others are not in it, so that nothing
            downstream can reach them.
        labels: (N,) int64 head row of each box.
    """

    images: Dataset
    labels: IntArray

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], self.labels_of(index))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def labels_of(self, index: int) -> IntArray:
        """(K,) head rows of the boxes of one image."""
        place = range(len(self))[index]
        return self.labels[self.images.offsets[place] : self.images.offsets[place + 1]]


def check_schedule(tasks: Sequence[Sequence[str]], *datasets: Dataset) -> None:
    """Check that some data set has each class of the schedule.

    Raises:
        DataError: names that no data set has, each with the nearest name that one has.
    """
    available = list(dict.fromkeys(name for dataset in datasets for name in dataset.categories))
    problems = []
    for number, names in enumerate(tasks, start=1):
        for name in names:
            if name not in available:
                lowered = {known.lower(): known for known in available}
                close = difflib.get_close_matches(name.lower(), lowered, n=1)
                hint = f" (did you mean {lowered[close[0]]!r}?)" if close else ""
                problems.append(f"{name!r} of task {number}{hint}")
    if problems:
        shown = ", ".join(available[:20]) + (", …" if len(available) > 20 else "")
        raise DataError(
            f"no annotation file has the class {', '.join(problems)}",
            remedy=f"correct `tasks` or map the names with `rename`; the files have: {shown or 'no class at all'}",
        )


def check_training(train: Dataset, held_out: Dataset, spaces: Sequence[LabelSpace]) -> list[str]:
    """Check that every task has something to learn from.

    Args:
        train: what is trained on.
        held_out: what is kept for energy fitting, which may have taken the last objects of a class.
        spaces: of the tasks that are run.

    Returns:
        a sentence for each class that no training image shows, of tasks that have others.

    Raises:
        DataError: no training image shows any class of a task.
    """
    warnings = []
    for space in spaces:
        view = training_view(train, space)
        objects = dict(zip(space.known, np.bincount(view.labels, minlength=space.num_known), strict=False))
        absent = [name for name in space.current if not objects[name]]
        reasons = {name: _why_absent(name, train, held_out) for name in absent}
        if len(absent) == len(space.current):
            named = ", ".join(f"{name!r}: {reason}" for name, reason in reasons.items())
            fewer = "" if space.task == 1 else f", or run the tasks before it alone (tasks: {space.task - 1})"
            raise DataError(
                f"no training image shows a class of task {space.task} ({named})",
                where="train",
                remedy=f"add images that show one, correct `tasks` or map the names with `rename`{fewer}",
            )
        warnings += [
            f"no training image shows the class {name!r} of task {space.task} ({reason}), so that it cannot be learned"
            for name, reason in reasons.items()
        ]
    return warnings


def _why_absent(name: str, train: Dataset, held_out: Dataset) -> str:
    """Say where the objects of a class are that a task cannot train on."""

    def boxes(dataset: Dataset, *, crowd: bool) -> int:
        if name not in dataset.categories:
            return 0
        return int((dataset.crowd == crowd)[dataset.box_categories == dataset.categories.index(name)].sum())

    for count, where in (
        (boxes(train, crowd=False), "on images that are not on the list of the task"),
        (boxes(held_out, crowd=False), "on held-out images: lower held_out_fraction or name a val set"),
        (boxes(train, crowd=True), "as crowds, which are not trained on"),
    ):
        if count:
            return f"{count} object{'s' if count > 1 else ''} {where}"
    return f"0 objects on {len(train)} images"


def hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Split off a share of the images for energy fitting.

    The choice depends on the id of each image alone, so that it is the same in every task and every run.

    Returns:
        the rest, and the held-out images. Both have the repairs of the whole.
    """
    shares = [derive_seed("held out", image_id) / 2**63 for image_id in dataset.image_ids]
    held = np.array([share < fraction for share in shares], dtype=np.bool_)
    return dataset.select(np.flatnonzero(~held)), dataset.select(np.flatnonzero(held))


def training_view(dataset: Dataset, space: LabelSpace) -> View:
    """Images with at least one box of a current class, and only those boxes. Crowds are left out.

    Where the data set has lists of the tasks (``Dataset.task_images``), only the images on the task's list.
    """
    return _view(dataset, _listed(dataset, space.task, space.task), _rows(dataset, space, space.current))


def replay_view(dataset: Dataset, space: LabelSpace, image_ids: Iterable[ImageId]) -> View:
    """The named images with the boxes of all known classes, in the order of ``image_ids``. Crowds are left out.

    Raises:
        DataError: an id that the data set does not have.
    """
    wanted = list(image_ids)
    absent = [image_id for image_id in wanted if image_id not in dataset.position_of]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(wanted)} replay images are not in the data: {absent[:3]}",
            remedy="replay with the training data that the exemplars were chosen from",
        )
    images = np.array([dataset.position_of[image_id] for image_id in wanted], dtype=np.int64)
    return _view(dataset, images, _rows(dataset, space, space.known))


def held_out_view(dataset: Dataset, space: LabelSpace, *, with_unknown: bool = False) -> View:
    """For energy fitting: images with at least one box of a known class, and only those boxes, without crowds.

    Where the data set has lists of the tasks, only the images on the lists of the task and of earlier ones.

    Args:
        dataset: the held-out images.
        space: of the task.
        with_unknown: show the boxes of all other categories too, as *unknown*, and the images that have only these.
            This uses labels of later tasks, as the fit of the paper does; only energy fitting on annotated unknown
            objects may ask for it, and its results say so.
    """
    rows = _rows(dataset, space, space.known)
    if with_unknown:
        rows[rows < 0] = space.unknown
    return _view(dataset, _listed(dataset, 1, space.task), rows)


def test_view(dataset: Dataset, space: LabelSpace) -> View:
    """For evaluation: every image and every box; what is not a known class is *unknown*."""
    rows = _rows(dataset, space, space.known)
    rows[rows < 0] = space.unknown
    return View(dataset, rows[dataset.box_categories])


test_view.__test__ = False  # type: ignore[attr-defined]  # the name is the protocol's; pytest shall not collect it


def _listed(dataset: Dataset, first: int, last: int) -> IntArray:
    """Positions of the images on the lists of the tasks from ``first`` to ``last``; all, if there are no lists."""
    if not dataset.task_images:
        return np.arange(len(dataset))
    named = frozenset[ImageId]().union(*dataset.task_images[first - 1 : last])
    return np.flatnonzero([image_id in named for image_id in dataset.image_ids])


def _rows(dataset: Dataset, space: LabelSpace, visible: Sequence[str]) -> IntArray:
    """(C,) head row of each category of the data set, -1 for a category that is not visible."""
    return np.array([space.row(name) if name in visible else -1 for name in dataset.categories], dtype=np.int64)


def _view(dataset: Dataset, images: IntArray, rows: IntArray) -> View:
    """Those of the images that have a box of a visible category, and only these boxes, without crowds.

    Args:
        dataset: all images and boxes.
        images: (M,) positions of images, in the order of the view.
        rows: (C,) head row of each category, -1: not visible.
    """
    visible = (rows[dataset.box_categories] >= 0) & ~dataset.crowd
    boxes_left = np.bincount(dataset.image_index[visible], minlength=len(dataset))
    shown = dataset.select(images[boxes_left[images] > 0], visible)
    return View(shown, rows[shown.box_categories])
