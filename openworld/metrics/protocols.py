"""The rules under which detections are scored. Every result names its protocol.

Published open-world numbers come from evaluators that differ in how they round, sort, match and count. Each difference
is one field here, so that an evaluator is data and not code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openworld.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One evaluator's rules.

    Raises:
        ConfigError: a threshold outside [0, 1], a cap or a number of decimals below its minimum.
    """

    name: str
    """Written into every result."""
    ap_style: Literal["area", "11point"] = "area"
    """Area under the envelope of the precision-recall curve (VOC since 2010), or its mean at recall 0, 0.1 … 1."""
    iou_threshold: float = 0.5
    """Overlap from which a detection hits an object."""
    iou_strict: bool = False
    """The overlap must exceed the threshold; otherwise it may equal it."""
    assignment: Literal["best_overlap", "best_free"] = "best_overlap"
    """VOC: a detection looks only at the object that it overlaps most. COCO: at the best one that is still free."""
    box_offset: float = 0.0
    """1 turns boxes into 1-based inclusive pixels: x1 and y1 move by 1, and a width is x2 - x1 + 1 (the same area)."""
    box_decimals: int | None = None
    """Round the coordinates of detections, after the offset; None keeps them."""
    score_decimals: int | None = None
    """Round scores before sorting, which makes ties; None keeps them."""
    score_threshold: float | None = None
    """Leave out detections that score below; None keeps all."""
    detections_per_image: int | None = None
    """Keep this many best detections of an image, of whatever class; None keeps all."""
    duplicates: Literal["unique", "counted"] = "unique"
    """An image that is listed more than once: scored once, or its objects counted and its detections repeated for
    every copy, although its objects can be found in one copy only."""
    ignore: Literal["neutral", "voc", "counted"] = "neutral"
    """``neutral``: difficult and crowd objects are left out of everything, and so are detections on them, for a crowd
    detections that lie in it. ``voc``: difficult objects are left out of recall and precision but count, where they are
    unknown, in A-OSE and WI, and crowds are ordinary objects. ``counted``: all are ordinary objects."""
    wi_absent_classes: bool = False
    """A known class with detections and no ground truth enters WI with its first detection."""

    def __post_init__(self) -> None:
        for field in ("iou_threshold", "score_threshold"):
            value = getattr(self, field)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{field} of protocol {self.name!r} is {value}", remedy="choose a value from 0 to 1")
        for field, least in (("box_decimals", 0), ("score_decimals", 0), ("detections_per_image", 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ConfigError(f"{field} of protocol {self.name!r} is {value}", remedy=f"choose at least {least}")


UNIQUE = Protocol(name="unique", detections_per_image=100)
"""The default: each image once, nothing rounded, IoU of at least 0.5, difficult and crowd objects neutral."""

ORE = Protocol(
    name="ore",
    iou_strict=True,
    box_offset=1.0,
    box_decimals=1,
    score_decimals=3,
    duplicates="counted",
    ignore="voc",
    wi_absent_classes=True,
)
"""What the authors' ``PascalVOCDetectionEvaluator`` computes (JosephKJ/OWOD at 23890f1), except that equal scores keep
the order of the detections (its sort is unstable) and that a class without ground truth has no AP instead of NaN."""

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (UNIQUE, ORE)}


def protocol_named(name: str) -> Protocol:
    """Look a protocol up.

    Raises:
        ConfigError: no protocol has this name.
    """
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise ConfigError(f"there is no protocol {name!r}", remedy=f"choose one of {', '.join(PROTOCOLS)}") from None
