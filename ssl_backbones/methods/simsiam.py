"""SimSiam: Exploring Simple Siamese Representation Learning (Chen and He 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssl_backbones.heads import mlp
from ssl_backbones.losses import negative_cosine
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.simsiam_options import SimSiamOptions
from ssl_backbones.options import PretrainOptions


class SimSiam(Method):
    """Each view predicts the projection of the other one, without a gradient to that: no negatives, no teacher.

    Heads as in the authors' code: projector D-D-D-2048 with batch norm after every layer, the last one without
    parameters; predictor 2048-512-2048 with batch norm on the hidden layer only, since one on its output makes
    training unstable. No linear layer that a batch norm follows has a bias. Weight decay applies to every parameter;
    the predictor's learning rate stays constant.
    """

    decays_norm_and_bias = True
    exports_projector = True

    options: SimSiamOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        dim, out = self.encoder.dim, self.options.projection_dim
        self.projector = mlp([dim, dim, dim, out], hidden_norm=True, last_norm="plain", bias=False)
        self.predictor = mlp([out, self.options.predictor_dim, out], hidden_norm=True, bias=False, last_bias=True)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute the mean negative cosine of both directions: 0 at the start, -1 at best. Statistics are per view."""
        view1, view2 = batch.views
        z1, z2 = self.projector(self.encoder(view1)), self.projector(self.encoder(view2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (negative_cosine(p1, z2.detach()) + negative_cosine(p2, z1.detach())) / 2
        return loss, {"spread": spread(z1)}

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Group encoder and projector, and the predictor, whose learning rate does not decay (``--fix-pred-lr``)."""
        followers = [*self.encoder.parameters(), *self.projector.parameters()]
        return [
            {"params": [p for p in followers if p.requires_grad], "weight_decay": weight_decay, "adapt": True},
            {
                "params": list(self.predictor.parameters()),
                "weight_decay": weight_decay,
                "adapt": True,
                "constant_lr": not self.options.predictor_lr_decays,
            },
        ]
