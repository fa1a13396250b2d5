"""The interface of every backbone to pretraining, handover, probes and detector: a stem and four stages.

Shapes: N images, H x W pixels, D channels of the last stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ssl_backbones.backbones.options import STAGES, BackboneOptions


class Backbone(nn.Module, ABC):
    """A network without classifier. Its state dict has torchvision's keys where torchvision has the network.

    Attributes:
        options: options of the network.
        channels: channels of each stage, by name ``c2``..``c5``.
        dim: D, channels of ``c5``.
    """

    options: BackboneOptions

    def __init__(self, options: BackboneOptions, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.options = options
        self.channels = dict(channels)
        self.dim = self.channels[STAGES[-1]]

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Run the layers before the first stage: (N, 3, H, W) float, already preprocessed, to the input of ``c2``."""

    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """Return the modules of ``c2``..``c5``, each of which takes the feature map of the previous one."""

    @property
    def c4_head(self) -> nn.Module | None:
        """The stage that a C4 detector runs on each region ("res5"), or None if the family has none."""
        return None

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The convolution that reads the colours."""
        return cast(nn.Conv2d, self.get_submodule(self.options.first_convolution))

    def spared_by_decay(self) -> list[nn.Parameter]:
        """Return the parameters without weight decay, besides the one-dimensional ones (biases and norms)."""
        return []

    def forward_stages(self, images: Tensor, last: str = "c5") -> dict[str, Tensor]:
        """Compute the feature maps after each stage.
        Args:
            images: (N, 3, H, W) float, already preprocessed.
            last: stage to stop after; later ones are neither computed nor returned.

        Returns:
            ``c2``..``c5``: (N, channels, H / stride, W / stride), with the strides of the options.
        """
        x, maps = self.stem(images), {}
        for name, stage in zip(STAGES, self.stages(), strict=True):
            x = maps[name] = stage(x)
            if name == last:
                break
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Compute the global average of ``c5``: (N, 3, H, W) -> (N, D)."""
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.forward_stages(images)["c5"], 1), 1)

    def freeze(self, count: int) -> None:
        """Stop the training of the first parts: 0 none, 1 the stem, 2 the stem and ``c2``, ..., 5 all."""
        if count == 0:
            return
        trained = {parameter for stage in self.stages()[count - 1 :] for parameter in stage.parameters()}
        for parameter in self.parameters():
            if parameter not in trained:
                parameter.requires_grad_(False)


def spared_by_decay(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters of a model without weight decay: one-dimensional ones, and those its backbones name."""
    spared = {parameter for parameter in model.parameters() if parameter.ndim <= 1}
    for module in model.modules():
        if isinstance(module, Backbone):
            spared.update(module.spared_by_decay())
    return spared
