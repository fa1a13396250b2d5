"""A check of data to look at: its numbers as a file, distributions as a figure, samples as drawings.

``check.json`` has every number; ``repairs.csv``, if there are any, every record that was repaired while reading;
``histograms.png`` the distributions; ``samples/`` contact sheets: whole images by task (objects of other classes
dashed, as that task's training is not told of them), single objects by class, boxes that look like mistakes by kind,
pairs of images that look alike, and images as training augments them.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from openworld.audit.augmented_images import COLUMNS, augmented_sheet
from openworld.audit.suspicions import SAME_IOU, suspicions
from openworld.audit.terminal import CLASS_ROWS
from openworld.data.options import LoaderOptions
from openworld.errors import DataError
from openworld.records import Dataset, Record
from openworld.report.draw import contact_sheet, draw_ground_truth
from openworld.report.plots import TASK_COLOURS, png
from openworld.report.text import shortened
from openworld.runtime.files import write_atomic, write_json
from openworld.runtime.images import read_rgb
from openworld.runtime.runlog import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGE_SIDE = 384
"""Pixels, longer side of a whole image on a sheet."""
CROP_SIDE = 200
"""Pixels, side of a single object on a sheet."""
OUTSIDE = (225, 228, 232)
"""Colour of what lies outside an image."""
MARGIN = 0.35
"""Share of an object's longer side that is shown around it."""
_NAME = 50
"""Characters of a class in a file's name; a file system takes 255 bytes."""
Place = tuple[Record, int]
"""A record, and the position of one of its boxes."""


def write_check(
    result: Mapping[str, Any],
    sets: Mapping[str, Dataset],
    folder: Path,
    *,
    num_samples: int = 12,
    loader: LoaderOptions | None = None,
) -> list[Path]:
    """Write check.json, histograms.png, repairs.csv if there are repairs, and the sheets in ``samples/``.

    Args:
        result: of :func:`openworld.audit.images_and_boxes.check_data` on ``sets``.
        sets: data sets by name.
        folder: is made if it is missing; sheets and repairs of an earlier check in it are removed.
        num_samples: maximum number of images, or objects, on a sheet; 0 draws none.
        loader: of a configuration: also draw the set "train", if there is one, as its training augments it.

    Returns:
        the files.
    """
    written = [folder / "check.json", folder / "histograms.png"]
    write_json(written[0], result)
    write_atomic(written[1], histograms(result, sets))
    listed = folder / "repairs.csv"
    if any(dataset.repairs.counts for dataset in sets.values()):
        write_atomic(listed, repairs_csv(sets))
        written.append(listed)
    else:
        listed.unlink(missing_ok=True)
    sheets = folder / "samples"
    if sheets.is_dir():
        for old in sheets.glob("*.png"):
            old.unlink()
    if num_samples:
        plans = list(_sheets(result, sets, num_samples))
        if loader is not None and "train" in sets:
            shown = _spread([record for record in sets["train"] if not record.crowd.all()], -(-num_samples // COLUMNS))
            plans.append(("augmented_train", augmented_sheet(shown, sets["train"].categories, loader)))
        names = _distinct([name for name, _ in plans])
        with progress_bar("draw samples", len(plans)) as bar:
            for name, (_, sheet) in zip(names, plans, strict=True):
                path = sheets / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = sheet()
                if image is not None:
                    image.save(path)
                    written.append(path)
                bar.advance()
    return written


def repairs_csv(sets: Mapping[str, Dataset]) -> str:
    """List the repairs of all sets, a line each: set, kind, and the record in words.

    A kind with more than :attr:`openworld.repairs.Repairs.MAX_CASES` ends with the number of those that are not listed.
    """
    stream = io.StringIO(newline="")
    lines = csv.writer(stream)
    lines.writerow(("set", "kind", "record"))
    for name, dataset in sets.items():
        counts, cases = dataset.repairs.counts, dataset.repairs.cases
        for kind in sorted(cases):
            lines.writerows((name, kind, message) for message in cases[kind])
            if len(cases[kind]) == dataset.repairs.MAX_CASES < counts[kind]:
                lines.writerow((name, kind, f"and {counts[kind] - len(cases[kind]):,} more"))
    return stream.getvalue()


def histograms(result: Mapping[str, Any], sets: Mapping[str, Dataset]) -> bytes:
    """Draw a PNG: objects by class, and the sizes and shapes of the boxes of each set."""
    colours = dict(zip(("train", "val", "test"), TASK_COLOURS, strict=False))
    classes = result["classes"][:CLASS_ROWS]
    sides = {
        name: np.concatenate([np.zeros((0, 2)), *(record.boxes[:, 2:] - record.boxes[:, :2] for record in dataset)])
        for name, dataset in sets.items()
    }
    height = max(2.8, 0.9 + 0.2 * len(classes))

    def draw(figure: Figure) -> None:
        left, middle, right = figure.subplots(1, 3)
        rows = np.arange(len(classes))
        thickness = 0.8 / max(1, len(sets))
        for number, name in enumerate(sets):
            counts = [row[name] for row in classes]
            left.barh(rows + (number + 0.5) * thickness - 0.4, counts, thickness, color=colours[name], label=name)
        left.set_yticks(rows, [shortened(row["class"], 22) for row in classes])
        left.invert_yaxis()
        left.grid(axis="x")
        left.grid(visible=False, axis="y")
        left.set_title("Objects by class")
        left.legend(loc="lower right")
        for axes, values, title, label in (
            (
                middle,
                {name: np.sqrt(pair.prod(axis=1)) for name, pair in sides.items()},
                "Size of the boxes",
                "√area, px",
            ),
            (
                right,
                {name: pair[:, 0] / pair[:, 1] for name, pair in sides.items()},
                "Shape of the boxes",
                "width / height",
            ),
        ):
            everything = np.concatenate([np.zeros(0), *values.values()])
            if not len(everything):
                axes.set_visible(False)
                continue
            low, high = np.floor(4 * np.log2(everything.min())), np.ceil(4 * np.log2(everything.max()))
            edges = 2.0 ** (np.arange(low, max(high, low + 1) + 1) / 4)
            for name, numbers in values.items():
                shares = 100 * np.histogram(numbers, edges)[0] / max(1, len(numbers))
                axes.stairs(shares, edges, color=colours[name], linewidth=1.6, label=name)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")
            axes.set_title(title)
            axes.set_xlabel(label)
            axes.set_ylabel("share of the boxes, %")

    return png(draw, 11.0, height)


def _sheets(result: Mapping[str, Any], sets: Mapping[str, Dataset], samples: int) -> Iterable[tuple[str, Any]]:
    """Yield the name of each sheet, and a function that draws it or returns None where nothing can be drawn."""
    tasks = result["tasks"]
    first = next(iter(sets))
    for number, names in enumerate(tasks, start=1):
        title = f"Task {number} in {first}: {', '.join(names)}"
        chosen = _spread([record for record in sets[first] if _shows(record, sets[first], names)], samples)
        yield f"task{number}_{first}", _image_sheet(sets[first], chosen, title, set(names))
    if not tasks:
        for name, dataset in sets.items():
            title = f"{name}: {len(dataset):,} images, {dataset.num_annotations:,} objects"
            chosen = _spread(dataset, samples)
            yield f"images_{name}", _image_sheet(dataset, chosen, title, set(dataset.categories))
    for name, dataset in sets.items():
        for position, category in enumerate(dataset.categories):
            places = [
                (record, int(place)) for record in dataset for place in np.flatnonzero(record.categories == position)
            ]
            title = f"{category} in {name}: {min(samples, len(places))} of {len(places):,}"
            if places:
                yield f"class_{_file_name(category)}_{name}", _crop_sheet(dataset, _spread(places, samples), title)
        for kind, entry in result["sets"][name]["suspicious"].items():
            if entry["boxes"]:
                places = [(record, place) for record in dataset for place in suspicions(record)[kind]]
                title = f"{kind} in {name}: {min(samples, len(places))} of {len(places):,}"
                chosen = _spread(places, samples)
                yield f"suspicious_{_file_name(kind)}_{name}", _crop_sheet(dataset, chosen, title, others=True)
        if pairs := result["similar"]["within"][name]["examples"]:
            yield f"alike_{name}", _pair_sheet(dataset, dataset, pairs[:samples], f"Look-alikes within {name}")
    for key, entry in result["similar"]["across"].items():
        if entry["examples"]:
            before, after = key.split("_")
            title = f"{before}, and what looks like it in {after}"
            yield f"alike_{key}", _pair_sheet(sets[before], sets[after], entry["examples"][:samples], title)


def _shows(record: Record, dataset: Dataset, names: Sequence[str]) -> bool:
    return any(dataset.categories[position] in names for position in record.categories.tolist())


def _spread(items: Sequence[Any] | Dataset, count: int) -> list[Any]:
    """Choose ``count`` items, evenly spread over all of them."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w-]+", "_", text).strip("_")[:_NAME] or "class"


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the names that others have already: classes "a b" and "a/b" have a sheet each. Capitals do not count."""
    used: set[str] = set()
    found = []
    for name in names:
        tried = (name, *(f"{name}_{number}" for number in range(2, len(names) + 2)))
        found.append(next(each for each in tried if each.casefold() not in used))
        used.add(found[-1].casefold())
    return found


def _open(record: Record) -> Image.Image | None:
    try:
        return read_rgb(record.path, record.turned_to, white_level=record.white_level)
    except DataError:
        return None  # the check has named it


def _image_sheet(dataset: Dataset, records: Sequence[Record], title: str, taught: set[str]) -> Any:
    def draw() -> Image.Image | None:
        panels = []
        for record in records:
            image = _open(record)
            if image is not None:
                names = [dataset.categories[position] for position in record.categories.tolist()]
                known = [name in taught for name in names]
                sides = {"at_least": IMAGE_SIDE, "at_most": IMAGE_SIDE}
                panels.append(draw_ground_truth(image, record.boxes, names, known, _name(record), **sides))
        return contact_sheet(panels, 4, title) if panels else None

    return draw


def _crop_sheet(dataset: Dataset, places: Sequence[Place], title: str, *, others: bool = False) -> Any:
    """Draw single objects with what is around them; with ``others``, also boxes in the same place."""

    def draw() -> Image.Image | None:
        panels = []
        for record, place in places:
            image = _open(record)
            if image is not None:
                panels.append(_crop(image, dataset, record, place, others))
        return contact_sheet(panels, 6, title) if panels else None

    return draw


def _crop(image: Image.Image, dataset: Dataset, record: Record, place: int, others: bool) -> Image.Image:
    """Cut out a square around a box; grey lies outside the image."""
    left, top, right, bottom = record.boxes[place].tolist()
    side = max(24, math.ceil((1 + 2 * MARGIN) * max(right - left, bottom - top)))
    x, y = round((left + right - side) / 2), round((top + bottom - side) / 2)
    square = Image.new("RGB", (side, side), OUTSIDE)
    square.paste(image, (-x, -y))
    shown = [place]
    if others:
        boxes = torch.from_numpy(record.boxes)
        overlap = box_iou(boxes, boxes[place : place + 1])[:, 0].tolist()
        shown += [number for number, iou in enumerate(overlap) if iou >= SAME_IOU and number != place]
    return draw_ground_truth(
        square,
        record.boxes[shown].astype(np.float64) - np.array([x, y, x, y], dtype=np.float64),
        [dataset.categories[position] for position in record.categories[shown].tolist()],
        [True] * len(shown),
        _name(record),
        at_least=CROP_SIDE,
        at_most=CROP_SIDE,
    )


def _name(record: Record) -> str:
    """The file name, with the id in front where it differs."""
    same = str(record.image_id) == record.path.stem
    return record.path.name if same else f"{record.image_id}: {record.path.name}"


def _pair_sheet(first: Dataset, second: Dataset, pairs: Sequence[Sequence[Any]], title: str) -> Any:
    def draw() -> Image.Image | None:
        panels = []
        for old, new, _ in pairs:
            for record in (first.find(old), second.find(new)):
                image = _open(record)
                if image is not None:
                    sides = {"at_least": IMAGE_SIDE, "at_most": IMAGE_SIDE}
                    panels.append(draw_ground_truth(image, [], [], [], _name(record), **sides))
        return contact_sheet(panels, 4, title) if panels else None

    return draw
