"""Detect on images without annotations: drawings and predictions.json."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openworld.configfile import read_config_of_run
from openworld.errors import ConfigError, DataError
from openworld.labels import LabelSpace
from openworld.predictions.file import PredictedImage
from openworld.report.draw import draw_detections
from openworld.report.findings import on_better
from openworld.run.checkpoints import load_task
from openworld.run.detect import detect_images, write_detections
from openworld.runtime.environment import device_of_finished_run
from openworld.runtime.image_depth import warn_of_depth
from openworld.runtime.images import find_images, load_image, warn_of_other_files
from openworld.runtime.runlog import progress_bar
from openworld.structures import Detections

logger = logging.getLogger(__name__)


def predict_folder(
    run: Path,
    task: int | None,
    images: Path,
    output: Path,
    *,
    score: float,
    upright: bool = True,
    device: str | None = None,
) -> tuple[int, list[str]]:
    """Detect on one image or on all images below a folder.

    All detections are written to ``output/predictions.json``; those with at least ``score`` are drawn into
    ``output/drawings/``, unknown ones in their own style: ``a.png`` for ``a.jpg``, and ``a.jpg.png`` beside another
    image of the same stem. An image that cannot be read is left out and named.

    Args:
        run: folder of the run whose detector is used. Only config.yaml and the checkpoint of the task are needed.
        task: task of the detector; None for the newest finished one.
        images: a file or a folder.
        output: folder to write to.
        score: smallest score to draw, from 0 to 1.
        upright: photographs are turned as their EXIF tags say, as viewers show them; boxes and drawings are of these
            pictures.
        device: see :func:`openworld.runtime.environment.device_of_finished_run`.

    Returns:
        The number of drawn images, and the messages of those that could not be read.

    Raises:
        ConfigError: the folder does not hold a run, or the score is not from 0 to 1.
        DataError: there are no images, or none can be read.
        CheckpointError: the run has not finished this task.
        EnvironmentProblem: the requested GPU is not available.
    """
    if not 0 <= score <= 1:
        raise ConfigError(
            f"score is {score:g}, and scores are fractions", remedy="give a number from 0 to 1, such as 0.3 for 30 %"
        )
    config = read_config_of_run(run)
    config = replace(config, model=replace(config.model, device=device_of_finished_run(config.model.device, device)))
    paths, white_level = find_images(images), config.data.loader.white_level
    warn_of_other_files(images)
    warn_of_depth(paths, white_level, str(images), remedy="Scale them as the images that the run was trained on.")
    detector = load_task(run, config, task)
    space = detector.space
    root = images if images.is_dir() else images.parent
    stems = Counter(path.with_suffix("") for path in paths)
    entries: list[PredictedImage] = []
    broken: list[str] = []
    with progress_bar("predict", len(paths)) as bar:
        for path in paths:
            bar.advance()
            try:
                pixels = load_image(path, upright, white_level=white_level)
            except DataError as error:
                logger.warning("image left out: %s", error)
                broken.append(str(error))
                continue
            found = detect_images(detector, [pixels], config.data.loader)[0]
            name = path.relative_to(root).as_posix()
            entries.append(PredictedImage(name, str(path.resolve()), pixels.shape[-1], pixels.shape[-2], found))
            drawing = draw(pixels.permute(1, 2, 0).numpy(), found, space, score)
            drawn = f"{name}.png" if stems[path.with_suffix("")] > 1 else Path(name).with_suffix(".png")
            target = output / "drawings" / drawn
            target.parent.mkdir(parents=True, exist_ok=True)
            drawing.save(target)
    if not entries:
        raise DataError(
            f"none of {len(paths)} images can be read; the first: {broken[0]}",
            where=str(images),
            remedy="check the files",
        )
    write_detections(output / "predictions.json", detector, entries, upright=upright)
    return len(entries), broken


def draw(pixels: np.ndarray, found: Detections, space: LabelSpace, score: float) -> Image.Image:
    """Draw the detections of at least ``score`` on their (H, W, 3) uint8 image; no unknown one on a better name."""
    shown = found[found.scores >= score]
    unknown = shown.labels == space.unknown
    shown = shown[~(unknown & torch.from_numpy(on_better(shown.boxes.double().numpy(), (~unknown).numpy())))]
    return draw_detections(
        Image.fromarray(pixels),
        shown.boxes.numpy(),
        [space.name(int(row)) for row in shown.labels],
        shown.scores.numpy(),
        (shown.labels == space.unknown).numpy(),
    )
