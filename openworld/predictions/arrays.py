"""Predictions as arrays: what the readers of all forms return, and what is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openworld.labels import LabelSpace

Reals = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Predictions:
    """The detections of one file as arrays. I images, N detections.

    Args:
        tasks: class names, one tuple a task.
        task: the task whose model predicted, from 1.
        image_ids: (I) ids, each once.
        files: (I) image files.
        widths, heights: (I,) int64 pixels.
        image_index: (N,) int64, position of a detection's image.
        boxes: (N, 4) float64 ``x1 y1 x2 y2``.
        labels: (N,) int64 head rows, known or unknown.
        scores: (N,) float64 in [0, 1].
        best_known: (N,) int64, the best known class, -1 where the file has none.
        extras: the method's columns by name, (N,) float64 each, NaN where a detection has none.
        uses_unknown_labels: labels of unknown objects helped to decide what is unknown.
        upright: whether the boxes are of the pictures as their EXIF tags turn them; None: the size of each tells.
    """

    tasks: tuple[tuple[str, ...], ...]
    task: int
    image_ids: tuple[int | str, ...]
    files: tuple[str, ...]
    widths: Whole
    heights: Whole
    image_index: Whole
    boxes: Reals
    labels: Whole
    scores: Reals
    best_known: Whole
    extras: Mapping[str, Reals] = field(default_factory=dict)
    uses_unknown_labels: bool = False
    upright: bool | None = None

    def __post_init__(self) -> None:
        images, size = len(self.image_ids), len(self.boxes)
        if self.boxes.shape != (size, 4):
            raise ValueError(f"Predictions.boxes has shape {self.boxes.shape}, expected ({size}, 4)")
        if len(self.files) != images:
            raise ValueError(f"Predictions has {images} image_ids and {len(self.files)} files")
        lengths = {"widths": images, "heights": images}
        lengths |= dict.fromkeys(("image_index", "labels", "scores", "best_known"), size)
        columns = {name: (getattr(self, name), length) for name, length in lengths.items()}
        columns |= {f"extras[{name!r}]": (values, size) for name, values in self.extras.items()}
        for name, (values, length) in columns.items():
            if values.shape != (length,):
                raise ValueError(f"Predictions.{name} has shape {values.shape}, expected ({length},)")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def label_space(self) -> LabelSpace:
        return LabelSpace.of(self.tasks, self.task)


def wrong_numbers(boxes: Reals, scores: Reals) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which scores (N,) are not from 0 to 1, and which xyxy boxes (N, 4) are not finite or not ordered; both (N,)."""
    wrong_score = ~((scores >= 0) & (scores <= 1))
    unordered = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    return wrong_score, unordered | ~np.isfinite(boxes).all(axis=1)
