"""The losses of the box head: cases by hand, slow loops, and the arrays of the reference code."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openworld.engines.roi_losses import box_loss, classification_loss, masked_logits
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions
from tests.regions import clustering_step

ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[2] / "oracles")) / "losses"


# -- classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [(), (1,), (1, 2)])
def test_a_masked_row_is_as_if_it_were_not_there(masked: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(6, 5) * 20).to(dtype).requires_grad_()
    labels = torch.tensor([0, 3, 4, 4, 0, 3])
    loss = classification_loss(logits, labels, masked)
    loss.backward()  # type: ignore[no-untyped-call]
    rest = [row for row in range(5) if row not in masked]
    wanted = 0.0
    for values, label in zip(logits.detach().double().tolist(), labels.tolist(), strict=True):
        most = max(values[row] for row in rest)
        wanted += most + math.log(sum(math.exp(values[row] - most) for row in rest)) - values[label]
    assert float(loss.detach()) == pytest.approx(wanted / 6, rel=1e-5)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())
    assert not logits.grad[:, list(masked)].any()


def test_masked_softmax_gives_nothing_to_the_masked_rows() -> None:
    logits = torch.tensor([[1.0, 9.0, 1.0]])
    assert masked_logits(logits, ()) is logits
    assert masked_logits(logits, (1,)).softmax(1).tolist() == [[0.5, 0.0, 0.5]]
    assert logits.tolist() == [[1.0, 9.0, 1.0]]


def test_no_region_gives_zero_losses_with_a_gradient_path() -> None:
    logits, deltas = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    none, boxes = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    losses = classification_loss(logits, none), box_loss(deltas, boxes, boxes, none, none.bool())
    assert [float(loss.detach()) for loss in losses] == [0.0, 0.0] and all(loss.requires_grad for loss in losses)


# -- boxes ------------------------------------------------------------------------------------------------------------

BOXES = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 30], [0, 0, 10, 20]])
GOALS = torch.tensor([[2.0, 0, 12, 10], [10, 10, 20, 30], [0, 0, 20, 20]])
LABELS = torch.tensor([0, 2, 1])
ALL = torch.ones(3, dtype=torch.bool)


def test_box_loss_by_hand() -> None:
    """The first box must move by 0.2 of its width (times 10), the third by 0.5 and grow by ln 2 (times 5)."""
    deltas = torch.zeros(3, 4)
    assert float(box_loss(deltas, BOXES, GOALS, LABELS, ALL, beta=0)) == pytest.approx((2 + 5 + 5 * math.log(2)) / 3)
    assert float(box_loss(deltas, BOXES, GOALS, LABELS, LABELS < 1, beta=0)) == pytest.approx(2 / 3)
    half = 1 / 9 / 2
    wanted = (2 - half + 5 - half + 5 * math.log(2) - half) / 3
    assert float(box_loss(deltas, BOXES, GOALS, LABELS, ALL)) == pytest.approx(wanted, rel=1e-6)


def test_each_class_has_its_own_deltas() -> None:
    deltas = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    flat = deltas.flatten(1).requires_grad_()
    loss = box_loss(flat, BOXES, GOALS, LABELS, LABELS != 1, beta=0)
    loss.backward()  # type: ignore[no-untyped-call]
    own = torch.stack([deltas[0, 0], deltas[1, 2], deltas[2, 1]])
    torch.testing.assert_close(loss, box_loss(own, BOXES, GOALS, LABELS, LABELS != 1, beta=0))
    assert flat.grad is not None
    moved = flat.grad.reshape(3, 3, 4).abs().sum(2) > 0
    assert moved.tolist() == [[True, False, False], [False, False, True], [False, False, False]]


@pytest.mark.parametrize("columns", [1, 3])
def test_a_region_without_a_true_box_takes_no_part_but_counts(columns: int) -> None:
    goals = torch.cat([GOALS[:1], torch.zeros(1, 4), torch.tensor([[5.0, 5, 5, 9]])])
    deltas = torch.zeros(3, 4 * columns, requires_grad=True)
    assert float(box_loss(deltas.detach(), BOXES, goals, LABELS, ALL, beta=0)) == pytest.approx(2 / 3)
    none = box_loss(deltas, BOXES, torch.zeros(3, 4), LABELS, ALL, beta=0)
    assert float(none.detach()) == 0.0 and none.requires_grad


# -- the whole head, as the reference code computes it ----------------------------------------------------------------


def cases() -> list[Any]:
    found = sorted(ORACLES.glob("*.npz"))
    return [pytest.param(path, id=path.stem) for path in found if "loss_cls" in np.load(path).files]


def label_space(known: int, previous: int, classes: int) -> LabelSpace:
    """A fixed layout of ``classes`` classes, of which ``previous`` were taught before the ``known`` ones."""
    names = [f"class {number}" for number in range(classes)]
    tasks = [names[:previous], names[previous:known], names[known:]]
    return LabelSpace.of([part for part in tasks if part], 2 if previous else 1, "fixed")


def slow_l1(
    deltas: Tensor, boxes: Tensor, goals: Tensor, labels: Tensor, takes_part: Tensor, weights: np.ndarray
) -> float:
    """Plain L1 of class-specific deltas, one number after the other."""
    total = 0.0
    for index in takes_part.nonzero()[:, 0].tolist():
        (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes[index].double().tolist(), goals[index].double().tolist()
        wanted = [
            ((u1 + u2) / 2 - (x1 + x2) / 2) / (x2 - x1),
            ((v1 + v2) / 2 - (y1 + y2) / 2) / (y2 - y1),
            math.log((u2 - u1) / (x2 - x1)),
            math.log((v2 - v1) / (y2 - y1)),
        ]
        for place in range(4):
            given = float(deltas[index, 4 * int(labels[index]) + place])
            total += abs(given - weights[place] * wanted[place])
    return total / len(labels)


@pytest.mark.oracle
@pytest.mark.parametrize("path", cases())
def test_reference_losses_and_gradients(path: Path) -> None:
    """An image without ground truth makes the reference's box loss infinite; ours is what the other regions give. The
    gradient of the deltas is then compared where a region has a true box or is background."""
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    previous, known = int(arrays["prev"]), int(arrays["prev"] + arrays["cur"])
    space = label_space(known, previous, int(arrays["K"]) - 1)
    assert (space.num_known, space.unknown, space.background) == (known, int(arrays["K"]) - 1, int(arrays["K"]))

    def joined(name: str) -> Tensor:
        parts = [arrays[f"{name}{image}"] for image in range(len(arrays["n_per_image"]))]
        return torch.from_numpy(np.concatenate(parts))

    logits, deltas, features = (
        torch.from_numpy(arrays[name]).requires_grad_() for name in ("logits", "deltas", "features")
    )
    boxes, goals, labels = joined("prop"), joined("gt"), joined("cls")
    options = ClusteringOptions(
        weight=float(arrays["clustering_weight"]),
        start_step=0,
        margin=float(arrays["hinge_margin"]),
        distance_order=float(arrays["p"]),
        absent="zero",
        reduction="all",
        background_prototype=True,
    )
    ore = Ore(space, features.shape[1], options)
    classification = classification_loss(logits, labels, space.future_rows)
    box = box_loss(
        deltas,
        boxes,
        goals,
        labels,
        space.is_known(labels) | (labels == space.unknown),
        beta=float(arrays["smooth_l1_beta"]),
        weights=tuple(arrays["bbox_weights"].tolist()),
    )
    clustering = clustering_step(ore, features, labels, 0)
    (classification + box + clustering).backward()  # type: ignore[no-untyped-call]

    classification, box, clustering = classification.detach(), box.detach(), clustering.detach()
    assert float(classification) == pytest.approx(float(arrays["loss_cls"]), rel=1e-6)
    assert float(clustering) == pytest.approx(float(arrays["loss_clustering"]), rel=1e-6)
    has_goal = (goals[:, 2:] > goals[:, :2]).all(1)
    foreground = labels < space.background
    if np.isfinite(arrays["loss_box_reg"]):
        assert float(box) == pytest.approx(float(arrays["loss_box_reg"]), rel=1e-6)
        assert bool(has_goal[foreground].all())
    else:
        assert not has_goal[foreground].all()
        wanted_box = slow_l1(deltas.detach(), boxes, goals, labels, foreground & has_goal, arrays["bbox_weights"])
        assert float(box) == pytest.approx(wanted_box, rel=1e-6)
        assert deltas.grad is not None and not deltas.grad[~has_goal].any()
    for name, values in (("logits", logits), ("deltas", deltas), ("features", features)):
        wanted = torch.from_numpy(arrays[f"grad_{name}"])
        compared = slice(None) if name != "deltas" else has_goal | ~foreground
        assert values.grad is not None
        torch.testing.assert_close(values.grad[compared], wanted[compared], atol=1e-6, rtol=1e-6, msg=name)
