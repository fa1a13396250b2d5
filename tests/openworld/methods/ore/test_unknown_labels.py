"""Auto-labelling against a slow loop and the arrays of the reference code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.ore.options import UnknownLabelOptions
from openworld.methods.ore.unknown_labels import label_unknowns, spread_per_image, top_per_image
from openworld.structures import Regions

ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[3] / "oracles")) / "autolabel"
UNKNOWN, BACKGROUND = 3, 4


def files(*, full: bool) -> list[Any]:
    found = [path for path in sorted(ORACLES.glob("*.npz")) if path.stem.startswith("full_") == full]
    return [pytest.param(path, id=path.stem) for path in found]


def label(labels: Tensor, objectness: Tensor, **fields: Any) -> Tensor:
    """Labels of regions; the head has ``num_known`` known classes, then unknown and background."""
    count = len(labels)
    image_sizes = fields.pop("image_sizes", None)
    regions = Regions(
        fields.pop("boxes", torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(count, 4)),
        fields.pop("image_index", torch.zeros(count, dtype=torch.int64)),
        objectness,
        fields.pop("iou", torch.zeros(count)),
        labels,
    )
    space = LabelSpace.of([[f"class {row}" for row in range(fields.pop("num_known", UNKNOWN))]], 1)
    return label_unknowns(regions, space, UnknownLabelOptions(**fields), image_sizes)


@settings(max_examples=60, deadline=None)
@given(
    regions=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(-3, 3), st.sampled_from([0.0, 0.4, 0.6])),
        max_size=30,
    ),
    per_image=st.integers(0, 4),
)
def test_against_a_slow_loop(regions: list[tuple[int, int, int, float]], per_image: int) -> None:
    wanted = [row for _, row, _, _ in regions]
    for image in range(3):
        pool = [n for n, (i, row, _, iou) in enumerate(regions) if i == image and row == BACKGROUND and iou < 0.5]
        for number in sorted(pool, key=lambda n: -regions[n][2])[:per_image]:
            wanted[number] = UNKNOWN
    got = label(
        torch.tensor([row for _, row, _, _ in regions], dtype=torch.int64),
        torch.tensor([float(score) for _, _, score, _ in regions]),
        image_index=torch.tensor([image for image, _, _, _ in regions], dtype=torch.int64),
        iou=torch.tensor([iou for _, _, _, iou in regions]),
        per_image=per_image,
    )
    assert got.tolist() == wanted


def test_filters() -> None:
    labels = torch.full((5,), BACKGROUND)
    objectness = torch.tensor([5.0, 4.0, 3.0, 2.0, torch.inf])
    boxes = torch.tensor([[0.0, 0, 90, 90], [0, 0, 2, 50], [0, 0, 20, 20], [0, 0, 20, 20], [0, 0, 20, 20]])
    sizes = torch.tensor([[100, 100]])
    marked = {"boxes": boxes, "per_image": 5, "image_sizes": sizes}

    def rows(**fields: Any) -> list[int]:
        return (label(labels, objectness, **marked, **fields) == UNKNOWN).nonzero()[:, 0].tolist()

    assert rows() == [0, 1, 2, 3]  # the ground-truth box, with infinite objectness, never
    assert rows(min_objectness=3.0) == [0, 1, 2]
    assert rows(min_side_px=10.0) == [0, 2, 3]
    assert rows(max_area_fraction=0.5) == [1, 2, 3]
    marked["image_sizes"] = None
    with pytest.raises(ConfigError, match="max_area_fraction"):
        rows(max_area_fraction=0.5)


def test_input_is_not_changed_and_nan_is_no_candidate() -> None:
    labels = torch.tensor([BACKGROUND, BACKGROUND, 0])
    objectness = torch.tensor([torch.nan, -9.0, 9.0])
    before = labels.clone()
    assert label(labels, objectness).tolist() == [BACKGROUND, UNKNOWN, 0]
    assert torch.equal(labels, before)


def test_minus_one_is_below_every_probability_but_not_below_every_logit() -> None:
    """Region 0 is foreground; both background logits are below -1."""
    labels, objectness = torch.tensor([0, BACKGROUND, BACKGROUND]), torch.tensor([9.0, -4.0, -3.0])
    fields = {"foreground": "logit_minus_one", "per_image": 1}
    assert label(labels, objectness, **fields).tolist() == [UNKNOWN, BACKGROUND, BACKGROUND]
    assert label(labels, objectness, score="probability", **fields).tolist() == [0, BACKGROUND, UNKNOWN]
    fields["per_image"] = 3  # more than there is background
    assert label(labels, objectness, score="probability", **fields).tolist() == [UNKNOWN] * 3


def test_probabilities_rank_as_logits_do() -> None:
    labels, objectness = torch.full((5,), BACKGROUND), torch.tensor([-2.0, 3.0, torch.inf, 1.0, -7.0])
    for score in ("logit", "probability"):
        got = label(labels, objectness, score=score, per_image=2, min_objectness=0.0)
        assert (got == UNKNOWN).nonzero()[:, 0].tolist() == [1, 3]


def test_images_need_not_be_in_order() -> None:
    image_index = torch.tensor([1, 0, 1, 0, 1])
    chosen = top_per_image(torch.tensor([1.0, 2, 3, 4, 3]), torch.ones(5, dtype=torch.bool), image_index, 1)
    assert chosen.tolist() == [False, False, True, True, False]


@pytest.mark.oracle
@pytest.mark.parametrize("path", files(full=False))
def test_reference_cases(path: Path) -> None:
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    background = int(arrays["num_classes"])
    classes = torch.from_numpy(arrays["gt_classes"])
    matched = torch.from_numpy(arrays["matched_labels"]).long()
    labels = torch.full((len(matched),), background)
    if len(classes):
        labels = classes[torch.from_numpy(arrays["matched_idxs"])]
        labels = labels.masked_fill(matched == 0, background).masked_fill(matched == -1, -1)
    objectness = torch.from_numpy(arrays["objectness_logits"])
    options = {
        "num_known": background - 1,
        "per_image": int(arrays["unk_k"]),
        "foreground": "logit_minus_one",
    }
    if str(arrays.get("raises", "")):
        # The reference fails for k = 0 and for no proposals at all: ours relabels nothing.
        assert torch.equal(label(labels, objectness, **options), labels)
        return
    sampled = torch.from_numpy(arrays["sampled_idxs"])
    got = label(labels[sampled], objectness[sampled], **options)
    assert got.tolist() == arrays["sampled_classes"].tolist()


def iou_matrix(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inter = np.clip(bottom_right - top_left, 0, None).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, others)]
    return inter / (areas[0][:, None] + areas[1][None] - inter)


@pytest.mark.oracle
@pytest.mark.parametrize("path", files(full=True))
def test_reference_from_boxes(path: Path) -> None:
    """The sampled boxes are taken as given; their matching is done anew, then all images are labelled in one call."""
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    background = int(arrays["num_classes"])
    labels, objectness, image_index, wanted = [], [], [], []
    for image in range(int(arrays["n_images"])):
        boxes, annotated = arrays[f"out{image}_boxes"], arrays[f"in{image}_gt_boxes"]
        rows = np.full(len(boxes), background)
        if len(annotated):
            iou = iou_matrix(boxes.astype(np.float64), annotated.astype(np.float64))
            best = arrays[f"in{image}_gt_classes"][iou.argmax(1)]
            rows = np.where(iou.max(1) >= 0.5, best, background)
        labels.append(torch.from_numpy(rows).long())
        objectness.append(torch.from_numpy(arrays[f"out{image}_objectness"]))
        image_index.append(torch.full((len(boxes),), image))
        wanted += arrays[f"out{image}_classes"].tolist()
    got = label(
        torch.cat(labels),
        torch.cat(objectness),
        image_index=torch.cat(image_index),
        num_known=background - 1,
        per_image=int(arrays["unk_k"]),
        foreground="logit_minus_one",
    )
    assert got.tolist() == wanted


def test_spread_by_hand() -> None:
    """Two images; in the first two places. Neighbours of a chosen region join it, and no second choice falls there."""
    boxes = torch.tensor(
        [
            [0, 0, 10, 10],  # best of image 0
            [1, 0, 11, 10],  # IoU 0.82 with it: joins, though it is the second best
            [50, 50, 60, 60],  # second place
            [50, 50, 60, 68],  # IoU 0.56 with the second place: joins
            [50, 50, 60, 78],  # IoU 0.36: stays background
            [80, 80, 90, 90],  # third place: not chosen with per_image = 2
            [0, 0, 10, 10],  # image 1, no candidate: stays
            [5, 5, 15, 15],  # image 1: its only candidate
        ],
        dtype=torch.float32,
    )
    scores = torch.tensor([9.0, 8, 5, 1, 1, 4, 9, -3])
    image = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    candidates = torch.tensor([True] * 6 + [False, True])
    chosen = spread_per_image(scores, candidates, boxes, image, 2, 0.5)
    assert chosen.tolist() == [True, True, True, True, False, False, False, True]
    assert not spread_per_image(scores, torch.zeros_like(candidates), boxes, image, 2, 0.5).any()
    assert not spread_per_image(scores, candidates, boxes, image, 0, 0.5).any()
    assert spread_per_image(scores[:0], candidates[:0], boxes[:0], image[:0], 2, 0.5).shape == (0,)


def test_spread_of_exact_duplicates_only_is_the_top_rule() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(40, 4, generator=generator) * 50
    boxes[:, 2:] += boxes[:, :2] + 1
    scores, image = torch.rand(40, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    candidates = torch.rand(40, generator=generator) > 0.3
    expected = top_per_image(scores, candidates, image, 3)
    assert torch.equal(spread_per_image(scores, candidates, boxes, image, 3, 1.0), expected)
