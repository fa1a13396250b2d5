"""NNCLR: With a Little Help from My Friends (Dwibedi et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from openworld.runtime.distributed import gather_rows, gather_rows_with_gradient
from ssl_backbones.heads import mlp
from ssl_backbones.losses import info_nce_batch
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.nnclr_options import NNCLROptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import Queue


class NNCLR(Method):
    """The nearest neighbour of one view, among many earlier images, is the positive of the other view.

    Heads of the paper (section 4.1): D-D-D-256 with batch norm after each layer and 256-4096-256 with batch norm on
    the hidden layer. The predictor stands on the side that is compared with the neighbour (equation 4 and the
    pseudo-code), so the support set holds projections. Neighbours are found on the sphere, where the largest cosine
    is the smallest distance. Biases and norms are spared weight decay.
    """

    exports_projector = True

    options: NNCLROptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        dim, hidden, out = self.encoder.dim, self.options.hidden_dim, self.options.projection_dim
        self.projector = mlp([dim, dim, dim, out], hidden_norm=True, last_norm="affine", bias=False)
        self.predictor = mlp([out, hidden, out], hidden_norm=True, bias=False, last_bias=True)
        self.support = Queue(self.options.queue_size, out)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute InfoNCE of neighbours against predictions of the other view, both directions; then enqueue."""
        view1, view2 = batch.views
        z1, z2 = self.projector(self.encoder(view1)), self.projector(self.encoder(view2))
        p1, p2 = (gather_rows_with_gradient(self.predictor(z)) for z in (z1, z2))
        friends1, friends2 = (gather_rows(self.support.nearest(z)) for z in (z1, z2))  # no gradient
        temperature = self.options.temperature
        loss = (info_nce_batch(friends1, p2, temperature) + info_nce_batch(friends2, p1, temperature)) / 2
        self.support.enqueue(z1)
        return loss, {"spread": spread(z1)}
