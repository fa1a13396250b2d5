"""Test images for the report: choose them, and draw them as each task sees them.

The same images are shown for every task, so that a reader sees an object go from "unknown" to its name.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openworld.errors import DataError
from openworld.records import Dataset
from openworld.report.draw import contact_sheet, draw_detections, draw_ground_truth
from openworld.report.findings import (
    Objects,
    Shown,
    best_unknown_threshold,
    choose,
    image_evidence,
    natural_order,
    shown_detections,
)
from openworld.report.run_folder import RunArtefacts, mapping, read_run, sequence
from openworld.report.text import number
from openworld.runtime.image_headers import Upright
from openworld.runtime.images import WHITE_LEVEL, read_rgb

logger = logging.getLogger(__name__)


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
        unknowns: draw at most this many unknown detections per image, best first; with annotations only from
            :func:`best_unknown_threshold` on.
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
    objects, paths = _annotations(test)
    thresholds = {
        task: best_unknown_threshold(entries, objects, frozenset(run.known(task))) for task, entries in views.items()
    }
    shown = {
        task: {
            key: shown_detections(entry, known_threshold, unknowns, thresholds[task]) for key, entry in entries.items()
        }
        for task, entries in views.items()
    }
    white_level = round(
        number(mapping(mapping(run.config.get("data")).get("loader")).get("white_level")) or WHITE_LEVEL
    )
    known = {task: frozenset(run.known(task)) for task in views}
    ids = sorted({key for entries in views.values() for key in entries}, key=natural_order)
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


def _titled(image: Image.Image | None, title: str) -> Image.Image:
    assert image is not None
    return contact_sheet([image], 1, title, gap=0)
