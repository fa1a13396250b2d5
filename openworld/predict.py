"""Images in, detections out: for the evaluation of a task and for anybody's own pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from openworld.config import RunConfig
from openworld.data.loader import to_original
from openworld.data.options import LoaderOptions
from openworld.data.transforms import prepare
from openworld.engines.weights import build_engine
from openworld.errors import CheckpointError, DataError
from openworld.labels import LabelSpace
from openworld.ore.core import Ore
from openworld.runtime import distributed
from openworld.runtime.batch_norm import synchronise_batch_norm
from openworld.runtime.checkpoint import Checkpoint, newest_valid
from openworld.runtime.environment import select_device
from openworld.structures import Detections
from openworld.train import Detector

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def build_detector(config: RunConfig, labels: LabelSpace, weights: Path | None) -> Detector:
    """An untrained detector of a label space on its backbone, on the configured device."""
    engine = build_engine(labels, config.model, weights)
    options = config.ore
    ore = Ore(labels, engine.feature_dim, options.clustering, options.unknown_labels, options.energy)
    detector = Detector(engine, ore).to(select_device(config.model.device))
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


def detect_images(detector: Detector, images: Sequence[torch.Tensor], options: LoaderOptions) -> list[Detections]:
    """Detections in pixels of the given images.

    Args:
        images: (3, H, W) uint8, RGB, any sizes.
        options: how large images enter the model.
    """
    prepared = [prepare(image, options) for image in images]
    sizes = [(image.shape[-1], image.shape[-2]) for image in images]
    return detect_prepared(detector, [pixels for pixels, _ in prepared], [scale for _, scale in prepared], sizes)


def detect_prepared(
    detector: Detector,
    images: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    sizes: Sequence[tuple[int, int]],
) -> list[Detections]:
    """Detections in pixels of the original images, on the CPU.

    Args:
        images: (3, h, w) as :func:`openworld.data.transforms.prepare` gives them; there may be none.
        scales: (4,) float32 of each, see :func:`openworld.data.transforms.prepare`.
        sizes: width and height of each original image.
    """
    if not images:
        return []
    found = detector.engine.detect(
        images, detector.ore.decide, nms_after_decision=detector.ore.energy.nms_after_decision
    )
    return [
        replace(detections, boxes=to_original(detections.boxes, scale, width, height))
        for detections, scale, (width, height) in zip((item.to("cpu") for item in found), scales, sizes, strict=True)
    ]


def find_images(path: Path) -> list[Path]:
    """An image, or all images below a folder, sorted.

    Raises:
        DataError: nothing there.
    """
    if path.is_file():
        return [path]
    found = sorted(item for item in path.rglob("*") if item.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(
            "is no image and no folder with images" if path.exists() else "does not exist",
            where=str(path),
            remedy=f"give an image or a folder with {', '.join(IMAGE_SUFFIXES)} files",
        )
    return found
