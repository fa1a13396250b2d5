"""What a detector engine is to the rest of the toolkit: a two-stage detector in parts, none of which knows a method.

:class:`openworld.detector.Detector` puts the parts in order: propose, match, relabel, sample, box head, losses; or
propose, box head, score, decide, suppress. B images, P proposals per image, R regions over the batch, K head rows, C
sets of box deltas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openworld.engines.options import ModelOptions
from openworld.labels import LabelSpace
from openworld.structures import Regions, Target


@dataclass(frozen=True)
class Proposals:
    """Output of the first stage for a batch.

    Args:
        levels: feature maps (B, channels, h, w) by name, finest first.
        boxes: for each image (P, 4) float32, clipped to the image, sorted by falling objectness.
        objectness: for each image (P,) float32 logits.
        image_sizes: height and width of each image in pixels, without padding.
        pixels: (B, 3, H, W) float32, the normalised and padded batch that the levels were computed from; None where
            nobody needs it.
    """

    levels: Mapping[str, Tensor]
    boxes: Sequence[Tensor]
    objectness: Sequence[Tensor]
    image_sizes: Sequence[tuple[int, int]]
    pixels: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """(B, 2) int64 height and width in pixels, on the device of the boxes."""
        return torch.tensor(self.image_sizes).to(self.boxes[0].device, non_blocking=True)


class Engine(Protocol):
    """A two-stage detector that exposes its regions. Every engine is a ``torch.nn.Module``.

    Images are (3, H, W) RGB, uint8 or float32 in [0, 1], on any device.
    """

    training: bool

    @property
    def space(self) -> LabelSpace:
        """Label space of the current task."""

    @property
    def options(self) -> ModelOptions:
        """Options of the engine."""

    @property
    def feature_dim(self) -> int:
        """D, the width of the regions' features."""

    @property
    def pixel_mean(self) -> Tensor:
        """(3, 1, 1) float32, subtracted from RGB in [0, 1]; a buffer."""

    @property
    def pixel_std(self) -> Tensor:
        """(3, 1, 1) float32, the divisor of the difference; a buffer."""

    @property
    def backbone(self) -> nn.Module:
        """The backbone, without what a detector adds to it."""

    def propose(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Run backbone and region proposal network.

        Args:
            images: B of any sizes.
            targets: annotated boxes in pixels of the images, on the engine's device; None at test.

        Returns:
            the proposals, and with targets the scalar losses ``objectness`` and ``rpn_box``.
        """

    def levels_of(self, pixels: Tensor) -> Mapping[str, Tensor]:
        """Compute the feature maps of a batch (B, 3, H, W) that is normalised and padded already, by name."""

    def box_head(self, found: Proposals, regions: Regions) -> Regions:
        """Return the regions with features (R, D), logits (R, K) and deltas (R, 4·C), float32.

        Args:
            found: of the images that the regions lie in.
            regions: image after image.
        """

    def refine(self, regions: Regions) -> Tensor:
        """Move the boxes by their deltas: (R, C, 4) float32 pixels, not clipped."""

    def grow(self, space: LabelSpace) -> None:
        """Grow to the label space of a later task; old rows, unknown and background keep their weights.

        A head of the growing layout gets rows for the new classes; in a fixed head nothing moves.
        """

    def load_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the weights of the backbone, by torchvision's names; the first convolution reads RGB."""

    def backbone_stages(self, image: Tensor) -> dict[str, Tensor]:
        """Compute ``c2``…``c5`` (1, C, h, w) of one image (3, H, W) after the engine's preprocessing."""

    def parts(self) -> list[tuple[str, nn.Module]]:
        """List the modules that a profile times separately; the time of a nested module is its own."""

    def train(self, mode: bool = True) -> Any:
        """See ``torch.nn.Module``."""

    def eval(self) -> Any:
        """See ``torch.nn.Module``."""
