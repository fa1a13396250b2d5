"""Evaluation of a task: calibrate on the held-out images, detect and score on the test images."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openworld.data.loader import eval_batches, eval_target, local_batches
from openworld.data.options import LoaderOptions
from openworld.data.splits import View, held_out_view
from openworld.detector import Detector
from openworld.errors import CheckpointError
from openworld.predictions.file import PredictedImage, read_predictions
from openworld.predictions.score import evaluate_predictions
from openworld.records import Dataset
from openworld.run.checkpoints import Progress, finished_task, restore_detector
from openworld.run.detect import detect_prepared, write_detections
from openworld.run.folder import Run
from openworld.runtime import distributed
from openworld.runtime.files import write_atomic, write_json
from openworld.runtime.runlog import progress_bar
from openworld.structures import Detections, Target

logger = logging.getLogger(__name__)

BATCH = 8
PARTIAL_EVERY = 400
"""Number of images between two saves of a running evaluation."""


# -- held-out images --------------------------------------------------------------------------------------------------


def calibrate(run: Run, task: int, detector: Detector) -> dict[str, Any]:
    """Calibrate the method of a detector on held-out images, in place; return the record for calibration.json.

    The images show the known labels only, unless the method asks for annotated unknown objects. Several processes
    share the images, and each calibrates with the samples of all.
    """
    method = detector.method
    view = held_out_view(run.sources.held_out, run.space(task), with_unknown=method.calibrates_on == "with_unknown")
    parts: list[dict[str, Tensor]] = [dict.fromkeys(method.samples, torch.zeros(0))]
    detector.eval()
    if method.calibrates_on != "nothing":
        with progress_bar(f"task {task} calibration", _own_images(len(view))) as bar:
            for images, targets in held_out_batches(view, run.config.data.loader):
                found = detector.calibration_samples(images, targets)
                parts.append({name: values.cpu() for name, values in found.items()})
                bar.advance(len(images))
    samples = {name: distributed.gather_rows(torch.cat([part[name] for part in parts])) for name in method.samples}
    return {"method": run.config.method.name, **method.calibrate(samples)}


def held_out_batches(view: View, options: LoaderOptions) -> Iterator[tuple[list[Tensor], list[Target]]]:
    """This process's share of the held-out images, without augmentation, with the boxes of the view."""
    own = local_batches(len(view), BATCH)
    for images, positions, scales in eval_batches(view.images, BATCH, options, numbers=own):
        yield images, [eval_target(view[position], scale) for position, scale in zip(positions, scales, strict=True)]


# -- test images ------------------------------------------------------------------------------------------------------


def evaluate_task(run: Run, task: int) -> None:
    """Detect on the test images, write predictions.json, score that file alone, write metrics.json.

    Raises:
        CheckpointError: the task is not finished.
    """
    checkpoint = finished_task(run.folder, task)
    if checkpoint is None:
        raise CheckpointError(
            f"task {task} is not finished", where=str(run.checkpoints(task)), remedy="go on with --resume"
        )
    run.log.truncate(Progress.of(checkpoint).log_offset)
    with run.log.phase("evaluate", task):
        detector = restore_detector(run.config, checkpoint).eval()
        parts = [run.task_folder(task) / name for name in _partial_names()]
        own = parts[distributed.rank()]
        detections = detect_on(detector, run.sources.test, run.config.data.loader, own, f"task {task} test")
        distributed.barrier()
        if distributed.is_first():
            found = [*detections, *chain(*map(_read_partial, parts[1:]))]
            metrics = score_task(run, task, detector, found)
    if distributed.is_first():
        write_json(run.task_folder(task) / "metrics.json", metrics)
        for partial in run.task_folder(task).glob("detections*.partial"):
            partial.unlink()


def score_task(run: Run, task: int, detector: Detector, detections: Sequence[Detections]) -> dict[str, Any]:
    """Write predictions.json and score that file alone.

    Args:
        detections: of each test image, in order.
    """
    path, test = run.task_folder(task) / "predictions.json", run.sources.test
    images = [
        PredictedImage(record.image_id, _as_seen_from(run.folder, record.path), record.width, record.height, found)
        for record, found in zip(test, detections, strict=True)
    ]
    write_detections(path, detector, images, upright=test.upright)
    return evaluate_predictions(read_predictions(path), test)


def detect_on(detector: Detector, test: Dataset, options: LoaderOptions, partial: Path, title: str) -> list[Detections]:
    """Detect on this process's share of the images, in order.

    The detections are saved to ``partial`` at intervals, so that a killed evaluation can continue, and at the end if
    other processes wait for them. An image that cannot be read has no detections.
    """

    def warn(problem: str) -> None:
        logger.warning("scored as an image without detections: %s", problem)

    numbers, found = local_batches(len(test), BATCH), _read_partial(partial)
    left = numbers[math.ceil(len(found) / BATCH) :]
    with progress_bar(title, _own_images(len(test)), done=len(found)) as bar:
        batches = eval_batches(test, BATCH, options, numbers=left, broken=warn)
        for number, (images, positions, scales) in zip(left, batches, strict=True):
            sizes = [(width, height) for width, height in test.sizes[positions].tolist()]
            seen = dict(zip(positions, detect_prepared(detector, images, scales, sizes), strict=True))
            first = number * BATCH
            batch = range(first, min(first + BATCH, len(test)))
            found += [seen.get(position, Detections.empty()) for position in batch]
            bar.advance(len(batch))
            if len(found) % PARTIAL_EVERY < BATCH:
                _write_partial(partial, found)
    if distributed.world_size() > 1:
        _write_partial(partial, found)
    return found


def _as_seen_from(folder: Path, path: Path) -> str:
    """Return a path relative to the run's folder if it lies below, so that the folder can be moved; else absolute."""
    full, root = path.resolve(), folder.resolve()
    return str(full.relative_to(root) if full.is_relative_to(root) else full)


def _own_images(num_images: int) -> int:
    """Number of images, out of ``num_images``, that this process evaluates."""
    own = local_batches(num_images, BATCH)
    return min(own.stop * BATCH, num_images) - own.start * BATCH


# -- detections so far ------------------------------------------------------------------------------------------------


def _partial_names() -> list[str]:
    """Return the files that keep the detections of each process's share; shares depend on the number of processes."""
    processes = distributed.world_size()
    if processes == 1:
        return ["detections.partial"]
    return [f"detections-{number + 1}-of-{processes}.partial" for number in range(processes)]


def _write_partial(path: Path, found: list[Detections]) -> None:
    stream = io.BytesIO()
    torch.save([asdict(detections) for detections in found], stream)
    write_atomic(path, stream.getvalue())


def _read_partial(path: Path) -> list[Detections]:
    if not path.exists():
        return []
    return [Detections(**fields) for fields in torch.load(path, weights_only=True)]
