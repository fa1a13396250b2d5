"""Detect objects on images: for the evaluation of a task, and for the user's own images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from openworld.data.loader import to_original
from openworld.data.options import LoaderOptions
from openworld.data.transforms import prepare
from openworld.detector import Detector
from openworld.predictions.file import PredictedImage, write_predictions
from openworld.structures import Detections


def detect_images(detector: Detector, images: Sequence[torch.Tensor], options: LoaderOptions) -> list[Detections]:
    """Detect on images; boxes are in pixels of the given images.

    Args:
        images: (3, H, W) uint8, RGB, any sizes.
        options: image size of the model.
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
    """Detect on prepared images; boxes are in pixels of the original images, on the CPU.

    Args:
        images: (3, h, w) as :func:`openworld.data.transforms.prepare` returns them; may be empty.
        scales: (4,) float32 of each, see :func:`openworld.data.transforms.prepare`.
        sizes: width and height of each original image.
    """
    if not images:
        return []
    found = detector.detect(images)
    return [
        replace(detections, boxes=to_original(detections.boxes, scale, width, height))
        for detections, scale, (width, height) in zip((item.to("cpu") for item in found), scales, sizes, strict=True)
    ]


def write_detections(path: Path, detector: Detector, images: Iterable[PredictedImage], *, upright: bool | None) -> None:
    """Write predictions.json of a detector. The file says whether labels of unknown objects were used to decide.

    Args:
        upright: as for :func:`openworld.predictions.file.write_predictions`.

    Raises:
        DataError: as :func:`openworld.predictions.file.write_predictions`.
    """
    told = detector.method.uses_unknown_labels
    write_predictions(path, detector.space, images, uses_unknown_labels=told, upright=upright)
