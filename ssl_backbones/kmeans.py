"""k-means, Euclidean or on the sphere: seeded, and deterministic on the CPU.

Shapes: N points, K clusters, D dimensions. Plain torch in blocks: it runs where the features are, on a GPU too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openworld.errors import ConfigError
from openworld.runtime.seeding import generator

_BLOCK = 2**25  # scores in memory at once


class KMeans(NamedTuple):
    """A clustering."""

    centroids: Tensor
    """(K, D) float32; unit rows where spherical."""
    assignments: Tensor
    """(N,) int64, the nearest centroid of each point."""
    distances: Tensor
    """(N,) float32, the squared Euclidean distance to it."""


@torch.no_grad()
def kmeans(
    points_ND: Tensor,
    clusters: int,
    *,
    seed: int,
    iterations: int = 20,
    restarts: int = 1,
    spherical: bool = False,
    relocate: bool = True,
    initial_KD: Tensor | None = None,
) -> KMeans:
    """Run Lloyd's algorithm from random points of the set; return the restart with the least squared distances.

    Args:
        points_ND: (N, D) float; normalised here if ``spherical``.
        clusters: K, at most N.
        seed: the starting points of each restart depend on it alone.
        iterations: updates of the centroids. The assignments are those of the last centroids.
        spherical: keep points and centroids on the unit sphere; nearest is then the largest cosine.
        relocate: a cluster that lost all points restarts at the point farthest from its centroid (two such clusters
            at the two farthest, and so on). Otherwise its centroid stays, as in the code of DeepCluster-v2.
        initial_KD: (K, D) starting centroids instead of random points; disables restarts.

    Raises:
        ConfigError: there are fewer points than clusters, or no clusters.
    """
    if not 1 <= clusters <= len(points_ND):
        raise ConfigError(
            f"{clusters} clusters of {len(points_ND)} points", remedy="choose fewer clusters, or give more images"
        )
    points = F.normalize(points_ND.float(), dim=1) if spherical else points_ND.float()
    best: KMeans | None = None
    for restart in range(1 if initial_KD is not None else restarts):
        if initial_KD is None:
            chosen = torch.randperm(len(points), generator=generator("k-means", seed, restart))[:clusters]
            centroids = points[chosen.to(points.device)]
        else:
            centroids = F.normalize(initial_KD.float(), dim=1) if spherical else initial_KD.float()
        for _ in range(iterations):
            centroids = _means(points, centroids, nearest(points, centroids), relocate=relocate)
            centroids = F.normalize(centroids, dim=1) if spherical else centroids
        assignments = nearest(points, centroids)
        found = KMeans(centroids, assignments, (points - centroids[assignments]).square().sum(dim=1))
        if best is None or found.distances.sum() < best.distances.sum():
            best = found
    assert best is not None
    return best


def nearest(points_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    """Return (N,) int64: index of the centroid at the smallest Euclidean distance.

    |x - c|^2 is smallest where x.c - |c|^2 / 2 is largest: one matrix product per block.
    """
    offset_K = centroids_KD.square().sum(dim=1) / 2
    blocks = points_ND.split(max(1, _BLOCK // len(centroids_KD)))
    return torch.cat([(block @ centroids_KD.T - offset_K).argmax(dim=1) for block in blocks])


def _means(points_ND: Tensor, centroids_KD: Tensor, assignments_N: Tensor, *, relocate: bool) -> Tensor:
    """Compute the (K, D) means of the assigned points; :func:`kmeans` describes the treatment of empty clusters."""
    counts_K = assignments_N.bincount(minlength=len(centroids_KD))
    sums_KD = torch.zeros_like(centroids_KD).index_add_(0, assignments_N, points_ND)
    means_KD = torch.where(counts_K[:, None] > 0, sums_KD / counts_K[:, None].clamp(min=1), centroids_KD)
    empty = (counts_K == 0).nonzero().flatten()
    if relocate and len(empty):
        distances_N = (points_ND - centroids_KD[assignments_N]).square().sum(dim=1)
        means_KD[empty] = points_ND[distances_N.argsort(descending=True, stable=True)[: len(empty)]]
    return means_KD
