"""The synthetic world: same seed, same bytes; boxes are where the objects are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from openworld.data.formats.read import read_dataset
from openworld.data.options import DataOptions, SyntheticOptions
from openworld.data.splits import check_schedule
from openworld.data.synthetic import (
    CATEGORIES,
    DEFAULT_TASKS,
    SHAPES,
    Look,
    Scene,
    draw_object,
    draw_scene,
    make_world,
    pretrain_folder,
    world_sources,
)
from openworld.errors import ConfigError
from openworld.runtime.seeding import numpy_generator

SMALL = SyntheticOptions(train_images=5, val_images=2, test_images=3, pretrain_images=2, size=96, seed=3)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(numpy_generator("scene", number), 128) for number in range(30)]


def test_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    make_world(tmp_path / "a", SMALL)
    make_world(tmp_path / "b", SMALL)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    assert len(first) == 5 + 2 + 3 + 2 + 4
    other = SyntheticOptions(**{**vars(SMALL), "seed": 4})
    make_world(tmp_path / "c", other)
    assert first["images/train/000000.jpg"] != digests(tmp_path / "c")["images/train/000000.jpg"]


def test_complete_world_is_left_alone_and_another_one_replaced(tmp_path: Path) -> None:
    make_world(tmp_path, SMALL)
    image = tmp_path / "images/train/000000.jpg"
    before = digests(tmp_path)
    image.write_bytes(b"touched")
    make_world(tmp_path, SMALL)
    assert image.read_bytes() == b"touched"
    smaller = SyntheticOptions(**{**vars(SMALL), "train_images": 2, "pretrain_images": 0})
    make_world(tmp_path, smaller)
    assert digests(tmp_path)["images/train/000000.jpg"] == before["images/train/000000.jpg"]
    assert len(list((tmp_path / "images/train").iterdir())) == 2
    assert pretrain_folder(tmp_path, smaller).name == "train" and pretrain_folder(tmp_path, SMALL).name == "pretrain"
    (tmp_path / "world.json").write_text("{")
    make_world(tmp_path, smaller)
    assert json.loads((tmp_path / "world.json").read_text())["options"]["train_images"] == 2


def test_written_world_reads_without_repairs(tmp_path: Path) -> None:
    make_world(tmp_path, SMALL)
    datasets = [read_dataset(source) for source in world_sources(tmp_path)]
    assert [len(dataset) for dataset in datasets] == [5, 2, 3]
    assert all(dataset.categories == CATEGORIES and not dataset.repairs.counts for dataset in datasets)
    ids = [record.image_id for dataset in datasets for record in dataset]
    assert len(set(ids)) == 10
    check_schedule(DataOptions().tasks, *datasets)


def test_three_categories_belong_to_no_task() -> None:
    known = [name for names in DEFAULT_TASKS for name in names]
    assert len(CATEGORIES) == 12 and len(known) == len(set(known)) == 9 and set(known) < set(CATEGORIES)


def test_boxes_are_the_extents_of_what_is_visible(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (128, 128, 3) and scene.image.dtype == np.uint8
        assert 1 <= len(scene.boxes) == len(scene.categories) == len(scene.visible) <= 5
        for box, mask in zip(scene.boxes, scene.visible, strict=True):
            for coverage, tolerance in ((0.45, 1.5), (0.25, 5.0)):  # a tip fades out over a few pixels
                rows, columns = np.nonzero(mask > coverage)
                extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                np.testing.assert_allclose(box, extent, atol=tolerance)
            assert (box >= 0).all() and (box <= 128).all()
            assert mask.sum() > 40 and (box[2:] - box[:2]).max() >= 12
        assert scene.visible.sum(axis=0).max() <= 1.001


def test_all_categories_appear_and_sizes_vary(scenes: list[Scene]) -> None:
    assert set(np.concatenate([scene.categories for scene in scenes])) == set(range(12))
    boxes = np.concatenate([scene.boxes for scene in scenes])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert longer.min() < 30 and longer.max() > 50


@pytest.mark.parametrize("name", CATEGORIES)
def test_object_is_drawn_inside_its_patch(name: str) -> None:
    light = np.array([0.4, -0.5, 0.77])
    look = Look(np.array([0.9, 0.2, 0.1]), np.array([0.2, 0.2, 0.9]), "plain", 0.0, 0.5, light)
    color, coverage = draw_object(name, 20 * np.eye(2), look, np.random.default_rng(0))
    assert color.shape == (*coverage.shape, 3) and color.min() >= 0 and color.max() <= 1
    border = np.concatenate([coverage[0], coverage[-1], coverage[:, 0], coverage[:, -1]])
    assert border.max() == 0 and coverage.max() == 1
    points = np.array([point for outline in SHAPES[name].fill for point in outline]) * 20 + coverage.shape[0] / 2
    rows, columns = np.nonzero(coverage > 0.02)
    extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(extent, [*points.min(axis=0), *points.max(axis=0)], atol=1.5)


def test_shape_tells_the_categories_apart_without_colour() -> None:
    """In one grey, any two differ in outline; ball and cube, both nearly round, in how they take light."""
    light = np.array([-0.4, -0.47, 0.79])
    look = Look(np.full(3, 0.8), np.full(3, 0.8), "plain", 0.0, 0.0, light)
    outlines, faces = [], []
    for name in CATEGORIES:
        color, coverage = draw_object(name, 20 * np.eye(2), look, np.random.default_rng(0))
        spare = 26 - coverage.shape[0] // 2
        outlines.append(np.pad(coverage, spare))
        faces.append(np.pad(color.mean(axis=-1) * coverage, spare))
    for one in range(12):
        for other in range(one):
            pair = {CATEGORIES[one], CATEGORIES[other]}
            either = np.maximum(outlines[one], outlines[other]).sum()
            overlap = np.minimum(outlines[one], outlines[other]).sum() / either
            assert overlap < (0.95 if pair == {"ball", "cube"} else 0.75), pair
            assert np.abs(faces[one] - faces[other]).sum() / either > 0.12, pair


def test_options_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"^SyntheticOptions\.train_images is 0"):
        SyntheticOptions(train_images=0)
    with pytest.raises(ConfigError, match=r"^SyntheticOptions\.size is 8"):
        SyntheticOptions(size=8)
    with pytest.raises(ConfigError, match=r"^DataOptions\.train\.annotations is missing"):
        DataOptions(synthetic=None)
