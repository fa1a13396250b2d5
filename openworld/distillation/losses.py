"""Losses between the outputs of a teacher and of the detector that learns further classes, as functions of tensors.

R regions over the batch, K head rows of the detector, J head rows of the teacher (:mod:`openworld.labels`), P classes
that the teacher knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from openworld.labels import LabelSpace


def used_rows(space: LabelSpace, unused: Sequence[int] = ()) -> list[int]:
    """Return the head rows that take part: known classes, unknown and background, without those that a method leaves
    out. Classes that no task has taught yet are in a head of the fixed layout, and mean nothing."""
    return [row for row in (*range(space.num_known), space.unknown, space.background) if row not in unused]


def old_log_probabilities(logits: Tensor, space: LabelSpace, num_old: int, unused: Sequence[int] = ()) -> Tensor:
    """Return the log-probabilities of the first classes, and of everything else as one.

    Args:
        logits: (R, K) floating.
        space: label space of the logits.
        num_old: P, at most ``space.num_known``.
        unused: rows that take no part.

    Returns:
        (R, P + 1) float32 at least; the last column is the log of the probability of the other known classes, unknown
        and background together.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_RU = logits[:, used_rows(space, unused)].log_softmax(dim=1)
    return torch.cat([log_RU[:, :num_old], log_RU[:, num_old:].logsumexp(dim=1, keepdim=True)], dim=1)


def class_distillation(
    logits: Tensor,
    space: LabelSpace,
    taught: Tensor,
    teacher_space: LabelSpace,
    unused: Sequence[int] = (),
    teacher_unused: Sequence[int] = (),
    takes_part: Tensor | None = None,
) -> Tensor:
    """Compute the cross-entropy between the teacher's probabilities and the detector's, divided by all regions.

    New classes, unknown and background count as one (after Cermelli et al., CVPR workshops 2022).

    Args:
        logits: (R, K) of the detector.
        space: label space of the detector.
        taught: (R, J) of the teacher on the same regions.
        teacher_space: label space of the teacher.
        unused, teacher_unused: rows of detector and teacher that take no part.
        takes_part: (R,) bool, regions that count; None: all.

    Returns:
        scalar; 0, with a gradient path, without regions.
    """
    num_old = teacher_space.num_known
    wanted_RP = old_log_probabilities(taught, teacher_space, num_old, teacher_unused).exp()
    given_RP = old_log_probabilities(logits, space, num_old, unused)
    if not len(logits):
        return logits.sum() * 0.0
    loss_R = -(wanted_RP * given_RP).sum(dim=1)
    return (loss_R if takes_part is None else loss_R * takes_part).mean()


def box_distillation(
    deltas: Tensor,
    taught_deltas: Tensor,
    taught: Tensor,
    teacher_space: LabelSpace,
    teacher_unused: Sequence[int] = (),
    *,
    beta: float,
    takes_part: Tensor | None = None,
) -> Tensor:
    """Compute smooth L1 between the box deltas of both, on regions that the teacher takes for a class it knows.

    Divided by the number of all regions, as the box loss is (after Shmelkov et al., ICCV 2017).

    Args:
        deltas: (R, 4·C) of the detector; C is 1, or the deltas of row k are in the columns 4k … 4k+3.
        taught_deltas: (R, 4·C') of the teacher, of the same kind.
        taught: (R, J) logits of the teacher.
        teacher_space: label space of the teacher.
        teacher_unused: rows of the teacher that take no part.
        beta: where the quadratic part ends, in deltas.
        takes_part: (R,) bool, regions that count; None: all.

    Returns:
        scalar; 0, with a gradient path, without such regions.
    """
    best_R = taught[:, used_rows(teacher_space, teacher_unused)].argmax(dim=1)
    taking_part = best_R < teacher_space.num_known
    if takes_part is not None:
        taking_part &= takes_part
    if not bool(taking_part.any()):
        return deltas.sum() * 0.0
    given_S4, wanted_S4 = deltas[taking_part], taught_deltas[taking_part]
    if deltas.shape[1] != 4:
        row_S = best_R[taking_part]
        each = torch.arange(len(row_S), device=row_S.device)
        given_S4 = given_S4.reshape(len(row_S), -1, 4)[each, row_S]
        wanted_S4 = wanted_S4.reshape(len(row_S), -1, 4)[each, row_S]
    return functional.smooth_l1_loss(given_S4, wanted_S4, beta=beta, reduction="sum") / len(deltas)


def feature_distillation(levels: Mapping[str, Tensor], taught: Mapping[str, Tensor]) -> Tensor:
    """Compute the mean absolute difference between feature maps, averaged over the levels.

    Args:
        levels, taught: (B, channels, h, w) by name, of detector and teacher.
    """
    each = [functional.l1_loss(levels[name].float(), taught[name].float()) for name in levels]
    return torch.stack(each).mean()
