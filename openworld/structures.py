"""Value objects that travel between the stages. They check their shapes when made and index all fields together.

N objects or detections, R regions, D feature dimension, K head rows (known…, unknown, background).
Boxes are float32 ``x1 y1 x2 y2`` in pixels, 0-based, with ``x2 - x1`` the width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


class _Rows:
    """Fields that are tensors share their first axis; indexing filters all of them."""

    def _check(self, **shapes: tuple[int | None, ...]) -> None:
        length: int | None = None
        for name, shape in shapes.items():
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            if value.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, value.shape)):
                raise ValueError(f"{type(self).__name__}.{name} has shape {tuple(value.shape)}, expected {shape}")
            if length is not None and value.shape[0] != length:
                raise ValueError(f"{type(self).__name__}.{name} has {value.shape[0]} rows, the others {length}")
            length = value.shape[0]

    def __getitem__(self, index: Tensor | slice) -> Self:
        changes = {
            field.name: value[index]
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """All fields on a device. The way to a GPU does not wait for what the GPU is doing."""
        ahead = torch.device(device).type == "cuda"
        changes = {
            field.name: value.to(device, non_blocking=ahead)
            for field in fields(self)  # type: ignore[arg-type]
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True)
class Target(_Rows):
    """What is annotated on one image, as the task may see it.

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
    """Regions of interest of one batch, the box head's view of them, and what they were matched to.

    Args:
        boxes: (R, 4) float32, pixels of the image as it enters the model.
        image_index: (R,) int64, position of the region's image in the batch.
        objectness: (R,) float32, RPN logit; +inf for a ground-truth box that was added to the proposals.
        iou: (R,) float32, largest IoU with any annotated box, 0 without one.
        labels: (R,) int64 head rows.
        features: (R, D) float32 or None, input of the last linear layers.
        logits: (R, K) float32 or None.
    """

    boxes: Tensor
    image_index: Tensor
    objectness: Tensor
    iou: Tensor
    labels: Tensor
    features: Tensor | None = None
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        self._check(
            boxes=(None, 4),
            image_index=(None,),
            objectness=(None,),
            iou=(None,),
            labels=(None,),
            features=(None, None),
            logits=(None, None),
        )

    def __len__(self) -> int:
        return self.boxes.shape[0]


@dataclass(frozen=True)
class Detections(_Rows):
    """Final detections of one image, sorted by falling score, with the decision that was made on each.

    Args:
        boxes: (N, 4) float32, pixels of the original image.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64 head rows, known or unknown, never background.
        energies: (N,) float32, free energy (ORE, eq. 4); lower is more like a known class.
        known_labels: (N,) int64, the best known class, whatever was decided.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    energies: Tensor
    known_labels: Tensor

    def __post_init__(self) -> None:
        self._check(boxes=(None, 4), scores=(None,), labels=(None,), energies=(None,), known_labels=(None,))

    def __len__(self) -> int:
        return self.boxes.shape[0]

    @classmethod
    def empty(cls) -> Detections:
        whole = torch.zeros(0, dtype=torch.int64)
        real = torch.zeros(0)
        return cls(torch.zeros(0, 4), real, whole, real, whole)


@dataclass(frozen=True)
class Decision(_Rows):
    """What was decided, known or unknown, on each candidate of a detector.

    Args:
        labels: (N,) int64 head rows, known or unknown, never background.
        scores: (N,) float32 in [0, 1], after the decision.
        energies: (N,) float32, free energy (ORE, eq. 4); lower is more like a known class.
        known_labels: (N,) int64, the best known class, whatever was decided.
        kept: (N,) bool, false for a candidate that the decision removes.
    """

    labels: Tensor
    scores: Tensor
    energies: Tensor
    known_labels: Tensor
    kept: Tensor

    def __post_init__(self) -> None:
        self._check(labels=(None,), scores=(None,), energies=(None,), known_labels=(None,), kept=(None,))

    def __len__(self) -> int:
        return self.labels.shape[0]
