"""ResNets (He et al., CVPR 2016), made of torchvision's blocks.

Shapes: N images, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from openworld.runtime.modules import convolution_as, replace_modules
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.backbones.options import STAGES
from ssl_backbones.backbones.resnet_options import BLOCKS, ResNetOptions

NORMS: dict[str, Callable[..., nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "layer": partial(nn.GroupNorm, 1),
}


class ResNet(Backbone):
    """ResNet without classifier, under torchvision's names (conv1, bn1, layer1..layer4).

    At ``width`` 1 its keys and its numbers are those of ``torchvision.models`` without ``fc``, or with the stem
    ``clip`` those of CLIP's image tower without ``attnpool``. Keys do not depend on ``stride_in_1x1``,
    ``pool_padding`` and ``conv_padding``: a file loads either way, and only the features differ (see handover.verify).
    """

    options: ResNetOptions

    def __init__(self, options: ResNetOptions) -> None:
        kind, counts = BLOCKS[options.name]
        block = Bottleneck if kind == "bottleneck" else BasicBlock
        planes = [max(1, round(64 * 2**stage * options.width)) for stage in range(4)]
        super().__init__(options, {name: width * block.expansion for name, width in zip(STAGES, planes, strict=True)})
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
        inplanes = stem_width
        for stage, count in enumerate(counts):
            layer = _stage(block, inplanes, planes[stage], count, 1 if stage == 0 else 2, norm, options)
            self.add_module(f"layer{stage + 1}", layer)
            inplanes = planes[stage] * block.expansion
        if options.conv_padding == "end":
            replace_modules(self, _end_padded)
        self._initialise(options.zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        """Initialise as torchvision does (He et al., 2015, fan out); optionally zero the last norm of each block."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, BasicBlock | Bottleneck):
                    last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                    nn.init.zeros_(last.weight)

    def stages(self) -> list[nn.Module]:
        """See :class:`Backbone`."""
        return [self.get_submodule(f"layer{number}") for number in range(1, 5)]

    @property
    def c4_head(self) -> nn.Module:
        """See :class:`Backbone`."""
        return self.stages()[-1]

    def stem(self, images: Tensor) -> Tensor:
        """See :class:`Backbone`."""
        x: Tensor = self.relu(self.bn1(self.conv1(images)))
        if self.options.stem != "clip":
            x = self.maxpool(x)
            return x
        for conv, norm in ((self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.relu(norm(conv(x)))
        x = self.avgpool(x)
        return x


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    inplanes: int,
    planes: int,
    count: int,
    stride: int,
    norm: Callable[..., nn.Module],
    options: ResNetOptions,
) -> nn.Sequential:
    """Build one stage: a block that may stride and widen, then ``count - 1`` blocks that keep the shape."""
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
    """CLIP's bottleneck: its convolutions have stride 1; an average pool before the last one has the stride."""

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
