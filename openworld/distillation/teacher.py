"""The detector of the task before, as the teacher of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from openworld.distillation.losses import box_distillation, class_distillation, feature_distillation
from openworld.distillation.options import DistillationOptions
from openworld.engines.base import Engine, Proposals
from openworld.labels import LabelSpace
from openworld.runtime import distributed
from openworld.structures import Regions


class Teacher:
    """A frozen detector that looks at the same images and regions as the one that learns.

    Args:
        engine: in evaluation mode, with the label space of an earlier task.
        unused_rows: rows of its head that take no part.
        options: the factors of the losses.
    """

    def __init__(self, engine: Engine, unused_rows: Sequence[int], options: DistillationOptions) -> None:
        self.engine = engine
        self.unused_rows = tuple(unused_rows)
        self.options = options

    def losses(
        self, found: Proposals, regions: Regions, space: LabelSpace, unused_rows: Sequence[int]
    ) -> dict[str, Tensor]:
        """Compute the losses whose factor is not 0: ``distilled_classes``, ``distilled_boxes``, ``distilled_features``.

        With several processes, the means over the processes equal the losses of one process with the whole batch; of
        the features only where the batches are padded alike, since the padding counts.

        Args:
            found: of the detector that learns, with ``pixels``.
            regions: sampled, with its logits and deltas.
            space: its label space.
            unused_rows: rows of its head that take no part.
        """
        options = self.options
        levels, seen = self._look(found, regions)
        assert regions.logits is not None and regions.deltas is not None
        assert seen.logits is not None and seen.deltas is not None
        weight = distributed.mean_weight(torch.full((), len(regions), device=regions.boxes.device))
        # What is annotated as a new class is what the annotation says, whatever the teacher took it for.
        old = self.engine.space
        open_R = ~(space.is_known(regions.labels) & ~old.is_known(regions.labels))
        losses = {}
        if options.class_weight:
            loss = class_distillation(
                regions.logits, space, seen.logits, old, unused_rows, self.unused_rows, takes_part=open_R
            )
            losses["distilled_classes"] = options.class_weight * weight * loss
        if options.box_weight:
            beta = self.engine.options.roi.smooth_l1_beta
            loss = box_distillation(
                regions.deltas, seen.deltas, seen.logits, old, self.unused_rows, beta=beta, takes_part=open_R
            )
            losses["distilled_boxes"] = options.box_weight * weight * loss
        if options.feature_weight:
            losses["distilled_features"] = options.feature_weight * feature_distillation(found.levels, levels)
        return losses

    @torch.no_grad()
    def _look(self, found: Proposals, regions: Regions) -> tuple[dict[str, Tensor], Regions]:
        """Return the teacher's feature maps, and the regions with its logits and deltas."""
        assert found.pixels is not None
        levels = dict(self.engine.levels_of(found.pixels))
        return levels, self.engine.box_head(replace(found, levels=levels), regions)
