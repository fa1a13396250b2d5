"""CURL: Contrastive Unsupervised Representations for Reinforcement Learning (Laskin et al. 2020), its first half."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from openworld.runtime.distributed import gather_rows, gather_rows_with_gradient
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.losses import curl_bilinear
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.curl_options import CURLOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import Teacher


class CURL(Method):
    """Recognise a stack of successive frames in another crop of itself, by a learned bilinear similarity.

    The stem reads all F frames together, as 3 F channels, the oldest first; a linear layer and a layer norm make the
    code (50 dimensions, ``projection_dim``). The teacher follows before the keys are made, with a momentum of 0.95
    (``teacher_momentum``). Nothing is normalised, there is no temperature, and nothing is decayed in the recipe. In
    the authors' code two optimisers move the encoder in turn, in every second step the teacher follows, and the
    gradients of the agent come on top; here is one optimiser and no agent, and the network is a backbone.

    The exported network reads one image: the kernels of its stem are the sums over the frames. Its features are exactly
    those of the stack's network for a still scene, F times the same frame.
    """

    view_kinds = ("frames", "frames")
    exports_projector = True

    options: CURLOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        out = self.options.projection_dim
        stem = self.encoder.first_convolution
        stem.in_channels = 3 * self.options.frames
        stem.weight = nn.Parameter(stem.weight.new_empty(len(stem.weight), stem.in_channels, *stem.kernel_size))
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.projector = nn.Sequential(nn.Linear(self.encoder.dim, out), nn.LayerNorm(out))
        self.teacher = Teacher(self.encoder, self.projector)
        self.similarity = nn.Parameter(torch.rand(out, out))

    @property
    def frames(self) -> int:
        """Frames of a stack."""
        return self.options.frames

    def before_step(self, step: int, steps: int) -> None:
        """Let the teacher follow the student."""
        self.teacher.follow(self.encoder, self.projector, momentum=self.options.teacher_momentum)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute InfoNCE of the first crops against the teacher's codes of the second ones; ln N at random."""
        view_q, view_k = batch.views
        q = gather_rows_with_gradient(self.projector(self.encoder(view_q)))
        k = gather_rows(self.teacher(view_k))
        return curl_bilinear(q, self.similarity, k), {"spread": spread(q)}

    @torch.no_grad()
    def backbone(self) -> Backbone:
        """Encoder of single images, a copy."""
        network = copy.deepcopy(self.encoder)
        stem = network.first_convolution
        stem.in_channels = 3
        stem.weight = nn.Parameter(stem.weight.unflatten(1, (-1, 3)).sum(dim=1))
        return network
