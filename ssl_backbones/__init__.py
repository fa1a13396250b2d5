"""Contrastive self-supervised pretraining of backbones that detectors can use."""
