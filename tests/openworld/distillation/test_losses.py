"""Losses of the distillation against slow loops over regions, and where they must be 0 or blind."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openworld.distillation.losses import box_distillation, class_distillation, feature_distillation
from openworld.labels import LabelSpace

TASKS = (("cat", "dog"), ("cow",), ("kite",))
OLD, NEW = LabelSpace(TASKS, 1), LabelSpace(TASKS, 2)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def by_hand(given: list[float], wanted: list[float], num_old: int) -> float:
    """Cross-entropy of one region over the old classes and everything else."""
    p, q = probabilities(given), probabilities(wanted)
    rest_p, rest_q = sum(p[num_old:]), sum(q[num_old:])
    old = sum(q[row] * math.log(p[row]) for row in range(num_old))
    return -(old + rest_q * math.log(rest_p))


def test_classes_as_a_loop_over_regions() -> None:
    logits, taught = numbers(6, NEW.num_rows), numbers(6, OLD.num_rows, seed=1)
    loss = class_distillation(logits, NEW, taught, OLD)
    each = [by_hand(given, wanted, 2) for given, wanted in zip(logits.tolist(), taught.tolist(), strict=True)]
    assert math.isclose(loss.item(), sum(each) / 6, rel_tol=1e-9)


def test_regions_of_new_classes_take_no_part_but_are_counted() -> None:
    logits, taught = numbers(4, NEW.num_rows), numbers(4, OLD.num_rows, seed=1)
    counted = torch.tensor([True, False, True, False])
    whole = class_distillation(logits[counted], NEW, taught[counted], OLD)
    assert math.isclose(
        class_distillation(logits, NEW, taught, OLD, takes_part=counted).item(), whole.item() / 2, rel_tol=1e-9
    )
    cats = torch.tensor([[3.0, 0, 0, 0]]).expand(4, 4)
    deltas, goals = numbers(4, 4), numbers(4, 4, seed=1)
    boxes = box_distillation(deltas[counted], goals[counted], cats[counted], OLD, beta=0.5)
    part = box_distillation(deltas, goals, cats, OLD, beta=0.5, takes_part=counted)
    assert math.isclose(part.item(), boxes.item() / 2, rel_tol=1e-9)


def test_a_row_that_takes_no_part_changes_nothing() -> None:
    logits, taught = numbers(4, NEW.num_rows), numbers(4, OLD.num_rows, seed=1)
    loss = class_distillation(logits, NEW, taught, OLD, (NEW.unknown,), (OLD.unknown,))
    without = [
        by_hand([*given[:3], given[4]], [*wanted[:2], wanted[3]], 2)
        for given, wanted in zip(logits.tolist(), taught.tolist(), strict=True)
    ]
    assert math.isclose(loss.item(), sum(without) / 4, rel_tol=1e-9)


def test_a_new_class_in_place_of_background_costs_nothing() -> None:
    """What the teacher called background may become the new class: only the old classes are held."""
    taught = torch.tensor([[0.0, 1.0, -2.0, 3.0]], dtype=torch.float64)
    as_before = torch.tensor([[0.0, 1.0, -30.0, -2.0, 3.0]], dtype=torch.float64)
    as_new_class = torch.tensor([[0.0, 1.0, 3.0, -2.0, -30.0]], dtype=torch.float64)
    losses = [class_distillation(logits, NEW, taught, OLD).item() for logits in (as_before, as_new_class)]
    assert math.isclose(*losses, rel_tol=1e-9)


def test_the_fixed_layout_leaves_future_classes_out() -> None:
    old, new = LabelSpace(TASKS, 1, "fixed"), LabelSpace(TASKS, 2, "fixed")
    logits, taught = numbers(3, 6), numbers(3, 6, seed=1)
    loss = class_distillation(logits, new, taught, old)
    each = [
        by_hand([*given[:3], *given[4:]], [*wanted[:2], *wanted[4:]], 2)
        for given, wanted in zip(logits.tolist(), taught.tolist(), strict=True)
    ]
    assert math.isclose(loss.item(), sum(each) / 3, rel_tol=1e-9)


def smooth_l1(difference: float, beta: float) -> float:
    size = abs(difference)
    return 0.5 * size * size / beta if size < beta else size - 0.5 * beta


def test_boxes_of_regions_that_the_teacher_takes_for_an_old_class() -> None:
    taught = torch.tensor(
        [[3.0, 0, 0, 0], [0, 0, 0, 3.0], [0, 3.0, 0, 0], [0, 0, 3.0, 0]]
    )  # cat, background, dog, unknown
    deltas, goals = numbers(4, 4), numbers(4, 4, seed=1)
    loss = box_distillation(deltas, goals, taught, OLD, beta=0.5)
    expected = sum(smooth_l1(float(deltas[row, k] - goals[row, k]), 0.5) for row in (0, 2) for k in range(4)) / 4
    assert math.isclose(loss.item(), expected, rel_tol=1e-9)


def test_boxes_of_the_class_that_the_teacher_sees() -> None:
    """Deltas per class: the teacher has three sets, the detector four; the one of the class is compared."""
    taught = torch.tensor([[3.0, 0, 0, 0], [0, 3.0, 0, 0]])
    deltas, goals = numbers(2, 16), numbers(2, 12, seed=1)
    loss = box_distillation(deltas, goals, taught, OLD, beta=0.5)
    pairs = [(deltas[0, k], goals[0, k]) for k in range(4)] + [(deltas[1, 4 + k], goals[1, 4 + k]) for k in range(4)]
    expected = sum(smooth_l1(float(given - goal), 0.5) for given, goal in pairs) / 2
    assert math.isclose(loss.item(), expected, rel_tol=1e-9)


def test_features_are_averaged_over_the_levels() -> None:
    levels = {"c2": torch.tensor([[1.0, 3.0]]), "c3": torch.tensor([[2.0]])}
    taught = {"c2": torch.tensor([[0.0, 0.0]]), "c3": torch.tensor([[8.0]])}
    assert feature_distillation(levels, taught).item() == (2.0 + 6.0) / 2


def test_no_regions_give_zero_with_a_gradient() -> None:
    logits, deltas = numbers(0, NEW.num_rows).requires_grad_(), numbers(0, 4).requires_grad_()
    classes = class_distillation(logits, NEW, numbers(0, OLD.num_rows), OLD)
    boxes = box_distillation(deltas, numbers(0, 4), numbers(0, OLD.num_rows), OLD, beta=0.5)
    assert classes.item() == boxes.item() == 0
    (classes + boxes).backward()
