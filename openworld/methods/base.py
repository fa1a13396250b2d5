"""The interface between an open-world method and the engine or a run; ORE and every other method implement it.

A method sees regions, not images. In training it may relabel some as unknown and adds losses; at test it scores every
region before any threshold and decides on each candidate; on held-out images it is calibrated; with each task it grows.

R regions per batch, N candidates per image, K head rows (:mod:`openworld.labels`), B images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from openworld.labels import LabelSpace
from openworld.structures import Candidates, Decision, Regions, RegionScores


class Ranks(Protocol):
    """Communication between the processes of one training: :mod:`openworld.runtime.distributed`, or its equal.

    Every process calls them the same number of times and in the same order.
    """

    def gather_rows(self, tensor: Tensor) -> Tensor:
        """Join the rows of all processes in the order of their ranks: (R_rank, …) → (R, …)."""

    def mean_over_ranks(self, tensor: Tensor) -> Tensor:
        """Average over the processes, element by element."""


class OpenWorldMethod(nn.Module):
    """Base of all methods. Unless overridden, a method is a plain softmax detector with a row for unknown.

    All state that outlives one step is a parameter or a persistent buffer: the module is saved with the detector, and
    its parameters are trained with it.

    Args:
        space: label space of the current task.
    """

    samples: ClassVar[tuple[str, ...]] = ()
    """Names of the columns that :meth:`collect` returns."""
    extras: ClassVar[tuple[str, ...]] = ()
    """Names of the extra columns of a detection."""

    def __init__(self, space: LabelSpace) -> None:
        super().__init__()
        self.space = space

    @classmethod
    def of(cls, options: Any, space: LabelSpace, feature_dim: int) -> Self:
        """Make the method from its options; unless overridden, they are not needed.

        Args:
            options: of the method's own class, see :class:`openworld.methods.options.MethodOptions`.
            space: label space of the current task.
            feature_dim: D of the region features.
        """
        return cls(space)

    @property
    def labels_among(self) -> Literal["none", "all_proposals", "sampled"]:
        """When :meth:`relabel` sees the regions: never; all proposals, before the regions of the losses are sampled; or
        the sampled regions only."""
        return "none"

    @property
    def nms_after_decision(self) -> bool:
        """Whether non-maximum suppression and the cap on detections come after the decision instead of before it."""
        return True

    @property
    def uses_unknown_labels(self) -> bool:
        """Whether annotations of unknown objects help to decide what is unknown. If so, every result says so."""
        return False

    @property
    def calibrates_on(self) -> Literal["nothing", "known", "with_unknown"]:
        """Annotations visible on the held-out images of the calibration: those of known classes, or also those of
        unknown objects. ``nothing`` needs no images."""
        return "nothing"

    @property
    def unused_rows(self) -> tuple[int, ...]:
        """Head rows that the softmax leaves out in training and at test, such as *unknown* if nothing trains it."""
        return ()

    # -- training -----------------------------------------------------------------------------------------------------

    def relabel(self, regions: Regions, image_sizes: Tensor) -> Regions:
        """Label some regions as unknown. Called as :attr:`labels_among` says, without a gradient.

        Args:
            regions: matched to the annotated boxes; without features and logits.
            image_sizes: (B, 2) height and width in pixels.
        """
        return regions

    def losses(self, regions: Regions, step: int, *, replay: bool, ranks: Ranks | None) -> dict[str, Tensor]:
        """Compute further losses of the method: name → scalar with a gradient path, also without any regions.

        Args:
            regions: sampled, with features, logits and deltas.
            step: number of the step in the task, from 0; the parts of a batch that comes in parts have the same one.
            replay: the step fine-tunes on exemplars.
            ranks: communication between the processes; None with a single one.
        """
        return {}

    def meters(self) -> dict[str, float]:
        """Return numbers that show the progress of the method's training: name → value.

        They are logged at each checkpoint and at the end of a phase; with detectron2's trainer, per logged step.
        """
        return {}

    # -- test ---------------------------------------------------------------------------------------------------------

    def score(self, regions: Regions) -> RegionScores:
        """Score each row of each region, before any threshold; by default the softmax of the logits.

        Args:
            regions: of a batch, with features and logits; rows that take no part have logits of minus infinity.
        """
        assert regions.logits is not None
        return RegionScores(regions.logits.softmax(dim=1))

    def decide(self, candidates: Candidates) -> Decision:
        """Decide on each candidate of one image; by default each keeps the row under which it is a candidate."""
        return Decision(candidates.rows, candidates.scores, torch.ones_like(candidates.rows, dtype=torch.bool))

    # -- calibration --------------------------------------------------------------------------------------------------

    def collect(self, regions: Regions, image_sizes: Tensor) -> dict[str, Tensor]:
        """Collect the input of :meth:`calibrate` from held-out regions: each of :attr:`samples` → (M,) floating.

        Args:
            regions: all proposals as at test, matched to the annotations that :attr:`calibrates_on` names, with
                features and logits.
            image_sizes: (B, 2) height and width in pixels.
        """
        return {}

    def calibrate(self, samples: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fit what the decision needs and keep it in buffers.

        Args:
            samples: each of :attr:`samples` → (M,) floating on the CPU, of all held-out images; M may be 0.

        Returns:
            The record for calibration.json. ``status`` is one word, such as ``fitted``; ``reason`` explains a failure.
        """
        return {"status": "none", "reason": None}

    # -- growth -------------------------------------------------------------------------------------------------------

    def grow(self, space: LabelSpace) -> None:
        """Grow to the label space of a later task.

        Raises:
            ConfigError: the label space does not continue the current one.
        """
        space.kept_rows(self.space)
        self.space = space
