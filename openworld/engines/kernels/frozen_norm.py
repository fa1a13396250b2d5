"""Frozen batch norm multiplied into the convolution before it, at every forward pass.

A batch norm that neither learns nor counts is a scale and a shift of each channel. Scaling the weights instead of the
output is the same function with the same gradient, up to rounding (about 1e-6 of the largest value in float32), and
spares a pass over every activation, forward and backward; under autocast it also spares the way to float32 and back.
The parameters and buffers stay where they are, and so do their names in a state dict.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d


class _FoldedConv2d(nn.Conv2d):
    """A convolution without bias, and the frozen norm behind it.

    Attributes:
        norm: in a tuple, for a module would be a part of this one, under a second name.
    """

    norm: tuple[FrozenBatchNorm2d | nn.BatchNorm2d]

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, D, h, w), as the norm of the convolution."""
        scale_D, shift_D = scale_and_shift(self.norm[0])
        output: Tensor = self._conv_forward(input, self.weight * scale_D[:, None, None, None], shift_D)
        return output


class _FoldedFrozenNorm(FrozenBatchNorm2d):
    """Keeps the statistics; the convolution applies them."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class _FoldedBatchNorm(nn.BatchNorm2d):
    """Keeps the statistics; the convolution applies them."""

    def forward(self, input: Tensor) -> Tensor:
        return input


def scale_and_shift(norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(D,) each: a norm with fixed statistics is ``x * scale + shift``."""
    mean_D, var_D = norm.running_mean, norm.running_var
    assert isinstance(mean_D, Tensor) and isinstance(var_D, Tensor)
    scale_D = norm.weight * (var_D + norm.eps).rsqrt()
    return scale_D, norm.bias - mean_D * scale_D


def fold_frozen_norms(body: nn.Module) -> int:
    """Let the convolutions of a network apply the frozen norms that follow them, in place.

    Frozen are ``FrozenBatchNorm2d``, and a ``BatchNorm2d`` whose weight does not train; its statistics stop counting.
    A convolution and a norm belong together as torchvision names them: ``conv1`` and ``bn1``, or neighbours in a
    ``Sequential``. A convolution with a bias or with a forward pass of its own keeps its norm as it is.

    Returns:
        How many norms were folded.
    """
    folded = 0
    for module in body.modules():
        children = dict(module.named_children())
        if isinstance(module, nn.Sequential):
            layers = list(children.values())
            pairs = list(pairwise(layers))
        else:
            names = [name for name in children if name.startswith("conv")]
            pairs = [(children[name], children.get(name.replace("conv", "bn"), module)) for name in names]
        for convolution, norm in pairs:
            frozen = type(norm) is FrozenBatchNorm2d or (
                type(norm) is nn.BatchNorm2d and norm.affine and not norm.weight.requires_grad
            )
            if frozen and type(convolution) is nn.Conv2d and convolution.bias is None:
                convolution.__class__ = _FoldedConv2d
                convolution.norm = (norm,)  # type: ignore[assignment]
                norm.__class__ = _FoldedFrozenNorm if isinstance(norm, FrozenBatchNorm2d) else _FoldedBatchNorm
                folded += 1
    return folded
