"""MoCo: Momentum Contrast (v1, He et al. 2020; v2, Chen et al. 2020; v3, Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openworld.runtime.distributed import (
    broadcast,
    first_row,
    gather_rows,
    gather_rows_with_gradient,
    rank,
    world_size,
)
from ssl_backbones.heads import mlp
from ssl_backbones.losses import info_nce, info_nce_batch
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.moco_options import MoCoV1Options, MoCoV3Options
from ssl_backbones.optim import cosine_momentum
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import Queue, Teacher


class MoCoV1(Method):
    """A query finds the key of its image, made by a slow teacher, among the keys of many earlier batches.

    Order of the authors' code: the teacher follows, keys, logits against the queue, enqueue. The head is one linear
    layer; weight decay applies to every parameter. The exported network is the query encoder.

    Shuffle-BN: a query and its key must not be normalised together with the same neighbours, or the network reads the
    answer off the batch statistics. The authors permute the keys over 8 devices, each with its own statistics. In one
    process a permutation alone changes nothing, since the statistics of a set do not depend on its order; so
    ``shuffle_groups`` = G cuts the batch into G groups that are normalised separately (queries in order, keys
    permuted), which is what G devices compute. It costs G small forward passes instead of a large one, and is off (G =
    1) by default. The query is then normalised with the queries only, as it always is: leakage through equal neighbours
    remains. W processes take G / W of the groups each, and the keys are permuted over all of them: with G = W that is
    the authors' code, and at the same G it is what one process computes.
    """

    decays_norm_and_bias = True
    exports_projector = True

    options: MoCoV1Options

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        self.projector = self.head(self.encoder.dim, self.options.projection_dim)
        self.teacher = Teacher(self.encoder, self.projector)
        self.queue = Queue(self.options.queue_size, self.options.projection_dim)

    def head(self, dim: int, out: int) -> nn.Module:
        """Make the projector."""
        return nn.Linear(dim, out)

    def before_step(self, step: int, steps: int) -> None:
        """Let the teacher follow the student."""
        self.teacher.follow(self.encoder, self.projector, momentum=self.options.teacher_momentum)

    def queries_and_keys(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute (N, D) projections of the first views, and the teacher's of the second ones."""
        view_q, view_k = batch.views
        groups = max(1, self.options.shuffle_groups // world_size())
        q = grouped(lambda x: self.projector(self.encoder(x)), view_q, groups)
        if self.options.shuffle_groups == 1:
            return q, self.teacher(view_k)
        first, everything = first_row(view_k), gather_rows(view_k)
        order = broadcast(torch.randperm(len(everything))).to(view_k.device)
        mine = order.tensor_split(world_size())[rank()]
        k = gather_rows(grouped(self.teacher, everything[mine], groups))[order.argsort()]
        return q, k[first : first + len(view_k)]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute InfoNCE of the queries against their keys and the queue; then enqueue the keys."""
        q, k = self.queries_and_keys(batch)
        loss = info_nce(q, k, self.queue.negatives(), self.options.temperature)
        self.queue.enqueue(k)
        return loss, {"spread": spread(q)}


class MoCoV2(MoCoV1):
    """MoCo with the head of SimCLR, D-ReLU-128 without batch norm. Its views and its cosine are in the recipe."""

    def head(self, dim: int, out: int) -> nn.Module:
        """Make the projector."""
        return mlp([dim, dim, out], hidden_norm=False)


class MoCoV3(Method):
    """MoCo without a queue: negatives are the other keys of the batch, and a predictor follows the projector.

    Heads as in the authors' code for ResNets, without biases: projector D-4096-256 with batch norm on both layers,
    the last one without parameters; predictor 256-4096-256 with batch norm on the hidden layer. The teacher has
    encoder and projector; it follows before the keys are made, with a momentum that rises to 1 along a cosine. Biases
    and norms are spared weight decay and LARS.
    """

    exports_projector = True

    options: MoCoV3Options

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        hidden, out = self.options.hidden_dim, self.options.projection_dim
        self.projector = mlp([self.encoder.dim, hidden, out], hidden_norm=True, last_norm="plain", bias=False)
        self.predictor = mlp([out, hidden, out], hidden_norm=True, bias=False)
        self.teacher = Teacher(self.encoder, self.projector)

    def before_step(self, step: int, steps: int) -> None:
        """Let the teacher follow the student."""
        momentum = cosine_momentum(step, steps=steps, base=self.options.teacher_momentum)
        self.teacher.follow(self.encoder, self.projector, momentum=momentum)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute InfoNCE of each view's queries against the other view's keys, summed, times twice the temperature."""
        view1, view2 = batch.views
        q1, q2 = (self.predictor(self.projector(self.encoder(view))) for view in (view1, view2))
        k1, k2 = self.teacher(view1), self.teacher(view2)  # no gradient
        t = self.options.temperature
        q1, q2 = gather_rows_with_gradient(q1), gather_rows_with_gradient(q2)
        k1, k2 = gather_rows(k1), gather_rows(k2)
        loss = 2 * t * (info_nce_batch(q1, k2, t) + info_nce_batch(q2, k1, t))
        return loss, {"spread": spread(q1)}


def grouped(network: Callable[[Tensor], Tensor], views_N: Tensor, groups: int) -> Tensor:
    """Run ``network`` on ``groups`` parts of the batch, one after the other."""
    return torch.cat([network(part) for part in views_N.chunk(groups)])
