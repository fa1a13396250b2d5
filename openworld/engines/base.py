"""What a detector engine is to the rest of the toolkit. ORE reaches it only through these methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from openworld.labels import LabelSpace
from openworld.structures import Decision, Detections, Regions, Target

LabelUnknowns = Callable[[Regions, Tensor], Tensor]
"""Regions labelled known or background, and image sizes (B, 2) height and width in pixels → (R,) labels in which some
background regions are unknown."""

Decide = Callable[[Tensor, Tensor, Tensor], Decision]
"""Logits (N, K), the row (N,) under which each is a candidate, and its score (N,) → the decision on each."""


class Engine(Protocol):
    """A two-stage detector whose regions can be seen. Every engine is a ``torch.nn.Module``.

    Images are (3, H, W) RGB, uint8 or float32 in [0, 1], on any device.
    """

    training: bool

    @property
    def labels(self) -> LabelSpace:
        """Of the current task."""

    @property
    def feature_dim(self) -> int:
        """D of the regions' features."""

    @property
    def pixel_mean(self) -> Tensor:
        """(3, 1, 1) float32, subtracted from RGB in [0, 1]; a buffer."""

    @property
    def pixel_std(self) -> Tensor:
        """(3, 1, 1) float32, which the difference is divided by; a buffer."""

    @property
    def backbone(self) -> nn.Module:
        """The network without what a detector adds to it."""

    def training_step(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target],
        label_unknowns: LabelUnknowns,
        among: Literal["all_proposals", "sampled"] = "all_proposals",
    ) -> tuple[dict[str, Tensor], Regions]:
        """Losses (scalars: objectness, rpn_box, classification, box) and the sampled regions with features.

        ``label_unknowns`` is called once: on all proposals, before the regions of the losses are sampled from them
        (ORE, section 4.2), or on the sampled regions only (reference code).
        """

    def labelled_regions(
        self, images: Sequence[Tensor], targets: Sequence[Target], label_unknowns: LabelUnknowns
    ) -> Regions:
        """Proposals as at test, matched to the targets, with logits. No gradient, no sampling."""

    def detect(self, images: Sequence[Tensor], decide: Decide, *, nms_after_decision: bool = True) -> list[Detections]:
        """Final detections, boxes in pixels of the given images; suppression comes after the decision, or before it."""

    def grow(self, labels: LabelSpace) -> None:
        """Go on to the label space of a later task; old rows, unknown and background keep their weights.

        A head of the growing layout gets rows for the new classes; in a fixed head nothing moves.
        """

    def load_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the weights of the backbone, by torchvision's names; the first convolution reads RGB."""

    def backbone_stages(self, image: Tensor) -> dict[str, Tensor]:
        """An image (3, H, W) → ``c2``…``c5`` (1, C, h, w) after the engine's preprocessing."""

    def parts(self) -> list[tuple[str, nn.Module]]:
        """What a profile tells apart in a forward pass, by name; a module within another counts for itself."""

    def train(self, mode: bool = True) -> Any:
        """See ``torch.nn.Module``."""

    def eval(self) -> Any:
        """See ``torch.nn.Module``."""
