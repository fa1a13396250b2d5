"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from openworld.runtime.distributed import gather_rows_with_gradient
from ssl_backbones.heads import mlp
from ssl_backbones.losses import nt_xent
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.simclr_options import SimCLROptions
from ssl_backbones.options import PretrainOptions


class SimCLR(Method):
    """Two views of an image attract, all other views of the batch repel.

    The head is the authors' code: D-D-128, no biases, batch norm after both layers, the last one without shift.
    Biases and norms are spared weight decay.
    """

    exports_projector = True

    options: SimCLROptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        dim = self.encoder.dim
        self.projector = mlp([dim, dim, self.options.projection_dim], hidden_norm=True, last_norm="scale", bias=False)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute NT-Xent of the two views, which share a forward pass and batch-norm statistics (reference code)."""
        z1, z2 = map(gather_rows_with_gradient, self.projector(self.encoder(torch.cat(batch.views))).chunk(2))
        return nt_xent(z1, z2, self.options.temperature), {"spread": spread(z1)}
