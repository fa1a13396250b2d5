"""InstDisc, CMC, PIRL and CPC learn to tell a dozen images apart: the loss falls below that of guessing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.method import Batch
from ssl_backbones.methods.cmc_options import CMCOptions
from ssl_backbones.methods.cpc_options import CPCOptions
from ssl_backbones.methods.instdisc_options import InstDiscOptions
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.methods.pirl_options import PIRLOptions
from ssl_backbones.optim import build_optimizer, set_learning_rates
from ssl_backbones.options import PretrainOptions

NEGATIVES = 7
GUESS = math.log(NEGATIVES + 1) + NEGATIVES * math.log((NEGATIVES + 1) / NEGATIVES)  # of NCE
RATE = {"lr": 0.05}
ADAM = {"lr": 0.01, "optimizer": "adamw", "sgd_momentum": 0.9}
BANK: dict[str, Any] = {"temperature": 0.5, "projection_dim": 8, "negatives": NEGATIVES}
GRID: dict[str, Any] = {"temperature": 1.0, "projection_dim": 8, "context_dim": 12}


def noisy(step: int, sides: tuple[int, ...], index: Tensor) -> Batch:
    """Blurred noise as images; a view changes brightness and adds noise. A picture of patches is the image itself."""
    fixed, moving = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step + 1)
    images = F.interpolate(torch.randn(12, 3, 5, 5, generator=fixed), size=32, mode="bilinear")[index]

    def view(side: int) -> Tensor:
        brightness = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1, generator=moving)
        changed = images * brightness + 0.1 * torch.randn(images.shape, generator=moving)
        return F.interpolate(changed, size=side, mode="bilinear")

    return Batch([view(side) for side in sides], index)


@pytest.mark.parametrize(
    ("own", "sides", "images", "changes", "guess"),
    [
        (InstDiscOptions(**BANK), (32,), 6, RATE, GUESS),
        (CMCOptions(**BANK), (32,), 6, RATE, 2 * GUESS),
        (PIRLOptions(**BANK), (32, 36), 6, RATE, GUESS),
        (CPCOptions(**GRID), (56,), 3, ADAM, math.log(3 * 49)),
        (CPCOptions(**GRID, context="gru"), (56,), 3, ADAM, math.log(3 * 49)),
        (CPCOptions(**GRID, directions=4, skipped_rows=2), (48,), 3, ADAM | {"views": "cpc_v2"}, math.log(3 * 36)),
    ],
    ids=["instdisc", "cmc", "pirl", "cpc", "cpc_gru", "cpc_v2"],
)
def test_the_loss_falls_without_collapse(
    own: MethodOptions, sides: tuple[int, ...], images: int, changes: dict[str, Any], guess: float
) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"warmup": 0, "steps": 24, "views": own.name, **changes}
    norm: Any = "layer" if settings["views"] == "cpc_v2" else "batch"
    width = 1 / 8 if own.name == "cmc" else 1 / 16  # of both encoders together
    chosen = PretrainOptions(method=own, arch=ResNetOptions(width=width, norm=norm), **settings)
    method = own.implementation()(chosen).train()
    method.allocate(12)
    optimizer, seen = build_optimizer(method.param_groups(1e-4), chosen), []
    for step in range(24):
        set_learning_rates(optimizer, step, chosen)
        loss, numbers = method.loss(noisy(step, sides, torch.arange(12).split(images)[step % 2]))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in method.parameters())
        optimizer.step()
        seen.append((loss.item(), numbers["spread"]))
    first, last = (sum(loss for loss, _ in part) / 4 for part in (seen[:4], seen[-4:]))
    assert last < first and last < (0.995 if own.name == "cpc" else 0.95) * guess
    assert own.name == "cpc" or seen[-1][1] > 0.2
