"""Self-supervised methods: one file each, its options in a file beside it, and a line in the table :data:`METHODS`.

A method that lives elsewhere is named by the import path of its options. Importing this package imports no torch.
"""

from __future__ import annotations

METHODS: dict[str, str] = {
    "simclr": "ssl_backbones.methods.simclr_options:SimCLROptions",
    "moco_v1": "ssl_backbones.methods.moco_options:MoCoV1Options",
    "moco_v2": "ssl_backbones.methods.moco_options:MoCoV2Options",
    "moco_v3": "ssl_backbones.methods.moco_options:MoCoV3Options",
    "byol": "ssl_backbones.methods.byol_options:BYOLOptions",
    "simsiam": "ssl_backbones.methods.simsiam_options:SimSiamOptions",
    "barlow_twins": "ssl_backbones.methods.barlow_twins_options:BarlowTwinsOptions",
    "sup_con": "ssl_backbones.methods.sup_con_options:SupConOptions",
    "pcl_v1": "ssl_backbones.methods.pcl_options:PCLV1Options",
    "pcl_v2": "ssl_backbones.methods.pcl_options:PCLV2Options",
    "nnclr": "ssl_backbones.methods.nnclr_options:NNCLROptions",
    "swav": "ssl_backbones.methods.swav_options:SwAVOptions",
    "deepcluster_v2": "ssl_backbones.methods.deepcluster_v2_options:DeepClusterV2Options",
    "dino": "ssl_backbones.methods.dino_options:DINOOptions",
    "instdisc": "ssl_backbones.methods.instdisc_options:InstDiscOptions",
    "cpc": "ssl_backbones.methods.cpc_options:CPCOptions",
    "cmc": "ssl_backbones.methods.cmc_options:CMCOptions",
    "pirl": "ssl_backbones.methods.pirl_options:PIRLOptions",
    "sela_v2": "ssl_backbones.methods.sela_v2_options:SeLaV2Options",
    "clip": "ssl_backbones.methods.clip_options:CLIPOptions",
    "curl": "ssl_backbones.methods.curl_options:CURLOptions",
    "distillation": "ssl_backbones.methods.distillation_options:DistillationOptions",
}
"""Name → the options class of the method, as ``module:class``; its ``implementation`` is the method."""
