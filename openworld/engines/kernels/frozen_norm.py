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

from openworld.runtime.modules import batch_norm_as, convolution_as, replace_modules, with_tensors_of


class _FoldedConv2d(nn.Conv2d):
    """A convolution without bias, and the frozen norm behind it.

    Attributes:
        norm: in a tuple, so that it is not registered here too, under a second name in the state dict.
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
    """Return scale and shift, (D,) each: a norm with fixed statistics is ``x * scale + shift``."""
    mean_D, var_D = norm.running_mean, norm.running_var
    assert isinstance(mean_D, Tensor) and isinstance(var_D, Tensor)
    scale_D = norm.weight * (var_D + norm.eps).rsqrt()
    return scale_D, norm.bias - mean_D * scale_D


def fold_frozen_norms(body: nn.Module) -> int:
    """Replace the convolutions before frozen norms by ones that apply the norm, in place.

    Frozen norms are ``FrozenBatchNorm2d``, and ``BatchNorm2d`` whose weight does not train; the latter stops updating
    its statistics. A convolution and a norm belong together as torchvision names them: ``conv1`` and ``bn1``, or
    neighbours in a ``Sequential``. A convolution with a bias or with its own forward pass keeps its norm as it is.

    Returns:
        Number of norms folded.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    count = 0
    for module in body.modules():
        for convolution, norm in _pairs(module):
            silent = _silent(norm)
            if silent is not None and type(convolution) is nn.Conv2d and convolution.bias is None:
                folded = convolution_as(_FoldedConv2d, convolution)
                folded.norm = (silent,)
                replacements[convolution], replacements[norm] = folded, silent
                count += 1
    replace_modules(body, replacements.get)
    return count


def _pairs(module: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Return the children of a module that follow each other as a convolution and its norm do."""
    children = dict(module.named_children())
    if isinstance(module, nn.Sequential):
        return list(pairwise(children.values()))
    norms = {name: name.replace("conv", "bn") for name in children if name.startswith("conv")}
    return [(children[name], children[norm]) for name, norm in norms.items() if norm in children]


def _silent(norm: nn.Module) -> _FoldedFrozenNorm | _FoldedBatchNorm | None:
    """Return the norm as a module that only keeps its tensors; None if it is not a frozen norm."""
    if type(norm) is FrozenBatchNorm2d:
        assert isinstance(norm.weight, Tensor)
        return with_tensors_of(_FoldedFrozenNorm(len(norm.weight), norm.eps), norm)
    if type(norm) is nn.BatchNorm2d and norm.affine and not norm.weight.requires_grad:
        return batch_norm_as(_FoldedBatchNorm, norm)
    return None
