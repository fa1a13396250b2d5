"""ORE as one module: label unknowns, cluster features, decide by energy (Joseph et al., CVPR 2021).

The module has no parameters, only buffers; it is saved with the detector and grows with its label space. R regions,
N candidates, D feature dimension, K head rows (known…, unknown, background).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod, Ranks
from openworld.methods.ore.clustering import clustering_loss, takes_part
from openworld.methods.ore.energy import free_energy, negative_energy
from openworld.methods.ore.energy_model import EnergyModel
from openworld.methods.ore.memory import FeatureMemory
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, OreOptions, UnknownLabelOptions
from openworld.methods.ore.prototypes import Prototypes
from openworld.methods.ore.unknown_labels import label_unknowns
from openworld.structures import Candidates, Decision, Regions


class Ore(OpenWorldMethod):
    """Feature memory, prototypes and energy model for one label space.

    Rows of memory and prototypes are the head rows: known classes, unknown, and background only if
    ``clustering.background_prototype`` is set.

    Args:
        space: label space of the current task.
        feature_dim: D of the region features.
        clustering, unknown_labels, energy: options of the three parts; the paper's by default.
    """

    samples = ("known", "unknown")
    extras = ("energy",)

    def __init__(
        self,
        space: LabelSpace,
        feature_dim: int,
        clustering: ClusteringOptions | None = None,
        unknown_labels: UnknownLabelOptions | None = None,
        energy: EnergyOptions | None = None,
    ) -> None:
        super().__init__(space)
        self.clustering = replace(clustering) if clustering else ClusteringOptions()
        self.unknown_labels = replace(unknown_labels) if unknown_labels else UnknownLabelOptions()
        self.energy = replace(energy) if energy else EnergyOptions()
        rows = self._rows(space)
        self.memory = FeatureMemory(rows, self.clustering.items_per_class, feature_dim)
        self.prototypes = Prototypes(rows, feature_dim, self.clustering.absent)
        self.energy_model = EnergyModel(self.energy)
        # Matters within one step alone, and a resumed run begins with a whole one, so that it is not a buffer.
        self._moved_at: int | None = None

    @classmethod
    def of(cls, options: OreOptions, space: LabelSpace, feature_dim: int) -> Self:
        """See :class:`OpenWorldMethod`."""
        return cls(space, feature_dim, options.clustering, options.unknown_labels, options.energy)

    def _rows(self, space: LabelSpace) -> int:
        return space.num_rows if self.clustering.background_prototype else space.background

    # -- what the method is to the engine (openworld/methods/base.py) -------------------------------------------------

    @property
    def labels_among(self) -> Literal["none", "all_proposals", "sampled"]:
        """See :class:`OpenWorldMethod`; ``unknown_labels.among``."""
        return self.unknown_labels.among if self.unknown_labels.enabled else "none"

    @property
    def nms_after_decision(self) -> bool:
        """See :class:`OpenWorldMethod`; ``energy.nms_after_decision``."""
        return self.energy.nms_after_decision

    @property
    def uses_unknown_labels(self) -> bool:
        """See :class:`OpenWorldMethod`; ``energy.fit_on`` asks for annotated unknowns."""
        return self.energy.uses_unknown_labels

    @property
    def calibrates_on(self) -> Literal["nothing", "known", "with_unknown"]:
        """See :class:`OpenWorldMethod`."""
        if not self.energy.enabled:
            return "nothing"
        return "with_unknown" if self.energy.uses_unknown_labels else "known"

    # -- training -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def relabel(self, regions: Regions, image_sizes: Tensor) -> Regions:
        """Label the most object-like background regions of each image *unknown* (section 4.2).

        Args:
            regions: proposals of a batch with their labels; features and logits are not used.
            image_sizes: (B, 2) height and width in pixels, read for ``unknown_labels.max_area_fraction`` only.
        """
        if not self.unknown_labels.enabled:
            return regions
        return replace(regions, labels=label_unknowns(regions, self.space, self.unknown_labels, image_sizes))

    def losses(self, regions: Regions, step: int, *, replay: bool, ranks: Ranks | None) -> dict[str, Tensor]:
        """Return ``clustering``: :meth:`remember` the features, then :meth:`clustering_loss`.

        In replay nothing is remembered and the loss is 0 unless ``clustering.during_replay``.
        """
        features, labels = regions.features, regions.labels
        assert features is not None
        if replay and not self.clustering.during_replay:
            return {"clustering": features[:0].float().sum()}
        self.remember(features, labels, ranks)
        return {"clustering": self.clustering_loss(features, labels, step, ranks)}

    def meters(self) -> dict[str, float]:
        """See :class:`OpenWorldMethod`: the number of prototypes, and of features in the memory."""
        present, remembered = self.prototypes.present.sum(), self.memory.counts.sum()
        return {"num_prototypes": float(present), "num_remembered": float(remembered)}

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
        """Update the prototypes for this step, and compute the loss of the features against them (algorithm 1).

        At ``start_step`` (in later tasks ``later_start_step``, if it is given) the prototypes become the class means;
        afterwards, whenever ``update_every`` divides the step, they move by momentum, once per step. A run that is past
        the start without any prototype initialises them at once.

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
        start = options.start_step if later is None or self.space.task == 1 else later
        if not options.enabled or step < start:
            return features[:0].float().sum()
        if step == start or not self.prototypes.started:
            self.prototypes.start(*self.memory.means())
            self._moved_at = step
        elif step % options.update_every == 0 and step != self._moved_at:  # once, where a batch comes in parts
            self.prototypes.update(*self.memory.means(), options.momentum)
            self._moved_at = step
        num_regions = None
        if ranks is not None and options.averaged_over == "all_ranks":
            here = takes_part(labels, len(self.prototypes.present), self.space.background).sum()
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
            background=self.space.background,
            num_regions=num_regions,
        )

    # -- calibration --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, regions: Regions, image_sizes: Tensor) -> dict[str, Tensor]:
        """Collect the negative energies to fit: of the regions of known objects, and of those taken for unknown ones.

        ``energy.fit_on`` says which regions are taken for unknown objects.

        Args:
            regions: matched to annotations, with logits.
            image_sizes: (B, 2) height and width in pixels.

        Returns:
            ``known`` (N,) and ``unknown`` (M,), float32.

        Raises:
            ConfigError: the regions carry no logits.
        """
        if regions.logits is None:
            raise ConfigError("regions without logits have no energy", remedy="run the box head on them first")
        if self.energy.uses_auto_labels:
            regions = self.relabel(regions, image_sizes)
        assert regions.logits is not None
        values = negative_energy(regions.logits, self.space.num_known, self.energy.temperature)
        known = self.space.is_known(regions.labels)
        unknown = regions.labels == self.space.unknown
        if self.energy.fit_on == "auto_labelled":
            unknown &= regions.iou < self.energy.unknown_region_iou
        return {"known": values[known], "unknown": values[unknown]}

    def calibrate(self, samples: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fit the energy model to negative energies; return the record of :meth:`EnergyModel.fit`."""
        return self.energy_model.fit(samples["known"], samples["unknown"])

    # -- test ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def decide(self, candidates: Candidates) -> Decision:
        """Decide whether each candidate is known or unknown (section 4.3).

        A candidate that the classifier calls known and the energy unknown is treated as ``energy.contradiction`` says,
        by default as unknown. One that the classifier calls unknown and the energy known is treated as
        ``energy.unknown_contradiction`` says, by default as unknown too. Without a fit, or where the energy says
        nothing, the classifier decides alone.

        Args:
            candidates: of one image; one region may be a candidate under several rows.

        Returns:
            The decision, with ``energy``: (N,) the free energy at the temperature of prediction.
        """
        options = self.energy
        rows, scores = candidates.rows, candidates.scores
        temperature = options.temperature if options.test_temperature is None else options.test_temperature
        energies = free_energy(candidates.logits, self.space.num_known, temperature)
        said = self.energy_model.verdict(-energies)
        called_unknown = rows == self.space.unknown
        contradicted = (said > 0) & ~called_unknown
        dropped = torch.zeros_like(contradicted)
        if options.contradiction == "drop":
            dropped |= contradicted
        else:
            rows = rows.masked_fill(contradicted, self.space.unknown)
        if options.contradiction == "rescore":
            factor = self.energy_model.confidence(-energies).to(scores.dtype)
            scores = torch.where(contradicted, scores * factor, scores)
        if options.unknown_contradiction == "drop":
            dropped |= (said < 0) & called_unknown
        return Decision(rows, scores, ~dropped, {"energy": energies})

    # -- growth -------------------------------------------------------------------------------------------------------

    def grow(self, space: LabelSpace) -> None:
        """Grow to a later task: known rows stay, unknown (and background) move, new classes are empty.

        In the fixed layout no row moves; a new class inherits the content of its row (with ``clustering.absent: zero``
        a prototype at zero, as in the reference code).

        The energy model is reset, since the energy of more classes is another quantity; it needs a new calibration.

        Raises:
            ConfigError: the label space does not continue the current one.
        """
        rows = self._rows(space)
        kept = [pair for pair in space.kept_rows(self.space) if pair[1] < rows]
        self.memory.grow(rows, kept)
        self.prototypes.grow(rows, kept)
        self.energy_model.reset()
        self.space = space
