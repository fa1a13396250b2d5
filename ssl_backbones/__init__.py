"""Contrastive self-supervised pretraining of ResNets that detectors can use."""
