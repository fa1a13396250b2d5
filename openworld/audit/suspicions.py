"""Boxes that look like mistakes: tiny, huge, extreme, or on one another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torchvision.ops import box_iou

from openworld.records import Record

TINY_SIDE = 4.0
"""Pixels. A box with a shorter side below this is *tiny*."""
HUGE_SHARE = 0.9
"""Of the image's area. A larger box is *huge*."""
WHOLE_SHARE = 0.99
"""Of both sides. A larger box is the *whole image*."""
EXTREME_ASPECT = 10.0
"""Longer over shorter side, from which on a shape is *extreme*."""
SAME_IOU = 0.9
"""Two boxes of one image that overlap so far are taken for one object."""


@dataclass(frozen=True)
class Suspicion:
    """A kind of boxes that look like mistakes.

    Args:
        words: what is odd about them, after "boxes are".
        remedy: what to do, a sentence.
        level: how grave it is, as in :data:`openworld.audit.findings.MARKS`.
    """

    words: str
    remedy: str
    level: Literal["warning", "note"] = "note"


SUSPICIONS = {
    "tiny": Suspicion(
        f"with a side below {TINY_SIDE:g} px",
        "Remove slips of the mouse; if objects are so small, raise data.loader.min_size or cut the images into tiles.",
    ),
    "whole image": Suspicion(
        "as large as the image", "Look whether these are labels of the image rather than of an object in it."
    ),
    "huge": Suspicion(
        f"over more than {100 * HUGE_SHARE:g} % of the image", "Look whether they enclose one object each."
    ),
    "extreme shape": Suspicion(
        f"{EXTREME_ASPECT:g} times as long as wide, or more",
        "Look at them; if they are right, set model.rpn.anchor_ratios to such shapes.",
    ),
    "repeated": Suspicion(
        f"on another of the same class (IoU {SAME_IOU:g} or more)",
        "Keep one box per object: evaluation asks for both, and only one can be found.",
        "warning",
    ),
    "two classes": Suspicion(
        f"on another of a different class (IoU {SAME_IOU:g} or more)",
        "Decide for one class: the detector is taught both for the same pixels.",
        "warning",
    ),
}
"""Kinds of suspicious boxes."""


def suspicions(record: Record) -> dict[str, list[int]]:
    """Positions of the boxes of one image that look like mistakes, by kind; crowds are left out.

    ``huge`` does not name what is the ``whole image``, and of boxes on one another only the later ones are named.
    """
    boxes = record.boxes.astype(np.float64)
    width, height = (boxes[:, 2] - boxes[:, 0]), (boxes[:, 3] - boxes[:, 1])
    short, long = np.minimum(width, height), np.maximum(width, height)
    whole = (width >= WHOLE_SHARE * record.width) & (height >= WHOLE_SHARE * record.height)
    repeated, two_classes = np.zeros((2, len(record)), dtype=np.bool_)
    if len(record) > 1:
        same_place = np.tril(box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy() >= SAME_IOU, -1)
        same_place &= ~record.crowd[None, :]
        same_class = record.categories[:, None] == record.categories[None, :]
        repeated = (same_place & same_class).any(axis=1)
        two_classes = (same_place & ~same_class).any(axis=1)
    flags = {
        "tiny": short < TINY_SIDE,
        "whole image": whole,
        "huge": (width * height > HUGE_SHARE * record.width * record.height) & ~whole,
        "extreme shape": long >= EXTREME_ASPECT * short,
        "repeated": repeated,
        "two classes": two_classes,
    }
    return {kind: np.flatnonzero(flags[kind] & ~record.crowd).tolist() for kind in SUSPICIONS}
