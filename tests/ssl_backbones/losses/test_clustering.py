"""ProtoNCE, Sinkhorn and the swapped prediction against slow loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssl_backbones.losses import nt_xent, proto_nce, sinkhorn, sinkhorn_labels, swapped_prediction

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=["float32", "float64"]
)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def clusterings(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Two clusterings of 5 anchors, into 4 and 7 prototypes."""
    prototypes = [draw(count, 3, seed=count, dtype=dtype) for count in (4, 7)]
    assignments = [torch.tensor([0, 1, 1, 3, 0]), torch.tensor([6, 2, 5, 2, 2])]
    concentrations = [0.2 + draw(count, seed=9 + count, dtype=dtype).abs() for count in (4, 7)]
    return prototypes, assignments, concentrations


def probability(anchor: Tensor, columns: list[int], own: int, centres: Tensor, phi: Tensor) -> float:
    """Of the column ``own`` (a position in ``columns``), each over its own phi."""
    votes = [math.exp(cosine(anchor, centres[c]) / float(phi[c])) for c in columns]
    return votes[own] / sum(votes)


@DTYPES
def test_proto_nce_over_all_prototypes_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    z, total = draw(5, 3, seed=0, dtype=dtype), 0.0
    for centres, own, phi in zip(*clusterings(dtype), strict=True):
        columns = list(range(len(centres)))
        total -= sum(math.log(probability(z[i], columns, int(own[i]), centres, phi)) for i in range(5)) / 5
    for many in (None, 100):
        assert proto_nce(z, *clusterings(dtype), negatives=many).item() == pytest.approx(total / 2, rel=tolerance)


@DTYPES
def test_proto_nce_of_the_released_code_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    """Columns: the batch's prototypes one by one, repeated ones too, then all that are absent from the batch."""
    z, total = draw(5, 3, seed=0, dtype=dtype), 0.0
    for centres, own, phi in zip(*clusterings(dtype), strict=True):
        batch = own.tolist()
        columns = batch + [c for c in range(len(centres)) if c not in batch]
        total -= sum(math.log(probability(z[i], columns, i, centres, phi)) for i in range(5)) / 5
    found = proto_nce(z, *clusterings(dtype), candidates="reference")
    assert found.item() == pytest.approx(total / 2, rel=tolerance)


@pytest.mark.parametrize("negatives", [1, 3, 5])
def test_proto_nce_draws_r_others(negatives: int) -> None:
    """At equal similarities and phi the loss counts the columns: ln(r + 1), and ln(N + r) in the released code."""
    z, prototypes, own = torch.ones(4, 3), [torch.ones(9, 3)], [torch.tensor([0, 8, 3, 3])]
    phi = [torch.full((9,), 0.3)]
    paper = proto_nce(z, prototypes, own, phi, negatives=negatives)
    released = proto_nce(z, prototypes, own, phi, negatives=negatives, candidates="reference")
    assert paper.item() == pytest.approx(math.log(negatives + 1), rel=1e-6)
    assert released.item() == pytest.approx(math.log(4 + negatives), rel=1e-6)


def test_proto_nce_never_draws_the_own_prototype() -> None:
    """The own prototype alone is alike (cosine 1): one column of it, however often is drawn."""
    z = torch.tensor([[1.0, 0.0]])
    prototypes = [torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])]
    expected = -math.log(math.e / (math.e + 1))
    for seed in range(20):
        source = torch.Generator().manual_seed(seed)
        for candidates in ("paper", "reference"):
            loss = proto_nce(
                z,
                prototypes,
                [torch.tensor([1])],
                [torch.ones(3)],
                negatives=1,
                candidates=candidates,  # type: ignore[arg-type]
                generator=source,
            )
            assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_proto_nce_of_every_draw_is_equally_likely() -> None:
    """r = 1 of two others with different similarities: the mean over many draws is the mean of the two losses."""
    z = torch.tensor([[1.0, 0.0]]).expand(4000, -1)
    prototypes = [torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])]
    own, phi = [torch.zeros(4000, dtype=torch.long)], [torch.ones(3)]
    values = [-math.log(math.e / (math.e + math.exp(x))) for x in (0, -1)]
    source = torch.Generator().manual_seed(0)
    found = proto_nce(z, prototypes, own, phi, negatives=1, generator=source)
    assert found.item() == pytest.approx(sum(values) / 2, rel=0.02)


def test_proto_nce_without_clusterings_is_zero() -> None:
    z = torch.ones(2, 3, requires_grad=True)
    loss = proto_nce(z, [], [], [])
    loss.backward()
    assert loss.item() == 0


def turns(scores: Tensor, epsilon: float, iterations: int) -> list[list[float]]:
    """Sinkhorn-Knopp as SwAV's listing has it: Q is K x B, rows to 1 / K, then columns to 1 / B."""
    samples, prototypes = scores.shape
    q = [[math.exp(float(scores[b, k]) / epsilon) for b in range(samples)] for k in range(prototypes)]
    for _ in range(iterations):
        q = [[value / sum(row) / prototypes for value in row] for row in q]
        sums = [sum(row[b] for row in q) for b in range(samples)]
        q = [[row[b] / sums[b] / samples for b in range(samples)] for row in q]
    return [[q[k][b] * samples for k in range(prototypes)] for b in range(samples)]


@DTYPES
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.5, 1), (0.03, 7)])
def test_sinkhorn_is_the_loop(epsilon: float, iterations: int, dtype: torch.dtype, tolerance: float) -> None:
    scores = draw(8, 5, seed=0, dtype=dtype).tanh()
    expected = torch.tensor(turns(scores, epsilon, iterations), dtype=dtype)
    slack = max(tolerance, 4 / epsilon * torch.finfo(dtype).eps)  # scores / epsilon is rounded before exp
    torch.testing.assert_close(sinkhorn(scores, epsilon, iterations), expected, rtol=slack, atol=tolerance)


def test_sinkhorn_balances() -> None:
    scores = draw(64, 6, seed=0).tanh()
    q = sinkhorn(scores, iterations=200)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(q.sum(dim=0), torch.full((6,), 64 / 6, dtype=torch.float64), rtol=1e-3, atol=0)
    three = sinkhorn(scores)
    torch.testing.assert_close(three.sum(dim=1), torch.ones(64, dtype=torch.float64))  # exact after any number


def test_sinkhorn_survives_what_overflows() -> None:
    """exp(1 / 0.001) fits into no float; a column that is far from every sample gets its share all the same."""
    scores = torch.tensor([[1.0, -1.0], [1.0, -1.0]], dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = sinkhorn(scores, epsilon=0.001)
    assert q.dtype == torch.float32 and torch.equal(q, torch.full((2, 2), 0.5))


@DTYPES
def test_swapped_prediction_is_the_loop(dtype: torch.dtype, tolerance: float) -> None:
    views, queue = [draw(6, 4, seed=s, dtype=dtype).tanh() for s in range(4)], draw(9, 4, seed=8, dtype=dtype).tanh()
    for extra in (None, [queue, -queue]):
        values = []
        for place, assigned in enumerate((1, 3)):
            rows = views[assigned] if extra is None else torch.cat([views[assigned], extra[place]])
            q = turns(rows, 0.1, 3)[:6]
            for other in (v for v in range(4) if v != assigned):
                for b in range(6):
                    logits = [float(x) / 0.2 for x in views[other][b]]
                    total = math.log(sum(math.exp(x) for x in logits))
                    values.append(-sum(weight * (x - total) for weight, x in zip(q[b], logits, strict=True)))
        found = swapped_prediction(views, (1, 3), 0.2, 0.1, 3, queue_scores=extra)
        assert found.item() == pytest.approx(sum(values) / len(values), rel=5 * tolerance)


@pytest.mark.parametrize("prototypes", [512, 3000])
def test_swapped_prediction_starts_at_ln_k(prototypes: int) -> None:
    scores = torch.zeros(4, prototypes)
    assert swapped_prediction([scores, scores]).item() == pytest.approx(math.log(prototypes), rel=1e-6)


def test_swapped_prediction_moves_the_predictions_only() -> None:
    """Assignments are targets: a view that is assigned and never predicts gets no gradient."""
    first, second = draw(6, 4, seed=0).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
    slopes = torch.autograd.grad(swapped_prediction([first, second], [0]), [first, second], allow_unused=True)
    assert slopes[0] is None and slopes[1] is not None and slopes[1].any()
    assert not sinkhorn(first).requires_grad


def test_one_cluster_an_anchor_is_nt_xent_like() -> None:
    """Prototypes that are the other views: the released code's columns are then those of NT-Xent in one direction."""
    z1, z2 = draw(5, 3, seed=0), draw(5, 3, seed=1)
    both = proto_nce(z1, [z2], [torch.arange(5)], [torch.full((5,), 0.3, dtype=torch.float64)], candidates="reference")
    logits = [[cosine(a, b) / 0.3 for b in z2] for a in z1]
    expected = -sum(logits[i][i] - math.log(sum(map(math.exp, logits[i]))) for i in range(5)) / 5
    assert both.item() == pytest.approx(expected, rel=1e-12)
    assert both.item() < nt_xent(z1, z2, 0.3).item()  # which has more negatives


@pytest.mark.parametrize("block", [1, 40, 2**25])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_labels_of_a_whole_set_are_those_of_sinkhorn(block: int, iterations: int) -> None:
    features, prototypes = draw(31, 6, seed=0), draw(5, 6, seed=1)
    expected = sinkhorn(features @ prototypes.T, 0.5, iterations).argmax(dim=1)
    assert torch.equal(sinkhorn_labels(features, prototypes, 0.5, iterations, block), expected)


def test_labels_of_a_whole_set_share_it_evenly() -> None:
    """All features prefer the first prototype; the rounds move them on."""
    features = torch.nn.functional.normalize(draw(600, 4, seed=0) + 3, dim=1)
    prototypes = torch.eye(4, dtype=torch.float64)
    prototypes[0] += 1
    assert (features @ prototypes.T).argmax(dim=1).bincount(minlength=4).tolist() == [600, 0, 0, 0]
    counts = sinkhorn_labels(features, prototypes, 0.02, 100).bincount(minlength=4)
    assert counts.min() > 100 and counts.max() < 200
    assert sinkhorn_labels(features[:0], prototypes).shape == (0,)
