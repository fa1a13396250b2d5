"""Losses of the softmax family against the formula as a slow loop, and what holds for all losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_backbones.losses import (
    alignment,
    barlow_twins,
    byol_regression,
    curl_bilinear,
    dino_cross_entropy,
    distillation,
    info_nce,
    info_nce_batch,
    nce,
    nce_log_normaliser,
    negative_cosine,
    nt_xent,
    proto_nce,
    sinkhorn,
    sup_con,
    swapped_prediction,
    uniformity,
)

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pair(count: int = 6, dim: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return draw(count, dim, dtype=dtype), draw(count, dim, seed=1, dtype=dtype)


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


@DTYPES
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_loop(temperature: float, dtype: torch.dtype, tolerance: float) -> None:
    z1, z2 = pair(dtype=dtype)
    z, total = torch.cat([z1, z2]), 0.0
    for i in range(12):
        positive = math.exp(cosine(z[i], z[(i + 6) % 12]) / temperature)
        everyone = sum(math.exp(cosine(z[i], z[j]) / temperature) for j in range(12) if j != i)
        total -= math.log(positive / everyone)
    assert nt_xent(z1, z2, temperature).item() == pytest.approx(total / 12, rel=tolerance)


def test_nt_xent_ignores_scale_and_order() -> None:
    z1, z2 = pair()
    order = torch.randperm(6)
    value = nt_xent(z1, z2, 0.2)
    assert nt_xent(7 * z1[order], 0.1 * z2[order], 0.2).item() == pytest.approx(value.item())
    assert nt_xent(z2, z1, 0.2).item() == pytest.approx(value.item())


@DTYPES
def test_info_nce_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    q, k = pair(dtype=dtype)
    bank, total = draw(9, 5, seed=2, dtype=dtype), 0.0
    for i in range(6):
        positive = math.exp(cosine(q[i], k[i]) / 0.2)
        total -= math.log(positive / (positive + sum(math.exp(cosine(q[i], n) / 0.2) for n in bank)))
    assert info_nce(q, k, bank, 0.2).item() == pytest.approx(total / 6, rel=tolerance)


@DTYPES
def test_info_nce_within_the_batch_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    q, k = pair(dtype=dtype)
    total = 0.0
    for i in range(6):
        votes = [math.exp(cosine(q[i], k[j]) / 0.2) for j in range(6)]
        total -= math.log(votes[i] / sum(votes))
    assert info_nce_batch(q, k, 0.2).item() == pytest.approx(total / 6, rel=tolerance)


def test_info_nce_within_the_batch_is_that_of_a_bank_of_the_others() -> None:
    q, k = pair()
    rows = [info_nce(q[i : i + 1], k[i : i + 1], torch.cat([k[:i], k[i + 1 :]]), 0.2) for i in range(6)]
    assert info_nce_batch(q, k, 0.2).item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-12)


@DTYPES
def test_sup_con_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    z, labels = draw(7, 4, dtype=dtype), [0, 1, 0, 2, 1, 0, 3]  # 2 and 3 have no positive
    values = []
    for i in range(7):
        positives = [p for p in range(7) if p != i and labels[p] == labels[i]]
        everyone = sum(math.exp(cosine(z[i], z[a]) / 0.3) for a in range(7) if a != i)
        if positives:
            logs = [math.log(math.exp(cosine(z[i], z[p]) / 0.3) / everyone) for p in positives]
            values.append(-sum(logs) / len(positives))
    assert sup_con(z, torch.tensor(labels), 0.3).item() == pytest.approx(sum(values) / 5, rel=tolerance)


def test_sup_con_of_two_views_is_nt_xent() -> None:
    z1, z2 = pair()
    ours = sup_con(torch.cat([z1, z2]), torch.arange(6).repeat(2), 0.3)
    assert ours.item() == pytest.approx(nt_xent(z1, z2, 0.3).item(), rel=1e-12)


def test_sup_con_without_positives_is_zero() -> None:
    for count in (1, 4):
        z = draw(count, 3).requires_grad_()
        loss = sup_con(z, torch.arange(count), 0.1)
        loss.backward()
        assert loss.item() == 0 and z.grad is not None and not z.grad.any()


def bank_case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return draw(4, 5, dtype=dtype), draw(4, 5, seed=1, dtype=dtype), draw(4, 3, 5, seed=2, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("proximal_weight", [0.0, 0.7])
def test_nce_is_the_loop(proximal_weight: float, dtype: torch.dtype, tolerance: float) -> None:
    """With the probabilities themselves: h = P / (P + K / n), 1 - h = (K / n) / (P + K / n)."""
    z, positives, negatives = bank_case(dtype)
    samples, temperature, noise, total, seen = 50, 0.4, 3 / 50, 0.0, []
    for i in range(4):
        rows = [positives[i], *negatives[i]]
        seen += [math.exp(cosine(z[i], row) / temperature) for row in rows]
    normaliser = sum(seen) / len(seen) * samples
    for i in range(4):
        p = [math.exp(cosine(z[i], row) / temperature) / normaliser for row in (positives[i], *negatives[i])]
        total -= math.log(p[0] / (p[0] + noise)) + sum(math.log(noise / (x + noise)) for x in p[1:])
        total += proximal_weight * (2 - 2 * cosine(z[i], positives[i]))
    log_z = nce_log_normaliser(z, positives, negatives, temperature=temperature, samples=samples)
    assert log_z.exp().item() == pytest.approx(normaliser, rel=tolerance)
    ours = nce(
        z,
        positives,
        negatives,
        temperature=temperature,
        samples=samples,
        log_normaliser=log_z,
        proximal_weight=proximal_weight,
    )
    assert ours.item() == pytest.approx(total / 4, rel=tolerance)


def test_nce_with_shared_negatives() -> None:
    z, positives, negatives = bank_case(torch.float64)
    shared = negatives[0]
    options = {"temperature": 0.4, "samples": 50, "log_normaliser": 2.0}
    each = nce(z, positives, shared.expand(4, -1, -1), **options)
    assert nce(z, positives, shared, **options).item() == pytest.approx(each.item(), rel=1e-12)


def test_nce_starts_at_k_plus_1_coins() -> None:
    """All similar: P = 1 / n for each row, so h = 1 / (1 + K) and the loss -log h - K log(1 - h)."""
    ones, options = torch.ones(3, 4, dtype=torch.float64), {"temperature": 0.07, "samples": 1000}
    log_z = nce_log_normaliser(ones, ones, ones[:2], **options)
    expected = math.log(3) + 2 * math.log(3 / 2)
    assert nce(ones, ones, ones[:2], **options, log_normaliser=log_z).item() == pytest.approx(expected, rel=1e-12)


@DTYPES
def test_curl_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    q, k = pair(dtype=dtype)
    weight, total = draw(5, 5, seed=2, dtype=dtype), 0.0
    for i in range(6):
        logits = [
            sum(float(q[i, a]) * float(weight[a, b]) * float(k[j, b]) for a in range(5) for b in range(5))
            for j in range(6)
        ]
        total -= logits[i] - math.log(sum(math.exp(x) for x in logits))
    assert curl_bilinear(q, weight, k).item() == pytest.approx(total / 6, rel=tolerance)


@pytest.mark.parametrize("count", [2, 64, 128, 256])
def test_starting_values(count: int) -> None:
    """Where nothing is learnt yet all similarities are equal, and the softmax is uniform over what it has."""
    same, bank = torch.ones(count, 8), torch.ones(4096, 8)
    assert nt_xent(same, same, 0.5).item() == pytest.approx(math.log(2 * count - 1), rel=1e-5)
    assert info_nce(same, same, bank, 0.07).item() == pytest.approx(math.log(4097), rel=1e-5)
    assert info_nce_batch(same, same, 0.2).item() == pytest.approx(math.log(count), rel=1e-5)
    assert curl_bilinear(same, torch.ones(8, 8), same).item() == pytest.approx(math.log(count), rel=1e-5)
    assert sup_con(same, torch.zeros(count), 0.1).item() == pytest.approx(math.log(count - 1), abs=1e-5)


def test_random_projections_start_near_the_uniform_value() -> None:
    """In many dimensions random vectors are nearly orthogonal: ln(2N - 1) and ln(K + 1) up to 1 %."""
    z1, z2 = draw(64, 2048), draw(64, 2048, seed=1)
    assert nt_xent(z1, z2, 0.5).item() == pytest.approx(math.log(127), rel=0.01)
    assert info_nce(z1, z2, draw(1024, 2048, seed=2), 0.5).item() == pytest.approx(math.log(1025), rel=0.01)


# For each loss a call on a batch x (N, 5); every loss below must work on any dtype and with N = 0.
CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "nt_xent": lambda x: nt_xent(x, 2 * x + 1, 0.1),
    "info_nce": lambda x: info_nce(x, 2 * x + 1, torch.ones(3, 5).to(x), 0.1),
    "info_nce_batch": lambda x: info_nce_batch(x, 2 * x + 1, 0.1),
    "sup_con": lambda x: sup_con(x, torch.arange(len(x)) % 2, 0.1),
    "nce": lambda x: nce(
        x, 2 * x + 1, torch.ones(3, 5).to(x), temperature=0.1, samples=9, log_normaliser=1.0, proximal_weight=0.1
    ),
    "curl_bilinear": lambda x: curl_bilinear(x, torch.eye(5).to(x), 2 * x + 1),
    "proto_nce": lambda x: proto_nce(
        x, [torch.eye(5).to(x)], [torch.arange(len(x)) % 5], [torch.full((5,), 0.2).to(x)], candidates="paper"
    ),
    "proto_nce_reference": lambda x: proto_nce(
        x, [torch.eye(5).to(x)], [torch.arange(len(x)) % 5], [torch.full((5,), 0.2).to(x)], candidates="reference"
    ),
    "swapped_prediction": lambda x: swapped_prediction([x.sin(), x.cos()]),
    "negative_cosine": lambda x: negative_cosine(x, 2 * x + 1),
    "byol_regression": lambda x: byol_regression(x, 2 * x + 1),
    "barlow_twins": lambda x: barlow_twins(x, 2 * x.sin() + 1),
    "dino_cross_entropy": lambda x: dino_cross_entropy([x, 2 * x], [x.detach()], 0.1, 0.04, torch.zeros(5).to(x)),
    "distillation": lambda x: distillation(x, 2 * x.detach(), 0.5),
    "alignment": lambda x: alignment(x, 2 * x + 1),
    "alignment_1": lambda x: alignment(x, 2 * x + 1, alpha=1),
    "uniformity": lambda x: uniformity(x),
}
each_loss = pytest.mark.parametrize("loss", CASES.values(), ids=CASES.keys())


@each_loss
def test_empty_batch_is_zero_with_a_gradient_path(loss: Callable[[Tensor], Tensor]) -> None:
    nothing = torch.zeros(0, 5, requires_grad=True)
    value = loss(nothing)
    value.backward()
    assert value.shape == () and value.item() == 0 and nothing.grad is not None


@each_loss
def test_full_precision_under_autocast(loss: Callable[[Tensor], Tensor]) -> None:
    """fp32 in, the same bits out; half precision in, what its values give in fp32; float64 stays."""
    x = draw(8, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, from_half = loss(x), loss(x.bfloat16())
    assert inside.dtype == from_half.dtype == torch.float32
    assert torch.equal(inside, loss(x))
    assert loss(x.double()).dtype == torch.float64
    assert torch.isfinite(from_half)


@each_loss
def test_gradient_is_finite_and_that_of_the_value(loss: Callable[[Tensor], Tensor]) -> None:
    x = draw(6, 5).requires_grad_()
    direction = draw(6, 5, seed=7)
    (slope,) = torch.autograd.grad(loss(x), x)
    assert torch.isfinite(slope).all()
    if loss not in (
        CASES["swapped_prediction"],
        CASES["dino_cross_entropy"],
        CASES["distillation"],
    ):  # targets are fixed
        step = 1e-6 * direction
        difference = (loss(x.detach() + step) - loss(x.detach() - step)) / 2e-6
        assert (slope * direction).sum().item() == pytest.approx(difference.item(), rel=1e-4, abs=1e-6)


def test_bank_without_negatives() -> None:
    assert info_nce(torch.ones(2, 5), torch.ones(2, 5), torch.zeros(0, 5), 0.1).item() == 0
    assert sinkhorn(torch.zeros(0, 5)).shape == (0, 5)
