"""Opened sets: a run's own, drawn or from files; those to score and those to audit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from openworld.config import RunConfig
from openworld.configfile import dump_config
from openworld.data.options import DataOptions, SourceOptions, SyntheticOptions
from openworld.errors import ConfigError, DataError
from openworld.run import sources
from openworld.run.sources import open_ground_truth, open_sources, open_split, open_test, pretraining_world
from ssl_backbones.options import PretrainOptions

TASKS = [["cat"], ["dog"]]
COLOURS = {"cat": (250, 0, 0), "dog": (0, 250, 0), "kite": (0, 0, 250)}
BOX = (20, 10, 20, 20)
"""Left, top, width and height of the object of each image, in its colour on black."""


def write_set(folder: Path, name: str, classes: list[str]) -> Path:
    """A COCO file with one image per entry of ``classes``, 60x50 pixels."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = list(COLOURS)
    for number, category in enumerate(classes):
        pixels = np.zeros((50, 60, 3), dtype=np.uint8)
        left, top, width, height = BOX
        pixels[top : top + height, left : left + width] = COLOURS[category]
        Image.fromarray(pixels).save(folder / "images" / f"{name}{number}.png")
    content = {
        "images": [
            {"id": f"{name}{number}", "file_name": f"{name}{number}.png", "width": 60, "height": 50}
            for number in range(len(classes))
        ],
        "categories": [{"id": 10 + number, "name": category} for number, category in enumerate(names)],
        "annotations": [
            {"id": number, "image_id": f"{name}{number}", "category_id": 10 + names.index(category), "bbox": list(BOX)}
            for number, category in enumerate(classes)
        ],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Files of a user: twelve training images, three for testing, none held out."""
    train = write_set(tmp_path / "data", "train", ["cat", "dog", "kite"] * 4)
    test = write_set(tmp_path / "data", "test", ["cat", "dog", "kite"])
    data = DataOptions(
        tasks=TASKS,
        synthetic=None,
        train=SourceOptions(annotations=str(train)),
        test=SourceOptions(annotations=str(test)),
        held_out_fraction=0.25,
    )
    return RunConfig(data=data)


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> Path:
    """A folder of a run with that configuration."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    return folder


def ids(dataset: Any) -> list[str]:
    return [str(record.image_id) for record in dataset]


def test_images_are_held_out_of_training_where_no_file_holds_them(config: RunConfig, tmp_path: Path) -> None:
    opened = open_sources(config, tmp_path)
    assert ids(opened.test) == ["test0", "test1", "test2"]
    assert ids(opened.held_out) == [f"train{number}" for number in (1, 2, 4, 6, 7, 11)]  # on every machine
    assert sorted(ids(opened.held_out) + ids(opened.train)) == sorted(f"train{number}" for number in range(12))
    assert {name: part["images"] for name, part in opened.summary().items()} == {"train": 6, "held_out": 6, "test": 3}


def test_a_set_to_hold_out_leaves_training_whole(config: RunConfig, tmp_path: Path) -> None:
    config.data.val = SourceOptions(annotations=str(write_set(tmp_path / "data", "val", ["dog"])))
    opened = open_sources(config, tmp_path)
    assert len(ids(opened.train)) == 12 and ids(opened.held_out) == ["val0"]


def test_a_class_that_no_set_has_is_refused(config: RunConfig, tmp_path: Path) -> None:
    config.data.tasks = [["cat"], ["dgo"]]
    with pytest.raises(DataError, match="did you mean 'dog'"):
        open_sources(config, tmp_path)


def test_images_for_pretraining(config: RunConfig, tmp_path: Path) -> None:
    """The folder that the options name, else the world's, else those of training, which are never held-out ones."""
    opened = open_sources(config, tmp_path)
    assert opened.pretraining_images(PretrainOptions()) == [record.path for record in opened.train]
    named = tmp_path / "named"
    named.mkdir()
    shutil.copy(tmp_path / "data" / "images" / "test0.png", named / "one.png")
    assert opened.pretraining_images(PretrainOptions(images=str(named))) == [named / "one.png"]
    world = DataOptions(synthetic=small_world(3))
    drawn = open_sources(RunConfig(data=world, pretrain=PretrainOptions()), tmp_path / "drawn")
    assert {path.parent.name for path in drawn.pretraining_images(PretrainOptions())} == {"pretrain"}
    assert drawn.pretraining_images(PretrainOptions(images=str(named))) == [named / "one.png"]
    open_sources(RunConfig(data=world), tmp_path / "without")
    assert not list((tmp_path / "without").rglob("pretrain"))


def small_world(pretrain_images: int) -> SyntheticOptions:
    return SyntheticOptions(train_images=8, val_images=2, test_images=4, pretrain_images=pretrain_images, size=64)


def test_crops_show_the_object_with_a_tenth_around_it(config: RunConfig, tmp_path: Path) -> None:
    """The square around the box is 22 pixels wide, of which the object takes 20: a black border of a twentieth."""
    crops, categories = open_sources(config, tmp_path).labelled_crops(220)
    assert categories == [0, 1, 2] and len(crops) == 3
    for crop, colour in zip(crops, COLOURS.values(), strict=True):
        assert crop.shape == (3, 220, 220) and crop.dtype == torch.uint8
        assert torch.equal(
            crop[:, 20:190, 20:190], torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 170, 170)
        )
        coloured = (crop.sum(0) > 125).double()
        assert 190 <= int(coloured[110].sum()) <= 210 and 190 <= int(coloured[:, 110].sum()) <= 210


def test_crops_are_spread_over_the_set(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.data.test.annotations = str(write_set(tmp_path / "data", "many", ["cat"] * 3 + ["dog"] * 3 + ["kite"] * 3))
    monkeypatch.setattr(sources, "PROBE_CROPS", 4)
    assert open_sources(config, tmp_path).labelled_crops(8)[1] == [0, 1, 2]  # every third


def test_a_world_is_drawn_again_for_its_test_set(tmp_path: Path) -> None:
    config = RunConfig(data=DataOptions(synthetic=small_world(0)))
    before = open_sources(config, tmp_path).test
    shutil.rmtree(tmp_path / "world")
    after = open_test(config, tmp_path)
    assert ids(after) == ids(before) and len(ids(after)) == 4
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one.boxes, other.boxes) and other.path.is_file()


def test_pretraining_alone_has_a_world_and_objects_to_vote_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = RunConfig

    def small(**options: Any) -> RunConfig:
        return made(data=DataOptions(synthetic=small_world(5)), **options)

    monkeypatch.setattr(sources, "RunConfig", small)
    images, (crops, categories) = pretraining_world(tmp_path, PretrainOptions(view_size=16))
    assert len(images) == 5 and all(path.is_file() for path in images)
    assert len(crops) == len(categories) > 4 and all(crop.shape == (3, 16, 16) for crop in crops)


def test_what_predictions_are_scored_on(run: Path, tmp_path: Path) -> None:
    """A run's test set, also without its images; or a file, whose categories have the ids of the file."""
    shutil.rmtree(tmp_path / "data" / "images")
    dataset, schedule, names = open_ground_truth([run], None)
    assert ids(dataset) == ["test0", "test1", "test2"] and names is None
    assert schedule is not None and [list(task) for task in schedule.tasks] == TASKS
    dataset, schedule, names = open_ground_truth([tmp_path / "found.json"], str(tmp_path / "data" / "train.json"))
    assert len(ids(dataset)) == 12 and schedule is None
    assert names == {10: "cat", 11: "dog", 12: "kite"}


def test_nothing_to_score_against(run: Path, tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(ConfigError, match="nothing to score against") as error:
        open_ground_truth([tmp_path / "found.json"], None)
    assert "--ground-truth" in str(error.value)
    (tmp_path / "data" / "test.json").unlink()
    with pytest.raises(DataError, match=r"cannot be opened .*test\.json") as gone:
        open_ground_truth([run], None)
    assert gone.value.where == str(run)


def test_a_split_from_files_or_from_a_configuration(run: Path, tmp_path: Path) -> None:
    named = {name: SourceOptions(annotations=str(tmp_path / "data" / f"{name}.json")) for name in ("train", "test")}
    schedule = tmp_path / "schedule.yaml"
    schedule.write_text(yaml.safe_dump({"tasks": TASKS}))
    sets, tasks = open_split({**named, "val": SourceOptions()}, schedule=str(schedule), config=None)
    assert {name: len(ids(dataset)) for name, dataset in sets.items()} == {"train": 12, "test": 3}
    assert [list(task) for task in tasks] == TASKS
    same, same_tasks = open_split({}, schedule=None, config=str(run / "config.yaml"))
    assert {name: ids(dataset) for name, dataset in same.items()} == {
        name: ids(dataset) for name, dataset in sets.items()
    }
    assert same_tasks == tasks
    assert open_split({"train": named["train"]}, schedule=None, config=None, complete=False)[1] == ()


@pytest.mark.parametrize(
    ("named", "schedule", "config", "message"),
    [
        (
            {"train": SourceOptions(annotations="train.json")},
            "schedule.yaml",
            None,
            "the test set and a schedule are needed",
        ),
        ({"test": SourceOptions(annotations="test.json")}, None, None, "the test set and a schedule are needed"),
        ({"test": SourceOptions(annotations="test.json")}, None, "config.yaml", "a configuration and single sets"),
        ({}, "schedule.yaml", "config.yaml", "a configuration and single sets"),
    ],
)
def test_a_split_that_is_not_one(named: Any, schedule: str | None, config: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_split(named, schedule=schedule, config=config)


def test_a_split_of_nothing_and_of_the_drawn_world(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no annotations are given"):
        open_split({"test": SourceOptions()}, schedule=None, config=None, complete=False)
    (tmp_path / "config.yaml").write_text(dump_config(RunConfig(data=DataOptions(synthetic=small_world(0)))))
    with pytest.raises(ConfigError, match="the data are the synthetic world"):
        open_split({}, schedule=None, config=str(tmp_path / "config.yaml"))


def test_how_pictures_are_decoded_is_in_the_sets_and_doubts_are_said(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One training image has a tag that its size cannot tell, one test image 12 bits in 16."""
    images = tmp_path / "data" / "images"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(images / "train2.png").save(images / "train2.png", exif=exif)
    Image.fromarray(np.full((50, 60), 4095, dtype=np.uint16)).save(images / "test1.png")
    open_sources(config, tmp_path)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("1 of 12 images of train has an EXIF tag") and "(e.g. train2)" in messages[0]
    assert messages[1].startswith("16-bit images of test have no value above 4,095")
    caplog.clear()
    config.data.train.orientation = "upright"
    config.data.loader.white_level = 4095
    sources = open_sources(config, tmp_path)
    assert caplog.records == []
    assert [part.upright for part in (sources.train, sources.held_out, sources.test)] == [True, True, None]
    assert {part.white_level for part in (sources.train, sources.held_out, sources.test)} == {4095}
    assert open_test(config, tmp_path).white_level == 4095
    assert sources.test.find("test1").white_level == 4095


def test_one_orientation_for_named_sets(run: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "data" / "test.json")
    stored = SourceOptions(annotations=path, orientation="stored")
    sets, _ = open_split({"test": stored}, schedule=None, config=None, complete=False)
    assert sets["test"].upright is False
    assert open_ground_truth([], path, orientation="upright")[0].upright is True
    with pytest.raises(ConfigError, match="a configuration and single sets, a schedule or an orientation"):
        open_split({"test": SourceOptions(orientation="upright")}, schedule=None, config=str(run / "config.yaml"))
