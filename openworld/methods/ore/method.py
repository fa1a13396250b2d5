"""ORE as one module: label unknowns, cluster features, decide by energy (Joseph et al., CVPR 2021).

The module has no parameters, only buffers; it is saved with the detector and grows with its label space. R regions,
N detections, D feature dimension, K head rows (known…, unknown, background).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.ore import unknown_labels
from openworld.methods.ore.clustering import clustering_loss, takes_part
from openworld.methods.ore.energy import free_energy, negative_energy
from openworld.methods.ore.energy_model import EnergyModel
from openworld.methods.ore.memory import FeatureMemory
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, UnknownLabelOptions
from openworld.methods.ore.prototypes import Prototypes
from openworld.structures import Decision, Regions


class Ranks(Protocol):
    """What the processes of one training share: :mod:`openworld.runtime.distributed`, or anything with its functions.

    Every process calls them the same number of times and in the same order.
    """

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Rows of all processes in the order of their ranks; each may have another number, (R_rank, …) → (R, …)."""

    def mean_over_ranks(self, tensor: Tensor) -> Tensor:
        """Mean over the processes, element by element."""


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

    def remember(self, features: Tensor, labels: Tensor, ranks: Ranks | None = None) -> None:
        """Put features into the memory.

        Args:
            features: (R, D) floating, detached here.
            labels: (R,) int64 head rows; background is remembered only if it has a prototype.
            ranks: with several processes and ``clustering.memory`` ``synchronised``, the features of all processes are
                pushed in the order of their ranks, so that every process holds what one with the joined batch would.
        """
        if not self.clustering.enabled:
            return
        if ranks is not None and self.clustering.memory == "synchronised":
            remembered = takes_part(labels, len(self.memory.counts), None)
            features = features.detach()[remembered].to(self.memory.features.dtype)
            features, labels = ranks.gather_rows(features), ranks.gather_rows(labels[remembered])
        self.memory.push(features, labels)

    def clustering_loss(self, features: Tensor, labels: Tensor, step: int, ranks: Ranks | None = None) -> Tensor:
        """Bring the prototypes up to date for this step and compare the features with them (algorithm 1).

        At ``start_step`` (in later tasks ``later_start_step``, if it is given) the prototypes become the class means;
        afterwards, whenever ``update_every`` divides the step, they move by momentum. A run that is past the start
        without any prototype starts them at once.

        Args:
            features: (R, D) floating, with gradient.
            labels: (R,) int64 head rows; background regions take no part.
            step: of the task, from 0.
            ranks: with several processes and ``clustering.averaged_over`` ``all_ranks``, the divisor is the mean number
                of regions that take part over the processes. The mean of the processes' losses and gradients, which
                data-parallel training forms, is then that of one process with the joined batch.

        Returns:
            Scalar, times ``clustering.weight``; exactly 0, with a gradient path, before the start or if clustering is
            off.
        """
        options = self.clustering
        later = options.later_start_step
        start = options.start_step if later is None or self.label_space.task == 1 else later
        if not options.enabled or step < start:
            return features[:0].float().sum()
        if step == start or not self.prototypes.started:
            self.prototypes.start(*self.memory.means())
        elif step % options.update_every == 0:
            self.prototypes.update(*self.memory.means(), options.momentum)
        num_regions = None
        if ranks is not None and options.averaged_over == "all_ranks":
            here = takes_part(labels, len(self.prototypes.present), self.label_space.background).sum()
            num_regions = ranks.mean_over_ranks(here.to(torch.float32))
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
            num_regions=num_regions,
        )

    def step(
        self, features: Tensor, labels: Tensor, step: int, *, replay: bool = False, ranks: Ranks | None = None
    ) -> Tensor:
        """One training step: :meth:`remember`, then :meth:`clustering_loss`.

        Args:
            features, labels, step, ranks: as there.
            replay: the step fine-tunes on exemplars; nothing is remembered and the loss is 0 unless
                ``clustering.during_replay``.
        """
        if replay and not self.clustering.during_replay:
            return features[:0].float().sum()
        self.remember(features, labels, ranks)
        return self.clustering_loss(features, labels, step, ranks)

    def label_for_energy(self, regions: Regions, image_sizes: Tensor | None = None) -> Tensor:
        """Labels of held-out regions for :meth:`energy_samples`, as ``energy.fit_on`` says.

        Args, returns: as :meth:`label_unknowns`; the labels as they are unless auto-labelled regions are wanted.
        """
        if not self.energy.uses_auto_labels:
            return regions.labels.clone()
        return self.label_unknowns(regions, image_sizes)

    @torch.no_grad()
    def energy_samples(self, regions: Regions) -> tuple[Tensor, Tensor]:
        """Negative energies to fit with: of the regions labelled with a known class, and of those labelled unknown.

        Args:
            regions: with logits, labelled by :meth:`label_for_energy`.

        Returns:
            (N,) and (M,) float32.

        Raises:
            ConfigError: the regions carry no logits.
        """
        if regions.logits is None:
            raise ConfigError("regions without logits have no energy", remedy="run the box head on them first")
        values = negative_energy(regions.logits, self.label_space.num_known, self.energy.temperature)
        known = self.label_space.is_known(regions.labels)
        unknown = regions.labels == self.label_space.unknown
        if self.energy.fit_on == "auto_labelled":
            unknown &= regions.iou < self.energy.unknown_region_iou
        return values[known], values[unknown]

    def fit_energy(self, known: Tensor, unknown: Tensor) -> dict[str, Any]:
        """Fit the energy model to negative energies; returns the record for energy.json (:meth:`EnergyModel.fit`)."""
        return self.energy_model.fit(known, unknown)

    @torch.no_grad()
    def decide(self, logits: Tensor, predicted: Tensor | None = None, scores: Tensor | None = None) -> Decision:
        """The decision known / unknown on each detection (section 4.3).

        What the classifier calls known and the energy unknown becomes unknown, or what ``energy.contradiction`` says;
        what the classifier calls unknown and the energy known stays unknown, or what ``energy.unknown_contradiction``
        says. Without a fit, or where the energy says nothing, the classifier decides alone.

        Args:
            logits: (N, K) of the detections' regions.
            predicted: (N,) int64 head rows that the classifier gave the detections (after per-class suppression one
                region may carry several); by default the best row but background.
            scores: (N,) floating scores of those rows; by default their softmax.

        Returns:
            The decision; its energies are at the temperature of prediction.
        """
        space, options = self.label_space, self.energy
        if predicted is None:
            rows = torch.tensor(space.detected_rows, device=logits.device)
            predicted = rows[logits[:, rows].argmax(1)]
        if scores is None:
            scores = logits.softmax(1).gather(1, predicted[:, None])[:, 0]
        temperature = options.temperature if options.test_temperature is None else options.test_temperature
        energies = free_energy(logits, space.num_known, temperature)
        known_labels = logits[:, : space.num_known].argmax(1)
        said = self.energy_model.verdict(-energies)
        called_unknown = predicted == space.unknown
        contradicted = (said > 0) & ~called_unknown
        dropped = torch.zeros_like(contradicted)
        if options.contradiction == "drop":
            dropped |= contradicted
        else:
            predicted = predicted.masked_fill(contradicted, space.unknown)
        if options.contradiction == "rescore":
            factor = self.energy_model.confidence(-energies).to(scores.dtype)
            scores = torch.where(contradicted, scores * factor, scores)
        if options.unknown_contradiction == "drop":
            dropped |= (said < 0) & called_unknown
        return Decision(predicted, scores, energies, known_labels, ~dropped)

    def grow(self, label_space: LabelSpace) -> None:
        """Go on to a later task: known rows stay, unknown (and background) move, new classes are empty.

        In the fixed layout no row moves; a new class has what its row had (with ``clustering.absent: zero`` a prototype
        at zero, as in the reference code).

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
