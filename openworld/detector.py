"""The detector: an engine, an open-world method and the pipeline between them, built or restored from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from openworld.config import RunConfig
from openworld.distillation.options import DistillationOptions
from openworld.distillation.teacher import Teacher
from openworld.engines.base import Engine
from openworld.engines.roi_inference import detections_of_batch
from openworld.engines.roi_losses import box_head_losses
from openworld.engines.sampling import match_regions, training_regions, unmatched_regions
from openworld.engines.weights import build_engine, random_engine
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.runtime import distributed
from openworld.runtime.batch_norm import synchronise_batch_norm
from openworld.runtime.environment import select_device
from openworld.structures import Detections, Regions, Target


class Detector(nn.Module):
    """An engine, an open-world method and the pipeline between them. Its state dict is the whole model of a task."""

    def __init__(self, engine: Engine, method: OpenWorldMethod) -> None:
        super().__init__()
        self.engine = engine
        self.method = method

    @property
    def space(self) -> LabelSpace:
        """Label space of the current task."""
        return self.engine.space

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target],
        step: int,
        *,
        replay: bool = False,
        teacher: Teacher | None = None,
    ) -> dict[str, Tensor]:
        """Compute all losses of one step: propose, match, relabel, sample, box head, losses.

        Args:
            images: (3, H, W) RGB, uint8 or float32 in [0, 1], on any device.
            targets: annotations of each image.
            step: number of the step in the task, from 0.
            replay: the step fine-tunes on exemplars.
            teacher: the detector of the task before, to be distilled.

        Returns:
            scalars by name: the detector's ``objectness``, ``rpn_box``, ``classification``, ``box``, the teacher's, and
            the method's.
            With several processes, each with its share of the batch, the means of the losses over the processes equal
            the losses of one process with the whole batch.
        """
        engine, method, roi = self.engine, self.method, self.engine.options.roi
        targets = [target.to(engine.pixel_mean.device) for target in targets]
        found, losses = engine.propose(images, targets)
        regions = engine.box_head(found, training_regions(found, targets, method, self.space, roi))
        losses |= box_head_losses(regions, self.space, roi, method.unused_rows)
        if teacher is not None:
            losses |= teacher.losses(found, regions, self.space, method.unused_rows)
        return losses | method.losses(regions, step, replay=replay, ranks=distributed)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[Detections]:
        """Detect on each image: propose, box head, score, decide, suppress. Boxes are pixels of the given images.

        Args:
            images: as in :meth:`losses`.
        """
        engine = self.engine
        found, _ = engine.propose(images)
        regions = unmatched_regions(found, self.space)
        if not len(regions):
            return [Detections.empty(self.method.extras) for _ in images]
        regions = engine.box_head(found, regions)
        sizes, roi = found.image_sizes, engine.options.roi
        of_images = detections_of_batch(regions, engine.refine(regions), sizes, self.method, self.space, roi)
        return [detections for detections, _ in of_images]

    @torch.no_grad()
    def matched_regions(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Regions, Tensor]:
        """Return all proposals as at test, matched to the targets, with features and logits; nothing is sampled.

        Args:
            images, targets: as in :meth:`losses`.

        Returns:
            the regions, and (B, 2) height and width of the images in pixels.
        """
        engine = self.engine
        targets = [target.to(engine.pixel_mean.device) for target in targets]
        found, _ = engine.propose(images)
        iou = engine.options.roi.foreground_iou
        regions = match_regions(found, targets, self.space, foreground_iou=iou, add_annotated=False)
        return engine.box_head(found, regions), found.sizes

    def as_teacher(self, options: DistillationOptions) -> Teacher:
        """Freeze the detector, for a later task to learn from."""
        self.eval().requires_grad_(False)
        return Teacher(self.engine, self.method.unused_rows, options)

    def calibration_samples(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Let the method collect its calibration samples from the proposals of held-out images.

        Args:
            images: as in :meth:`losses`.
            targets: the annotations that ``method.calibrates_on`` names.
        """
        return self.method.collect(*self.matched_regions(images, targets))

    def grow(self, space: LabelSpace) -> None:
        """Grow to the label space of a later task.

        Raises:
            ConfigError: the label space does not continue the current one.
        """
        self.engine.grow(space)
        self.method.grow(space)


def build_detector(config: RunConfig, space: LabelSpace, backbone: Path | None) -> Detector:
    """Build an untrained detector for a label space, on the configured device.

    Args:
        config: of the run.
        space: the classes of the head.
        backbone: weight file of a pretrained backbone, or None for random weights.

    Raises:
        CheckpointError: the file cannot be read, or belongs to another network.
        HandoverError: the detector would compute other features than the pretrained network.
        EnvironmentProblem: the engine or the device is not available.
    """
    return _on_device(config, build_engine(space, config.model, backbone))


def detector_to_load(config: RunConfig, space: LabelSpace) -> Detector:
    """Build a detector with random weights, for a checkpoint to replace; needs no backbone file.

    Raises:
        EnvironmentProblem: the engine or the device is not available.
    """
    return _on_device(config, random_engine(space, config.model))


def _on_device(config: RunConfig, engine: Engine) -> Detector:
    """Combine the engine with the configured method, on the configured device."""
    method = config.method.build(engine.space, engine.feature_dim)
    detector = Detector(engine, method).to(select_device(config.model.device))
    if config.model.synchronise_norm:
        synchronise_batch_norm(detector, only_trained=True)
    return detector.to(memory_format=torch.channels_last)
