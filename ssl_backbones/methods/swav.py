"""SwAV: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (Caron et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from openworld.runtime.distributed import rows_of_others
from ssl_backbones.heads import mlp
from ssl_backbones.losses import swapped_prediction
from ssl_backbones.method import Batch, Method, encode_views, spread
from ssl_backbones.methods.swav_options import SwAVOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import ModulesOf, Prototypes, Queue

ASSIGNED = (0, 1)
"""The large views, which are assigned to prototypes; all views predict the assignments."""


class SwAV(Method):
    """Views predict each other's assignment to prototypes, which Sinkhorn-Knopp balances over a batch.

    Head D-D-128 with batch norm on the hidden layer, onto the sphere, then prototypes without bias. The prototypes
    are normalised after each step and frozen in the first ones. All parameters are decayed and adapted by LARS, as the
    authors do with LARC, whose rule differs by the place of the weight decay alone. The batches of all processes are
    assigned together, and with a queue, once it is full, also with earlier features of the same large view.
    """

    decays_norm_and_bias = True
    takes_small_views = True
    exports_projector = True

    options: SwAVOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        dim, out, own = self.encoder.dim, self.options.projection_dim, self.options
        self.projector = mlp([dim, dim, out], hidden_norm=True)
        self.prototypes = Prototypes(own.prototypes, out)
        self.queues = ModulesOf(Queue(own.queue_length, out) for _ in ASSIGNED if own.queue_length)

    def before_step(self, step: int, steps: int) -> None:
        """Decide whether the queues are filled in this step."""
        self.queueing = bool(self.queues) and step >= self.options.queue_start

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute the swapped prediction, ln K where nothing is learned; then enqueue the features."""
        own, views = self.options, len(batch.views)
        z = F.normalize(self.projector(encode_views(self.encoder, batch.views)), dim=1)
        scores = self.prototypes(z).chunk(views)
        beside = [rows_of_others(scores[view]) for view in ASSIGNED]
        if self.queueing and all(queue.full for queue in self.queues):
            with torch.no_grad():
                earlier = [self.prototypes(queue.features) for queue in self.queues]
            beside = [torch.cat(rows) for rows in zip(beside, earlier, strict=True)]
        loss = swapped_prediction(scores, ASSIGNED, self.options.temperature, own.epsilon, own.iterations, beside)
        if self.queueing:
            for queue, view in zip(self.queues, ASSIGNED, strict=True):
                queue.enqueue(z.chunk(views)[view])
        return loss, {"spread": spread(z.chunk(views)[0])}

    def after_backward(self, step: int, steps: int) -> None:
        """Freeze the prototypes in the first steps."""
        if step < self.options.frozen_steps:
            self.prototypes.weight.grad = None

    def after_step(self, step: int, steps: int) -> None:
        """Project the prototypes onto the sphere."""
        self.prototypes.normalise()
