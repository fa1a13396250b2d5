"""Losses against lightly and pytorch-metric-learning, where these have the same definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssl_backbones.losses import (
    alignment,
    barlow_twins,
    byol_regression,
    dino_cross_entropy,
    info_nce,
    info_nce_batch,
    negative_cosine,
    nt_xent,
    sinkhorn,
    sup_con,
    swapped_prediction,
    uniformity,
)

lightly = pytest.importorskip("lightly.loss")
pml = pytest.importorskip("pytorch_metric_learning.losses")

DTYPES = [(torch.float32, 1e-6), (torch.float64, 1e-12)]
each_dtype = pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=["float32", "float64"])


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pair(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return draw(6, 5, dtype=dtype), draw(6, 5, dtype=dtype, seed=1)


def same(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=tolerance, atol=tolerance)


@each_dtype
def test_nt_xent(dtype: torch.dtype, tolerance: float) -> None:
    z1, z2 = pair(dtype)
    same(nt_xent(z1, z2, 0.3), lightly.NTXentLoss(temperature=0.3, memory_bank_size=0)(z1, z2), tolerance)
    same(nt_xent(z1, z2, 0.3), pml.SelfSupervisedLoss(pml.NTXentLoss(temperature=0.3))(z1, z2), tolerance)


def test_info_nce_with_a_bank() -> None:
    criterion = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(16, 5))
    q, k = pair(torch.float32)
    criterion(q, k)  # makes the bank, which is float32 always
    bank = criterion.memory_bank.bank.clone()
    same(info_nce(q, k, bank, 0.2), criterion(q, k), 1e-6)


@each_dtype
def test_info_nce_within_the_batch(dtype: torch.dtype, tolerance: float) -> None:
    q, k = pair(dtype)
    criterion = pml.SelfSupervisedLoss(pml.NTXentLoss(temperature=0.3), symmetric=False)
    same(info_nce_batch(q, k, 0.3), criterion(q, k), tolerance)


@each_dtype
def test_sup_con(dtype: torch.dtype, tolerance: float) -> None:
    z, labels = draw(9, 5, dtype=dtype), torch.tensor([0, 1, 0, 2, 2, 1, 0, 2, 1])
    same(sup_con(z, labels, 0.2), pml.SupConLoss(temperature=0.2)(z, labels), tolerance)
    lonely = torch.tensor([0, 1, 0, 2, 2, 1, 0, 2, 3])  # the last anchor has no positive
    same(sup_con(z, lonely, 0.2), pml.SupConLoss(temperature=0.2)(z, lonely), tolerance)


@each_dtype
def test_sinkhorn(dtype: torch.dtype, tolerance: float) -> None:
    from lightly.loss.swav_loss import sinkhorn as theirs

    scores = torch.nn.functional.normalize(draw(12, 5, dtype=dtype), dim=1)
    same(sinkhorn(scores), theirs(scores, iterations=3, epsilon=0.05, gather_distributed=False), tolerance)


@each_dtype
def test_swapped_prediction(dtype: torch.dtype, tolerance: float) -> None:
    views = [torch.tanh(draw(8, 5, dtype=dtype, seed=view)) for view in range(5)]
    queue = [torch.tanh(draw(11, 5, dtype=dtype, seed=20 + view)) for view in range(2)]
    criterion = lightly.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
    same(swapped_prediction(views), criterion(views[:2], views[2:]), tolerance)
    same(swapped_prediction(views[:2]), criterion(views[:2], []), tolerance)
    same(swapped_prediction(views, queue_scores=queue), criterion(views[:2], views[2:], queue), tolerance)


@each_dtype
def test_cosine_regressions(dtype: torch.dtype, tolerance: float) -> None:
    p, z = pair(dtype)
    theirs = lightly.NegativeCosineSimilarity()(p, z)
    same(negative_cosine(p, z), theirs, tolerance)
    same(byol_regression(p, z), 2 + 2 * theirs, tolerance)


@each_dtype
def test_barlow_twins(dtype: torch.dtype, tolerance: float) -> None:
    z1, z2 = pair(dtype)
    same(barlow_twins(z1, z2, 5e-3), lightly.BarlowTwinsLoss(lambda_param=5e-3)(z1, z2), tolerance)


@each_dtype
def test_dino(dtype: torch.dtype, tolerance: float) -> None:
    student = [draw(4, 7, dtype=dtype, seed=view) for view in range(5)]
    teacher = [draw(4, 7, dtype=dtype, seed=10 + view) for view in range(2)]
    warmth = 0.0625  # lightly keeps it in float32, so a power of two
    criterion = lightly.DINOLoss(output_dim=7, warmup_teacher_temp=warmth, teacher_temp=warmth, student_temp=0.1)
    center = draw(7, dtype=dtype, seed=99)
    criterion.center = center[None, None]
    ours = dino_cross_entropy(student, teacher, 0.1, warmth, center)
    same(ours, criterion(teacher, student, teacher_temp=None, epoch=None), tolerance)


@each_dtype
def test_alignment_and_uniformity(dtype: torch.dtype, tolerance: float) -> None:
    from lightly.loss.hypersphere_loss import HypersphereLoss

    x, y = pair(dtype)
    ours = alignment(x, y) + (uniformity(x) + uniformity(y)) / 2
    same(ours, HypersphereLoss(t=2, lam=1, alpha=2)(x, y), tolerance)
