"""Do a model's anchors fit the boxes that it is to learn?

A box that no anchor overlaps is assigned to the nearest ones. Tiny boxes inside large anchors are equally near to
dozens, which crowd out all others: the losses fall and nothing is found. So the overlap is measured before training, on
every box at the size that the model sees.

N boxes, K anchors of one cell of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.models.detection.anchor_utils import AnchorGenerator

from openworld.audit.findings import make_finding
from openworld.data.options import LoaderOptions
from openworld.data.transforms import resized_size
from openworld.engines.backbone import LevelGrid, anchor_sizes, level_grid
from openworld.engines.options import ModelOptions
from openworld.records import Dataset
from openworld.report.text import counted, percent
from ssl_backbones.backbones import ResNetOptions

FITS = 0.5
"""IoU from which an anchor fits a box, as an unrefined proposal must."""
GAIN = 0.05
"""Share of the boxes that other anchors must fit in addition to be proposed."""
_SMALLEST = tuple(round(4 * 2 ** (step / 2)) for step in range(11))
"""Smallest anchors to try, 4 to 128 pixels. Each further size is twice the one before."""


def anchor_fit(dataset: Dataset, model: ModelOptions, loader: LoaderOptions) -> dict[str, Any]:
    """Measure how many boxes of a data set a model's anchors fit, and whether as many other anchors fit more.

    Images are taken as evaluation feeds them, without jitter. Crowds are left out.

    Returns:
        ready for JSON: ``boxes``; ``sides``, the 10th, 50th and 90th percentile of the square root of their area in
        pixels of the model's input; ``sizes``, the model's anchors; ``fitting`` and ``missed``, the shares of the boxes
        whose best anchor has an IoU of at least :data:`FITS`, and one below ``rpn.background_iou``; ``better_sizes``
        and ``better_fitting``, the best of the progressions that double from size to size. None without boxes.
    """
    boxes, cells = _as_fed(dataset, model, loader)
    sizes = list(model.rpn.anchor_sizes)
    result: dict[str, Any] = {"boxes": len(boxes), "sides": None, "sizes": sizes, "fitting": None, "missed": None}
    result |= {"better_sizes": None, "better_fitting": None}
    if not len(boxes):
        return result
    best = best_overlap(boxes, cells, model, sizes)
    others = {base: [float(base * 2**place) for place in range(len(sizes))] for base in _SMALLEST}
    reached = {base: float((best_overlap(boxes, cells, model, other) >= FITS).mean()) for base, other in others.items()}
    better = max(reached, key=lambda base: reached[base])
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    return result | {
        "sides": np.quantile(sides, [0.1, 0.5, 0.9]).round(1).tolist(),
        "fitting": float((best >= FITS).mean()),
        "missed": float((best < model.rpn.background_iou).mean()),
        "better_sizes": others[better],
        "better_fitting": reached[better],
    }


def anchor_findings(fit: dict[str, Any]) -> list[dict[str, str]]:
    """Warn where other anchors would fit clearly more boxes of the training set."""
    if fit["boxes"] == 0 or fit["better_fitting"] < fit["fitting"] + GAIN:
        return []
    low, middle, high = fit["sides"]
    fitting, missed, better = (f"{percent(fit[name], 0)} %" for name in ("fitting", "missed", "better_fitting"))
    finding = (
        f"An anchor of the model fits {fitting} of {counted(fit['boxes'], 'box', 'boxes')} of train (IoU {FITS:g}), "
        f"and {missed} have none that is near: in the model's input 80 % of all boxes have sides of {low:g} to "
        f"{high:g} px (median {middle:g}), the anchors of {_row(fit['sizes'])} px."
    )
    remedy = (
        f"Set model.rpn.anchor_sizes to [{_row(fit['better_sizes'])}], which fit {better}, or feed larger images "
        "(data.loader.min_size and max_size)."
    )
    return [make_finding("warning", "train", finding, remedy)]


def best_overlap(
    boxes: NDArray[np.float64], cells: NDArray[np.int64], model: ModelOptions, sizes: Sequence[float]
) -> NDArray[np.float64]:
    """(N,) IoU of each box with the best of all anchors of its image.

    Of the anchors of one shape, the one with the nearest centre overlaps most, along each axis for itself: no other
    cell is looked at.

    Args:
        boxes: (N, 4) ``x1 y1 x2 y2`` in pixels of the model's input.
        cells: (N, L, 2) columns and rows of the levels of the image of each box.
        model: neck and anchor ratios.
        sizes: anchor sizes, in place of the model's.
    """
    levels, strides = anchor_sizes(model.neck, sizes), _grid(model).strides_px
    generator = AnchorGenerator(tuple(map(tuple, levels)), (tuple(model.rpn.anchor_ratios),) * len(levels))  # type: ignore[arg-type]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    best = np.zeros(len(boxes))
    for level, (shapes_K4, stride) in enumerate(zip(generator.cell_anchors, strides, strict=True)):
        nearest = np.clip(np.rint(centre / stride), 0, cells[:, level] - 1) * stride
        for shape in shapes_K4.double().numpy():
            low = np.maximum(boxes[:, :2], nearest + shape[:2])
            high = np.minimum(boxes[:, 2:], nearest + shape[2:])
            shared = (high - low).clip(min=0).prod(axis=1)
            own = (shape[2:] - shape[:2]).prod()
            best = np.maximum(best, shared / (area + own - shared))
    return best


def _as_fed(
    dataset: Dataset, model: ModelOptions, loader: LoaderOptions
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Boxes (N, 4) in pixels of the model's input, and the columns and rows (N, L, 2) of their image's levels."""
    strides, padding = _grid(model)
    fed = [resized_size(height, width, loader.min_size, loader.max_size) for width, height in dataset.sizes.tolist()]
    sizes_I2 = np.array(fed, dtype=np.int64).reshape(-1, 2)[:, ::-1]  # width, height
    padded_I2 = np.ceil(sizes_I2 / padding) * padding
    grids_IL2 = np.ceil(padded_I2[:, None] / np.array(strides)[:, None]).astype(np.int64)
    single = ~dataset.crowd
    image_index = dataset.image_index[single]
    scales_I4 = np.tile(sizes_I2 / dataset.sizes, 2)
    return dataset.boxes[single].astype(np.float64) * scales_I4[image_index], grids_IL2[image_index]


def _grid(model: ModelOptions) -> LevelGrid:
    return level_grid(model, model.arch or ResNetOptions())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _row(sizes: Sequence[float]) -> str:
    return ", ".join(f"{size:g}" for size in sizes)
