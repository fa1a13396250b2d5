"""The families of backbones. A new family is its options, its network, and one line in this table.

Importing this package does not import torch: a configuration names a network before it is built.
"""

from __future__ import annotations

from ssl_backbones.backbones.convnext_options import ConvNeXtOptions
from ssl_backbones.backbones.options import BackboneOptions
from ssl_backbones.backbones.resnet_options import ResNetOptions

FAMILIES: dict[str, type[BackboneOptions]] = {
    "resnet": ResNetOptions,
    "convnext": ConvNeXtOptions,
}
"""Options by the name of the family; each builds its network (:meth:`BackboneOptions.build`)."""

__all__ = ["FAMILIES", "BackboneOptions", "ConvNeXtOptions", "ResNetOptions"]
