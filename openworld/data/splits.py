"""What a task may see, in one place.

A data set knows all of its categories. A task does not: training sees the classes that it introduces, replay and
energy fitting see the known ones, and only evaluation sees that there is more, as *unknown*. No label of a later task
and no category outside the schedule leaves this module towards training.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openworld.data.records import BoolArray, Dataset, FloatArray, IntArray, Record
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.runtime.seeding import derive_seed


@dataclass(frozen=True, eq=False)
class Sample:
    """One image with what a task sees of it.

    Args:
        record: the image, with the annotations that this view shows and no others.
        boxes: (N, 4) float32, pixels of the original image.
        labels: (N,) int64 head rows.
        ignore: (N,) bool, crowd or difficult.
    """

    record: Record
    boxes: FloatArray
    labels: IntArray
    ignore: BoolArray

    def __len__(self) -> int:
        return len(self.boxes)


View = tuple[Sample, ...]


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


def hold_out(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Split off a share of the images for energy fitting.

    The choice depends on each image's id alone, so that it is the same in every task and every run.

    Returns:
        the rest, and the held-out images. Both have the repairs of the whole.
    """
    held = [derive_seed("held out", record.image_id) / 2**63 < fraction for record in dataset.records]
    rest, kept = (
        tuple(record for record, is_held in zip(dataset.records, held, strict=True) if is_held == wanted)
        for wanted in (False, True)
    )
    return replace(dataset, records=rest), replace(dataset, records=kept)


def training_view(dataset: Dataset, labels: LabelSpace) -> View:
    """Images with at least one box of a current class, and only those boxes. Crowds are left out.

    Where the data set has lists of the tasks (``Dataset.task_images``), only the images on the task's list.
    """
    return _view(_listed(dataset, labels.task, labels.task), _rows(dataset, labels, labels.current))


def replay_view(dataset: Dataset, labels: LabelSpace, image_ids: Iterable[int | str]) -> View:
    """The named images with the boxes of all known classes, in the order of ``image_ids``. Crowds are left out.

    Raises:
        DataError: an id that the data set does not have.
    """
    wanted = list(image_ids)
    absent = [image_id for image_id in wanted if image_id not in dataset.by_id]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(wanted)} replay images are not in the data: {absent[:3]}",
            remedy="replay with the training data that the exemplars were chosen from",
        )
    return _view((dataset.by_id[image_id] for image_id in wanted), _rows(dataset, labels, labels.known))


def held_out_view(dataset: Dataset, labels: LabelSpace, *, with_unknown: bool = False) -> View:
    """For energy fitting: images with at least one box of a known class, and only those boxes, without crowds.

    Where the data set has lists of the tasks, only the images on the lists of the task and of earlier ones.

    Args:
        dataset: the held-out images.
        labels: label space of the task.
        with_unknown: show the boxes of all other categories too, as *unknown*, and the images that have only these.
            This uses labels of later tasks, as the fit of the paper does; only energy fitting on annotated unknown
            objects may ask for it, and its results say so.
    """
    rows = _rows(dataset, labels, labels.known)
    if with_unknown:
        rows[rows < 0] = labels.unknown
    return _view(_listed(dataset, 1, labels.task), rows)


def test_view(dataset: Dataset, labels: LabelSpace) -> View:
    """For evaluation: every image and every box; what is not a known class is *unknown*."""
    rows = _rows(dataset, labels, labels.known)
    rows[rows < 0] = labels.unknown
    return tuple(Sample(record, record.boxes, rows[record.categories], record.ignore) for record in dataset.records)


test_view.__test__ = False  # type: ignore[attr-defined]  # the name is the protocol's; pytest shall not collect it


def _listed(dataset: Dataset, first: int, last: int) -> Sequence[Record]:
    """The records that the lists of the tasks from ``first`` to ``last`` name; all, where there are no lists."""
    if not dataset.task_images:
        return dataset.records
    named = frozenset[int | str]().union(*dataset.task_images[first - 1 : last])
    return [record for record in dataset.records if record.image_id in named]


def _rows(dataset: Dataset, labels: LabelSpace, visible: Sequence[str]) -> IntArray:
    """(C,) head row of each category of the data set, -1 for a category that is not visible."""
    return np.array([labels.row(name) if name in visible else -1 for name in dataset.categories], dtype=np.int64)


def _view(records: Iterable[Record], rows: IntArray) -> View:
    samples = []
    for record in records:
        labels = rows[record.categories]
        keep = labels >= 0
        if record.crowd is not None:
            keep &= ~record.crowd
        if keep.any():
            shown = _narrow(record, keep)
            samples.append(Sample(shown, shown.boxes, labels[keep], shown.ignore))
    return tuple(samples)


def _narrow(record: Record, keep: BoolArray) -> Record:
    """The record without the annotations that are not kept, so that nothing downstream can reach them."""
    return replace(
        record,
        boxes=record.boxes[keep],
        categories=record.categories[keep],
        ignore=record.ignore[keep],
        crowd=None if record.crowd is None else record.crowd[keep],
        annotation_ids=tuple(name for name, kept in zip(record.annotation_ids, keep, strict=False) if kept),
    )
