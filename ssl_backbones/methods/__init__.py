"""The methods by name. A new one is one file here and one line in this table."""

from __future__ import annotations

from ssl_backbones.method import Method
from ssl_backbones.methods.moco import MoCoV2
from ssl_backbones.methods.simclr import SimCLR

METHODS: dict[str, type[Method]] = {"simclr": SimCLR, "moco_v2": MoCoV2}
