"""PIRL: Self-Supervised Learning of Pretext-Invariant Representations (Misra and van der Maaten 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.instdisc import ContrastBank, generators_of
from ssl_backbones.methods.pirl_options import PIRLOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES, cut_patches


class PIRL(Method):
    """An image and a jigsaw of its patches both find the row of the image in a bank.

    Heads as in VISSL: f is one linear layer; g is one linear layer on each of the nine patches, whose outputs are
    concatenated in a random order, and a second one on that. Only f writes to the bank. Z of NCE is one constant, set
    by the jigsaws of the first batch, which VISSL scores first. Weight decay applies to every parameter.
    """

    decays_norm_and_bias = True
    view_kinds = ("image", "patches")
    exports_projector = True

    options: PIRLOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        grid = RECIPES[pretraining.views][1].patches
        assert grid is not None  # view_kinds
        dim, self.count = self.options.projection_dim, grid.count
        self.projector = nn.Linear(self.encoder.dim, dim)
        self.patch_projector = nn.Linear(self.encoder.dim, dim)
        self.jigsaw_projector = nn.Linear(self.count**2 * dim, dim)

    def allocate(self, images: int) -> None:
        """Make the bank, with a row per image."""
        self.bank = ContrastBank(images, self.options)

    def project_jigsaws(self, jigsaws: Tensor, order_N9: Tensor) -> Tensor:
        """Project jigsaws by g: (N, 3, 3 * P, 3 * P) -> (N, D). ``order_N9`` is the patch at each place."""
        patches = self.patch_projector(self.encoder(cut_patches(jigsaws, self.count)))
        patches = patches.unflatten(0, order_N9.shape)
        shuffled = patches.gather(1, order_N9[:, :, None].expand_as(patches))
        projected: Tensor = self.jigsaw_projector(shuffled.flatten(1))
        return projected

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute a convex combination of the NCE of jigsaws and of images, against the same negatives."""
        images, jigsaws = batch.views
        sources = generators_of(batch.index)
        drawn, weight = self.bank.draw(sources), self.options.jigsaw_weight
        order = torch.stack([torch.randperm(self.count**2, generator=source) for source in sources]).to(drawn.device)
        f, g = self.projector(self.encoder(images)), self.project_jigsaws(jigsaws, order)
        of_jigsaws = self.bank.contrast(g, batch.index, drawn)
        of_images = self.bank.contrast(f, batch.index, drawn)
        self.bank.write(batch.index, f)
        return weight * of_jigsaws + (1 - weight) * of_images, {"spread": spread(f)}
