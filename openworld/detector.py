"""The detector: an engine and the open-world parts that watch it; built from a configuration, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from openworld.config import RunConfig
from openworld.engines.base import Engine
from openworld.engines.weights import build_engine
from openworld.errors import CheckpointError
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.runtime import distributed
from openworld.runtime.batch_norm import synchronise_batch_norm
from openworld.runtime.checkpoint import Checkpoint, newest_valid
from openworld.runtime.environment import select_device
from openworld.structures import Target


class Detector(nn.Module):
    """An engine and the open-world parts that watch it. Its state dict is the whole model of a task."""

    def __init__(self, engine: Engine, ore: Ore) -> None:
        super().__init__()
        self.engine = engine
        self.ore = ore

    def losses(
        self, images: Sequence[Tensor], targets: Sequence[Target], step: int, *, replay: bool = False
    ) -> dict[str, Tensor]:
        """All losses of one step; ``step`` counts from 0 within the task and times the prototypes.

        ``replay`` marks the fine-tuning on exemplars, see ``clustering.during_replay``. With several processes, each
        with its share of the batch, the means of the losses over the processes are those of one with the whole batch.
        """
        losses, regions = self.engine.training_step(images, targets, self.ore.label_unknowns, self.ore.unknown.among)
        assert regions.features is not None
        losses["clustering"] = self.ore.step(regions.features, regions.labels, step, replay=replay, ranks=distributed)
        return losses


def build_detector(config: RunConfig, labels: LabelSpace, weights: Path | None) -> Detector:
    """An untrained detector of a label space on its backbone, on the configured device."""
    engine = build_engine(labels, config.model, weights)
    options = config.ore
    ore = Ore(labels, engine.feature_dim, options.clustering, options.unknown_labels, options.energy)
    detector = Detector(engine, ore).to(select_device(config.model.device))
    if config.model.synchronise_norm:
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
