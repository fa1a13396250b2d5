"""Backbones from files of any layout, and the proof that a detector computes the same features with them."""

from __future__ import annotations

from ssl_backbones.handover.read import BackboneFile, load_backbone_file
from ssl_backbones.handover.verify import stage_features, test_image, verify

__all__ = ["BackboneFile", "load_backbone_file", "stage_features", "test_image", "verify"]
