"""CLIP: Learning Transferable Visual Models From Natural Language Supervision (Radford et al. 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.errors import DataError
from openworld.runtime.distributed import gather_rows_with_gradient
from ssl_backbones.backbones import BackboneOptions
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.losses import info_nce_batch
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.clip_options import CLIPOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.text import TextTransformer, tokenizer


class CLIP(Method):
    """Contrast each image with the captions of the batch, and each caption with its images.

    The image tower is the backbone with an attention pool over its last stage (the authors' ResNet-50 has a stem of its
    own too: ``arch.stem`` ``clip``); the text tower is a Transformer. Both are compared on the sphere, at a temperature
    that is learned: the parameter is the logarithm of the factor 1 / temperature, held at most ``largest_scale``
    after each step. Weights are decayed, gains, biases and that factor are not. The exported network is the image tower
    without its pool.
    """

    view_kinds = ("image",)

    options: CLIPOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        own, dim, out = self.options, self.encoder.dim, self.options.projection_dim
        attention = own.pooling == "attention"
        self.pool: nn.Module = (
            AttentionPool(dim, out, _cells(pretraining.arch, pretraining.view_size)) if attention else _Mean(dim, out)
        )
        words = tokenizer(own.vocabulary)
        self.text = TextTransformer(
            words.size, own.context_length, own.text_width, layers=own.text_layers, heads=own.text_heads, out=out
        )
        self.log_scale = nn.Parameter(torch.tensor(-math.log(own.temperature)))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute the mean of InfoNCE of images against captions and of captions against images; ln N at random.

        Raises:
            DataError: the batch has no captions.
        """
        if batch.text is None:
            raise DataError("a batch has no captions", where="CLIP", remedy="give each image its tokens in Batch.text")
        images = gather_rows_with_gradient(self.pool(self.encoder.forward_stages(batch.views[0])["c5"]))
        texts = gather_rows_with_gradient(self.text(batch.text))
        temperature = (-self.log_scale).exp()
        loss = (info_nce_batch(images, texts, temperature) + info_nce_batch(texts, images, temperature)) / 2
        return loss, {"spread": spread(images), "temperature": temperature.item()}

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Clamp the learned factor to its largest value."""
        self.log_scale.clamp_(max=math.log(self.options.largest_scale))


class AttentionPool(nn.Module):
    """Pool a feature map by one query, the mean of its cells, that attends to itself and to all cells (section 2.4).

    Each head has 64 channels, as in the paper.

    Args:
        dim: D, channels of the map.
        out: dimensions of the output.
        cells: H * W of the map.
    """

    def __init__(self, dim: int, out: int, cells: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in range(max(1, dim // 64), 0, -1) if dim % heads == 0)
        self.positions = nn.Parameter(torch.randn(cells + 1, dim) / dim**0.5)
        self.query, self.key, self.value, self.project = (nn.Linear(dim, side) for side in (dim, dim, dim, out))
        for layer in (self.query, self.key, self.value, self.project):
            nn.init.normal_(layer.weight, std=dim**-0.5)

    def forward(self, c5_NDHW: Tensor) -> Tensor:
        """(N, D, H, W) -> (N, out)."""
        cells = c5_NDHW.flatten(2).transpose(1, 2)
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + self.positions
        q, k, v = (
            layer(rows).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, rows in ((self.query, tokens[:, :1]), (self.key, tokens), (self.value, tokens))
        )
        pooled: Tensor = self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))
        return pooled


class _Mean(nn.Sequential):
    """Mean over the cells, and a linear layer."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, out, bias=False))


def _cells(arch: BackboneOptions, side: int) -> int:
    """Cells of the last stage's map for views of ``side`` pixels."""
    with torch.device("meta"):
        network: Backbone = arch.build().eval()
        return network.forward_stages(torch.empty(1, 3, side, side))["c5"][0, 0].numel()
