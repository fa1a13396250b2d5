"""Read backbones from files of any layout, and verify that a detector computes the same features with them."""

from __future__ import annotations

from ssl_backbones.handover.export import Exported, export_backbone
from ssl_backbones.handover.found import PREPROCESSES
from ssl_backbones.handover.read import BackboneFile, load_backbone_file
from ssl_backbones.handover.verify import stage_features, test_image, verify, verify_weights

__all__ = [
    "PREPROCESSES",
    "BackboneFile",
    "Exported",
    "export_backbone",
    "load_backbone_file",
    "stage_features",
    "test_image",
    "verify",
    "verify_weights",
]
