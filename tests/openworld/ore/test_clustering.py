"""Clustering loss against a slow loop, finite differences and the arrays of the reference code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openworld.labels import LabelSpace
from openworld.ore.clustering import clustering_loss, minkowski_distances
from openworld.ore.core import Ore
from openworld.ore.options import ClusteringOptions
from openworld.ore.prototypes import initial_prototypes

ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[2] / "oracles")) / "clustering"


def files(*, loops: bool) -> list[Any]:
    found = [path for path in sorted(ORACLES.glob("*.npz")) if path.stem.startswith("loop_") == loops]
    return [pytest.param(path, id=path.stem) for path in found]


def slow_loss(
    features: Tensor, labels: Tensor, prototypes: Tensor, present: Tensor, margin: float, order: float, paper: bool
) -> float:
    per_region, columns = [], 0
    for feature, label in zip(features, labels, strict=True):
        total, columns = 0.0, 0
        for row in range(len(prototypes)):
            if paper and not present[row]:
                continue
            columns += 1
            vector = prototypes[row] if present[row] else torch.zeros_like(prototypes[row])
            distance = float((feature - vector).abs().pow(order).sum() ** (1 / order))
            total += distance if row == label else max(0.0, margin - distance)
        per_region.append(total)
    mean = sum(per_region) / len(per_region)
    return mean if paper else mean / columns


@pytest.mark.parametrize("paper", [True, False])
@pytest.mark.parametrize("order", [1.0, 2.0, 10.0])
def test_against_a_slow_loop(order: float, paper: bool) -> None:
    torch.manual_seed(0)
    features, prototypes = torch.randn(12, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    labels = torch.randint(0, 6, (12,))
    present = torch.tensor([True, True, False, True, False, True])
    loss = clustering_loss(
        features,
        labels,
        prototypes,
        present,
        margin=4.0,
        order=order,
        absent="masked" if paper else "zero",
        reduction="region" if paper else "all",
    )
    wanted = slow_loss(features, labels, prototypes, present, 4.0, order, paper)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("paper", [True, False])
@pytest.mark.parametrize("order", [2.0, 10.0])
def test_gradcheck(order: float, paper: bool) -> None:
    torch.manual_seed(1)
    features = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    prototypes, labels = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 5, -1])
    present = torch.tensor([True, False, True, True, True])

    def loss(features: Tensor) -> Tensor:
        return clustering_loss(
            features,
            labels,
            prototypes,
            present,
            margin=3.0,
            order=order,
            absent="masked" if paper else "zero",
            reduction="region" if paper else "all",
            background=4,
        )

    assert torch.autograd.gradcheck(loss, (features,))


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, 10.0, float("inf")])
@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1e-3])
def test_gradient_is_finite_at_and_near_the_prototype(order: float, gap: float) -> None:
    prototypes = torch.randn(3, 2048, generator=torch.Generator().manual_seed(0))
    features = (prototypes[[0, 1]] + gap).requires_grad_()
    loss = clustering_loss(features, torch.tensor([0, 2]), prototypes, torch.ones(3, dtype=torch.bool), order=order)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss) and torch.isfinite(features.grad).all()


@pytest.mark.parametrize("case", ["no region", "only background", "no prototype", "infinite background"])
@pytest.mark.parametrize("absent", ["masked", "zero"])
def test_nothing_to_compare_is_exactly_zero_with_a_gradient_path(case: str, absent: Any) -> None:
    features = torch.randn(0 if case == "no region" else 4, 3)
    if case == "infinite background":
        features[0] = torch.inf
    features.requires_grad_()
    labels = torch.full((len(features),), 0 if case == "no prototype" else 3)
    present = torch.full((4,), case != "no prototype")
    loss = clustering_loss(features, labels, torch.randn(4, 3), present, absent=absent, background=3)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0 and loss.dtype == torch.float32
    assert features.grad is not None and (features.grad == 0).all()


def test_autocast_and_half_features_are_computed_in_float32() -> None:
    features, prototypes = torch.randn(6, 8), torch.randn(4, 8)
    labels, present = torch.arange(6) % 4, torch.ones(4, dtype=torch.bool)
    plain = clustering_loss(features, labels, prototypes, present)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(clustering_loss(features, labels, prototypes, present), plain)
    half = clustering_loss(features.bfloat16(), labels, prototypes, present)
    assert half.dtype == torch.float32


def test_prototypes_are_constants() -> None:
    prototypes = torch.randn(3, 4, requires_grad=True)
    features = torch.randn(2, 4, requires_grad=True)
    loss = clustering_loss(features, torch.tensor([0, 1]), prototypes, torch.ones(3, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert prototypes.grad is None and features.grad is not None


def test_distances_match_the_definition() -> None:
    features, prototypes = torch.randn(40, 6), torch.randn(30, 6)
    for order in (1.0, 2.0, 10.0):
        difference = (features[:, None] - prototypes[None]).double().abs()
        wanted = difference.pow(order).sum(-1).pow(1 / order).float()
        torch.testing.assert_close(minkowski_distances(features, prototypes, order), wanted, rtol=2e-6, atol=0)


@pytest.mark.oracle
@pytest.mark.parametrize("path", files(loops=False))
def test_reference_cases(path: Path) -> None:
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    features = torch.from_numpy(arrays["features"]).requires_grad_()
    labels = torch.from_numpy(arrays["gt_classes"])
    means, present = torch.from_numpy(arrays["means"]), torch.from_numpy(arrays["means_present"])
    loss = clustering_loss(
        features,
        labels,
        means,
        present,
        margin=float(arrays.get("hinge_margin", 2)),
        order=float(arrays["p"]),
        absent="zero",
        reduction="all",
        background=len(means) - 1,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    if str(arrays.get("raises", "")) or np.isnan(arrays["loss"]):
        # No prototype at all, on which the reference fails, or no foreground, where it gives NaN: ours is 0.
        assert loss.item() == 0 and (features.grad == 0).all()
    else:
        rtol, atol = (1e-10, 1e-13) if features.dtype == torch.float64 else (2e-5, 2e-7)
        assert loss.item() == pytest.approx(float(arrays["loss"]), rel=rtol)
        torch.testing.assert_close(features.grad, torch.from_numpy(arrays["grad_features"]), rtol=rtol, atol=atol)
    if "means_after" in arrays:
        after, _ = initial_prototypes(torch.zeros_like(means), torch.zeros_like(present), means, present, "zero")
        torch.testing.assert_close(after, torch.from_numpy(arrays["means_after"]))


@pytest.mark.oracle
@pytest.mark.parametrize("path", files(loops=True))
def test_reference_loops(path: Path) -> None:
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    features_TND, labels_TN = torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["gt_classes"])
    foreground = int(arrays["K"])
    space = LabelSpace.of([[f"class {row}" for row in range(foreground - 1)]], task=1)
    ore = Ore(
        space,
        features_TND.shape[2],
        ClusteringOptions(
            weight=1.0,
            items_per_class=int(arrays["items_per_class"]),
            start_step=int(arrays["start_iter"]),
            update_every=int(arrays["update_mu_iter"]),
            momentum=float(arrays["momentum"]),
            margin=float(arrays.get("hinge_margin", 2)),
            distance_order=float(arrays["p"]),
            absent="zero",
            reduction="all",
            background_prototype=True,
        ),
    )
    recorded = len(arrays["loss"])
    for index, (features, labels) in enumerate(zip(features_TND, labels_TN, strict=True)):
        loss = ore.step(features, labels, int(arrays["first_iter"]) + index)
        if index >= recorded:
            # The reference crashes here, for a resumed run has lost its prototypes. Ours starts them from the memory.
            means, seen = ore.memory.means()
            assert torch.isfinite(loss) and torch.equal(ore.prototypes.vectors[seen], means[seen])
            break
        wanted = float(arrays["loss"][index])
        assert loss.item() == pytest.approx(0.0 if np.isnan(wanted) else wanted, rel=2e-5, abs=1e-7)
        assert ore.memory.counts.tolist() == arrays["store_len"][index].tolist()
        present = torch.from_numpy(arrays["means_present"][index])
        wanted_means = torch.from_numpy(arrays["means"][index])[present]
        torch.testing.assert_close(ore.prototypes.vectors[present], wanted_means.float(), rtol=1e-5, atol=1e-6)
