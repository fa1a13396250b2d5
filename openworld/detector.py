"""The detector: an engine and the open-world parts that watch it, built from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from openworld.config import RunConfig
from openworld.engines.base import Engine
from openworld.engines.weights import build_engine, random_engine
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.runtime import distributed
from openworld.runtime.batch_norm import synchronise_batch_norm
from openworld.runtime.environment import select_device
from openworld.runtime.profiling import scope
from openworld.structures import Regions, Target


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
        with scope("regions"):
            losses, regions = self.engine.training_step(images, targets, self._label_unknowns, self.ore.unknown.among)
        assert regions.features is not None
        with scope("ORE"), distributed.purpose("ORE: features, labels, divisor"):
            losses["clustering"] = self.ore.step(
                regions.features, regions.labels, step, replay=replay, ranks=distributed
            )
        return losses

    def _label_unknowns(self, regions: Regions, image_sizes: Tensor) -> Tensor:
        with scope("ORE"):
            return self.ore.label_unknowns(regions, image_sizes)


def build_detector(config: RunConfig, space: LabelSpace, backbone: Path | None) -> Detector:
    """An untrained detector of a label space, on the configured device.

    Args:
        config: of the run.
        space: the classes of the head.
        backbone: weight file of a pretrained backbone, or None for random weights.

    Raises:
        CheckpointError: the file cannot be read or is of another network.
        HandoverError: the detector would see other features than the pretrained network.
        EnvironmentProblem: the engine or the device is not there.
    """
    return _on_device(config, build_engine(space, config.model, backbone))


def detector_to_load(config: RunConfig, space: LabelSpace) -> Detector:
    """A detector of random weights whose state dict a checkpoint replaces; no backbone file is needed.

    Raises:
        EnvironmentProblem: the engine or the device is not there.
    """
    return _on_device(config, random_engine(space, config.model))


def _on_device(config: RunConfig, engine: Engine) -> Detector:
    """The engine with the open-world parts around it."""
    options = config.ore
    ore = Ore(engine.labels, engine.feature_dim, options.clustering, options.unknown_labels, options.energy)
    detector = Detector(engine, ore).to(select_device(config.model.device))
    if config.model.synchronise_norm and distributed.world_size() > 1:
        synchronise_batch_norm(detector, only_trained=True)
    return detector.to(memory_format=torch.channels_last)
