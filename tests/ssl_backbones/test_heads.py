"""Projection and prediction heads: which layers they have."""

from __future__ import annotations

from ssl_backbones.heads import mlp


def test_layers_by_hand() -> None:
    simclr = mlp([8, 8, 4], hidden_norm=True, last_norm="scale", bias=False)
    assert [type(m).__name__ for m in simclr] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert not simclr[-1].bias.requires_grad and simclr[-1].weight.requires_grad and simclr[0].bias is None
    moco = mlp([8, 8, 4], hidden_norm=False)
    assert [type(m).__name__ for m in moco] == ["Linear", "ReLU", "Linear"]
    assert mlp([8, 4], hidden_norm=True, last_norm="plain")[-1].weight is None
