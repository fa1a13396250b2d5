"""From logits and deltas to detections: cases by hand, and the arrays of the reference code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import boxes as box_ops

from openworld.engines.roi_inference import candidates_of_regions, suppress, suppress_across
from openworld.engines.roi_losses import BOX_WEIGHTS

ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[2] / "oracles")) / "losses"


def test_candidates_by_hand() -> None:
    """Rows: 0 known, 1 a future class, 2 unknown, 3 background."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 0.5, 9], [0, 0, torch.inf, 9], [5, 5, 9, 9]])[:, None]
    scores = torch.tensor([[0.3, 0.3, 0.3, 0.1], [0.9, 0.0, 0.1, 0.0], [0.9, 0.0, 0.1, 0.0], [0.2, 0.5, 0.3, 0.0]])
    region, row, found = candidates_of_regions(boxes, scores, (0, 2), score_threshold=0.2, min_side_px=1.0)
    assert list(zip(region.tolist(), row.tolist(), strict=True)) == [(0, 0), (0, 2), (3, 2)]  # 0.2 is not above 0.2
    assert found.tolist() == [[0, 0, 9, 9], [0, 0, 9, 9], [5, 5, 9, 9]]
    region, _, _ = candidates_of_regions(boxes, scores, (0, 2), score_threshold=0.2, min_side_px=0.0)
    assert region.tolist() == [0, 0, 1, 3]
    none = candidates_of_regions(boxes[:0], scores[:0], (0, 2), score_threshold=0.2, min_side_px=1.0)
    assert [tuple(part.shape) for part in none] == [(0,), (0,), (0, 4)]


def test_a_candidate_has_the_box_of_its_row() -> None:
    boxes = torch.arange(24.0).reshape(2, 3, 4)
    boxes[1, 2, 2:] = boxes[1, 2, :2]  # empty, of row 2 only
    scores = torch.full((2, 4), 0.25)
    region, row, found = candidates_of_regions(boxes, scores, (0, 2), score_threshold=0.0, min_side_px=1.0)
    assert list(zip(region.tolist(), row.tolist(), strict=True)) == [(0, 0), (0, 2), (1, 0)]
    assert torch.equal(found, torch.stack([boxes[0, 0], boxes[0, 2], boxes[1, 0]]))


def test_suppression_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 1, 10, 11], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.6, 0.9, 0.8, 0.7]), torch.tensor([0, 0, 2, 1])

    def kept(cross_nms_iou: float, most: int = 9) -> list[int]:
        chosen = suppress(boxes, scores, labels, unknown=2, nms_iou=0.5, cross_nms_iou=cross_nms_iou, most=most)
        return chosen.tolist()  # type: ignore[no-any-return]

    assert kept(1.0) == [1, 2, 3] and kept(0.5) == [1, 3] and kept(0.5, most=1) == [1]
    nothing = suppress(boxes[:0], scores[:0], labels[:0], unknown=2, nms_iou=0.5, cross_nms_iou=0.5, most=9)
    assert nothing.shape == (0,)


def test_suppression_across_known_and_unknown_by_hand() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [1, 0, 11, 10], [50, 50, 60, 60]], dtype=torch.float32)
    side = torch.tensor([0, 1, 0, 1])  # the second gives way to the first; the third is of the first's side
    assert suppress_across(boxes, side, 0.5).tolist() == [0, 2, 3]
    assert suppress_across(boxes[:0], side[:0], 0.5).tolist() == []


def cases() -> list[Any]:
    found = sorted(ORACLES.glob("*.npz"))
    return [pytest.param(path, id=path.stem) for path in found if "kept_roi" in np.load(path).files]


@pytest.mark.oracle
@pytest.mark.parametrize("path", cases())
def test_reference_detections(path: Path) -> None:
    """All rows may be detected, and known and unknown suppress each other nowhere, as in the reference code."""
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    logits, deltas = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["deltas"])
    background = logits.shape[1] - 1
    height, width = arrays["image_size"].tolist()
    decoded = BoxCoder(weights=BOX_WEIGHTS).decode_single(deltas, torch.from_numpy(arrays["proposals"]))
    boxes = box_ops.clip_boxes_to_image(decoded.reshape(len(deltas), -1, 4), (height, width))
    scores = logits.softmax(1)
    region, row, found = candidates_of_regions(
        boxes, scores, range(background), score_threshold=float(arrays["score_thresh"]), min_side_px=0.0
    )
    most = int(arrays["topk"])
    kept = suppress(
        found,
        scores[region, row],
        row,
        unknown=background - 1,
        nms_iou=float(arrays["nms_thresh"]),
        cross_nms_iou=1.0,
        most=most if most >= 0 else len(row),
    )
    region, row, found = region[kept], row[kept], found[kept]
    assert region.tolist() == arrays["kept_roi"].tolist()
    assert row.tolist() == arrays["classes"].tolist()
    torch.testing.assert_close(scores[region, row], torch.from_numpy(arrays["scores"]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found, torch.from_numpy(arrays["boxes"]), atol=1e-4, rtol=1e-6)
    assert torch.equal(logits[region, :background], torch.from_numpy(arrays["det_logits"]))
