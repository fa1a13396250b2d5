"""Read predictions of any form, told apart by their content: ours, COCO results, VOC detection files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from openworld.data.schedules import Schedule
from openworld.errors import ConfigError, DataError
from openworld.labels import LabelSpace
from openworld.predictions.arrays import Predictions
from openworld.predictions.file import read_predictions
from openworld.predictions.foreign.coco_results import read_coco_results
from openworld.predictions.foreign.match import Unseen
from openworld.predictions.foreign.voc_text import read_voc_detections
from openworld.predictions.images import matched_by_file
from openworld.predictions.pictures import check_sizes
from openworld.records import Dataset
from openworld.repairs import Repairs
from openworld.runtime.folders import visible_files


def open_predictions(
    path: Path,
    dataset: Dataset,
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
        schedule: needed for foreign forms. Our own predictions bring theirs; up to their task, both must have the same
            classes in the same tasks.
        task: the task whose model predicted, from 1; needed for foreign forms. Picks one task of a run.
        category_names: for COCO results, see
            :func:`openworld.predictions.foreign.coco_results.read_coco_results`.
        unknown_category: for COCO results.
        unseen: for foreign forms, see :data:`openworld.predictions.foreign.match.Unseen`.
        repairs: counts the detections of unseen classes, images that were matched by the names of their files, and
            scores that rounding brought out of range.

    Returns:
        one per task that was read, at least one.

    Raises:
        DataError: nothing there can be read, schedules or tasks disagree, or as the readers raise.
        ConfigError: a foreign form comes without schedule, task or category names, or the schedule lacks the task.
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
            chosen = numbered if task is None else {task: numbered[task]}
            return [_own(file, dataset, schedule, number, repairs) for number, file in chosen.items()]
        if not any(visible_files(path, (".txt",), deep=False)):
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
            "is one text file", where=str(path), remedy="give the folder that holds one detection file per class"
        )
    if _first_character(path) != "[":
        return [_own(path, dataset, schedule, task, repairs)]
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
    """Path of the predictions of each task, in rising order."""
    found = {
        int(match[1]): file
        for file in folder.glob("task*/predictions.json")
        if (match := re.fullmatch(r"task(\d+)", file.parent.name)) is not None
    }
    return dict(sorted(found.items()))


def _first_character(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), remedy="check the path") from None
    return head.decode(json.detect_encoding(head), "ignore").lstrip()[:1]


def _foreign(path: Path, form: str, schedule: Schedule | None, task: int | None) -> tuple[Schedule, LabelSpace]:
    if schedule is not None and task is not None:
        return schedule, schedule.at(task)
    missing = [name for name, value in (("schedule", schedule), ("task", task)) if value is None]
    raise ConfigError(
        f"{form} need{'s' if form.startswith('a ') else ''} a {' and a '.join(missing)}",
        where=str(path),
        remedy=f"add {' and '.join(f'--{name}' for name in missing)}: the form itself does not say which classes the "
        "detector knew",
    )


def _own(
    path: Path, dataset: Dataset, schedule: Schedule | None, task: int | None, repairs: Repairs | None
) -> Predictions:
    """Read our own predictions, with the image ids of the data set; a given task or schedule must agree with theirs."""
    predictions = read_predictions(path, repairs)
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
    matched = matched_by_file(predictions, dataset, path, repairs)
    check_sizes(matched, dataset, path)
    return matched
