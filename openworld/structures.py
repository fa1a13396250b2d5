"""Value objects that the stages exchange. They check their shapes on creation, and index all fields together.

N objects, candidates or detections, R regions, D feature dimension, K head rows (known…, unknown, background), C sets
of box deltas: 1 (class-agnostic) or one per row before background.
Boxes are float32 ``x1 y1 x2 y2`` in pixels, 0-based, with ``x2 - x1`` the width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class _Rows:
    """Fields that hold tensors share their first axis; indexing filters all of them."""

    def _check(self, **shapes: tuple[int | None, ...]) -> None:
        columns: dict[str, tuple[Tensor | None, tuple[int | None, ...]]] = {
            name: (getattr(self, name), shape) for name, shape in shapes.items()
        }
        for name, value in getattr(self, "extras", {}).items():
            columns[f"extras[{name!r}]"] = value, (None,)
        length: int | None = None
        for name, (value, shape) in columns.items():
            if value is None:
                continue
            if value.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, value.shape)):
                raise ValueError(f"{type(self).__name__}.{name} has shape {tuple(value.shape)}, expected {shape}")
            if length is not None and value.shape[0] != length:
                raise ValueError(f"{type(self).__name__}.{name} has {value.shape[0]} rows, the others {length}")
            length = value.shape[0]

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        changes: dict[str, Any] = {}
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                changes[each.name] = change(value)
            elif isinstance(value, Mapping):
                changes[each.name] = {name: change(column) for name, column in value.items()}
        return replace(self, **changes)  # type: ignore[type-var]

    def __getitem__(self, index: Tensor | slice) -> Self:
        return self._map(lambda value: value[index])

    def to(self, device: torch.device | str) -> Self:
        """Move all fields to a device. A copy to a GPU does not wait for its pending work."""
        ahead = torch.device(device).type == "cuda"
        return self._map(lambda value: value.to(device, non_blocking=ahead))


@dataclass(frozen=True)
class Target(_Rows):
    """Annotations of one image, as the task may see them.

    Args:
        boxes: (N, 4) float32, pixels of the image as it enters the model.
        labels: (N,) int64 head rows.
        image_id: as in the annotation file.
    """

    boxes: Tensor
    labels: Tensor
    image_id: int | str = ""

    def __post_init__(self) -> None:
        self._check(boxes=(None, 4), labels=(None,))

    def __len__(self) -> int:
        return self.boxes.shape[0]


@dataclass(frozen=True)
class Regions(_Rows):
    """Regions of interest of one batch, their matched annotations, and the outputs of the box head.

    Args:
        boxes: (R, 4) float32, pixels of the image as it enters the model.
        image_index: (R,) int64, position of the region's image in the batch; rising.
        objectness: (R,) float32, RPN logit; +inf for an annotated box that was added to the proposals.
        iou: (R,) float32, largest IoU with any annotated box, 0 without one.
        labels: (R,) int64 head rows.
        goals: (R, 4) float32 or None, the annotated box that each region overlaps most; zeros where its image has none.
        features: (R, D) float32 or None, input of the last linear layers.
        logits: (R, K) float32 or None.
        deltas: (R, 4·C) float32 or None, box deltas.
    """

    boxes: Tensor
    image_index: Tensor
    objectness: Tensor
    iou: Tensor
    labels: Tensor
    goals: Tensor | None = None
    features: Tensor | None = None
    logits: Tensor | None = None
    deltas: Tensor | None = None

    def __post_init__(self) -> None:
        self._check(
            boxes=(None, 4),
            image_index=(None,),
            objectness=(None,),
            iou=(None,),
            labels=(None,),
            goals=(None, 4),
            features=(None, None),
            logits=(None, None),
            deltas=(None, None),
        )

    def __len__(self) -> int:
        return self.boxes.shape[0]


@dataclass(frozen=True)
class RegionScores:
    """A method's scores of each row of each region, before any threshold.

    Args:
        scores: (R, K) floating in [0, 1].
        extras: named (R,) columns, such as an objectness or a localisation quality, which go with the detections.
    """

    scores: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidates(_Rows):
    """Regions of one image under each row whose score passes the threshold, for a method to decide on.

    Args:
        boxes: (N, 4) float32, refined, clipped to the image as it enters the model.
        rows: (N,) int64, the head row under which each is a candidate: a known class or unknown.
        scores: (N,) float32, the score of that row.
        known_labels: (N,) int64, the best known class, whatever the decision.
        logits: (N, K) float32.
        features: (N, D) float32.
        objectness: (N,) float32, RPN logit.
        extras: named (N,) columns of :class:`RegionScores`.
    """

    boxes: Tensor
    rows: Tensor
    scores: Tensor
    known_labels: Tensor
    logits: Tensor
    features: Tensor
    objectness: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check(
            boxes=(None, 4),
            rows=(None,),
            scores=(None,),
            known_labels=(None,),
            logits=(None, None),
            features=(None, None),
            objectness=(None,),
        )

    def __len__(self) -> int:
        return self.boxes.shape[0]


@dataclass(frozen=True)
class Decision(_Rows):
    """A method's decision, known or unknown, on each candidate.

    Args:
        labels: (N,) int64 head rows, known or unknown, never background.
        scores: (N,) float32 in [0, 1], after the decision.
        kept: (N,) bool, false for a candidate that the decision removes.
        extras: named (N,) columns that go with the detections, such as an energy.
    """

    labels: Tensor
    scores: Tensor
    kept: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check(labels=(None,), scores=(None,), kept=(None,))

    def __len__(self) -> int:
        return self.labels.shape[0]


@dataclass(frozen=True)
class Detections(_Rows):
    """Final detections of one image, sorted by falling score, with the decision on each.

    Args:
        boxes: (N, 4) float32, pixels of the image that the detector was given.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64 head rows, known or unknown, never background.
        known_labels: (N,) int64, the best known class, whatever the decision.
        extras: named (N,) columns of the method, such as ORE's energy.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    known_labels: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check(boxes=(None, 4), scores=(None,), labels=(None,), known_labels=(None,))

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @classmethod
    def empty(cls, extras: Iterable[str] = ()) -> Detections:
        """Return an empty table of detections, with the named extra columns."""
        rows, numbers = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        return cls(torch.zeros(0, 4), numbers, rows, rows, dict.fromkeys(extras, numbers))
