"""ResNets and projection heads.

Shapes: N images, H x W pixels, D channels of the last stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from openworld.runtime.modules import convolution_as, replace_modules
from ssl_backbones.options import ArchOptions

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}

NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "layer": partial(nn.GroupNorm, 1),
}


class ResNet(nn.Module):
    """ResNet without classifier, made of torchvision's blocks under torchvision's names (conv1, bn1, layer1..layer4).

    At ``width`` 1 its keys and its numbers are those of ``torchvision.models`` without ``fc``, or with the stem
    ``clip`` those of CLIP's image tower without ``attnpool``. Keys do not depend on ``stride_in_1x1``,
    ``pool_padding`` and ``conv_padding``: a file loads either way, only the features tell (see handover.verify).

    Attributes:
        options: the :class:`ArchOptions` it was made from.
        channels: channels of each stage, by name ``c2``..``c5``.
        dim: D, channels of ``c5``.
    """

    def __init__(self, options: ArchOptions) -> None:
        super().__init__()
        self.options = options
        block, counts = BLOCKS[options.arch]
        norm = NORMS[options.norm]
        stem_width = options.stem_width or max(1, round(64 * options.width))
        if options.stem == "imagenet7x7":
            self.conv1 = nn.Conv2d(3, stem_width, 7, stride=2, padding=3, bias=False)
            end = options.pool_padding == "end"
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=0 if end else 1, ceil_mode=end)
        elif options.stem == "clip":
            self.conv1, self.bn1 = _conv3x3(3, stem_width // 2, stride=2), norm(stem_width // 2)
            self.conv2, self.bn2 = _conv3x3(stem_width // 2, stem_width // 2), norm(stem_width // 2)
            self.conv3, self.bn3 = _conv3x3(stem_width // 2, stem_width), norm(stem_width)
            self.avgpool = nn.AvgPool2d(2)
        else:
            self.conv1 = nn.Conv2d(3, stem_width, 3, stride=1, padding=1, bias=False)
            self.maxpool = nn.Identity()
        if options.stem != "clip":
            self.bn1 = norm(stem_width)
        self.relu = nn.ReLU(inplace=True)
        inplanes, self.channels = stem_width, {}
        for stage, count in enumerate(counts):
            planes = max(1, round(64 * 2**stage * options.width))
            layer = _stage(block, inplanes, planes, count, 1 if stage == 0 else 2, norm, options)
            self.add_module(f"layer{stage + 1}", layer)
            inplanes = planes * block.expansion
            self.channels[f"c{stage + 2}"] = inplanes
        self.dim = inplanes
        if options.conv_padding == "end":
            replace_modules(self, _end_padded)
        self._initialise(options.zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        """He et al. (2015), fan out, as torchvision does; optionally the last norm of each block at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                    nn.init.zeros_(last.weight)

    def forward_stages(self, images: Tensor, last: str = "c5") -> dict[str, Tensor]:
        """Feature maps after each stage.

        Args:
            images: (N, 3, H, W) float, already preprocessed.
            last: stage to stop after; later ones are neither computed nor returned.

        Returns:
            ``c2``..``c5``: (N, channels, H/s, W/s) with s = 4, 8, 16, 32 (1, 2, 4, 8 for the 3x3 stem).
        """
        x = self._stem(images)
        stages = {}
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            stages[f"c{stage + 2}"] = x
            if f"c{stage + 2}" == last:
                break
        return stages

    def _stem(self, images: Tensor) -> Tensor:
        x: Tensor = self.relu(self.bn1(self.conv1(images)))
        if self.options.stem != "clip":
            x = self.maxpool(x)
            return x
        for conv, norm in ((self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.relu(norm(conv(x)))
        x = self.avgpool(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Global average of ``c5``: (N, 3, H, W) -> (N, D)."""
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.forward_stages(images)["c5"], 1), 1)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inplanes: int,
    planes: int,
    count: int,
    stride: int,
    norm: Callable[..., nn.Module],
    options: ArchOptions,
) -> nn.Sequential:
    """One stage: a block that may stride and widen, then ``count - 1`` that keep the shape."""
    outplanes = planes * block.expansion
    shortcut = None
    if options.stem == "clip":
        return _clip_stage(inplanes, planes, count, stride, norm)
    if stride != 1 or inplanes != outplanes:
        shortcut = nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride=stride, bias=False), norm(outplanes))
    first = block(inplanes, planes, stride, shortcut, norm_layer=norm)
    if options.stride_in_1x1 and isinstance(first, Bottleneck):
        first.conv1.stride, first.conv2.stride = (stride, stride), (1, 1)
    return nn.Sequential(first, *(block(outplanes, planes, norm_layer=norm) for _ in range(count - 1)))


class _PooledBottleneck(Bottleneck):
    """CLIP's bottleneck: its convolutions have stride 1, an average pool before the last one has the stride."""

    def __init__(self, inplanes: int, planes: int, stride: int, norm: Callable[..., nn.Module]) -> None:
        outplanes = planes * self.expansion
        shortcut = None
        if stride > 1 or inplanes != outplanes:
            shortcut = nn.Sequential()
            shortcut.add_module("-1", nn.AvgPool2d(stride))  # the name keeps CLIP's numbers of what follows
            shortcut.add_module("0", nn.Conv2d(inplanes, outplanes, 1, bias=False))
            shortcut.add_module("1", norm(outplanes))
        super().__init__(inplanes, planes, 1, shortcut, norm_layer=norm)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        shortcut: Tensor = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)  # type: ignore[no-any-return]


def _clip_stage(inplanes: int, planes: int, count: int, stride: int, norm: Callable[..., nn.Module]) -> nn.Sequential:
    later = (_PooledBottleneck(planes * Bottleneck.expansion, planes, 1, norm) for _ in range(count - 1))
    return nn.Sequential(_PooledBottleneck(inplanes, planes, stride, norm), *later)


def _conv3x3(inplanes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)


class _EndPaddedConv2d(nn.Conv2d):
    """A convolution padded as SAME of TensorFlow and JAX: ceil(side / stride) outputs, an odd zero row at the end."""

    def forward(self, x: Tensor) -> Tensor:
        edges: list[int] = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            edges += [total // 2, total - total // 2]
        return nn.functional.conv2d(nn.functional.pad(x, edges), self.weight, None, self.stride)


def _end_padded(module: nn.Module) -> _EndPaddedConv2d | None:
    """Rule for strided convolutions wider than 1x1; to the others the padding makes no difference."""
    if type(module) is nn.Conv2d and module.stride[0] > 1 and module.kernel_size[0] > 1:
        return convolution_as(_EndPaddedConv2d, module)
    return None


def mlp(
    dims: Sequence[int],
    *,
    hidden_norm: bool,
    last_norm: Literal["none", "affine", "scale", "plain"] = "none",
    bias: bool = True,
    last_bias: bool | None = None,
) -> nn.Sequential:
    """A projection or prediction head: Linear (, BatchNorm), ReLU, ..., Linear (, BatchNorm).

    Args:
        dims: widths from the input to the output, at least two.
        hidden_norm: batch norm before each ReLU.
        last_norm: batch norm on the output: none, with scale and shift, with scale only, or without parameters.
        bias: biases of the linear layers.
        last_bias: bias of the last of them, where it differs.
    """
    layers: list[nn.Module] = []
    for position, (inside, outside) in enumerate(pairwise(dims)):
        last = position == len(dims) - 2
        layers.append(nn.Linear(inside, outside, bias=last_bias if last and last_bias is not None else bias))
        if not last:
            layers += [nn.BatchNorm1d(outside)] * hidden_norm + [nn.ReLU(inplace=True)]
    if last_norm != "none":
        norm = nn.BatchNorm1d(dims[-1], affine=last_norm != "plain")
        if last_norm == "scale":
            norm.bias.requires_grad_(False)
        layers.append(norm)
    return nn.Sequential(*layers)
