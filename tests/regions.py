"""Regions and candidates for tests, of which only some columns matter, and steps that show what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from openworld.detector import Detector
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.methods.ore.method import Ore
from openworld.structures import Candidates, Regions, Target


def regions_with(features: Tensor, labels: Tensor, logits: Tensor | None = None) -> Regions:
    """Regions of one image with these features (R, D) and labels (R,); boxes, objectness and IoU are 0."""
    count = len(labels)
    zeros = torch.zeros(count)
    return Regions(
        torch.zeros(count, 4), torch.zeros_like(labels), zeros, zeros, labels, features=features, logits=logits
    )


def candidates_of(
    logits: Tensor, space: LabelSpace, rows: Tensor | None = None, scores: Tensor | None = None
) -> Candidates:
    """Candidates with these logits (N, K), under the best row but background and with its softmax unless given."""
    if rows is None:
        detected = torch.tensor(space.detected_rows)
        rows = detected[logits[:, detected].argmax(1)]
    if scores is None:
        scores = logits.softmax(1).gather(1, rows[:, None])[:, 0]
    count = len(logits)
    best = logits[:, : space.num_known].argmax(1)
    return Candidates(torch.zeros(count, 4), rows, scores, best, logits, torch.zeros(count, 1), torch.zeros(count))


def clustering_step(ore: Ore, features: Tensor, labels: Tensor, step: int, *, replay: bool = False) -> Tensor:
    """The clustering loss of a training step on regions with these features and labels."""
    return ore.losses(regions_with(features, labels), step, replay=replay, ranks=None)["clustering"]


def training_step(
    engine: Any, images: Sequence[Tensor], targets: Sequence[Target], method: OpenWorldMethod | None = None
) -> tuple[dict[str, Tensor], Regions]:
    """The detector's own losses of a step, without the method's, and the sampled regions that they are made of."""
    method = OpenWorldMethod(engine.space) if method is None else method
    seen: list[Regions] = []

    def watch(regions: Regions, step: int, **_: Any) -> dict[str, Tensor]:
        seen.append(regions)
        return {}

    with patch.object(method, "losses", watch):
        losses = Detector(engine, method).losses(images, targets, 0)
    (regions,) = seen
    return losses, regions
