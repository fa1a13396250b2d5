"""Pseudo-labels of a later task: the detector of the task before looks at its images."""

from __future__ import annotations

import logging
from itertools import chain
from typing import Any

from openworld.data.loader import eval_batches, local_batches
from openworld.data.options import LoaderOptions
from openworld.data.splits import View, training_view
from openworld.detector import Detector
from openworld.distillation.options import DistillationOptions
from openworld.distillation.pseudo_labels import chosen_labels
from openworld.run.checkpoints import load_task
from openworld.run.detect import detect_prepared
from openworld.run.folder import Run
from openworld.runtime import distributed
from openworld.runtime.runlog import progress_bar

log = logging.getLogger("openworld.run.pseudo_labels")

BATCH = 8


def write_pseudo_labels(run: Run, task: int) -> None:
    """Write pseudo_labels.json: what the detector of the task before finds on the images of the task.

    Raises:
        CheckpointError: the task before is not finished.
    """
    options, space = run.config.distillation, run.space(task)
    with run.log.phase("pseudo_labels", task):
        detector = load_task(run.folder, run.config, task - 1)
        view = training_view(run.sources.train, space)
        entries = pseudo_labels(detector, view, run.config.data.loader, options)
    record = {"task": task, "score": options.pseudo_label_score, "iou": options.pseudo_label_iou, "images": entries}
    run.write_json(f"task{task}/pseudo_labels.json", record)


def pseudo_labels(
    detector: Detector, view: View, loader: LoaderOptions, options: DistillationOptions
) -> list[dict[str, Any]]:
    """Detect on the images of a view, and choose the detections that become annotations.

    Cost: one forward pass per image, without augmentation. An image that cannot be read has no entry, as in training.
    Several processes share the images, and each gets the entries of all.

    Args:
        detector: of the task before, in evaluation mode.
        view: what the task trains on.
        loader: how images enter the detector.
        options: ``pseudo_label_score`` and ``pseudo_label_iou``.

    Returns:
        one entry per image, see :func:`openworld.distillation.pseudo_labels.chosen_labels`.
    """
    assert options.pseudo_label_score is not None

    def warn(problem: str) -> None:
        log.warning("image without pseudo-labels: %s", problem)

    entries: list[dict[str, Any]] = []
    own = local_batches(len(view), BATCH)
    with progress_bar("pseudo-labels", len(own)) as bar:
        for images, positions, scales in eval_batches(view.images, BATCH, loader, numbers=own, broken=warn):
            sizes = [(width, height) for width, height in view.images.sizes[positions].tolist()]
            for position, found in zip(positions, detect_prepared(detector, images, scales, sizes), strict=True):
                entries.append(
                    chosen_labels(
                        view[position],
                        found,
                        detector.space,
                        score=options.pseudo_label_score,
                        iou=options.pseudo_label_iou,
                    )
                )
            bar.advance()
    return list(chain(*distributed.gather_objects(entries)))
