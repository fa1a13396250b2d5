"""Read detections that other programs wrote as :class:`openworld.predictions.file.Predictions`, to score them again.

Two published forms are read:

- a COCO results file, a list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``;
- a folder of VOC detection files, one a class, named ``<class>.txt`` (as the evaluator of JosephKJ/OWOD writes,
  ``detectron2/evaluation/pascal_voc_evaluation.py``) or ``comp4_det_test_<class>.txt`` (as the VOC devkit wants), with
  lines ``image_id score xmin ymin xmax ymax``. VOC counts pixels from 1 and both corners belong to the box, so ``xmin``
  and ``ymin`` become one less and ``xmax`` and ``ymax`` stay.

Neither form lists images without detections, so every image of the ground truth counts as predicted. Neither has
energies or a best known class.

I images, D detections. An image id is matched exactly, or else as text (7 and "7"), or else with the stem of the
image's file name ("000000000139" and 000000000139.jpg). The class *unknown* is named so.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from openworld.data.formats.coco import coco_category_names
from openworld.data.records import Repairs
from openworld.data.schedules import Schedule
from openworld.errors import ConfigError, DataError
from openworld.labels import UNKNOWN_NAME, LabelSpace
from openworld.metrics.ground_truth import AnnotatedImages
from openworld.predictions.file import Predictions, Reals, Whole, read_json, read_predictions, wrong_numbers

__all__ = ["Unseen", "coco_category_names", "open_predictions", "read_coco_results", "read_voc_detections"]

Value = TypeVar("Value", bound=Hashable)

Unseen = Literal["error", "drop", "unknown"]
"""What becomes of a detection of a class that a later task introduces, or that the ground truth has and no task names:
refused, left out and counted, or taken as a detection of *unknown* and counted."""

_UNSEEN = -1
_NOBODY = -2
"""Instead of a head row: a class of a later task or of the ground truth alone, and a class that nobody knows."""


@dataclass(frozen=True, eq=False)
class _Found:
    """What a foreign file holds: values of the right type, otherwise not yet checked.

    Args:
        images: (D) image ids as the file writes them.
        classes: (D,) int64, positions in ``names``.
        names: names of the schedule; None is a class without a name.
        boxes: (D, 4) float64 ``x1 y1 x2 y2``, 0-based.
        scores: (D,) float64.
        where: names the record of detection ``d``.
        class_text, box_text: field and value of detection ``d`` as in the file.
    """

    images: Sequence[int | str]
    classes: Whole
    names: Sequence[str | None]
    boxes: Reals
    scores: Reals
    where: Callable[[int], str]
    class_text: Callable[[int], str]
    box_text: Callable[[int], str]


class _Images:
    """The images of the ground truth, each once, and how other files may call them."""

    def __init__(self, dataset: AnnotatedImages) -> None:
        self.exact: dict[int | str, int] = {}
        self.records: list[Any] = []
        for record in dataset.records:
            if record.image_id not in self.exact:
                self.exact[record.image_id] = len(self.records)
                self.records.append(record)
        self.by_text: dict[str, list[int]] = {}
        self.by_stem: dict[str, list[int]] = {}
        for position, record in enumerate(self.records):
            self.by_text.setdefault(str(record.image_id), []).append(position)
            self.by_stem.setdefault(Path(record.path).stem, []).append(position)

    def matches(self, name: int | str) -> list[int]:
        """Positions of the images that an id may mean; one, if all is well."""
        if name in self.exact:
            return [self.exact[name]]
        text = str(name)
        return self.by_text.get(text) or self.by_stem.get(text) or []

    def problem(self, name: int | str) -> tuple[str, str]:
        """What is wrong with an id that does not mean one image, and what to do."""
        found = [self.records[position] for position in self.matches(name)]
        if found:
            shown = ", ".join(f"{record.image_id!r} ({record.path})" for record in found[:3])
            return f"image_id {name!r} may mean {len(found)} images: {shown}", "write the ids of the ground truth"
        close = difflib.get_close_matches(str(name), [*self.by_text, *self.by_stem], n=1, cutoff=0.8)
        hint = f"; the nearest is {close[0]!r}" if close else ""
        return (
            f"image_id {name!r} is no image of the ground truth, which has {len(self.records)} images{hint}",
            "give the ground truth (and image set) that was predicted, or write its image ids",
        )


def read_coco_results(
    path: Path,
    dataset: AnnotatedImages,
    space: LabelSpace,
    category_names: Mapping[int, str],
    *,
    unknown_category: int | None = None,
    unseen: Unseen = "error",
    repairs: Repairs | None = None,
) -> Predictions:
    """Read a COCO results file.

    Args:
        path: the .json file, a list.
        dataset: the ground truth; its records have ``image_id``, ``path``, ``width`` and ``height``.
        space: the task whose model predicted.
        category_names: class name of each category id, in the names of the schedule; of a COCO ground truth,
            :func:`openworld.data.formats.coco.coco_category_names`. A category of the name ``unknown`` is the unknown.
        unknown_category: another id that is the unknown.
        unseen: see :data:`Unseen`.
        repairs: counts the detections of unseen classes.

    Raises:
        DataError: a file that is not JSON or no list; a record without one of the four fields, or with one of another
            type; a score that is not from 0 to 1, a bbox that is not finite or of negative size, an image that the
            ground truth lacks or an id that may mean several, a category that nobody knows, or a class that is unseen
            if that is an error. The first such record is named.
        ConfigError: ``unknown_category`` is the id of a class.
    """
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(
            f"holds a {type(entries).__name__} where a COCO results file has a list",
            where=str(path),
            remedy='write a list of {"image_id", "category_id", "bbox", "score"}',
        )
    names: dict[float, str] = dict(category_names.items())
    if unknown_category is not None:
        if names.get(unknown_category, UNKNOWN_NAME) != UNKNOWN_NAME:
            raise ConfigError(
                f"unknown_category {unknown_category} is the class {names[unknown_category]!r}",
                where=str(path),
                remedy="give the category id under which the results write unknown objects",
            )
        names[unknown_category] = UNKNOWN_NAME

    images, categories, corners, scores = _result_columns(entries, path)
    codes = _codes(categories)
    boxes = _floats(corners).reshape(-1, 4)
    with np.errstate(over="ignore", invalid="ignore"):  # refused below
        boxes[:, 2:] += boxes[:, :2]
    found = _Found(
        images=images,
        classes=_positions(codes, categories),
        names=[names.get(identifier) for identifier in codes],
        boxes=boxes,
        scores=_floats(scores),
        where=lambda row: f"{path}, record {row}",
        class_text=lambda row: f"category_id {categories[row]!r}",
        box_text=lambda row: f"bbox {entries[row]['bbox']!r}",
    )
    return _predictions(found, dataset, space, unseen, repairs, str(path))


def _result_columns(entries: list[Any], path: Path) -> tuple[list[int | str], list[float], list[float], list[float]]:
    """The columns of a results list: image ids (D), category ids (D), x y width height (4 D), scores (D).

    Whole columns are checked at a time; only if one is wrong, record after record is.
    """
    number = {int, float}
    if set(map(type, entries)) <= {dict}:
        columns = [[entry.get(key) for entry in entries] for key in ("image_id", "category_id", "bbox", "score")]
        images, categories, corners, scores = columns
        if (
            set(map(type, images)) <= number | {str}
            and set(map(type, categories)) <= number
            and set(map(type, scores)) <= number
            and set(map(type, corners)) <= {list}
            and set(map(len, corners)) <= {4}
        ):
            flat = list(chain.from_iterable(corners))
            if set(map(type, flat)) <= number:
                return images, categories, flat, scores
    for row, entry in enumerate(entries):
        _check_result(entry, f"{path}, record {row}")
    raise AssertionError("a column of the results has a type that no record has")


def _check_result(entry: Any, where: str) -> None:
    """Refuse a record of a results list that lacks a field or has one of another type."""
    if type(entry) is not dict:
        raise DataError(
            f"{entry!r} is not an object", where=where, remedy="a record has image_id, category_id, bbox and score"
        )
    for key, kinds, meaning in (
        ("image_id", (int, float, str), "the image's id, a whole number or a text"),
        ("category_id", (int, float), "the number of a category"),
        ("bbox", (list,), "a list of x, y, width and height in pixels"),
        ("score", (int, float), "a probability from 0 to 1"),
    ):
        if key not in entry:
            raise DataError(f"has no {key!r}", where=where, remedy=f"{key} is {meaning}")
        if type(entry[key]) not in kinds:
            raise DataError(f"{key} {entry[key]!r}", where=where, remedy=f"{key} is {meaning}")
    box = entry["bbox"]
    if len(box) != 4 or any(type(value) not in (int, float) for value in box):
        raise DataError(f"bbox {box!r}", where=where, remedy="a bbox is four numbers: x, y, width and height in pixels")


def read_voc_detections(
    path: Path,
    dataset: AnnotatedImages,
    space: LabelSpace,
    *,
    unseen: Unseen = "error",
    rename: Mapping[str, str] | None = None,
    repairs: Repairs | None = None,
) -> Predictions:
    """Read a folder of VOC detection files, one a class.

    Args:
        path: the folder. Each .txt file in it is named after a class, ``<class>.txt`` or
            ``comp<number>_det_<set>_<class>.txt``; a file may be empty. ``unknown`` is the unknown.
        dataset: the ground truth; its records have ``image_id``, ``path``, ``width`` and ``height``.
        space: the task whose model predicted.
        unseen: see :data:`Unseen`.
        rename: class names of the files to the names of the schedule.
        repairs: counts the detections of unseen classes.

    Raises:
        DataError: no such folder or no .txt file in it; a file of a class that nobody knows, or two files of one class;
            a line that has not six fields or one that is no number, a score that is not from 0 to 1, a box that is not
            finite or ends before it begins, an image that the ground truth lacks or an id that may mean several, or a
            class that is unseen if that is an error. The first such line is named.
    """
    path = Path(path)
    files = sorted(path.glob("*.txt"))
    if not files:
        raise DataError(
            "is no folder with .txt files",
            where=str(path),
            remedy="give the folder that holds one file a class, <class>.txt or comp4_det_test_<class>.txt",
        )
    rename = rename or {}
    known = [*_rows(space, dataset), *rename]
    owners: dict[str, Path] = {}
    images: list[str] = []
    values: list[str] = []
    lines: list[int] = []
    starts: list[int] = []
    for file in files:
        name = _class_of_file(file, known)
        name = rename.get(name, name)
        if name in owners:
            raise DataError(
                f"holds the class {name!r}, as {owners[name].name} does",
                where=str(file),
                remedy="keep one file a class, and one set of images a folder",
            )
        owners[name] = file
        starts.append(len(lines))
        numbers, fields = _voc_fields(file)
        lines += numbers
        images += fields[::6]
        del fields[::6]
        values += fields

    names = list(owners)
    counts = np.diff([*starts, len(lines)])
    classes = np.repeat(np.arange(len(names), dtype=np.int64), counts)

    def where(row: int) -> str:
        return f"{owners[names[classes[row]]]}, line {lines[row]}"

    table = _voc_numbers(values, where)
    boxes = table[:, 1:].copy()
    boxes[:, :2] -= 1.0
    found = _Found(
        images=images,
        classes=classes,
        names=names,
        boxes=boxes,
        scores=table[:, 0],
        where=where,
        class_text=lambda row: f"class {names[classes[row]]!r}",
        box_text=lambda row: f"xmin ymin xmax ymax {' '.join(values[5 * row + 1 : 5 * row + 5])}",
    )
    return _predictions(found, dataset, space, unseen, repairs, str(path))


_COMPETITION = re.compile(r"comp\d*_det_(?P<rest>.+)")


def _class_of_file(file: Path, known: Sequence[str]) -> str:
    """The class that a detection file is named after.

    The names of image sets and of classes may hold underscores; of the known classes that the name ends with, the
    longest is meant.
    """
    if file.stem in known:
        return file.stem
    competition = _COMPETITION.fullmatch(file.stem)
    rest = file.stem
    if competition is not None:
        rest = competition["rest"]
        fitting = [name for name in known if rest.endswith(f"_{name}")]
        if fitting:
            return max(fitting, key=len)
        rest = rest.split("_", 1)[-1]
    raise DataError(f"file name: class {rest!r} is not known", where=str(file), remedy=_nearest(rest, known))


def _voc_fields(file: Path) -> tuple[list[int], list[str]]:
    """Numbers of the (D) lines that are not blank, and their (6 D) fields."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=str(file), remedy="write the file again as text") from None
    lines = text.split("\n")
    counts = list(map(len, map(str.split, lines)))
    for number, count in enumerate(counts, start=1):
        if count not in (0, 6):
            raise DataError(
                f"{count} fields: {lines[number - 1].strip()[:80]!r}",
                where=f"{file}, line {number}",
                remedy="a line is: image_id score xmin ymin xmax ymax",
            )
    return [number for number, count in enumerate(counts, start=1) if count], text.split()


def _voc_numbers(values: list[str], where: Callable[[int], str]) -> Reals:
    """(D, 5) float64, score xmin ymin xmax ymax, of (5 D) texts."""
    try:
        return np.array(list(map(float, values)), dtype=np.float64).reshape(-1, 5)
    except ValueError:
        place = next(place for place, text in enumerate(values) if not _is_number(text))
    raise DataError(
        f"{('score', 'xmin', 'ymin', 'xmax', 'ymax')[place % 5]} {values[place]!r} is no number",
        where=where(place // 5),
        remedy="a line is: image_id score xmin ymin xmax ymax",
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# -- what both forms share --------------------------------------------------------------------------------------------


def _predictions(
    found: _Found, dataset: AnnotatedImages, space: LabelSpace, unseen: Unseen, repairs: Repairs | None, source: str
) -> Predictions:
    """Check what a file holds, column by column, and match it with the ground truth.

    Raises:
        DataError: naming the first record with a wrong value.
    """
    if unseen not in ("error", "drop", "unknown"):
        raise ConfigError(f"unseen={unseen!r}", remedy="choose one of: error, drop, unknown")
    space = LabelSpace(space.tasks, space.task)  # files are in the growing layout
    images = _Images(dataset)
    codes = _codes(found.images)
    matches = [images.matches(name) for name in codes]
    position = np.array([match[0] if len(match) == 1 else -1 for match in matches], dtype=np.int64)
    image_index = position[_positions(codes, found.images)]
    row_of = _rows(space, dataset)
    rows = np.array([_NOBODY if name is None else row_of.get(name, _NOBODY) for name in found.names], dtype=np.int64)
    labels = rows[found.classes]

    wrong_score, wrong_box = wrong_numbers(found.boxes, found.scores)
    wrong_class = (labels == _NOBODY) | ((labels == _UNSEEN) & (unseen == "error"))
    wrong = (image_index < 0) | wrong_class | wrong_score | wrong_box
    if wrong.any():
        row = int(np.argmax(wrong))
        if image_index[row] < 0:
            problem, remedy = images.problem(found.images[row])
        elif wrong_class[row]:
            problem, remedy = _class_problem(found, row, int(labels[row]), space, list(row_of))
        elif wrong_score[row]:
            problem = f"score {found.scores[row]}"
            remedy = "a score is a probability from 0 to 1; turn logits into probabilities by a sigmoid or softmax"
        else:
            problem = found.box_text(row)
            remedy = "a box has finite coordinates, and a width and height of at least 0"
        raise DataError(problem, where=found.where(row), remedy=remedy)

    hidden = labels == _UNSEEN
    if repairs is not None and hidden.any():
        kind = "detections of unseen classes " + ("dropped" if unseen == "drop" else "taken as unknown")
        repairs.counts[kind] += int(hidden.sum())
        for code, count in enumerate(np.bincount(found.classes[hidden], minlength=len(rows))):
            if count and len(repairs.examples) < repairs.MAX_EXAMPLES:
                repairs.examples.append(f"{kind}: {source} has {count} of {found.names[code]!r}")
    labels = np.where(hidden, space.unknown, labels)
    kept = np.flatnonzero(~hidden) if unseen == "drop" else np.arange(len(labels))
    kept = kept[np.lexsort((-found.scores[kept], image_index[kept]))]
    records = images.records
    return Predictions(
        tasks=space.tasks,
        task=space.task,
        image_ids=tuple(record.image_id for record in records),
        files=tuple(str(record.path) for record in records),
        widths=np.array([record.width for record in records], dtype=np.int64),
        heights=np.array([record.height for record in records], dtype=np.int64),
        image_index=image_index[kept],
        boxes=found.boxes[kept],
        labels=labels[kept],
        scores=found.scores[kept],
        best_known=np.full(len(kept), -1, dtype=np.int64),
    )


def _class_problem(found: _Found, row: int, label: int, space: LabelSpace, known: list[str]) -> tuple[str, str]:
    name = found.names[found.classes[row]]
    text = found.class_text(row)
    if name is None:
        return (
            f"{text} is no category of the ground truth",
            "give the ground truth whose `categories` the results use; if the id stands for unknown objects, give it "
            "as unknown_category",
        )
    named = text if repr(name) in text else f"{text} ({name!r})"
    if label == _NOBODY:
        return f"{named} is not known", _nearest(name, known)
    later = next((number for number, names in enumerate(space.tasks, start=1) if name in names), None)
    reason = f"is of task {later}" if later else "is in the ground truth, but of no task"
    return (
        f"{named} {reason}, and this is a detector of task {space.task}",
        'correct the task or the schedule, or set unseen to "drop" or "unknown"',
    )


def _rows(space: LabelSpace, dataset: AnnotatedImages) -> dict[str, int]:
    """Every class that somebody knows: its head row, or ``_UNSEEN``."""
    rows = dict.fromkeys((*dataset.categories, *chain.from_iterable(space.tasks)), _UNSEEN)
    rows.update({name: row for row, name in enumerate(space.known)})
    rows[UNKNOWN_NAME] = space.unknown
    return rows


def _nearest(name: str, known: Sequence[str]) -> str:
    """A remedy that names the nearest known class."""
    lowered = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    hint = f"did you mean {lowered[close[0]]!r}? " if close else ""
    return f"{hint}map the name with `rename`; known are: {', '.join(known)}"


def _codes(values: Iterable[Value]) -> dict[Value, int]:
    """Distinct values, numbered in the order of their first occurrence."""
    return {value: code for code, value in enumerate(dict.fromkeys(values))}


def _positions(codes: Mapping[Value, int], values: Sequence[Value]) -> Whole:
    """(D,) int64, the number of each value."""
    return np.fromiter(map(codes.__getitem__, values), dtype=np.int64, count=len(values))


def _floats(values: Sequence[float]) -> Reals:
    """Numbers of a JSON file as float64; whole numbers beyond its range are infinite."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([_float(value) for value in values], dtype=np.float64)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


# -- any file of predictions ------------------------------------------------------------------------------------------


def open_predictions(
    path: Path,
    dataset: AnnotatedImages,
    schedule: Schedule | None = None,
    task: int | None = None,
    *,
    category_names: Mapping[int, str] | None = None,
    unknown_category: int | None = None,
    unseen: Unseen = "error",
    repairs: Repairs | None = None,
) -> list[Predictions]:
    """Read predictions of any form, told apart by their content.

    Args:
        path: predictions.json; the folder of a run, whose ``task<number>/predictions.json`` are read in the order of
            the tasks; a COCO results file; or a folder of VOC detection files.
        dataset: the ground truth, read with the names of the schedule.
        schedule: needed for the foreign forms. Predictions of this project bring their own, which must have the same
            classes in the same tasks up to theirs.
        task: the task whose model predicted, from 1; needed for the foreign forms. Of a run it picks one task.
        category_names: for COCO results, see :func:`read_coco_results`.
        unknown_category: for COCO results.
        unseen: for the foreign forms, see :data:`Unseen`.
        repairs: counts the detections of unseen classes.

    Returns:
        one for each task that was read, at least one.

    Raises:
        DataError: nothing is there that can be read, schedules or tasks that disagree, or as the readers raise.
        ConfigError: a foreign form without schedule, task or category names, or a task that the schedule lacks.
    """
    path = Path(path)
    if path.is_dir():
        numbered = _tasks_of_run(path)
        if numbered:
            if task is not None and task not in numbered:
                raise DataError(
                    f"has no predictions of task {task}",
                    where=str(path),
                    remedy=f"choose one of the tasks {', '.join(map(str, numbered))}",
                )
            return [_own(file, schedule, number) for number, file in numbered.items() if task is None or number == task]
        if not any(path.glob("*.txt")):
            raise DataError(
                "has neither task<number>/predictions.json nor .txt files",
                where=str(path),
                remedy="give the folder of a run, a folder of VOC detection files, or a .json file",
            )
        schedule, space = _foreign(path, "VOC detection files", schedule, task)
        return [read_voc_detections(path, dataset, space, unseen=unseen, rename=schedule.rename, repairs=repairs)]
    if not path.is_file():
        raise DataError("no such file or folder", where=str(path), remedy="check the path of the predictions")
    if path.suffix.lower() == ".txt":
        raise DataError(
            "is one text file", where=str(path), remedy="give the folder that holds one detection file a class"
        )
    if _first_character(path) != "[":
        return [_own(path, schedule, task)]
    _, space = _foreign(path, "a COCO results file", schedule, task)
    if category_names is None:
        raise ConfigError(
            "the names of the categories of a COCO results file are needed",
            where=str(path),
            remedy="give a COCO ground truth; its `categories` name them",
        )
    return [
        read_coco_results(
            path,
            dataset,
            space,
            category_names,
            unknown_category=unknown_category,
            unseen=unseen,
            repairs=repairs,
        )
    ]


def _tasks_of_run(folder: Path) -> dict[int, Path]:
    """Number and predictions of each task, in rising order."""
    found = {
        int(match[1]): file
        for file in folder.glob("task*/predictions.json")
        if (match := re.fullmatch(r"task(\d+)", file.parent.name)) is not None
    }
    return dict(sorted(found.items()))


def _first_character(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1].decode("latin-1")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), remedy="check the path") from None


def _foreign(path: Path, form: str, schedule: Schedule | None, task: int | None) -> tuple[Schedule, LabelSpace]:
    for name, value in (("schedule", schedule), ("task", task)):
        if value is None:
            raise ConfigError(
                f"{form} need{'s' if form.startswith('a ') else ''} a {name}",
                where=str(path),
                remedy=f"give the {name}: the form itself does not say which classes the detector knew",
            )
    assert schedule is not None and task is not None
    return schedule, schedule.at(task)


def _own(path: Path, schedule: Schedule | None, task: int | None) -> Predictions:
    """Predictions of this project, which must be of the task, and agree with the schedule, where these are given."""
    predictions = read_predictions(path)
    if task is not None and predictions.task != task:
        raise DataError(
            f"holds predictions of task {predictions.task}, not of task {task}",
            where=str(path),
            remedy="correct the task or the path",
        )
    if schedule is not None:
        for number, names in enumerate(predictions.tasks[: predictions.task], start=1):
            wanted = schedule.tasks[number - 1] if number <= len(schedule.tasks) else ()
            if set(names) != set(wanted):
                differing = sorted(set(names) ^ set(wanted))
                raise DataError(
                    f"task {number} of the file and of the schedule {schedule.name!r} differ in: "
                    f"{', '.join(differing)}",
                    where=str(path),
                    remedy="leave the schedule out, the file has its own; or correct it",
                )
    return predictions
