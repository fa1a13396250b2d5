"""The detector: an engine, an open-world method and the pipeline between them, built or restored from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from openworld.config import RunConfig
from openworld.engines.base import Engine
from openworld.engines.roi_inference import detections_of_batch
from openworld.engines.roi_losses import box_head_losses
from openworld.engines.sampling import match_regions, training_regions, unmatched_regions
from openworld.engines.weights import build_engine
from openworld.errors import CheckpointError
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.runtime import distributed
from openworld.runtime.batch_norm import synchronise_batch_norm
from openworld.runtime.checkpoint import Checkpoint, newest_valid
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
        self, images: Sequence[Tensor], targets: Sequence[Target], step: int, *, replay: bool = False
    ) -> dict[str, Tensor]:
        """Compute all losses of one step: propose, match, relabel, sample, box head, losses.

        Args:
            images: (3, H, W) RGB, uint8 or float32 in [0, 1], on any device.
            targets: what is annotated on each.
            step: of the task, from 0.
            replay: the step fine-tunes on exemplars.

        Returns:
            scalars by name: the detector's ``objectness``, ``rpn_box``, ``classification``, ``box``, and the method's.
            With several processes, each with its share of the batch, the means of the losses over the processes are
            those of one with the whole batch.
        """
        engine, method, roi = self.engine, self.method, self.engine.options.roi
        targets = [target.to(engine.pixel_mean.device) for target in targets]
        found, losses = engine.propose(images, targets)
        regions = engine.box_head(found, training_regions(found, targets, method, self.space, roi))
        losses |= box_head_losses(regions, self.space, roi, method.unused_rows)
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
        """All proposals as at test, matched to the targets, with features and logits; nothing is sampled.

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

    def calibration_samples(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Let the method collect from the proposals of held-out images what it is calibrated with.

        Args:
            images: as in :meth:`losses`.
            targets: the annotations that ``method.calibrates_on`` names.
        """
        return self.method.collect(*self.matched_regions(images, targets))

    def grow(self, space: LabelSpace) -> None:
        """Go on to the label space of a later task.

        Raises:
            ConfigError: it does not continue the present one.
        """
        self.engine.grow(space)
        self.method.grow(space)


def build_detector(config: RunConfig, labels: LabelSpace, weights: Path | None) -> Detector:
    """An untrained detector of a label space on its backbone, on the configured device."""
    engine = build_engine(labels, config.model, weights)
    method = config.method.build(labels, engine.feature_dim)
    detector = Detector(engine, method).to(select_device(config.model.device))
    if config.model.synchronise_norm and distributed.world_size() > 1:
        synchronise_batch_norm(detector, only_trained=True)
    return detector.to(memory_format=torch.channels_last)


def restore_detector(config: RunConfig, checkpoint: Checkpoint, weights: Path | None) -> Detector:
    """The detector of a checkpoint, with the label space of the task that wrote it.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    labels = LabelSpace.of(config.schedule, int(checkpoint.state["task"]), config.model.head)
    if list(labels.known) != list(checkpoint.state["known"]):
        raise CheckpointError(
            f"holds the classes {checkpoint.state['known']}, the configuration {list(labels.known)}",
            where=str(checkpoint.path),
            remedy="use the configuration of the run that wrote it",
        )
    detector = build_detector(config, labels, weights)
    try:
        detector.load_state_dict(checkpoint.tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"does not fit the configured model: {str(error).splitlines()[1].strip()}",
            where=str(checkpoint.path),
            remedy="use the configuration of the run that wrote it",
        ) from error
    return detector


def load_task(run: Path, config: RunConfig, task: int | None) -> Detector:
    """The finished detector of a task of a run; of the newest finished one where ``task`` is None.

    Raises:
        CheckpointError: the run has no such finished task.
    """
    tasks = range(config.last_task, 0, -1) if task is None else [task]
    for number in tasks:
        checkpoint = newest_valid(run / f"task{number}" / "checkpoint")
        if checkpoint is not None and checkpoint.state["stage"] == "energy":
            return restore_detector(config, checkpoint, backbone_file(run, config)).eval()
    raise CheckpointError(
        "has no finished task" if task is None else f"has no finished task {task}",
        where=str(run),
        remedy="finish the run first: openworld run --resume",
    )


def backbone_file(run: Path, config: RunConfig) -> Path | None:
    """The backbone that a run's detectors start from: the one in its folder, a given one, or none."""
    own = run / "backbone" / "backbone.safetensors"
    if config.pretrain is not None or own.exists():
        return own
    return Path(config.model.weights) if config.model.weights else None
