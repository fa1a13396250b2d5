"""k-means against SciPy, against a slow loop, and its promises: seeded, deterministic, no empty cluster."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.cluster.vq
import torch
from torch import Tensor
from torch.nn import functional as F

from openworld.errors import ConfigError
from ssl_backbones import kmeans as module
from ssl_backbones.kmeans import kmeans, nearest


@pytest.fixture
def points() -> Tensor:
    return torch.randn(60, 4, generator=torch.Generator().manual_seed(3))


def loop(points: Tensor, centroids: Tensor, iterations: int, *, spherical: bool) -> tuple[Tensor, list[int]]:
    """Lloyd's algorithm in float64, one point at a time; empty clusters keep their centroid."""
    x, c = points.double(), centroids.double().clone()
    if spherical:
        x, c = F.normalize(x, dim=1), F.normalize(c, dim=1)

    def assign() -> list[int]:
        if spherical:
            return [max(range(len(c)), key=lambda j: float(row @ c[j])) for row in x]
        return [min(range(len(c)), key=lambda j: float(((row - c[j]) ** 2).sum())) for row in x]

    for _ in range(iterations):
        owners = assign()
        for j in range(len(c)):
            own = [x[i] for i, owner in enumerate(owners) if owner == j]
            if own:
                mean = torch.stack(own).mean(dim=0)
                c[j] = mean / mean.norm() if spherical else mean
    return c, assign()


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_is_scipys(points: Tensor, iterations: int) -> None:
    start = points[:7] + 0.01
    found = kmeans(points, 7, seed=0, iterations=iterations, initial_KD=start)
    centroids = start.numpy()
    if iterations:
        centroids, _ = scipy.cluster.vq.kmeans2(points.numpy(), centroids, iter=iterations, minit="matrix")
    owners, distances = scipy.cluster.vq.vq(points.numpy(), centroids)
    np.testing.assert_allclose(found.centroids, centroids, atol=1e-5)
    np.testing.assert_array_equal(found.assignments, owners)
    np.testing.assert_allclose(found.distances, distances**2, atol=1e-5)


def test_is_faisss() -> None:
    faiss = pytest.importorskip("faiss")
    centres = 4 * torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    x = centres.repeat(40, 1) + torch.randn(240, 8, generator=torch.Generator().manual_seed(2))
    start = x[:6] + 1
    theirs = faiss.Kmeans(8, 6, niter=5, min_points_per_centroid=1, max_points_per_centroid=1000)
    theirs.train(x.numpy(), init_centroids=start.numpy())
    distances, owners = theirs.index.search(x.numpy(), 1)
    found = kmeans(x, 6, seed=0, iterations=5, initial_KD=start)
    np.testing.assert_allclose(found.centroids, theirs.centroids, atol=1e-4)
    np.testing.assert_array_equal(found.assignments, owners[:, 0])
    np.testing.assert_allclose(found.distances, distances[:, 0], atol=1e-3)


@pytest.mark.parametrize("spherical", [False, True])
def test_is_the_loop(points: Tensor, spherical: bool) -> None:
    start = 3 * points[10:16]
    found = kmeans(points, 6, seed=0, iterations=3, spherical=spherical, relocate=False, initial_KD=start)
    centroids, owners = loop(points, start, 3, spherical=spherical)
    assert torch.allclose(found.centroids.double(), centroids, atol=1e-5)
    assert found.assignments.tolist() == owners
    if spherical:
        assert torch.allclose(found.centroids.norm(dim=1), torch.ones(6))


def test_seed_decides_alone(points: Tensor) -> None:
    first = kmeans(points, 5, seed=1, restarts=2)
    torch.manual_seed(77)
    state = torch.get_rng_state()
    again = kmeans(points, 5, seed=1, restarts=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.centroids, kmeans(points, 5, seed=2, restarts=2).centroids)


def test_restarts_keep_the_best(points: Tensor) -> None:
    totals = [float(kmeans(points, 6, seed=4, iterations=2, restarts=n).distances.sum()) for n in (1, 2, 8)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


def test_blocks_change_nothing(points: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = nearest(points, points[:5])
    monkeypatch.setattr(module, "_BLOCK", 12)
    assert torch.equal(nearest(points, points[:5]), whole)
    assert nearest(points[:0], points[:5]).shape == (0,)


def test_an_empty_cluster_moves_to_the_farthest_point_or_stays() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    start = torch.tensor([[1.0], [100.0], [200.0]])
    moved = kmeans(points, 3, seed=0, iterations=1, initial_KD=start)
    assert moved.centroids.flatten().tolist() == [3.0, 9.0, 0.0]  # farthest from 1: 9, then 0 (before 2, equally far)
    assert moved.assignments.tolist() == [2, 2, 0, 1]
    stayed = kmeans(points, 3, seed=0, iterations=1, initial_KD=start, relocate=False)
    assert stayed.centroids.flatten().tolist() == [3.0, 100.0, 200.0]


def test_finds_separated_groups_and_as_many_clusters_as_points() -> None:
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = centres.repeat_interleave(5, dim=0) + 0.1 * torch.randn(15, 2, generator=torch.Generator().manual_seed(0))
    found = kmeans(points, 3, seed=0, restarts=5)
    assert sorted(found.assignments.bincount().tolist()) == [5, 5, 5]
    alone = kmeans(points, 15, seed=0)
    assert sorted(alone.assignments.tolist()) == list(range(15)) and alone.distances.max() == 0


def test_more_clusters_than_points(points: Tensor) -> None:
    for clusters, subset in ((61, points), (1, points[:0]), (0, points)):
        with pytest.raises(ConfigError, match=f"{clusters} clusters of {len(subset)} points"):
            kmeans(subset, clusters, seed=0)
