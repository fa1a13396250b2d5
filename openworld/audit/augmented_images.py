"""Training images to look at: each one whole, and beside it how the loader of a run augments it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openworld.data.augmentation import augment
from openworld.data.loader import load_record
from openworld.data.options import LoaderOptions
from openworld.errors import DataError
from openworld.records import Record
from openworld.report.draw import contact_sheet, draw_ground_truth
from openworld.runtime.seeding import generator
from openworld.structures import Target

COLUMNS = 4
"""One for the whole image, the others for draws of its augmentation."""
SIDE = 384
"""Pixels, longer side of an image on the sheet."""


def augmented_sheet(
    records: Sequence[Record], names: Sequence[str], options: LoaderOptions
) -> Callable[[], Image.Image | None]:
    """Prepare a sheet with rows of four: an image with its boxes, and three draws of its augmentation.

    Args:
        records: the images, a row each. Crowds are not drawn, as training does not see them.
        names: of all categories.
        options: how training decodes, resizes and augments images.

    Returns:
        a function that draws the sheet, or returns None where nothing can be drawn.
    """

    def draw() -> Image.Image | None:
        panels = [panel for record in records for panel in _row(record, names, options)]
        title = f"Images whole, and as training augments them (augment: {options.augment})"
        return contact_sheet(panels, COLUMNS, title) if panels else None

    return draw


def _row(record: Record, names: Sequence[str], options: LoaderOptions) -> list[Image.Image]:
    """The panels of one image; none if it cannot be read, which the check has said."""
    try:
        image = load_record(record)
    except DataError:
        return []
    taught = ~record.crowd
    target = Target(torch.from_numpy(record.boxes[taught]), torch.from_numpy(record.categories[taught]))
    panels = [_panel(image, target, names, record.path.name)]
    for number in range(1, COLUMNS):
        random = generator("augmented sheet", str(record.image_id), number)
        pixels, left = augment(image, target, options, random)
        size = f"{pixels.shape[-1]}x{pixels.shape[-2]}, {len(left)} of {len(target)} boxes"
        panels.append(_panel(pixels, left, names, size))
    return panels


def _panel(image: Tensor, target: Target, names: Sequence[str], title: str) -> Image.Image:
    pixels = (image * 255).round().to(torch.uint8) if image.is_floating_point() else image
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    labels = [names[label] for label in target.labels.tolist()]
    return draw_ground_truth(picture, target.boxes, labels, [True] * len(labels), title, at_least=SIDE, at_most=SIDE)
