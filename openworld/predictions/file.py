"""predictions.json: what a detector said about a set of images, with the decision and the energy of each detection.

    {"format": "openworld-predictions/1", "tasks": [[class names], …], "task": t,
     "uses_unknown_labels": false, "orientation": "size" | "stored" | "upright",
     "images": [{"id": …, "file": …, "width": …, "height": …,
                 "detections": [{"bbox": [x, y, w, h], "label": name or "unknown", "score": …,
                                 "best_known": name, …}, …]}, …]}

Boxes are pixels of the original image, 0-based; detections are sorted by falling score; numbers keep full precision.
Every image that was seen is listed, also without detections. ``best_known`` may be absent or null, so that any
detector's output can be scored. Further numbers of a detection are the method's extra columns, such as ``energy``;
entries that are not numbers are ignored. ``uses_unknown_labels`` (absent: false) says that labels of unknown objects
helped to decide what is unknown; results then say so, too. ``orientation`` (absent: ``size``) says of which picture the
boxes are where a photograph has an EXIF tag: as viewers show it, as it is stored, or the one that has the given size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openworld.errors import DataError, OpenWorldError
from openworld.labels import UNKNOWN_NAME, LabelSpace
from openworld.predictions.arrays import Predictions, Reals, Whole, wrong_numbers
from openworld.predictions.rounding import BEYOND, within_rounding
from openworld.repairs import Repairs
from openworld.runtime.files import write_atomic
from openworld.structures import Detections

FORMAT = "openworld-predictions/1"

RESERVED = ("bbox", "label", "score", "best_known")
"""Keys of a detection that are not extra columns."""

_ORIENTATIONS = {None: "size", False: "stored", True: "upright"}


@dataclass(frozen=True)
class PredictedImage:
    """One image and its detections.

    Args:
        image_id: as in the annotation file.
        file: path or name of the image file.
        width, height: pixels of the original image.
        detections: boxes in those pixels.
    """

    image_id: int | str
    file: str
    width: int
    height: int
    detections: Detections


def write_predictions(
    path: Path,
    space: LabelSpace,
    images: Iterable[PredictedImage],
    *,
    uses_unknown_labels: bool = False,
    upright: bool | None = None,
) -> None:
    """Write predictions.json, whole or not at all, one image a line.

    Args:
        path: the file.
        space: label space of the model; names the rows.
        images: each image once; detections are sorted here.
        uses_unknown_labels: labels of unknown objects helped to decide what is unknown.
        upright: whether the pictures were turned by their EXIF tags; None: as the size of each tells.

    Raises:
        DataError: an image given twice or without a size, or a detection with a score outside [0, 1], a box that is not
            finite or not ordered, an infinite extra number, an extra column with a reserved name, or a label that is
            neither known nor unknown.
    """
    seen: set[int | str] = set()
    lines = []
    for image in images:
        where = f"{path}, image {image.image_id!r}"
        if image.image_id in seen:
            raise DataError("the image is predicted twice", where=where, remedy="predict each image once")
        seen.add(image.image_id)
        _check_size(image.width, image.height, where)
        content = {
            "id": image.image_id,
            "file": image.file,
            "width": image.width,
            "height": image.height,
            "detections": _written_detections(image.detections, space, where),
        }
        lines.append(json.dumps(content, allow_nan=False, ensure_ascii=False))
    about = {
        "format": FORMAT,
        "tasks": space.tasks,
        "task": space.task,
        "uses_unknown_labels": uses_unknown_labels,
        "orientation": _ORIENTATIONS[upright],
    }
    head = json.dumps(about, ensure_ascii=False)[:-1]
    body = ",\n".join(lines)
    write_atomic(Path(path), f'{head}, "images": [\n{body}\n]}}\n')


def _written_detections(detections: Detections, space: LabelSpace, where: str) -> list[dict[str, Any]]:
    boxes = detections.boxes.detach().cpu().double().numpy()
    scores = detections.scores.detach().cpu().double().numpy()
    extras = {name: column.detach().cpu().double().numpy() for name, column in detections.extras.items()}
    labels = detections.labels.detach().cpu().numpy()
    best = detections.known_labels.detach().cpu().numpy()
    _check_numbers(boxes, scores, np.zeros(len(boxes), dtype=np.int64), [where])
    wrong_label = ~(space.is_known(labels) | (labels == space.unknown)) | ~space.is_known(best)
    if wrong_label.any():
        position = int(np.argmax(wrong_label))
        raise DataError(
            f"label {labels[position]}, best known class {best[position]}",
            where=f"{where}, detection {position}",
            remedy=f"a label is a known row, from 0 to {space.num_known - 1}, or {space.unknown} for unknown; "
            "the best known class is a known row",
        )
    for name, column in extras.items():
        if name in RESERVED:
            raise DataError(f"the extra column {name!r}", where=where, remedy=f"choose none of {', '.join(RESERVED)}")
        if np.isinf(column).any():
            position = int(np.argmax(np.isinf(column)))
            raise DataError(
                f"{name} {column[position]}",
                where=f"{where}, detection {position}",
                remedy="the logits overflowed; look at the model's weights",
            )
    names = space.row_names
    order = np.argsort(-scores, kind="stable")
    corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    columns = (corner_and_size, labels, scores, best, *extras.values())
    return [
        {
            "bbox": box,
            "label": names[label],
            "score": score,
            "best_known": names[known],
            **{name: None if math.isnan(value) else value for name, value in zip(extras, values)},
        }
        for box, label, score, known, *values in zip(*(column[order].tolist() for column in columns))
    ]


def _check_size(width: Any, height: Any, where: str) -> None:
    if type(width) is not int or type(height) is not int or width < 1 or height < 1:
        raise DataError(
            f"width {width!r} and height {height!r}", where=where, remedy="give the image's size in whole pixels"
        )


def _check_numbers(boxes: Reals, scores: Reals, owner: Whole, wheres: list[str]) -> None:
    """Refuse impossible xyxy boxes and scores; ``owner`` (N,), not falling, is each row's position in ``wheres``."""
    wrong_score, wrong_box = wrong_numbers(boxes, scores)
    wrong = np.flatnonzero(wrong_score | wrong_box)
    if not wrong.size:
        return
    row = int(wrong[0])
    where = f"{wheres[owner[row]]}, detection {row - int(np.searchsorted(owner, owner[row]))}"
    if wrong_score[row]:
        raise DataError(f"score {scores[row]}", where=where, remedy="a score is a number from 0 to 1")
    raise DataError(
        f"box {boxes[row].tolist()} (x1 y1 x2 y2)",
        where=where,
        remedy="a box has finite coordinates, and a width and height of at least 0",
    )


def read_predictions(path: Path, repairs: Repairs | None = None) -> Predictions:
    """Read and validate predictions.json.

    Args:
        path: the file.
        repairs: counts scores that rounding brought out of [0, 1], and that are brought back.

    Raises:
        DataError: a file that cannot be read or is of another format, an image id that comes twice, a class name that
            the file's task does not know, or a value that is missing, not a number, or out of range.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
            raise DataError(
                "holds COCO annotations, not predictions",
                where=str(path),
                remedy="give predictions.json of `openworld predict`, or COCO results, which are a list",
            )
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"the format is {found!r}, not {FORMAT!r}",
            where=str(path),
            remedy=f'write an object with "format": "{FORMAT}", "tasks", "task" and "images"',
        )
    try:
        space = LabelSpace.of(content["tasks"], content["task"])
    except OpenWorldError as error:
        raise DataError(error.problem, where=str(path), remedy=error.remedy) from None
    except (KeyError, TypeError):
        raise DataError(
            "tasks or task is missing or malformed",
            where=str(path),
            remedy='"tasks" is a list of lists of class names, "task" a number from 1',
        ) from None
    images = content.get("images")
    if not isinstance(images, list):
        raise DataError("images is not a list", where=str(path), remedy='list the images under "images"')

    rows = {name: space.row(name) for name in (*space.known, UNKNOWN_NAME)}
    best_rows: dict[str | None, int] = {None: -1, **{name: space.row(name) for name in space.known}}
    ids: list[int | str] = []
    wheres: list[str] = []
    sizes: list[int] = []
    flat: list[dict[str, Any]] = []
    seen: set[int | str] = set()
    for position, image in enumerate(images):
        name = image.get("id") if isinstance(image, dict) else None
        if not isinstance(name, (int, str)) or isinstance(name, bool):
            raise DataError(
                f"image {position} has the id {name!r}", where=str(path), remedy="give each image a text or a whole id"
            )
        where = f"{path}, image {name!r}"
        if name in seen:
            raise DataError("the image id comes twice", where=where, remedy="predict each image once")
        seen.add(name)
        detections = image.get("detections")
        if not isinstance(detections, list):
            raise DataError(
                "detections is not a list", where=where, remedy="list the detections, or [] where there are none"
            )
        _check_size(image.get("width"), image.get("height"), where)
        for number, detection in enumerate(detections):
            _check_detection(detection, rows, best_rows, space, f"{where}, detection {number}")
        ids.append(name)
        wheres.append(where)
        sizes.append(len(detections))
        flat.extend(detections)

    image_index = np.repeat(np.arange(len(ids), dtype=np.int64), sizes)
    present = dict.fromkeys(name for detection in flat for name in detection if name not in RESERVED)
    extras = {name: [detection.get(name) for detection in flat] for name in present}
    boxes = np.array([detection["bbox"] for detection in flat], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores, rounded = within_rounding(np.array([detection["score"] for detection in flat], dtype=np.float64))
    if repairs is not None:
        for row in rounded.tolist():
            repairs.add(BEYOND, f"{wheres[image_index[row]]} has the score {flat[row]['score']!r}")
    _check_numbers(boxes, scores, image_index, wheres)
    return Predictions(
        tasks=space.tasks,
        task=space.task,
        image_ids=tuple(ids),
        files=tuple(str(image.get("file", "")) for image in images),
        widths=np.array([image["width"] for image in images], dtype=np.int64),
        heights=np.array([image["height"] for image in images], dtype=np.int64),
        image_index=image_index,
        boxes=boxes,
        labels=np.array([rows[detection["label"]] for detection in flat], dtype=np.int64),
        scores=scores,
        best_known=np.array([best_rows[detection.get("best_known")] for detection in flat], dtype=np.int64),
        extras={
            name: np.array(values, dtype=np.float64)
            for name, values in extras.items()
            if all(value is None or _is_number(value) for value in values)
        },
        uses_unknown_labels=content.get("uses_unknown_labels") is True,
        upright=_upright(content.get("orientation", "size"), path),
    )


def _upright(orientation: Any, path: Path) -> bool | None:
    for upright, name in _ORIENTATIONS.items():
        if name == orientation:
            return upright
    raise DataError(
        f"orientation {orientation!r}", where=str(path), remedy=f"write one of {', '.join(_ORIENTATIONS.values())}"
    )


def read_json(path: Path) -> Any:
    """The content of a file of predictions.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}", where=str(path), remedy="check the path and its permissions"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON: {error}", where=str(path), remedy="write the file again") from None


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int


def _check_detection(
    detection: Any, rows: dict[str, int], best_rows: dict[str | None, int], space: LabelSpace, where: str
) -> None:
    """Refuse a detection whose entries have the wrong type or name a class that is not known."""
    if not isinstance(detection, dict):
        raise DataError(
            f"{detection!r} is not an object", where=where, remedy='a detection has "bbox", "label" and "score"'
        )
    box, score = detection.get("bbox"), detection.get("score")
    if type(box) is not list or len(box) != 4 or not all(map(_is_number, box)):
        raise DataError(f"bbox {box!r}", where=where, remedy="a bbox is four numbers: x, y, width, height")
    if not _is_number(score):
        raise DataError(f"score {score!r}", where=where, remedy="a score is a number from 0 to 1")
    known = ", ".join(space.known)
    label, best = detection.get("label"), detection.get("best_known")
    if not isinstance(label, str) or label not in rows:
        raise DataError(
            f"label {label!r} is not known at task {space.task}",
            where=where,
            remedy=f"a label is {UNKNOWN_NAME!r} or one of {known}",
        )
    if best is not None and (not isinstance(best, str) or best not in best_rows):
        raise DataError(
            f"best_known {best!r} is not known at task {space.task}", where=where, remedy=f"known are: {known}"
        )
    for name, value in detection.items():
        if name not in RESERVED and type(value) is float and not math.isfinite(value):
            raise DataError(f"{name} {value!r}", where=where, remedy="an extra value is a finite number, or null")
