"""DINO: self-distillation with no labels (Caron et al. 2021), on a convolutional backbone."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ssl_backbones.backbones.base import Backbone
from ssl_backbones.losses import dino_cross_entropy
from ssl_backbones.method import Batch, Method, encode_views, spread
from ssl_backbones.methods.dino_options import DINOOptions
from ssl_backbones.optim import cosine_momentum
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import Center, Teacher


class DINO(Method):
    """The student sees all views and matches the outputs of a slow teacher for the two large ones.

    The teacher's outputs are centred, which alone would collapse to uniform, and sharpened by a small temperature,
    which alone would collapse to one dimension. Order of the authors' code: loss, centre, gradient clipping (each
    parameter by itself), last layer frozen in the first steps, optimiser, teacher. Both networks run in training mode.
    Biases and norms are spared weight decay. The exported network is the teacher, which is better.
    """

    takes_small_views = True

    options: DINOOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        self.head = DINOHead(self.encoder.dim, self.options)
        self.teacher = Teacher(self.encoder, self.head)
        self.center = Center(self.options.outputs, self.options.center_momentum)

    def before_step(self, step: int, steps: int) -> None:
        """Set the teacher's temperature of this step."""
        self.teacher_temperature = teacher_temperature(step, self.options)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute the cross-entropy of each view with each large view other than itself; ln K at random."""
        student = self.head(encode_views(self.encoder, batch.views)).chunk(len(batch.views))
        teacher = self.teacher(torch.cat(batch.views[:2])).chunk(2)  # no gradient
        loss = dino_cross_entropy(
            list(student), list(teacher), self.options.temperature, self.teacher_temperature, self.center.mean
        )
        self.center.update(torch.cat(teacher))
        return loss, {"spread": spread(student[0])}

    def after_backward(self, step: int, steps: int) -> None:
        """Clip the gradients; freeze the last layer in the first steps."""
        if self.options.clip_gradient:
            for parameter in self.parameters():
                if parameter.grad is not None:
                    nn.utils.clip_grad_norm_(parameter, self.options.clip_gradient)
        if step < self.options.frozen_steps:
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, step: int, steps: int) -> None:
        """Let the teacher follow the student."""
        momentum = cosine_momentum(step, steps=steps, base=self.options.teacher_momentum)
        self.teacher.follow(self.encoder, self.head, momentum=momentum)

    def backbone(self) -> Backbone:
        """The teacher's encoder."""
        encoder = self.teacher.network[0]
        assert isinstance(encoder, Backbone)
        return encoder


class DINOHead(nn.Module):
    """D-D-D-B with GELU, onto the sphere, and a linear layer to K outputs whose rows are directions (appendix C).

    At D = 2048 weights start with standard deviation 0.02, as in the authors' code; those of a narrower head start
    larger, which keeps the size of its activations: from tiny ones the first steps would collapse it.
    Keys of the last layer: ``original0`` holds the norms (K, 1), ``original1`` the directions (K, B).
    """

    def __init__(self, dim: int, options: DINOOptions) -> None:
        super().__init__()
        bottleneck = options.projection_dim
        layers: list[nn.Module] = []
        for _ in range(2):
            layers.append(nn.Linear(dim, dim))
            if options.head_norm:
                layers.append(nn.BatchNorm1d(dim))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(dim, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02 * math.sqrt(2048 / dim))
                nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck, options.outputs, bias=False))
        norms = self.last_layer.get_parameter("parametrizations.weight.original0")
        nn.init.ones_(norms).requires_grad_(not options.norm_last_layer)

    def forward(self, h_ND: Tensor) -> Tensor:
        """(N, D) features -> (N, K) outputs."""
        outputs: Tensor = self.last_layer(F.normalize(self.mlp(h_ND), dim=1))
        return outputs


def teacher_temperature(step: int, options: DINOOptions) -> float:
    """Temperature of step ``step`` (from 0): linear over the warm-up, then constant (the authors: by epochs)."""
    start, end = options.teacher_temperature_start, options.teacher_temperature
    if step >= options.teacher_temperature_warmup:
        return end
    return start + (end - start) * step / options.teacher_temperature_warmup
