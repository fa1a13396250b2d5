"""BYOL: Bootstrap Your Own Latent (Grill et al. 2020)."""

from __future__ import annotations

from torch import Tensor

from ssl_backbones.heads import mlp
from ssl_backbones.losses import byol_regression
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.byol_options import BYOLOptions
from ssl_backbones.optim import cosine_momentum
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import Teacher


class BYOL(Method):
    """The student predicts what a slow teacher sees in the other view; nothing repels.

    Heads as in the authors' code: D-4096-256 and 256-4096-256, batch norm and biases on the hidden layer, neither on
    the output. Batch norm sees each view by itself. The teacher follows after the optimiser's
    step, with a momentum that rises to 1 along a cosine. It starts as a copy of the student (in their code from other
    random numbers, which they found to make no difference). Biases and norms are spared weight decay and LARS.
    """

    exports_projector = True

    options: BYOLOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        hidden, out = self.options.hidden_dim, self.options.projection_dim
        self.projector = mlp([self.encoder.dim, hidden, out], hidden_norm=True, last_bias=False)
        self.predictor = mlp([out, hidden, out], hidden_norm=True, last_bias=False)
        self.teacher = Teacher(self.encoder, self.projector)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Regress the teacher's projections, both directions summed: 4 at the start, 0 at best."""
        view1, view2 = batch.views
        z1, z2 = self.projector(self.encoder(view1)), self.projector(self.encoder(view2))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        target1, target2 = self.teacher(view1), self.teacher(view2)  # no gradient
        loss = byol_regression(p1, target2) + byol_regression(p2, target1)
        return loss, {"spread": spread(z1)}

    def after_step(self, step: int, steps: int) -> None:
        """Let the teacher follow the student."""
        momentum = cosine_momentum(step, steps=steps, base=self.options.teacher_momentum)
        self.teacher.follow(self.encoder, self.projector, momentum=momentum)
