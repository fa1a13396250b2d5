"""Folders of VOC detection files, one per class, with lines ``image_id score xmin ymin xmax ymax``.

A file is named ``<class>.txt``, as the evaluator of JosephKJ/OWOD writes it
(``detectron2/evaluation/pascal_voc_evaluation.py``), or ``comp4_det_test_<class>.txt``, as the VOC devkit wants it. VOC
counts pixels from 1 and both corners belong to the box, so ``xmin`` and ``ymin`` become one less and ``xmax`` and
``ymax`` stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.predictions.arrays import Predictions
from openworld.predictions.foreign.match import (
    ForeignDetections,
    Quote,
    Unseen,
    as_predictions,
    class_rows,
    nearest_class,
)
from openworld.records import Dataset
from openworld.repairs import Repairs
from openworld.runtime.folders import visible_files
from openworld.runtime.text_files import NotText, read_text

FIELDS = ("image_id", "score", "xmin", "ymin", "xmax", "ymax")
_LINE = f"a line is: {' '.join(FIELDS)}"
_COMPETITION = re.compile(r"comp\d*_det_(?P<rest>.+)")


def read_voc_detections(
    path: Path,
    dataset: Dataset,
    space: LabelSpace,
    *,
    unseen: Unseen = "error",
    rename: Mapping[str, str] | None = None,
    repairs: Repairs | None = None,
) -> Predictions:
    """Read a folder of VOC detection files, one per class.

    Args:
        path: the folder. Each .txt file in it is named after a class, ``<class>.txt`` or
            ``comp<number>_det_<set>_<class>.txt``; a file may be empty. ``unknown`` is the unknown.
        dataset: the ground truth; its records have ``image_id``, ``path``, ``width`` and ``height``.
        space: the task whose model predicted.
        unseen: see :data:`openworld.predictions.foreign.match.Unseen`.
        rename: class names of the files to the names of the schedule.
        repairs: counts the detections of unseen classes.

    Raises:
        DataError: there is no such folder or no .txt file in it; a file is of a class that is not known, or two are of
            one class; a line does not have six fields, or one that is not a number; a score is not from 0 to 1, a box
            is not finite or ends before it begins; an image is not in the ground truth, or its id may mean several; a
            class is unseen where that is an error. Names the first such line.
    """
    path = Path(path)
    files = _files_by_class(path, [*class_rows(space, dataset), *(rename or {})], rename or {})
    image_ids: list[str] = []
    numbers: list[list[float]] = []
    class_index: list[int] = []
    line_numbers: list[int] = []
    for position, file in enumerate(files.values()):
        for line_number, image_id, values in _read_lines(file):
            image_ids.append(image_id)
            numbers.append(values)
            class_index.append(position)
            line_numbers.append(line_number)

    names = list(files)
    table = np.array(numbers, dtype=np.float64).reshape(-1, 5)

    def quote(row: int) -> Quote:
        name = names[class_index[row]]
        return Quote(
            where=f"{files[name]}, line {line_numbers[row]}",
            label=f"class {name!r}",
            box=f"{' '.join(FIELDS[2:])} {' '.join(f'{value:g}' for value in numbers[row][1:])}",
        )

    found = ForeignDetections(
        image_ids=image_ids,
        class_index=np.array(class_index, dtype=np.int64),
        class_names=names,
        boxes=table[:, 1:] - np.array([1.0, 1.0, 0.0, 0.0]),
        scores=table[:, 0],
        quote=quote,
    )
    return as_predictions(found, dataset, space, unseen=unseen, repairs=repairs, source=str(path))


def _files_by_class(folder: Path, known: Sequence[str], rename: Mapping[str, str]) -> dict[str, Path]:
    """The detection file of each class, by its name in the schedule."""
    paths = list(visible_files(folder, (".txt",), deep=False))
    if not paths:
        raise DataError(
            "is not a folder with .txt files",
            where=str(folder),
            remedy="give the folder that holds one file per class, <class>.txt or comp4_det_test_<class>.txt",
        )
    files: dict[str, Path] = {}
    for file in paths:
        name = _class_of_file(file, known)
        name = rename.get(name, name)
        if name in files:
            raise DataError(
                f"holds the class {name!r}, as {files[name].name} does",
                where=str(file),
                remedy="keep one file per class, and one set of images per folder",
            )
        files[name] = file
    return files


def _class_of_file(file: Path, known: Sequence[str]) -> str:
    """The class that a detection file is named after.

    Names of image sets and of classes may hold underscores: of the known classes that the name ends with, the longest
    is meant.
    """
    if file.stem in known:
        return file.stem
    competition = _COMPETITION.fullmatch(file.stem)
    name = file.stem
    if competition is not None:
        name = competition["rest"]
        fitting = [other for other in known if name.endswith(f"_{other}")]
        if fitting:
            return max(fitting, key=len)
        name = name.split("_", 1)[-1]
    raise DataError(f"file name: class {name!r} is not known", where=str(file), remedy=nearest_class(name, known))


def _read_lines(file: Path) -> Iterator[tuple[int, str, list[float]]]:
    """Number, image id and the five numbers of every line that is not blank."""
    try:
        text = read_text(file)
    except (OSError, NotText) as error:
        raise DataError(f"cannot be read ({error})", where=str(file), remedy="write the file again as text") from None
    for number, line in enumerate(text.split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"{file}, line {number}"
        if len(fields) != len(FIELDS):
            raise DataError(f"{len(fields)} fields: {line.strip()[:80]!r}", where=where, remedy=_LINE)
        values = []
        for name, field in zip(FIELDS[1:], fields[1:], strict=True):
            try:
                values.append(float(field))
            except ValueError:
                raise DataError(f"{name} {field!r} is not a number", where=where, remedy=_LINE) from None
        yield number, fields[0], values
