"""Test images for the report: choose them, and draw them as each task sees them.

The same images are shown for every task, so that a reader sees an object go from "unknown" to its name.
"""

from __future__ import annotations

import base64
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from openworld.errors import DataError
from openworld.labels import UNKNOWN_NAME
from openworld.records import Dataset
from openworld.report.draw import contact_sheet, draw_detections, draw_ground_truth
from openworld.report.run_folder import RunArtefacts, mapping, read_run, sequence
from openworld.report.text import number
from openworld.runtime.image_headers import Upright
from openworld.runtime.images import WHITE_LEVEL, read_rgb

logger = logging.getLogger(__name__)

Evidence = tuple[str, str]
"""A finding on some image: ("known" | "unknown" | "named", class name)."""

_WORTH = {"known": 1.0, "unknown": 2.0, "named": 4.0}
"""Weight of a right name, of an unknown object found, and of an object found as unknown and later named."""


@dataclass(frozen=True)
class Objects:
    """Annotated objects of one image: ``boxes`` (N, 4) float64 x1 y1 x2 y2 and N class names."""

    boxes: npt.NDArray[np.float64]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """Detections of one image to draw: ``boxes`` (N, 4) float64 x1 y1 x2 y2, sorted by falling score."""

    boxes: npt.NDArray[np.float64]
    names: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def is_unknown(self) -> list[bool]:
        return [name == UNKNOWN_NAME for name in self.names]


@dataclass(frozen=True)
class Panel:
    """One task's view of one image. ``truth`` is None without annotations, ``found`` without predictions."""

    task: int
    truth: Image.Image | None
    found: Image.Image | None
    shown: Shown | None


@dataclass(frozen=True)
class Picture:
    """One test image as every task sees it."""

    image_id: str
    name: str
    panels: tuple[Panel, ...]
    story: tuple[str, ...]
    """Classes of objects that were found as unknown and named at a later task."""
    telling: bool
    """Whether something drawn on it is right or, without annotations, anything is drawn."""


def pictures(
    run: RunArtefacts,
    test: Dataset | None,
    *,
    num_images: int = 6,
    known_threshold: float = 0.3,
    unknowns: int = 4,
    size: int = 480,
) -> tuple[list[Picture], list[str]]:
    """Choose images and draw them for every task with predictions.

    Args:
        run: the run.
        test: annotations; without them only detections are drawn.
        num_images: maximum number of images.
        known_threshold: smallest score of a known detection to draw.
        unknowns: draw at most this many unknown detections per image, best first.
        size: longer side of a drawing in pixels.

    Returns:
        The pictures, and one sentence per image that could not be opened.
    """
    views = {
        task.number: {
            str(entry.get("id")): entry for entry in map(mapping, sequence(mapping(task.predictions).get("images")))
        }
        for task in run.tasks
        if task.predictions is not None
    }
    shown = {
        task: {key: shown_detections(entry, known_threshold, unknowns) for key, entry in entries.items()}
        for task, entries in views.items()
    }
    objects, paths = _annotations(test)
    white_level = round(
        number(mapping(mapping(run.config.get("data")).get("loader")).get("white_level")) or WHITE_LEVEL
    )
    known = {task: frozenset(run.known(task)) for task in views}
    ids = sorted({key for entries in views.values() for key in entries}, key=_natural)
    evidence = {
        key: image_evidence(
            {task: found[key] for task, found in shown.items() if key in found}, objects.get(key), known
        )
        for key in ids
    }
    result: list[Picture] = []
    notes: list[str] = []
    for key in choose(evidence, len(ids)):
        if len(result) == num_images or len(notes) == 3:
            break
        file = next(
            (str(entries[key]["file"]) for entries in views.values() if mapping(entries.get(key)).get("file")), ""
        )
        candidates = [run.path / file] if file else []
        candidates += [Path(paths[key])] if key in paths else []
        entry = next(entries[key] for entries in views.values() if key in entries)
        image = _open(candidates, _orientation(run, entry), white_level)
        if image is None:
            notes.append(f"Image {key} cannot be opened ({file or 'no file named'}), so it is not shown.")
            continue
        panels = tuple(
            _panel(task, image, objects.get(key), shown[task].get(key), known[task], size) for task in sorted(views)
        )
        story = sorted(name for kind, name in evidence[key] if kind == "named")
        result.append(Picture(key, Path(file).name or key, panels, tuple(story), bool(evidence[key])))
    return result, notes


def sample_sheet(
    run: Path,
    test: Dataset | None,
    output: Path,
    *,
    num_images: int = 3,
    size: int = 384,
    known_threshold: float = 0.3,
) -> Path:
    """Write one PNG with one row per image: the annotations, then the detections after every task.

    Raises:
        DataError: no image of the run can be drawn.
    """
    chosen, notes = pictures(read_run(run), test, num_images=num_images, known_threshold=known_threshold, size=size)
    cells: list[Image.Image] = []
    columns = 1
    for picture in chosen:
        truth = [_titled(panel.truth, "annotated") for panel in picture.panels[:1] if panel.truth is not None]
        found = [
            _titled(panel.found, f"after task {panel.task}") for panel in picture.panels if panel.found is not None
        ]
        columns = max(columns, len(truth) + len(found))
        cells += [*truth, *found]
    if not cells:
        raise DataError(
            "; ".join(notes) or "there are no predictions to draw",
            where=str(run),
            remedy="evaluate the run first, and keep the test images where they were",
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(cells, columns).save(output)
    return output


def shown_detections(entry: Mapping[str, Any], known_threshold: float, unknowns: int) -> Shown:
    """Choose the detections of one image that are worth drawing.

    Args:
        entry: one element of ``images`` in predictions.json.
        known_threshold: smallest score of a known detection.
        unknowns: maximum number of unknown detections, best first.
    """
    usable = []
    for item in map(mapping, sequence(entry.get("detections"))):
        box, score = [number(value) for value in sequence(item.get("bbox"))], number(item.get("score"))
        if len(box) == 4 and None not in box and score is not None:
            usable.append((score, str(item.get("label")), box))
    usable.sort(key=lambda item: -item[0])
    chosen, left = [], unknowns
    for score, name, box in usable:
        if name == UNKNOWN_NAME:
            if left > 0:
                left -= 1
                chosen.append((score, name, box))
        elif score >= known_threshold:
            chosen.append((score, name, box))
    boxes = np.array([box for _, _, box in chosen], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Shown(boxes, tuple(name for _, name, _ in chosen), tuple(score for score, _, _ in chosen))


def image_evidence(
    shown: Mapping[int, Shown], objects: Objects | None, known: Mapping[int, frozenset[str]]
) -> Counter[Evidence]:
    """Count the findings on one image, over all tasks.

    With annotations only correct detections count. They are matched greedily by falling score at IoU >= 0.5: known ones
    to objects of their class, unknown ones to objects of classes that the task does not know. Without annotations every
    drawn detection counts.
    """
    counted: Counter[Evidence] = Counter()
    found_as_unknown: set[int] = set()
    for task in sorted(shown):
        detections = shown[task]
        if objects is None:
            counted.update(("unknown" if name == UNKNOWN_NAME else "known", name) for name in detections.names)
            continue
        for position, name in _matches(detections, objects, known[task]):
            true_name = objects.names[position]
            if name == UNKNOWN_NAME:
                counted["unknown", true_name] += 1
                found_as_unknown.add(position)
            else:
                counted["known", true_name] += 1
                if position in found_as_unknown:
                    counted["named", true_name] += 1
    return counted


def choose(evidence: Mapping[str, Counter[Evidence]], count: int) -> list[str]:
    """Choose ``count`` images, the most telling first; findings of earlier images count less and less."""
    seen: Counter[Evidence] = Counter()
    left = sorted(evidence, key=_natural)
    chosen: list[str] = []

    def gain(key: str) -> float:
        return sum(_WORTH[item[0]] * min(times, 2) / (1 + seen[item]) for item, times in evidence[key].items())

    while left and len(chosen) < count:
        if len(chosen) >= 64:
            return chosen + left[: count - len(chosen)]
        best = max(left, key=gain)
        left.remove(best)
        chosen.append(best)
        seen.update(dict.fromkeys(evidence[best], 1))
    return chosen


def data_uri(image: Image.Image) -> str:
    """Encode the image as a JPEG ``data:`` address."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=86, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _panel(
    task: int, image: Image.Image, objects: Objects | None, shown: Shown | None, known: frozenset[str], size: int
) -> Panel:
    truth = found = None
    if objects is not None:
        taught = [name in known for name in objects.names]
        truth = draw_ground_truth(image, objects.boxes, objects.names, taught, at_least=size, at_most=size)
    if shown is not None:
        found = draw_detections(
            image, shown.boxes, shown.names, shown.scores, shown.is_unknown, at_least=size, at_most=size
        )
    return Panel(task, truth, found, shown)


def _annotations(test: Dataset | None) -> tuple[dict[str, Objects], dict[str, str]]:
    """Objects and image path by image id, without objects that are marked *ignore*."""
    objects: dict[str, Objects] = {}
    paths: dict[str, str] = {}
    if test is None:
        return objects, paths
    for record in test:
        asked = ~record.ignore
        names = tuple(test.categories[position] for position in record.categories[asked].tolist())
        objects[str(record.image_id)] = Objects(record.boxes[asked].astype(np.float64), names)
        paths[str(record.image_id)] = str(record.path)
    return objects, paths


def _matches(detections: Shown, objects: Objects, known: frozenset[str]) -> list[tuple[int, str]]:
    """Return (position of the object, label of the detection) of every correct detection."""
    overlap = _iou(detections.boxes, objects.boxes)
    free = [True] * len(objects.names)
    right = []
    for row, name in enumerate(detections.names):
        fits = [
            position
            for position, true_name in enumerate(objects.names)
            if free[position]
            and overlap[row, position] >= 0.5
            and (true_name not in known if name == UNKNOWN_NAME else true_name == name)
        ]
        if fits:
            best = max(fits, key=lambda position: float(overlap[row, position]))
            free[best] = False
            right.append((best, name))
    return right


def _iou(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the (N, M) intersection over union of (N, 4) and (M, 4) boxes x1 y1 x2 y2."""
    corner = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(one[:, None, :2], other[None, :, :2])
    shared = np.prod(np.clip(corner, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.where(union > 0, shared / np.where(union > 0, union, 1), 0)


def _orientation(run: RunArtefacts, entry: Mapping[str, Any]) -> Upright:
    """The orientation that the boxes of an image are of: as predictions.json says, or the one of the size in it."""
    said = next((task.predictions.get("orientation") for task in run.tasks if task.predictions is not None), None)
    if said == "upright" or said == "stored":
        return bool(said == "upright")
    width, height = number(entry.get("width")), number(entry.get("height"))
    return False if width is None or height is None else (round(width), round(height))


def _open(candidates: Sequence[Path], upright: Upright, white_level: int) -> Image.Image | None:
    """Open the first candidate that is an image, in the orientation of its boxes."""
    for path in candidates:
        try:
            return read_rgb(path, upright, white_level=white_level)
        except DataError as error:
            logger.warning("not shown in the report: %s", error)
    return None


def _natural(key: str) -> tuple[int, str]:
    """Return a sort key with shorter names first, so that "9" comes before "10"."""
    return len(key), key


def _titled(image: Image.Image | None, title: str) -> Image.Image:
    assert image is not None
    return contact_sheet([image], 1, title, gap=0)
