"""3x3 convolutions of maps of at most 2x2 pixels, as one matrix product.

The last stage of a ResNet produces such maps for views of up to 64 pixels. With padding 1 each output pixel then sees
each input pixel through exactly one of the nine taps, so the convolution is a dense layer from all pixels to all
pixels: 4 products per pixel and pair of channels, where a convolution has 9, most of them with padding.

Shapes: N maps of H x W pixels (1 or 2 each), C channels in, O out.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from openworld.runtime.modules import convolution_as, replace_modules

LARGEST_SIDE = 2


def dense_conv3x3(maps: Tensor, weight: Tensor) -> Tensor:
    """Compute ``conv2d(maps, weight, padding=1)``, up to rounding.

    Args:
        maps: (N, C, H, W) float.
        weight: (O, C, 3, 3) float of the same dtype.

    Returns:
        (N, O, H, W), channels last in memory, differentiable once.
    """
    return _DenseConv3x3.apply(maps, weight)  # type: ignore[no-any-return, no-untyped-call]


class _DenseConv3x3(torch.autograd.Function):
    """The product and its two gradients; the one of the weight sums over the pairs of pixels that share a tap."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        (count, channels, height, width), out = maps.shape, len(weight)
        matrix = weight.new_empty(height, width, out, height, width, channels)
        for y, x in product(range(height), range(width)):
            matrix[y, x] = weight[:, :, 1 - y : 1 - y + height, 1 - x : 1 - x + width].permute(0, 2, 3, 1)
        matrix = matrix.view(height * width * out, height * width * channels)
        rows = maps.permute(0, 2, 3, 1).reshape(count, height * width * channels)
        ctx.save_for_backward(rows, matrix)
        return (rows @ matrix.T).view(count, height, width, out).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        count, out, height, width = gradient.shape
        channels = rows.shape[1] // (height * width)
        slopes = gradient.permute(0, 2, 3, 1).reshape(count, height * width * out)
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = (slopes @ matrix).view(count, height, width, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            of_matrix = (slopes.T @ rows).view(height, width, out, height, width, channels)
            taps = of_matrix.new_zeros(out, 3, 3, channels)
            for y, x in product(range(height), range(width)):
                taps[:, 1 - y : 1 - y + height, 1 - x : 1 - x + width] += of_matrix[y, x]
            of_weight = taps.permute(0, 3, 1, 2)
        return of_maps, of_weight


class DenseConv2d(nn.Conv2d):
    """A 3x3 convolution with stride and padding 1 and no bias that uses :func:`dense_conv3x3` where that is faster.

    That is on the CPU in float32; elsewhere, and for larger maps, it is the ordinary convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        tiny = max(x.shape[2:]) <= LARGEST_SIDE
        full = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return dense_conv3x3(x, self.weight) if tiny and full else super().forward(x)


def densify(network: nn.Module) -> None:
    """Replace every eligible 3x3 convolution inside a network by a :class:`DenseConv2d`; names and tensors stay."""
    replace_modules(network, _dense)


def _dense(module: nn.Module) -> DenseConv2d | None:
    if type(module) is not nn.Conv2d or module.bias is not None or module.groups != 1:
        return None
    if module.kernel_size != (3, 3) or not module.stride == module.padding == module.dilation == (1, 1):
        return None
    return convolution_as(DenseConv2d, module)
