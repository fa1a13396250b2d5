"""The rules under which detections are scored. Every result names its protocol.

Published open-world numbers come from evaluators that differ in how they round, sort, match and count. Each difference
is one field here, so that an evaluator is data and not code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from openworld.errors import ConfigError
from openworld.runtime.option_trees import Given, construct
from openworld.runtime.options import NonNegativeInt, PositiveInt, Share, check


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One evaluator's rules.

    Raises:
        ConfigError: a threshold outside [0, 1], a cap or a number of decimals below its minimum, an unknown choice.
    """

    name: str
    """Written into every result."""
    source: str = ""
    """Code that the rules were read from."""
    ap_style: Literal["area", "11point", "101point"] = "area"
    """Area under the envelope of the precision-recall curve (VOC since 2010), its mean at recall 0, 0.1 … 1 (VOC 2007),
    or at recall 0, 0.01 … 1 (COCO)."""
    iou_threshold: Share = 0.5
    """Overlap from which a detection hits an object."""
    iou_strict: bool = False
    """True: the overlap must exceed the threshold; False: it may equal it."""
    assignment: Literal["best_overlap", "best_free"] = "best_overlap"
    """VOC: a detection can only match the object that it overlaps most. COCO: the best one that is still free."""
    box_offset: float = 0.0
    """1 turns boxes into 1-based inclusive pixels: x1 and y1 move by 1, and a width is x2 - x1 + 1 (the same area)."""
    box_decimals: NonNegativeInt | None = None
    """Round the coordinates of detections, after the offset; None keeps them."""
    score_decimals: NonNegativeInt | None = None
    """Round scores before sorting, which makes ties; None keeps them. Equal scores keep the order of the detections."""
    score_threshold: Share | None = None
    """Leave out detections that score below, before rounding; None keeps all."""
    detections_per_image: PositiveInt | None = None
    """Keep at most this many detections per image, best first, of any class; None keeps all."""
    detections_per_class: PositiveInt | None = None
    """Keep at most this many detections per image and class, best first (COCO's maxDets); None keeps all."""
    duplicate_objects: Literal["once", "counted"] = "once"
    """Objects of images that are listed n times: they count once, or n times, although each can be found once."""
    duplicate_detections: Literal["once", "repeated"] = "once"
    """Detections of images that are listed n times: scored once, or n times, with the copies as false positives."""
    image_ids: Literal["exact", "number_last", "number_first"] = "exact"
    """``exact``: images are the same if their ids are equal. Otherwise ids are read as whole numbers: 000139 and
    000000000139 collide, and only the detections of the image that is listed last are scored. ``number_last``: against
    its own objects, while those of the others stay and cannot be found. ``number_first``: against the objects of the
    image that is listed first, without those of the others."""
    ignore: Literal["neutral", "voc", "counted"] = "neutral"
    """``neutral``: difficult and crowd objects are left out of everything, and so are detections on them, for a crowd
    detections that lie in it. ``voc``: difficult objects are left out of recall and precision but count, where they are
    unknown, in A-OSE and WI, and crowds are ordinary objects. ``counted``: all are ordinary objects."""
    wi_absent_classes: bool = False
    """A known class with detections and no ground truth enters WI with its first detection."""
    absent_class_ap: Literal["left_out", "zero"] = "left_out"
    """A known class without ground truth is left out of the mean AP, or enters it as 0. Its own AP is null anyway."""

    def __post_init__(self) -> None:
        check(self)


UNIQUE = Protocol(name="unique", detections_per_image=100)
"""The default: each image once, nothing rounded, IoU of at least 0.5, difficult and crowd objects neutral."""

ORE = Protocol(
    name="ore",
    source="JosephKJ/OWOD at 23890f1, detectron2/evaluation/pascal_voc_evaluation.py",
    iou_strict=True,
    box_offset=1.0,
    box_decimals=1,
    score_decimals=3,
    duplicate_objects="counted",
    duplicate_detections="repeated",
    ignore="voc",
    wi_absent_classes=True,
)
"""The rules of ORE's authors, with two differences: equal scores keep the order of the detections (their sort is
unstable), and classes without ground truth have no AP instead of NaN. Their evaluator has no cap; their test
configurations keep 50 detections per image for tasks 1 and 2 and 100 for tasks 3 and 4, from a score of 0.05 on."""

OWDETR = replace(
    ORE,
    name="owdetr",
    source="orrzohar/PROB at b1d7fe6, datasets/open_world_eval.py, which is OW-DETR's with a result dictionary",
    ap_style="11point",
    detections_per_image=100,
    absent_class_ap="zero",
)
"""OW-DETR, PROB, CAT, Hyp-OW, SKDF, SGROD, OWOBJ: ORE's rules with 11-point AP; the best 100 per image."""

RANDBOX = replace(
    ORE,
    name="randbox",
    source="scuwyh2000/RandBox at 9b1f7d8, randbox/pascal_voc_evaluation.py",
    score_threshold=0.15,
    duplicate_detections="once",
    image_ids="number_last",
)
"""RandBox: a score threshold inside the evaluator; images keyed by number, so that each is predicted once, while the
list of ground truth still repeats."""

ORTHOGONALDET = replace(
    ORE,
    name="orthogonaldet",
    source="feifeiobama/OrthogonalDet at d36b8e5, core/pascal_voc_evaluation.py and core/pascal_voc.py",
    score_threshold=0.15,
    duplicate_objects="once",
    image_ids="number_first",
)
"""OrthogonalDet, CROWD, OVOW: ground truth once for each number, detections once for each line of the list. The
threshold is the one of its M-OWODB configurations; it is 0.16 for the fine-tuned task 3 and 0 to 0.1 on S-OWODB."""

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (UNIQUE, ORE, OWDETR, RANDBOX, ORTHOGONALDET)}


def protocol_named(name: str) -> Protocol:
    """Look up a protocol.

    Raises:
        ConfigError: no protocol has this name.
    """
    try:
        return PROTOCOLS[name]
    except KeyError:
        raise ConfigError(f"there is no protocol {name!r}", remedy=f"choose one of {', '.join(PROTOCOLS)}") from None


def with_rules(protocol: Protocol, rules: Mapping[str, Any]) -> Protocol:
    """Change some rules of a protocol; the new name lists them, as in ``ore (iou_threshold=0.6)``.

    Raises:
        ConfigError: a rule does not exist, or cannot have this value.
    """
    for name in ("name", "source"):
        if name in rules:
            raise ConfigError(f"rules.{name} is not a rule", remedy="leave it out: the result says which rules changed")
    chosen = construct(Protocol, [Given(rules, None)], "rules", protocol)
    changed = {name: getattr(chosen, name) for name in rules if getattr(protocol, name) != getattr(chosen, name)}
    if not changed:
        return protocol
    told = ", ".join(f"{name}={value}" for name, value in sorted(changed.items()))
    return replace(protocol, name=f"{protocol.name} ({told})", **changed)


def rules_of(protocol: Protocol) -> dict[str, Any]:
    """Return all rules by name, for the result."""
    return {field.name: getattr(protocol, field.name) for field in fields(protocol) if field.name != "name"}
