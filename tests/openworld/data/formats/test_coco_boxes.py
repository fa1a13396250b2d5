"""The box of a COCO annotation without one: from its polygon, from its mask, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from openworld.data.formats.coco import read_coco
from openworld.errors import AnnotationError
from openworld.records import Dataset

WIDTH, HEIGHT = 60, 50
NO_BOX = "dropped: no bbox, and no polygon or mask to take it from"
NO_MASK = "dropped: mask that is empty or not one of the image"
KEYPOINTS = "dropped: keypoints without a bbox"
GOOD: dict[str, Any] = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0}


def read(folder: Path, *annotations: dict[str, Any], **image: Any) -> Dataset:
    """A file with one image and these annotations; ``image`` changes its record."""
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, **image}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"image_id": 1, "category_id": 1, "id": number, **entry} for number, entry in enumerate(annotations)
        ],
    }
    (folder / "set.json").write_text(json.dumps(content))
    return read_coco(folder / "set.json")


@pytest.mark.parametrize("bbox", [{}, {"bbox": None}, {"bbox": []}, {"bbox": [None] * 4}, {"bbox": [0, 0, 0, 0]}])
@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ([[5, 6, 20.5, 6, 20.5, 30, 5, 30]], [5, 6, 20.5, 30]),
        ([[5, 6, 20, 6, 20, 30], [40, 2, 50, 2, 50, 9]], [5, 2, 50, 30]),  # two parts of one object
        ([5, 6, 20, 6, 20, 30], [5, 6, 20, 30]),  # not in a list
        ([[5, 6], [20, 6], [20, 30]], [5, 6, 20, 30]),  # points
        ([[[5, 6], [20, 6], [20, 30]]], [5, 6, 20, 30]),
        ([[], [5, 6, 20, 6, 20, 30]], [5, 6, 20, 30]),
    ],
)
def test_box_of_a_polygon(tmp_path: Path, bbox: dict[str, Any], shape: Any, box: list[float]) -> None:
    dataset = read(tmp_path, GOOD, {**bbox, "segmentation": shape})
    assert dataset.boxes.tolist() == [[1, 2, 11, 22], box]
    assert dataset.repairs.counts == {"bbox taken from the polygon": 1}
    assert f"{tmp_path / 'set.json'}, annotation 1" in dataset.repairs.examples[0]


def masks() -> list[NDArray[np.uint8]]:
    """Masks of one pixel, of a whole image, of the last column, of several parts, and at random."""
    rng = np.random.default_rng(0)
    found = [np.zeros((HEIGHT, WIDTH), dtype=np.uint8) for _ in range(4)]
    found[0][7, 9] = 1
    found[1][:] = 1
    found[2][3:, -1] = 1
    found[3][5:9, 4:8] = found[3][30:33, 40:58] = 1
    for _ in range(40):
        left, right = sorted(rng.integers(0, WIDTH + 1, 2).tolist())
        top, bottom = sorted(rng.integers(0, HEIGHT + 1, 2).tolist())
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < rng.choice([0.05, 0.5, 1.0])
        found += [mask] if mask.any() else []
    return found


def run_lengths(mask: NDArray[np.uint8]) -> list[int]:
    """Lengths of runs of 0, 1, 0, … down the columns, one pixel after the other."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("compressed", [False, True])
def test_box_of_a_mask(tmp_path: Path, compressed: bool) -> None:
    entries, boxes = [], []
    for mask in masks():
        encoded = coco_mask.encode(np.asfortranarray(mask))
        counts = encoded["counts"].decode() if compressed else run_lengths(mask)
        entries.append({"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}, "bbox": None})
        x, y, width, height = coco_mask.toBbox(encoded).tolist()
        boxes.append([x, y, x + width, y + height])
    dataset = read(tmp_path, *entries)
    assert dataset.boxes.tolist() == boxes and len(boxes) > 30
    assert dataset.repairs.counts == {"bbox taken from the mask": len(boxes)}


def test_a_mask_of_a_large_image(tmp_path: Path) -> None:
    """Runs of more than 16 bits, and differences that are negative."""
    mask = np.zeros((3000, 4000), dtype=np.uint8)
    mask[1000:1010, 1500:1503] = mask[2500:2900, 3990:] = mask[20:40, 3995] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    shape = {"segmentation": {"size": [3000, 4000], "counts": counts}}
    assert read(tmp_path, shape, width=4000, height=3000).boxes.tolist() == [[1500, 20, 4000, 2900]]
    assert read(tmp_path, shape, width=None).boxes.tolist() == [[1500, 20, 4000, 2900]]


def test_a_crowd_without_a_bbox_stays_a_crowd(tmp_path: Path) -> None:
    shape = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT + 5, 10, HEIGHT * WIDTH - HEIGHT - 15]}
    dataset = read(tmp_path, GOOD, {"bbox": None, "iscrowd": 1, "segmentation": shape})
    assert dataset.boxes.tolist()[1] == [1, 5, 2, 15] and dataset.crowd.tolist() == [False, True]


ALL = HEIGHT * WIDTH


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({}, NO_BOX),
        ({"bbox": []}, NO_BOX),
        ({"bbox": None, "segmentation": []}, NO_BOX),
        ({"segmentation": [[]]}, NO_BOX),
        ({"segmentation": [[5, 6, 20, 30]]}, NO_BOX),  # a box or two points: nobody knows
        ({"segmentation": [[5, 6, 20, 30, 7]]}, NO_BOX),
        ({"segmentation": [["a", 6, 20, 30, 7, 8]]}, NO_BOX),
        ({"segmentation": None, "keypoints": [5, 6, 2, 20, 30, 2], "num_keypoints": 2}, KEYPOINTS),
        ({"segmentation": {}}, NO_MASK),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [5, 5, ALL - 10]}}, NO_MASK),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 5, 6]}}, NO_MASK),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [ALL]}}, NO_MASK),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [-5, 5, ALL]}}, NO_MASK),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "ooo"}}, NO_MASK),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "\u00e9"}}, NO_MASK),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": ""}}, NO_MASK),
    ],
)  # fmt: skip
def test_without_a_box_one_annotation_is_dropped(tmp_path: Path, entry: dict[str, Any], kind: str) -> None:
    dataset = read(tmp_path, GOOD, entry)
    assert dataset.boxes.tolist() == [[1, 2, 11, 22]] and dataset.repairs.counts == {kind: 1}


def test_a_polygon_beyond_the_image_is_clipped_and_one_that_is_not_finite_dropped(tmp_path: Path) -> None:
    dataset = read(
        tmp_path,
        {"segmentation": [[50, 40, 80, 40, 80, 45]]},
        {"segmentation": [[5, 6, float("nan"), 6, 20, 30]]},
        {"segmentation": [[5, 6, 10**400, 6, 20, 30]]},
    )
    assert dataset.boxes.tolist() == [[50, 40, 60, 45]]
    assert dataset.repairs.counts["dropped: coordinate not finite"] == 2


def test_a_bbox_wins_over_its_polygon(tmp_path: Path) -> None:
    """Tools simplify polygons; and a box without area is dropped as before."""
    shape = [[30, 30, 40, 30, 40, 40]]
    dataset = read(tmp_path, {**GOOD, "segmentation": shape}, {"bbox": [3, 3, 0, 0], "segmentation": shape})
    assert dataset.boxes.tolist() == [[1, 2, 11, 22]] and dataset.repairs.counts == {"dropped: without area": 1}


@pytest.mark.parametrize(
    "entries",
    [
        [{"keypoints": [5, 6, 2]}, {"keypoints": [5, 6, 2]}],
        [{"caption": "a cat"}],
        [{"segmentation": {"size": [7, 7], "counts": [1, 2, 46]}}],
    ],
)
def test_a_file_without_any_box_is_refused(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    with pytest.raises(
        AnnotationError, match=rf"set\.json: none of its {len(entries)} annotations has a box"
    ) as caught:
        read(tmp_path, *entries)
    assert "\nWhat to do: give a detection file" in str(caught.value)


def test_a_panoptic_file_is_refused(tmp_path: Path) -> None:
    segments = {"file_name": "a.png", "segments_info": [{"id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]}
    with pytest.raises(AnnotationError, match=r"set\.json: is a panoptic COCO file") as caught:
        read(tmp_path, segments)
    assert "instances_train2017.json" in str(caught.value)


CORNERS = [(3, 4, 23, 14), (0, 0, 10, 10), (30, 20, 50, 45), (5, 5, 8.5, 40)]


def with_area(kind: str, box: tuple[float, ...]) -> dict[str, Any]:
    """An annotation of corners, written as corners or as COCO has it, with its area or that of a mask."""
    x1, y1, x2, y2 = box
    sides = (x2 - x1) * (y2 - y1)
    if kind == "corners":
        return {"bbox": [x1, y1, x2, y2], "area": sides}
    return {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": sides if kind == "coco" else 0.6 * sides}


def test_corners_that_their_areas_betray_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"bbox of its annotations is \[x1, y1, x2, y2\]") as caught:
        read(tmp_path, *[with_area("corners", box) for box in CORNERS])
    assert "as of [3, 4, 23, 14]" in str(caught.value)


@pytest.mark.parametrize("kind", ["coco", "mask"])
def test_areas_of_a_proper_file_betray_nothing(tmp_path: Path, kind: str) -> None:
    assert read(tmp_path, *[with_area(kind, box) for box in CORNERS]).boxes.tolist() == [[*box] for box in CORNERS]


@pytest.mark.parametrize("area", [None, "200", float("nan"), 10**400, -1, 0])
def test_areas_that_say_nothing(tmp_path: Path, area: Any) -> None:
    dataset = read(tmp_path, *[{**with_area("coco", box), "area": area} for box in CORNERS])
    assert dataset.boxes.tolist() == [[*box] for box in CORNERS]


def test_one_annotation_of_another_order_is_no_proof(tmp_path: Path) -> None:
    mixed = [*[with_area("corners", box) for box in CORNERS], with_area("coco", (10, 10, 20, 30))]
    assert len(read(tmp_path, *mixed).boxes) == 5


@pytest.mark.parametrize("area", ["none", "product"])
def test_corners_that_leave_the_image_as_sides_are_refused(tmp_path: Path, area: str) -> None:
    """Without areas, or with those that a tool computed of the same numbers."""
    boxes = [(30, 20, 50, 45), (5, 5, 9, 40), (20, 30, 55, 50), (40, 0, 60, 12), (0, 0, 8, 9)]
    entries = [{"bbox": [*box], **({"area": box[2] * box[3]} if area == "product" else {})} for box in boxes]
    with pytest.raises(AnnotationError, match=r"seems to be \[x1, y1, x2, y2\]: .* 3 of 5 leave their image") as caught:
        read(tmp_path, *entries)
    assert "[30, 20, 50, 45] of 60x50 pixels\nWhat to do: write bbox as [x, y, width, height]" in str(caught.value)


def test_boxes_that_leave_the_image_are_no_corners(tmp_path: Path) -> None:
    """Two of them only; or many, of which some can be no corners."""
    large = [[1, 2, 70, 60], [3, 4, 58, 60]]
    assert len(read(tmp_path, *[{"bbox": box} for box in large]).boxes) == 2
    right = [[40, 10, 30, 20], [50, 10, 15, 9]]
    assert len(read(tmp_path, *[{"bbox": box} for box in [*large, [2, 3, 59, 70], *right]]).boxes) == 5
