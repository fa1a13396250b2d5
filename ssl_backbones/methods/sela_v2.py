"""SeLa-v2 (Caron et al. 2020, appendix): SeLa (Asano et al. 2020) with what SwAV added."""

from __future__ import annotations

from torch import Tensor

from ssl_backbones.losses import sinkhorn_labels
from ssl_backbones.methods.deepcluster_v2 import DeepClusterV2
from ssl_backbones.methods.sela_v2_options import SeLaV2Options
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import ModulesOf, Prototypes


class SeLaV2(DeepClusterV2):
    """Assign the images evenly to prototypes before each epoch; during it every view predicts that of its image.

    DeepCluster-v2 with two changes. The assignment is not k-means but Sinkhorn-Knopp over the whole set, made hard.
    And the prototypes are learned: they classify, and the next assignment balances their scores of the bank.
    They stay on the sphere, as in SwAV. There is no official code; banks, heads, multi-crop, temperature and optimiser
    are DeepCluster-v2's, as the paper compares them.
    """

    options: SeLaV2Options

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        counts, dim = self.options.clusters, self.options.projection_dim
        self.prototypes = ModulesOf(Prototypes(count, dim) for count in counts)

    def cluster(self, features_ND: Tensor, head: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Assign the features of one head: (N,) prototypes, and their current (K, D) directions."""
        own, directions = self.options, self.prototypes[head].weight.detach()
        return sinkhorn_labels(features_ND, directions, own.epsilon, own.iterations), directions

    def classifier(self, head: int) -> Tensor:
        """(K, D) directions with which features are compared: the prototypes."""
        return self.prototypes[head].weight

    def after_step(self, step: int, steps: int) -> None:
        """Project the prototypes onto the sphere."""
        for prototypes in self.prototypes:
            prototypes.normalise()
