"""A check of data, to read on the terminal and to look at: tables with bars, and drawings of samples.

``check.json`` has every number; ``histograms.png`` the distributions; ``samples/`` contact sheets: whole images by task
(objects of other classes dashed, as that task's training is not told of them), single objects by class, boxes that look
like mistakes by kind, and pairs of images that look alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from openworld.audit.findings import print_findings
from openworld.audit.images_and_boxes import ASPECT_EDGES, SAME_IOU, SIDE_EDGES, suspicions
from openworld.data.images import load_image
from openworld.data.records import Dataset, Record
from openworld.errors import DataError
from openworld.report.draw import contact_sheet, draw_ground_truth
from openworld.report.plots import TASK_COLOURS, png
from openworld.runtime.console import narrow_table
from openworld.runtime.files import write_atomic, write_json
from openworld.runtime.runlog import progress_bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

IMAGE_SIDE = 384
"""Pixels, longer side of a whole image on a sheet."""
CROP_SIDE = 200
"""Pixels, side of a single object on a sheet."""
OUTSIDE = (225, 228, 232)
"""Colour of what lies outside an image."""
MARGIN = 0.35
"""Of an object's longer side: what is shown around it."""
CLASS_ROWS = 40
"""Most classes on the terminal and in the figure; check.json has all."""
_BAR = 12
Place = tuple[Record, int]
"""A record, and the position of one of its boxes."""


# -- on the terminal ---------------------------------------------------------------------------------------------------


def print_check(result: Mapping[str, Any], console: Console) -> None:
    """Print a check: the sets, classes, tasks, distributions with bars, and findings with what to do.

    Args:
        result: of :func:`openworld.audit.images_and_boxes.check_data`.
        console: rich.
    """
    sets = result["sets"]
    rows = [
        (
            name,
            f"{facts['images']:,}",
            f"{facts['objects']:,}",
            f"{facts['objects'] / max(1, facts['images']):.1f}",
            f"{facts['without_objects']['images']:,}",
            f"{facts['unreadable']['images']:,}",
            _sizes(facts["image_sizes"]),
        )
        for name, facts in sets.items()
    ]
    heads = ("Set", "Images", "Objects", "Objects\nan image", "Without\nobjects", "Not\nreadable", "Pixels")
    console.print(narrow_table(heads, rows, "The sets", words=["Set"]))
    console.print()
    console.print(_class_table(result))
    if result["task_objects"]:
        console.print()
        columns = ("Task", *(f"{name}\n{kind}" for name in sets for kind in ("images", "objects")))
        lines = [
            (
                "none" if row["task"] is None else str(row["task"]),
                *(f"{row[name][kind]:,}" for name in sets for kind in ("images", "objects")),
            )
            for row in result["task_objects"]
        ]
        console.print(narrow_table(columns, lines, "Tasks: images that show their classes, and objects"))
    for key, title, head, edges in (
        ("box_sides", "Size of the boxes", "√area, px", SIDE_EDGES),
        ("box_aspects", "Shape of the boxes", "Width/height", ASPECT_EDGES),
    ):
        console.print()
        used = [number for number in range(len(edges) - 1) if any(facts[key][number] for facts in sets.values())]
        lines = [
            (_bin(low, high), *(_bar(facts[key][number], sum(facts[key])) for facts in sets.values()))
            for number, (low, high) in enumerate(pairwise(edges))
            if used and used[0] <= number <= used[-1]
        ]
        console.print(narrow_table((head, *(f"{name:<{_BAR + 8}}" for name in sets)), lines, title))
    console.print()
    print_findings(result["findings"], console, "Nothing was found that looks wrong.")


def _sizes(sizes: Mapping[str, Any]) -> str:
    if sizes["smallest"] is None:
        return "–"
    smallest, largest = ("x".join(map(str, sizes[name])) for name in ("smallest", "largest"))
    return smallest if sizes["distinct"] == 1 else f"{smallest} to\n{largest}"


def _class_table(result: Mapping[str, Any]) -> Any:
    sets, classes = list(result["sets"]), result["classes"]
    has_tasks = bool(result["tasks"])
    most = max((row[sets[0]] for row in classes), default=0)
    rows = [
        (
            row["class"],
            *((("–" if row["task"] is None else str(row["task"])),) if has_tasks else ()),
            *(f"{row[name]:,}" for name in sets),
            _blocks(row[sets[0]] / most if most else 0.0),
        )
        for row in classes[:CLASS_ROWS]
    ]
    heads = ("Class", *(("Task",) if has_tasks else ()), *sets, "")
    title = "Objects by class" + (f": the first {CLASS_ROWS} of {len(classes)}" if len(classes) > CLASS_ROWS else "")
    return narrow_table(heads, rows, title, words=["Class", ""])


def _bin(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g}"
    return f"from {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def _bar(number: int, total: int) -> str:
    """A bar as long as the share, and the share in percent; nothing where there is nothing."""
    share = number / total if total else 0.0
    text = "" if not number else "<0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"
    return f"{_blocks(share):<{_BAR}} {text:>7}"


def _blocks(share: float) -> str:
    """A bar of eighths of a character, at most ``_BAR`` long; at least one eighth unless the share is 0."""
    whole, part = divmod(max(1, round(share * _BAR * 8)) if share else 0, 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[part].strip()


# -- to look at --------------------------------------------------------------------------------------------------------


def write_check(
    result: Mapping[str, Any], sets: Mapping[str, Dataset], folder: Path, *, samples: int = 12
) -> list[Path]:
    """Write check.json, histograms.png and the sheets in ``samples/``.

    Args:
        result: of :func:`openworld.audit.images_and_boxes.check_data` on ``sets``.
        sets: data sets by name.
        folder: is made; sheets of an earlier check in it are removed.
        samples: most images, or objects, on a sheet. 0 draws none.

    Returns:
        the files.
    """
    written = [folder / "check.json", folder / "histograms.png"]
    write_json(written[0], result)
    write_atomic(written[1], histograms(result, sets))
    sheets = folder / "samples"
    if sheets.is_dir():
        for old in sheets.glob("*.png"):
            old.unlink()
    if samples:
        plans = list(_sheets(result, sets, samples))
        with progress_bar("draw samples", len(plans)) as bar:
            for name, sheet in plans:
                path = sheets / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = sheet()
                if image is not None:
                    image.save(path)
                    written.append(path)
                bar.advance()
    return written


def histograms(result: Mapping[str, Any], sets: Mapping[str, Dataset]) -> bytes:
    """A PNG: objects by class, and the distributions of size and shape of the boxes of each set."""
    colours = dict(zip(("train", "val", "test"), TASK_COLOURS, strict=False))
    classes = result["classes"][:CLASS_ROWS]
    sides = {
        name: np.concatenate(
            [np.zeros((0, 2)), *(record.boxes[:, 2:] - record.boxes[:, :2] for record in dataset.records)]
        )
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
        left.set_yticks(rows, [_short(row["class"]) for row in classes])
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


def _short(text: str, length: int = 22) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _sheets(result: Mapping[str, Any], sets: Mapping[str, Dataset], samples: int) -> Iterable[tuple[str, Any]]:
    """Name of each sheet, and a function that draws it or returns None where nothing can be drawn."""
    tasks = result["tasks"]
    first = next(iter(sets))
    for number, names in enumerate(tasks, start=1):
        title = f"Task {number} in {first}: {', '.join(names)}"
        chosen = _spread([record for record in sets[first].records if _shows(record, sets[first], names)], samples)
        yield f"task{number}_{first}", _image_sheet(sets[first], chosen, title, set(names))
    if not tasks:
        for name, dataset in sets.items():
            title = f"{name}: {len(dataset.records):,} images, {dataset.num_annotations:,} objects"
            chosen = _spread(dataset.records, samples)
            yield f"images_{name}", _image_sheet(dataset, chosen, title, set(dataset.categories))
    for name, dataset in sets.items():
        for position, category in enumerate(dataset.categories):
            places = [
                (record, int(place))
                for record in dataset.records
                for place in np.flatnonzero(record.categories == position)
            ]
            title = f"{category} in {name}: {min(samples, len(places))} of {len(places):,}"
            if places:
                yield f"class_{_file_name(category)}_{name}", _crop_sheet(dataset, _spread(places, samples), title)
        for kind, entry in result["sets"][name]["suspicious"].items():
            if entry["boxes"]:
                places = [(record, place) for record in dataset.records for place in suspicions(record)[kind]]
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


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` items, evenly spread over all of them."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w-]+", "_", text).strip("_") or "class"


def _open(record: Record) -> Image.Image | None:
    try:
        return Image.fromarray(load_image(record.path).permute(1, 2, 0).numpy())
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
    """Single objects with what is around them; with ``others``, boxes in the same place are drawn too."""

    def draw() -> Image.Image | None:
        panels = []
        for record, place in places:
            image = _open(record)
            if image is not None:
                panels.append(_crop(image, dataset, record, place, others))
        return contact_sheet(panels, 6, title) if panels else None

    return draw


def _crop(image: Image.Image, dataset: Dataset, record: Record, place: int, others: bool) -> Image.Image:
    """A square around a box; what is outside the image is grey."""
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
    """The id and, where it is another, the name of the file."""
    same = str(record.image_id) == record.path.stem
    return record.path.name if same else f"{record.image_id}: {record.path.name}"


def _pair_sheet(first: Dataset, second: Dataset, pairs: Sequence[Sequence[Any]], title: str) -> Any:
    def draw() -> Image.Image | None:
        panels = []
        for old, new, _ in pairs:
            for record in (first.by_id[old], second.by_id[new]):
                image = _open(record)
                if image is not None:
                    sides = {"at_least": IMAGE_SIDE, "at_most": IMAGE_SIDE}
                    panels.append(draw_ground_truth(image, [], [], [], _name(record), **sides))
        return contact_sheet(panels, 4, title) if panels else None

    return draw
