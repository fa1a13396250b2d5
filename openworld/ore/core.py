"""ORE as one module: label unknowns, cluster features, decide by energy (Joseph et al., CVPR 2021).

The module has no parameters, only buffers; it is saved with the detector and grows with its label space. R regions,
N detections, D feature dimension, K head rows (known…, unknown, background).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.ore import unknown_labels
from openworld.ore.clustering import clustering_loss
from openworld.ore.energy import free_energy, negative_energy
from openworld.ore.energy_model import EnergyModel
from openworld.ore.memory import FeatureMemory
from openworld.ore.options import ClusteringOptions, EnergyOptions, UnknownLabelOptions
from openworld.ore.prototypes import Prototypes
from openworld.structures import Regions


class Ore(nn.Module):
    """Feature memory, prototypes and energy model of one label space.

    Rows of memory and prototypes are the head rows: known classes, unknown, and background only if
    ``clustering.background_prototype`` is set.

    Args:
        label_space: of the current task.
        feature_dim: D of the region features.
        clustering, unknown, energy: options of the three parts; the paper's by default.
    """

    def __init__(
        self,
        label_space: LabelSpace,
        feature_dim: int,
        clustering: ClusteringOptions | None = None,
        unknown: UnknownLabelOptions | None = None,
        energy: EnergyOptions | None = None,
    ) -> None:
        super().__init__()
        self.label_space = label_space
        self.clustering = replace(clustering) if clustering else ClusteringOptions()
        self.unknown = replace(unknown) if unknown else UnknownLabelOptions()
        self.energy = replace(energy) if energy else EnergyOptions()
        rows = self._rows(label_space)
        self.memory = FeatureMemory(rows, self.clustering.items_per_class, feature_dim)
        self.prototypes = Prototypes(rows, feature_dim, self.clustering.absent)
        self.energy_model = EnergyModel(self.energy)

    def _rows(self, label_space: LabelSpace) -> int:
        return label_space.num_rows if self.clustering.background_prototype else label_space.background

    @torch.no_grad()
    def label_unknowns(self, regions: Regions, image_sizes: Tensor | None = None) -> Tensor:
        """Labels of the regions, the most object-like background ones of each image being *unknown* (section 4.2).

        Args:
            regions: proposals of a batch with their labels; features and logits are not used.
            image_sizes: (B, 2) height and width in pixels, needed for ``unknown.max_area_fraction`` only.

        Returns:
            (R,) int64, a new tensor; the labels as they are if auto-labelling is off.
        """
        if not self.unknown.enabled:
            return regions.labels.clone()
        return unknown_labels.label_unknowns(
            regions.labels,
            regions.objectness,
            regions.iou,
            regions.boxes,
            regions.image_index,
            unknown=self.label_space.unknown,
            background=self.label_space.background,
            options=self.unknown,
            image_sizes=image_sizes,
        )

    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Put features into the memory. With several processes hand in those of all, so that the state stays equal.

        Args:
            features: (R, D) floating, detached here.
            labels: (R,) int64 head rows; background is remembered only if it has a prototype.
        """
        if self.clustering.enabled:
            self.memory.push(features, labels)

    def clustering_loss(self, features: Tensor, labels: Tensor, step: int) -> Tensor:
        """Bring the prototypes up to date for this step and compare the features with them (algorithm 1).

        At ``start_step`` the prototypes become the class means; later, whenever ``update_every`` divides the step, they
        move by momentum. A run that is past ``start_step`` without any prototype starts them at once.

        Args:
            features: (R, D) floating, with gradient.
            labels: (R,) int64 head rows; background regions take no part.
            step: of the task, from 0.

        Returns:
            Scalar, times ``clustering.weight``; exactly 0, with a gradient path, before the start or if clustering is
            off.
        """
        options = self.clustering
        if not options.enabled or step < options.start_step:
            return features[:0].float().sum()
        if step == options.start_step or not self.prototypes.started:
            self.prototypes.start(*self.memory.means())
        elif step % options.update_every == 0:
            self.prototypes.update(*self.memory.means(), options.momentum)
        return options.weight * clustering_loss(
            features,
            labels,
            self.prototypes.vectors,
            self.prototypes.present,
            margin=options.margin,
            order=options.distance_order,
            absent=options.absent,
            reduction=options.reduction,
            background=self.label_space.background,
        )

    def step(self, features: Tensor, labels: Tensor, step: int) -> Tensor:
        """:meth:`remember`, then :meth:`clustering_loss`: one training step in one process."""
        self.remember(features, labels)
        return self.clustering_loss(features, labels, step)

    @torch.no_grad()
    def energy_samples(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Negative energies to fit with: of the regions labelled with a known class, and of those labelled unknown.

        Args:
            regions: with logits, after :meth:`label_unknowns`.

        Returns:
            (N,) and (M,) float32.

        Raises:
            ConfigError: the regions carry no logits.
        """
        if regions.logits is None:
            raise ConfigError("regions without logits have no energy", remedy="run the box head on them first")
        values = negative_energy(regions.logits, self.label_space.num_known, self.energy.temperature)
        known = (regions.labels >= 0) & (regions.labels < self.label_space.num_known)
        unknown = (regions.labels == self.label_space.unknown) & (regions.iou < self.energy.unknown_region_iou)
        return values[known], values[unknown]

    def fit_energy(self, known: Tensor, unknown: Tensor) -> dict[str, Any]:
        """Fit the energy model to negative energies; returns the record for energy.json (:meth:`EnergyModel.fit`)."""
        return self.energy_model.fit(known, unknown)

    @torch.no_grad()
    def decide(self, logits: Tensor, predicted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The decision known / unknown on each detection (section 4.3).

        What the classifier calls unknown stays unknown. What it calls known becomes unknown if the energy says so.
        Without a fit the classifier decides alone.

        Args:
            logits: (N, K) of the detections' regions.
            predicted: (N,) int64 head rows that the classifier gave the detections (after per-class suppression one
                region may carry several); by default the best row but background.

        Returns:
            labels (N,) int64 known or unknown rows, free energies (N,) float32, best known rows (N,) int64.
        """
        space = self.label_space
        if predicted is None:
            predicted = logits[:, : space.background].argmax(1)
        energies = free_energy(logits, space.num_known, self.energy.temperature)
        known_labels = logits[:, : space.num_known].argmax(1)
        labels = predicted.masked_fill(self.energy_model.is_unknown(-energies), space.unknown)
        return labels, energies, known_labels

    def grow(self, label_space: LabelSpace) -> None:
        """Go on to a later task: known rows stay, unknown (and background) move, new classes are empty.

        The energy model is forgotten, since the energy of more classes is another quantity; fit it anew.

        Raises:
            ConfigError: the label space does not continue the present one.
        """
        rows = self._rows(label_space)
        kept = [pair for pair in label_space.kept_rows(self.label_space) if pair[1] < rows]
        self.memory.grow(rows, kept)
        self.prototypes.grow(rows, kept)
        self.energy_model.reset()
        self.label_space = label_space
