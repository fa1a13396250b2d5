"""The methods by name. A new one is one file here and one line in this table."""

from __future__ import annotations

from ssl_backbones.method import Method
from ssl_backbones.methods.barlow_twins import BarlowTwins
from ssl_backbones.methods.byol import BYOL
from ssl_backbones.methods.clip import CLIP
from ssl_backbones.methods.cmc import CMC
from ssl_backbones.methods.cpc import CPC
from ssl_backbones.methods.curl import CURL
from ssl_backbones.methods.deepcluster_v2 import DeepClusterV2
from ssl_backbones.methods.dino import DINO
from ssl_backbones.methods.distillation import Distillation
from ssl_backbones.methods.instdisc import InstDisc
from ssl_backbones.methods.moco import MoCoV1, MoCoV2, MoCoV3
from ssl_backbones.methods.nnclr import NNCLR
from ssl_backbones.methods.pcl import PCLV1, PCLV2
from ssl_backbones.methods.pirl import PIRL
from ssl_backbones.methods.sela_v2 import SeLaV2
from ssl_backbones.methods.simclr import SimCLR
from ssl_backbones.methods.simsiam import SimSiam
from ssl_backbones.methods.sup_con import SupCon
from ssl_backbones.methods.swav import SwAV

METHODS: dict[str, type[Method]] = {
    "simclr": SimCLR,
    "moco_v1": MoCoV1,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow_twins": BarlowTwins,
    "sup_con": SupCon,
    "pcl_v1": PCLV1,
    "pcl_v2": PCLV2,
    "nnclr": NNCLR,
    "swav": SwAV,
    "deepcluster_v2": DeepClusterV2,
    "dino": DINO,
    "instdisc": InstDisc,
    "cpc": CPC,
    "cmc": CMC,
    "pirl": PIRL,
    "sela_v2": SeLaV2,
    "clip": CLIP,
    "curl": CURL,
    "distillation": Distillation,
}
