"""DeepCluster-v2 (Caron et al. 2020, appendix): DeepCluster (Caron et al. 2018) with what SwAV added."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from openworld.runtime.seeding import derive_seed
from ssl_backbones.heads import mlp
from ssl_backbones.kmeans import kmeans
from ssl_backbones.method import Batch, Method, encode_views, spread
from ssl_backbones.methods.deepcluster_v2_options import DeepClusterV2Options
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import Bank, Clusters, ModulesOf


class DeepClusterV2(Method):
    """Cluster the images before each epoch; during it every view predicts the cluster of its image.

    Two banks hold the projections of the two large views as each image was last visited, so that clustering costs no
    pass over the set. Head m clusters bank m mod 2 by spherical k-means; its centroids are its classifier, and do
    not change during the epoch (the authors freeze the prototypes for longer than they train). All parameters are
    decayed. Two differences from the authors' code: rows of a bank belong to images, so none is lost with the last
    batch of an epoch; and before the first epoch both banks are filled from one undistorted view, with the batch
    norms in training mode (theirs: from the augmented views).
    """

    decays_norm_and_bias = True
    takes_small_views = True
    exports_projector = True

    options: DeepClusterV2Options

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        self.projector = mlp([self.encoder.dim, self.encoder.dim, self.options.projection_dim], hidden_norm=True)

    def allocate(self, images: int) -> None:
        """Make banks and assignments with a row per image."""
        dim, counts = self.options.projection_dim, self.options.clusters
        self.banks = ModulesOf(Bank(images, dim) for _ in range(2))
        self.heads = ModulesOf(Clusters(count, dim, images) for count in counts)

    @torch.no_grad()
    def before_epoch(self, epoch: int, eval_batches: Callable[[], Iterable[Batch]]) -> None:
        """Cluster the banks."""
        if epoch == 0:
            self._fill_banks(eval_batches())
        for m, head in enumerate(self.heads):
            bank = self.banks[m % len(self.banks)]
            visited = bank.filled.nonzero().flatten()
            head.assign(visited, *self.cluster(bank.features[visited], m, epoch))

    def cluster(self, features_ND: Tensor, head: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Cluster the features of one head: (N,) clusters and their (K, D) directions."""
        found = kmeans(
            features_ND,
            self.options.clusters[head],
            seed=derive_seed("deepcluster_v2", epoch, head),
            iterations=self.options.iterations,
            spherical=True,
            relocate=False,
        )
        return found.assignments, found.centroids

    def classifier(self, head: int) -> Tensor:
        """(K, D) directions with which features are compared: the centroids."""
        return self.heads[head].centroids

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute the cross-entropy of all views with the clusters of their images; then write the banks."""
        z = F.normalize(self.projector(encode_views(self.encoder, batch.views)).float(), dim=1)
        losses = []
        with torch.autocast(z.device.type, enabled=False):
            for m, head in enumerate(self.heads):
                logits = z @ self.classifier(m).T / self.options.temperature
                classes = head.assignments[batch.index].repeat(len(batch.views))
                losses.append(F.cross_entropy(logits, classes, ignore_index=Clusters.UNASSIGNED))
        large = z.detach().chunk(len(batch.views))[: len(self.banks)]
        for bank, view in zip(self.banks, large, strict=True):
            bank.write(batch.index, view)
        return torch.stack(losses).mean(), {"spread": spread(large[0])}

    def _fill_banks(self, batches: Iterable[Batch]) -> None:
        device = self.banks[0].features.device
        seen = [
            (batch.index.to(device), self.projector(self.encoder(batch.views[0].to(device))))
            for batch in batches
            if len(batch.index) > 1  # a single image has no batch statistics; it is classified from its first visit
        ]
        for bank in self.banks:
            bank.write(*(torch.cat(parts) for parts in zip(*seen, strict=True)))
