"""Clustering loss against a slow loop, finite differences and the arrays of the reference code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openworld.labels import LabelSpace
from openworld.methods.ore import clustering
from openworld.methods.ore.clustering import clustering_loss, minkowski_distances
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions
from openworld.methods.ore.prototypes import initial_prototypes
from tests.regions import clustering_step

ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[3] / "oracles")) / "clustering"


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
@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 10.0])
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


EDGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ordinary": lambda features, prototypes: features,
    "a feature equal to its prototype": lambda features, prototypes: torch.cat([prototypes[:1], features[1:]]),
    "a feature equal to another prototype": lambda features, prototypes: torch.cat([prototypes[2:3], features[1:]]),
    "zero features": lambda features, prototypes: torch.zeros_like(features),
    "one coordinate equal": lambda features, prototypes: torch.cat([prototypes[:1, :1], features[:1, 1:]], 1),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("absent", ["masked", "zero"])
@pytest.mark.parametrize("order", [1.0, 2.0, 2.5, 3.0, 10.0])
def test_gradcheck(order: float, absent: Any, edge: str) -> None:
    # Central differences of |x| at 0 are 0, the subgradient that is documented.
    torch.manual_seed(1)
    features = torch.randn(6, 4, dtype=torch.float64)
    prototypes = torch.randn(5, 4, dtype=torch.float64)
    features = EDGES[edge](features, prototypes).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4, -1])[: len(features)]  # classes of one member; class 1 is absent
    present = torch.tensor([True, False, True, True, True])

    def loss(features: Tensor) -> Tensor:
        reduction: Any = "region" if absent == "masked" else "all"
        options: Any = {"margin": 3.0, "order": order, "absent": absent, "reduction": reduction, "background": 4}
        return clustering_loss(features, labels, prototypes, present, **options)

    assert torch.autograd.gradcheck(loss, (features,))


@pytest.mark.parametrize("order", [1.0, 2.0, 10.0])
def test_gradcheck_without_foreground(order: float) -> None:
    features = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels, present = torch.full((3,), 4), torch.ones(5, dtype=torch.bool)
    prototypes = torch.randn(5, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: clustering_loss(x, labels, prototypes, present, order=order, background=4), (features,)
    )


def exact_gradient(feature: np.ndarray[Any, Any], prototype: np.ndarray[Any, Any], order: float) -> Any:
    """Derivative of the distance, in the widest floating type there is."""
    difference = feature.astype(np.longdouble) - prototype.astype(np.longdouble)
    distance = (np.abs(difference) ** order).sum() ** (1 / np.longdouble(order))
    return np.sign(difference) * (np.abs(difference) / distance) ** (order - 1)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0, 10.0, 40.0])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e12])
def test_distance_and_gradient_at_every_scale(order: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    features = scale * torch.randn(2, 64, generator=generator)
    prototypes = scale * torch.randn(3, 64, generator=generator)
    features.requires_grad_()
    distances = minkowski_distances(features, prototypes, order)
    distances.sum().backward()  # type: ignore[no-untyped-call]
    here, there = features.detach().numpy(), prototypes.numpy()
    wanted = np.stack([sum(exact_gradient(row, column, order) for column in there) for row in here])
    assert features.grad is not None
    np.testing.assert_allclose(features.grad.numpy(), wanted.astype(np.float64), rtol=2e-5, atol=1e-6)
    exact = [[(np.abs(r.astype(np.longdouble) - c) ** order).sum() ** (1 / order) for c in there] for r in here]
    np.testing.assert_allclose(distances.detach().numpy(), np.array(exact, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("order", [2.5, 3.0, 10.0])
def test_near_and_far_pairs_of_one_block(order: float) -> None:
    """Distances from 0 over 1e-6 to 1e6 side by side: those that need scaling do not disturb the others."""
    generator = torch.Generator().manual_seed(5)
    prototypes = torch.randn(4, 64, generator=generator)
    gaps = torch.tensor([0.0, 1e-6, 1.0, 1e6])[:, None] * torch.randn(4, 64, generator=generator)
    features = (prototypes + gaps).requires_grad_()
    weights = torch.rand(4, 4, generator=generator)
    (minkowski_distances(features, prototypes, order) * weights).sum().backward()  # type: ignore[no-untyped-call]
    for row, feature in enumerate(features.detach().numpy()):
        wanted = np.zeros(64)
        for column, prototype in enumerate(prototypes.numpy()):
            if not np.array_equal(feature, prototype):
                wanted += float(weights[row, column]) * exact_gradient(feature, prototype, order).astype(np.float64)
        assert features.grad is not None
        np.testing.assert_allclose(features.grad[row].numpy(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1.0, 2.0, 10.0])
def test_small_distances_of_large_vectors_survive(order: float) -> None:
    """|f|^2 + |p|^2 - 2 f.p in float32 would give 0, or a few tenths, here."""
    prototypes = torch.full((1, 2048), 100.0, requires_grad=True)
    features = prototypes.detach().clone()
    features[0, :3] += 2**-10
    wanted = 2**-10 * 3 ** (1 / order)
    assert minkowski_distances(features, prototypes, order).item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("order", [2.0, 3.0, 10.0])
def test_blocks_change_nothing_and_no_tensor_holds_all_differences(
    order: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    features, prototypes = torch.randn(30, 16, generator=generator), torch.randn(20, 16, generator=generator)
    labels, present = torch.arange(30) % 20, torch.ones(20, dtype=torch.bool)
    results = []
    for room in (2**18, 7 * 16):
        monkeypatch.setattr(clustering, "BLOCK_ELEMENTS", {"cpu": room, "cuda": room})
        leaf = features.clone().requires_grad_()
        with LargestTensor() as largest:  # type: ignore[no-untyped-call]
            loss = clustering_loss(leaf, labels, prototypes, present, margin=8.0, order=order)
            loss.backward()  # type: ignore[no-untyped-call]
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)
    assert largest.elements <= 30 * 20  # the distances


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


@pytest.mark.parametrize("order", [2.5, 10.0])
def test_second_derivative_is_refused(order: float) -> None:
    features = torch.randn(2, 4, requires_grad=True)
    loss = clustering_loss(features, torch.tensor([0, 1]), torch.randn(2, 4), torch.ones(2).bool(), order=order)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, features, create_graph=True)


def test_zero_vectors_that_count_as_present_share_one_column() -> None:
    """After the start the reference's absent prototypes are present zero vectors; a region may have such a label."""
    torch.manual_seed(4)
    features, prototypes = torch.randn(9, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    prototypes[[1, 4]] = 0
    labels, present = torch.arange(9) % 6, torch.tensor([True, True, True, True, True, False])
    loss = clustering_loss(features, labels, prototypes, present, margin=4.0, order=10, absent="zero", reduction="all")
    wanted = slow_loss(features, labels, prototypes, present, 4.0, 10, paper=False)
    assert loss.item() == pytest.approx(wanted, rel=1e-12)


def test_the_number_of_regions_can_be_given() -> None:
    """By hand: distances 3 to the own prototype and 5 to the other, margin 10: 3 + 5 over 4 regions."""
    features, prototypes = torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    options: Any = {"num_regions": torch.tensor(4.0)}
    loss = clustering_loss(features, torch.tensor([0]), prototypes, torch.ones(2).bool(), **options)
    assert loss.item() == pytest.approx(2.0)


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
        rtol, atol = (1e-12, 1e-15) if features.dtype == torch.float64 else (1e-6, 1e-6)
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
        loss = clustering_step(ore, features, labels, int(arrays["first_iter"]) + index)
        if index >= recorded:
            # The reference crashes here, for a resumed run has lost its prototypes. Ours starts them from the memory.
            means, seen = ore.memory.means()
            assert torch.isfinite(loss) and torch.equal(ore.prototypes.vectors[seen], means[seen])
            break
        wanted = float(arrays["loss"][index])
        assert loss.item() == pytest.approx(0.0 if np.isnan(wanted) else wanted, rel=1e-6, abs=1e-7)
        assert ore.memory.counts.tolist() == arrays["store_len"][index].tolist()
        present = torch.from_numpy(arrays["means_present"][index])
        wanted_means = torch.from_numpy(arrays["means"][index])[present]
        torch.testing.assert_close(ore.prototypes.vectors[present], wanted_means.float(), rtol=1e-5, atol=1e-6)
