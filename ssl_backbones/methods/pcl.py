"""PCL: Prototypical Contrastive Learning of Unsupervised Representations (Li et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.runtime.distributed import gather_rows
from openworld.runtime.seeding import derive_seed
from ssl_backbones.heads import mlp
from ssl_backbones.kmeans import kmeans
from ssl_backbones.losses import info_nce, proto_nce
from ssl_backbones.method import Batch, spread
from ssl_backbones.methods.moco import MoCoV1
from ssl_backbones.methods.pcl_options import PCLV1Options
from ssl_backbones.state import Clusters, ModulesOf


class PCLV1(MoCoV1):
    """Expectation-maximisation around MoCo: an image finds the key of its other view and the prototype of its cluster.

    E-step, before each epoch after the warm-up: the teacher's features of the whole set, undistorted, are clustered
    M times, with different numbers of clusters, and each cluster gets a concentration. M-step: ProtoNCE. (The
    authors cluster centre crops, and use one r as the length of the queue and the number of negative prototypes.)
    Networks, queue, shuffle-BN and weight decay are MoCo v1's. The exported network is the query encoder. Several
    processes give the loss of one where ``candidates`` is ``paper`` and all prototypes are negatives; otherwise each
    draws its own.
    """

    options: PCLV1Options

    def allocate(self, images: int) -> None:
        """Make M clusterings of the set."""
        counts, dim = self.options.clusters, self.options.projection_dim
        self.clusterings = ModulesOf(Clusters(count, dim, images) for count in counts)

    @torch.no_grad()
    def before_epoch(self, epoch: int, eval_batches: Callable[[], Iterable[Batch]]) -> None:
        """Cluster the set (E-step)."""
        options = self.options
        if epoch < options.warmup_epochs:
            return
        device = self.queue.features.device
        self.teacher.eval()
        seen = [(batch.index, self.teacher(batch.views[0].to(device)).float()) for batch in eval_batches()]
        self.teacher.train()
        index, rows = (gather_rows(torch.cat(parts)) for parts in zip(*seen, strict=True))
        features = torch.empty(int(index.max()) + 1, rows.shape[1], device=device)
        features[index.to(device)] = F.normalize(rows, dim=1)
        for m, clusters in enumerate(self.clusterings):
            count, seed = len(clusters.centroids), derive_seed("pcl", epoch, m)
            found = kmeans(
                features,
                count,
                seed=seed,
                iterations=options.iterations,
                restarts=options.restarts,
                spherical=options.spherical,
            )
            phi = concentration(found.distances.sqrt(), found.assignments, count, self.options.temperature)
            everything = torch.arange(len(features), device=device)
            clusters.assign(everything, found.assignments, F.normalize(found.centroids, dim=1), phi)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute InfoNCE against keys and queue plus, once there are clusters, the mean of ProtoNCE over them."""
        q, k = self.queries_and_keys(batch)
        loss = info_nce(q, k, self.queue.negatives(), self.options.temperature)
        self.queue.enqueue(k)
        numbers = {"spread": spread(q)}
        if all(clusters.fitted for clusters in self.clusterings):
            proto = proto_nce(
                q,
                [clusters.centroids for clusters in self.clusterings],
                [clusters.assignments[batch.index] for clusters in self.clusterings],
                [clusters.concentrations for clusters in self.clusterings],
                negatives=self.options.negatives,
                candidates=self.options.candidates,
            )
            loss, numbers["proto_nce"] = loss + proto, proto.item()
        return loss, numbers


class PCLV2(PCLV1):
    """PCL with the head of MoCo v2. Its views and its cosine schedule are in the recipe."""

    def head(self, dim: int, out: int) -> nn.Module:
        """Make the projector."""
        return mlp([dim, dim, out], hidden_norm=False)


def concentration(distances_N: Tensor, assignments_N: Tensor, clusters: int, temperature: float) -> Tensor:
    """Compute how loose each cluster is (equation 12 with alpha = 10): phi = sum of distances / (n log(n + alpha)).

    Then, as in the authors' code: a cluster of fewer than two images gets the largest phi, all are clipped to the 10th
    and 90th percentile, and scaled so that their mean is the temperature.

    Args:
        distances_N: (N,) Euclidean distance of each image's feature to its centroid.
        assignments_N: (N,) int64, below ``clusters``.

    Returns:
        (K,) float32; all ``temperature`` where no cluster has any extent.
    """
    counts_K = assignments_N.bincount(minlength=clusters)
    sums_K = torch.zeros(clusters, device=distances_N.device).index_add_(0, assignments_N, distances_N.float())
    phi_K = sums_K / (counts_K * (counts_K + 10.0).log()).clamp(min=1)
    several_K = counts_K > 1
    phi_K = phi_K.where(several_K, phi_K.masked_fill(~several_K, 0).max())
    low, high = phi_K.quantile(torch.tensor([0.1, 0.9], device=phi_K.device)).unbind()
    phi_K = phi_K.clamp(low, high)
    mean = phi_K.mean()
    return temperature * phi_K / mean if mean > 0 else torch.full_like(phi_K, temperature)
