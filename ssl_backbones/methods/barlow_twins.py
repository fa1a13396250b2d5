"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction (Zbontar et al. 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from openworld.runtime.distributed import gather_rows_with_gradient
from ssl_backbones.heads import mlp
from ssl_backbones.losses import barlow_twins
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.barlow_twins_options import BarlowTwinsOptions
from ssl_backbones.options import PretrainOptions


class BarlowTwins(Method):
    """The cross-correlation of two views' projections becomes the identity: alike along, unlike across dimensions.

    The projector is the authors' code: D-8192-8192-8192 without biases, batch norm and ReLU on the hidden layers. The
    batch norm without parameters that follows it is the standardisation inside the loss. Biases and norms are spared
    weight decay and LARS, and have their own learning rate. Several processes standardise over the joint batch.
    """

    exports_projector = True

    options: BarlowTwinsOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        hidden, out = self.options.hidden_dim, self.options.projection_dim
        self.projector = mlp([self.encoder.dim, hidden, hidden, out], hidden_norm=True, bias=False)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute the distance of the correlation matrix from the identity. Each view has its own statistics."""
        view1, view2 = batch.views
        z1, z2 = (gather_rows_with_gradient(self.projector(self.encoder(view))) for view in (view1, view2))
        return barlow_twins(z1, z2, self.options.offdiagonal_weight), {"spread": spread(z1)}

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Group weights, at the learning rate, and biases and norms, at a share of it."""
        weights, free = super().param_groups(weight_decay)
        return [weights, {**free, "lr_scale": self.options.bias_lr_scale}]
