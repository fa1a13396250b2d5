"""What a detector engine is to the rest of the toolkit. ORE reaches it only through these methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from openworld.labels import LabelSpace
from openworld.structures import Detections, Regions, Target

LabelUnknowns = Callable[[Regions, Tensor], Tensor]
"""Regions labelled known or background, and image sizes (B, 2) height and width in pixels → (R,) labels in which some
background regions are unknown."""

Decide = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""Logits (N, K) and the row (N,) under which each is a candidate → decided rows (N,), free energies (N,) float32, best
known rows (N,)."""


class Engine(Protocol):
    """A two-stage detector whose regions can be seen."""

    labels: LabelSpace
    feature_dim: int

    def training_step(
        self, images: Sequence[Tensor], targets: Sequence[Target], label_unknowns: LabelUnknowns
    ) -> tuple[dict[str, Tensor], Regions]:
        """Losses (scalars: objectness, rpn_box, classification, box) and the sampled regions with features."""

    def labelled_regions(
        self, images: Sequence[Tensor], targets: Sequence[Target], label_unknowns: LabelUnknowns
    ) -> Regions:
        """Proposals as at test, matched to the targets, with logits. No gradient, no sampling."""

    def detect(self, images: Sequence[Tensor], decide: Decide) -> list[Detections]:
        """Final detections, boxes in pixels of the given images."""

    def grow(self, labels: LabelSpace) -> None:
        """Give the head rows for the classes of a later task; old rows, unknown and background keep their weights."""
