"""CMC: Contrastive Multiview Coding (Tian et al. 2020), of luminance and colour."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openworld.errors import ConfigError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.backbones.twin_resnet import TwinResNet
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.cmc_options import CMCOptions
from ssl_backbones.methods.instdisc import ContrastBank, generators_of
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES

# Y, Db and Dr (SECAM) of RGB from 0 to 1, each divided by its deviation (0.5, 1.331, 1.333) of PyContrast.
YDBDR_FROM_RGB = (
    (0.299 / 0.5, 0.587 / 0.5, 0.114 / 0.5),
    (-0.45 / 1.331, -0.883 / 1.331, 1.333 / 1.331),
    (-1.333 / 1.333, 1.116 / 1.333, 0.217 / 1.333),
)
LAB_FROM_LAB = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


class CMC(Method):
    """Two encoders, of luminance and of the two colour channels; each finds its image in the bank of the other.

    ``arch`` is the network of both together, so ``width`` 1 gives two encoders of half the width; each has its own
    linear head. With the views ``cmc`` the colour space is Y, Db, Dr (PyContrast). That is linear in RGB, so the
    exported backbone is a plain RGB network with both encoders side by side, exactly: its features are those of
    luminance followed by those of colour. With the views ``cmc_lab`` it is L, a, b (the paper's main experiments),
    which no linear layer makes of RGB: the exported network sees L, a, b, its card says the order LAB, and it is for
    analysis, not for a detector. Weight decay applies to every parameter.
    """

    decays_norm_and_bias = True
    view_kinds = ("image",)

    options: CMCOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        if not isinstance(pretraining.arch, ResNetOptions):
            raise ConfigError(
                f"arch.name is {pretraining.arch.name!r}, and CMC's two encoders are halves of a ResNet",
                remedy=f"choose one of {', '.join(ResNetOptions.names())}",
            )
        rgb = RECIPES[pretraining.views][0].order == "RGB"
        self.encoder: TwinResNet = TwinResNet(pretraining.arch, YDBDR_FROM_RGB if rgb else LAB_FROM_LAB)
        half, dim = self.encoder.dim // 2, self.options.projection_dim
        self.luminance_projector, self.colour_projector = nn.Linear(half, dim), nn.Linear(half, dim)

    def allocate(self, images: int) -> None:
        """Make two banks with a row per image."""
        self.luminance_bank, self.colour_bank = (ContrastBank(images, self.options) for _ in range(2))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute NCE of luminance against the bank of colours plus the reverse, with the same images drawn."""
        (view,) = batch.views
        luminance, colour = self.encoder(view).chunk(2, dim=1)
        luminance, colour = self.luminance_projector(luminance), self.colour_projector(colour)
        drawn = self.colour_bank.draw(generators_of(batch.index))
        loss = self.colour_bank.contrast(luminance, batch.index, drawn)
        loss = loss + self.luminance_bank.contrast(colour, batch.index, drawn)
        self.luminance_bank.write(batch.index, luminance)
        self.colour_bank.write(batch.index, colour)
        return loss, {"spread": spread(luminance)}

    def backbone(self) -> ResNet:
        """Copy of both encoders as one plain network."""
        return self.encoder.plain()

    @torch.no_grad()
    def projection(self) -> nn.Linear:
        """Both heads as one layer: luminance reads the first half of the features, colour the second."""
        heads = self.luminance_projector, self.colour_projector
        weight, bias = torch.block_diag(*(head.weight for head in heads)), torch.cat([head.bias for head in heads])
        both = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # draws no random numbers
        both.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        return both
