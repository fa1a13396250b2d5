"""ConvNeXts (Liu et al., CVPR 2022), torchvision's.

Shapes: N images, H x W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.convnext import CNBlock, CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchvisionConvNeXt

from openworld.errors import ConfigError
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.backbones.convnext_options import NETWORKS, ConvNeXtOptions
from ssl_backbones.backbones.options import STAGES


class ConvNeXt(Backbone):
    """ConvNeXt without classifier, under torchvision's names (``features.0`` .. ``features.7``).

    At ``width`` 1 its keys and its numbers are those of ``torchvision.models`` without ``classifier``, whose first
    layer is the norm after the pool. The maps of the stages are not normalised either; the authors' detectors put a
    layer norm on each. Stochastic depth is left out, so that training draws no random numbers.
    """

    options: ConvNeXtOptions

    def __init__(self, options: ConvNeXtOptions) -> None:
        first, depths = NETWORKS[options.name]
        channels = [max(1, round(first * 2**stage * options.width)) for stage in range(4)]
        super().__init__(options, dict(zip(STAGES, channels, strict=True)))
        settings = [
            CNBlockConfig(width, following, depth)
            for width, following, depth in zip(channels, [*channels[1:], None], options.depths or depths, strict=True)
        ]
        self.features: nn.Sequential = TorchvisionConvNeXt(settings, layer_scale=options.layer_scale).features

    def stem(self, images: Tensor) -> Tensor:
        """See :class:`Backbone`.

        Raises:
            ConfigError: the images are smaller than one cell of the last stage.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.options.strides["c5"]:
            raise ConfigError(
                f"images of {height} x {width} pixels are smaller than a cell of {self.options.name}'s last stage",
                remedy=f"make views (view_size, local_view_size) of at least {self.options.strides['c5']} pixels",
            )
        x: Tensor = self.features[0](images)
        return x

    def stages(self) -> list[nn.Module]:
        """See :class:`Backbone`. All but the first begin with the convolution that halves the map."""
        return [self.features[1], *(self.features[number : number + 2] for number in (2, 4, 6))]

    def spared_by_decay(self) -> list[nn.Parameter]:
        """See :class:`Backbone`: the layer scales, one number per channel."""
        return [module.layer_scale for module in self.modules() if isinstance(module, CNBlock)]
