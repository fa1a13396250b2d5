"""Validation during a phase: known mAP@50 on the held-out images, and the best weights so far.

A validation changes nothing that the training goes on with: neither the weights nor the generators nor the mode of the
layers. Labels are those that the phase trains on, so that no label of a later task is read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import Tensor

from openworld.data.loader import eval_batches, local_batches
from openworld.data.options import LoaderOptions
from openworld.data.splits import View, held_out_view, training_view
from openworld.detector import Detector
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate
from openworld.records import Dataset
from openworld.run.detect import detect_prepared
from openworld.runtime import distributed
from openworld.runtime.seeding import rng_state, set_rng_state
from openworld.runtime.weight_average import running_statistics, with_tensors
from openworld.structures import Detections

logger = logging.getLogger(__name__)

BATCH = 8


@dataclass(frozen=True)
class Best:
    """The best validation of a phase.

    Args:
        step: number of finished steps.
        ap50: its known mAP@50, 0 to 1.
        tensors: state dict of the detector that was validated, on the CPU; empty if it is not kept.
    """

    step: int
    ap50: float
    tensors: Mapping[str, Tensor]

    def as_state(self) -> dict[str, Any]:
        """Return plain containers for a checkpoint; :class:`Best` of them is this one."""
        return {"step": self.step, "ap50": self.ap50, "tensors": dict(self.tensors)}


@dataclass(frozen=True)
class Validation:
    """Held-out images of a phase, on which its detector is scored.

    Args:
        view: the images, with the labels that the phase trains on; see :func:`validation_view`.
        loader: how images enter the detector.
        keep: whether the best weights are kept, and not their score alone.
    """

    view: View
    loader: LoaderOptions
    keep: bool = True

    def best_of(
        self, detector: Detector, weights: Mapping[str, Tensor], step: int, best: Best | None
    ) -> tuple[float, Best]:
        """Score a detector; return its known mAP@50 and the best validation so far, the later one of equals.

        Several processes share the images and return the same. They score the model of the first one, which writes it:
        statistics of BatchNorm differ between them where they are not synchronised.

        Args:
            detector: in training mode, to which it returns.
            weights: parameters and buffers that take the place of the detector's own, by the names of its state dict.
            step: number of finished steps.
            best: the best validation before this one.
        """
        generators = rng_state()
        statistics = {name: weights.get(name, own) for name, own in running_statistics(detector).items()}
        shared = {name: distributed.broadcast(values) for name, values in statistics.items()}
        with with_tensors(detector, {**weights, **shared}):
            detector.eval()
            ap50 = self._known_ap50(detector)
            if best is None or ap50 >= best.ap50:
                state = detector.state_dict() if self.keep else {}
                tensors = {name: tensor.cpu().clone() for name, tensor in state.items()}
                best = Best(step, ap50, tensors)
        detector.train()
        set_rng_state(generators)
        return ap50, best

    def _known_ap50(self, detector: Detector) -> float:
        """Detect on all images; return the mean AP of the classes that they show."""
        space = detector.space
        parts = distributed.gather_objects(self._detections(detector))
        found = dict(chain.from_iterable(parts))

        def score() -> float:
            truth = GroundTruth.from_dataset(self.view.images, space)
            counts = [len(detections) for detections in found.values()]
            columns = [(each.boxes, each.labels, each.scores) for each in (Detections.empty(), *found.values())]
            boxes, labels, scores = (np.concatenate([part.numpy() for part in column]) for column in zip(*columns))
            rows = np.minimum(labels, space.num_known)  # unknown lies behind the known classes in every layout
            scored = ScoredBoxes.from_arrays(np.repeat(list(found), counts), boxes, rows, scores)
            ap50 = evaluate(truth, scored, len(space.previous), space.num_known)["known_ap50"]
            return float(ap50)

        return distributed.on_first(score)

    def _detections(self, detector: Detector) -> list[tuple[int, Detections]]:
        """Detect on this process's share of the images; return the position of each, and what was found.

        An image that cannot be read has no detections.
        """
        images, found = self.view.images, []
        own = local_batches(len(images), BATCH)
        for pixels, positions, scales in eval_batches(images, BATCH, self.loader, numbers=own, broken=_warn):
            sizes = [(width, height) for width, height in images.sizes[positions].tolist()]
            found += list(zip(positions, detect_prepared(detector, pixels, scales, sizes), strict=True))
        return found


def _warn(problem: str) -> None:
    logger.warning("validated as an image without detections: %s", problem)


def validation_view(held_out: Dataset, space: LabelSpace, stage: str, *, keeps_old: bool = False) -> View:
    """Return the held-out images with the labels that a stage trains on: of the task's classes, or of all known ones.

    Args:
        held_out: images that are not trained on.
        space: of the task.
        stage: ``train``, or ``replay``, which trains all known classes.
        keeps_old: ``train`` sees earlier classes, too, from exemplars or from the detector of the task before.

    Raises:
        DataError: no image shows an object of these classes that counts.
    """
    every = stage == "replay" or keeps_old
    view = held_out_view(held_out, space) if every else training_view(held_out, space)
    if view.images.ignore.all():
        raise DataError(
            f"no held-out image shows a class that {stage} of task {space.task} trains",
            where="held_out",
            remedy="raise data.held_out_fraction, name a data.val that shows some, or set validate_every to 0",
        )
    return view
