"""Alignment and uniformity of features (Wang and Isola 2020), beside those of an untrained network.

Shapes: N images, D dimensions.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from ssl_backbones.losses import alignment, uniformity


class AlignmentRow(TypedDict):
    """``alignment`` is 0 at best, ``uniformity`` about -4 at best. A collapsed network has 0 for both."""

    alignment: float
    uniformity: float


class AlignmentTable(TypedDict):
    """Results of the network and of the same network before training."""

    trained: AlignmentRow
    untrained: AlignmentRow
    samples: int


@torch.no_grad()
def alignment_row(x_ND: Tensor, y_ND: Tensor) -> AlignmentRow:
    """Measure the alignment of two views' features with alpha = 2, and the mean of their uniformities with t = 2.

    Args:
        x_ND: (N, D) features of one random view of each image, any float dtype, not normalised; N >= 2. Memory grows
            with N^2: a few thousand images are enough.
        y_ND: (N, D) of another view; row i is of the same image.
    """
    spread = (uniformity(x_ND) + uniformity(y_ND)) / 2
    return {"alignment": float(alignment(x_ND, y_ND)), "uniformity": float(spread)}


def alignment_table(trained: tuple[Tensor, Tensor], untrained: tuple[Tensor, Tensor]) -> AlignmentTable:
    """Measure a network and a control, which shows what architecture and input give without training.

    Args:
        trained: (N, D) features of two views of N images.
        untrained: of the same views, by the network before training, with batch-norm statistics estimated.
    """
    return {
        "trained": alignment_row(*trained),
        "untrained": alignment_row(*untrained),
        "samples": len(trained[0]),
    }
