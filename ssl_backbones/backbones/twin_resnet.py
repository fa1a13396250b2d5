"""Two ResNets side by side in one network, for CMC: one on luminance and one on colour."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from openworld.errors import ConfigError
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.backbones.resnet_options import ResNetOptions


class TwinResNet(ResNet):
    """Two ResNets of half the width side by side: the first half of all channels never meets the second.

    All convolutions have two groups. The first one takes one channel of a colour space into the first half and the
    other two into the second, folded together with the linear map from the channels of the image.
    """

    def __init__(self, options: ResNetOptions, colours: tuple[tuple[float, float, float], ...]) -> None:
        """Build the twin; ``colours`` (3, 3) maps the image's channels to those of the colour space, luminance first.

        Raises:
            ConfigError: a number of channels is odd, a norm mixes channels, or convolutions pad at the end only.
        """
        super().__init__(options)
        if options.norm == "layer" or options.conv_padding != "both" or options.stem == "clip":
            raise ConfigError(
                f"norm {options.norm}, conv_padding {options.conv_padding} and stem {options.stem} with two encoders",
                where="cmc",
                remedy="choose norm batch, conv_padding both and stem imagenet7x7 or cifar3x3",
            )
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        for conv in convolutions:
            if conv.out_channels % 2:
                raise ConfigError(
                    f"arch.width {options.width:g} gives {conv.out_channels} channels, which do not halve",
                    where="cmc",
                    remedy="choose a width and a stem_width with even numbers of channels",
                )
            if conv is not self.conv1:
                conv.groups, conv.weight = 2, nn.Parameter(conv.weight[:, : conv.in_channels // 2].contiguous())
        self.conv1 = _TwinStem(self.conv1, torch.tensor(colours))
        with torch.no_grad():
            for conv in [*convolutions[1:], self.conv1]:
                conv.weight.mul_(math.sqrt(2))  # He et al. (2015): the fan out is half of what it was drawn for

    @torch.no_grad()
    def plain(self) -> ResNet:
        """Return a copy without groups: zeros between the halves, colours folded into the first convolution."""
        state = {key: value.detach().clone() for key, value in self.state_dict().items()}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and module.groups == 2:
                first, second = module.weight.chunk(2)
                zeros = torch.zeros_like(first)
                state[f"{name}.weight"] = torch.cat([torch.cat([first, zeros], 1), torch.cat([zeros, second], 1)])
        state["conv1.weight"] = cast(_TwinStem, self.conv1).folded().clone()
        with torch.device("meta"):  # draws no random numbers
            network = ResNet(self.options)
        network.load_state_dict(state, assign=True)
        return network.train(self.training)


class _TwinStem(nn.Conv2d):
    """The first convolution: weights of (out, 3, k, k) for the channels of a colour space, half of them used.

    Buffers, not in the checkpoint:
        colours: (3, 3) float32, channels of the colour space from those of the image.
        used: (out, 3, 1, 1) float32, 1 where an output reads a channel of the colour space.
    """

    colours: Tensor
    used: Tensor

    def __init__(self, conv: nn.Conv2d, colours_33: Tensor) -> None:
        sides = cast(tuple[int, int], conv.kernel_size), cast(tuple[int, int], conv.stride)
        super().__init__(3, conv.out_channels, *sides, padding=cast(tuple[int, int], conv.padding), bias=False)
        used = torch.zeros(conv.out_channels, 3, 1, 1)
        used[: len(used) // 2, :1] = 1
        used[len(used) // 2 :, 1:] = 1
        self.register_buffer("colours", colours_33, persistent=False)
        self.register_buffer("used", used, persistent=False)
        self.weight = nn.Parameter(conv.weight.detach() * used)

    def folded(self) -> Tensor:
        """Return the (out, 3, k, k) weights for the channels of the image."""
        folded: Tensor = torch.einsum("okhw,kc->ochw", self.weight * self.used, self.colours)
        return folded

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) images, centred so that the mean colour is zero, to (N, out, H', W')."""
        out: Tensor = self._conv_forward(images, self.folded(), None)
        return out
