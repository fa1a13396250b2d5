"""A run goes on with the data that it began with: moved folders are the same data, every other change is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openworld.config import RunConfig
from openworld.configfile import read_config
from openworld.data.formats.coco import read_coco
from openworld.data.identity import identity_of
from openworld.data.options import DataOptions, ExemplarOptions, SourceOptions
from openworld.engines.options import ModelOptions
from openworld.errors import CheckpointError, ConfigError, DataError
from openworld.records import renamed
from openworld.run import schedule
from openworld.run.folder import Run
from openworld.run.same_data import difference_in_test_set, recorded
from openworld.run.schedule import run_backbone, run_schedule
from openworld.run.sources import open_ground_truth
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.options import PretrainOptions

CLASSES = ("cat", "dog")


def write_set(folder: Path, name: str, images: int) -> Path:
    """A COCO file with a cat on the even and a dog on the odd images, 60x50 pixels."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(images):
        Image.fromarray(np.full((50, 60, 3), number, dtype=np.uint8)).save(folder / "images" / f"{name}{number}.png")
    content = {
        "images": [
            {"id": number, "file_name": f"{name}{number}.png", "width": 60, "height": 50} for number in range(images)
        ],
        "categories": [{"id": 1 + row, "name": category} for row, category in enumerate(CLASSES)],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": [20, 10, 20, 20], "iscrowd": 0}
            for number in range(images)
        ],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder / f"{name}.json"


def change(path: Path, how: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, images in (("train", 12), ("val", 4), ("test", 5)):
        write_set(tmp_path / "data", name, images)
    return tmp_path / "data"


def configured(data: Path, **options: Any) -> RunConfig:
    sets = {name: SourceOptions(annotations=str(data / f"{name}.json")) for name in ("train", "val", "test")}
    return RunConfig(
        data=DataOptions(tasks=[["cat"], ["dog"]], synthetic=None, **sets),
        pretrain=None,
        model=ModelOptions(arch=ResNetOptions(width=1 / 64), device="cpu"),
        **options,
    )


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Start or resume the run in a folder; its tasks leave a line in the log and nothing else."""

    def note(run: Run, task: int) -> dict[str, Any]:
        run.log.append("step", task=task)
        return {"task": task}

    monkeypatch.setattr(schedule, "run_task", note)

    def run(config: RunConfig, *, resume: bool = False) -> Path:
        run_schedule(config, tmp_path / "run", resume=resume)
        return tmp_path / "run"

    return run


def exchange(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        entry["category_id"] = 3 - entry["category_id"]


def first_five(content: dict[str, Any]) -> None:
    content["images"] = content["images"][:5]
    content["annotations"] = content["annotations"][:5]


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("train", first_five, "12 images with 12 annotations of 2 classes then, 5 images with 5 annotations"),
        ("train", exchange, "as then, but others: its class names, or which box has which\n"),
        (
            "train",
            lambda content: content["categories"].extend([{"id": 3, "name": "cow"}]),
            "of 2 classes then, 12 images with 12 annotations of 3 classes now",
        ),
        ("train", lambda content: content["annotations"][3]["bbox"].__setitem__(0, 21), "others: its boxes\n"),
        ("train", lambda content: content["annotations"][3].update(iscrowd=1), "others: its boxes\n"),
        ("train", lambda content: content["images"].reverse(), "others: its images, their order, names or sizes"),
        ("train", lambda content: content["images"][2].update(file_name="val0.png"), "its images, their order"),
        ("val", exchange, "held_out is not the set"),
        ("test", lambda content: content["annotations"].pop(), "test is not the set that the run began with: 5 images"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(
    data: Path, start: Callable[..., Path], name: str, how: Callable[[dict[str, Any]], Any], says: str
) -> None:
    config = configured(data)
    run = start(config)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    change(data / f"{name}.json", how)
    with pytest.raises(DataError) as refused:
        start(config, resume=True)
    assert refused.value.where == str(data / f"{name}.json")
    refused.match(says)
    assert "in another folder" in str(refused.value)
    assert {path: path.read_bytes() for path in before} == before


def test_a_renamed_class_is_another_set(data: Path, start: Callable[..., Path]) -> None:
    """Of a class that no task names, so that the schedule does not notice it."""
    for name in ("train", "val", "test"):
        change(data / f"{name}.json", lambda content: content["categories"].append({"id": 3, "name": "cow"}))
    run = start(configured(data))
    change(data / "train.json", lambda content: content["categories"][2].update(name="ox"))
    with pytest.raises(DataError, match=r"train is not the set .*12 images .* as then, but others: its class names"):
        start(configured(data), resume=True)
    assert recorded(run)["train"]["classes"] == 3


@pytest.mark.parametrize("written_again", [False, True])
def test_what_changes_nothing_is_the_same_data(data: Path, start: Callable[..., Path], written_again: bool) -> None:
    """The same content, written with other spaces, other ids of annotations, and the categories in another order."""
    config = configured(data)
    start(config)
    if written_again:
        for name in ("train", "val", "test"):

            def rewrite(content: dict[str, Any]) -> None:
                content["categories"].reverse()
                for entry in content["annotations"]:
                    entry["id"] += 1000

            change(data / f"{name}.json", rewrite)
            path = data / f"{name}.json"
            path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    start(config, resume=True)


def test_data_that_have_moved_are_the_same(data: Path, start: Callable[..., Path], tmp_path: Path) -> None:
    """The folder has another name, and the command names it; the configuration of the run then names it, too."""
    run = start(configured(data))
    shutil.move(data, tmp_path / "elsewhere" / "sets")
    moved = configured(tmp_path / "elsewhere" / "sets")
    start(moved, resume=True)
    assert read_config(run / "config.yaml").data == moved.data
    change(tmp_path / "elsewhere/sets/train.json", first_five)
    with pytest.raises(DataError, match="train is not the set"):
        start(moved, resume=True)
    with pytest.raises(ConfigError, match=r"train\.steps"):
        changed = configured(tmp_path / "elsewhere" / "sets")
        changed.train.steps += 1
        start(changed, resume=True)


def test_a_list_that_has_moved_is_the_same(data: Path, start: Callable[..., Path], tmp_path: Path) -> None:
    """An image list that lies outside of the set: its content counts, and not its path."""
    for number in range(12):
        file = data / f"voc/Annotations/train{number}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = "<size><width>60</width><height>50</height></size>"
        box = "<bndbox><xmin>21</xmin><ymin>11</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
        name = f"<name>{CLASSES[number % 2]}</name>"
        file.write_text(f"<annotation>{size}<object>{name}{box}</object></annotation>")
    shutil.copytree(data / "images", data / "voc/JPEGImages")

    def listed(path: Path, images: int) -> RunConfig:
        path.write_text("".join(f"train{number}\n" for number in range(images)))
        config = configured(data)
        source = SourceOptions(annotations=str(data / "voc"), image_set=str(path))
        return replace(config, data=replace(config.data, train=source))

    start(listed(tmp_path / "one.txt", 8))
    start(listed(tmp_path / "other.txt", 8), resume=True)
    with pytest.raises(DataError, match="train is not the set"):
        start(listed(tmp_path / "other.txt", 9), resume=True)


def test_a_moved_run_that_noted_no_data_is_refused(data: Path, start: Callable[..., Path], tmp_path: Path) -> None:
    run = start(configured(data))
    (run / "data.json").unlink()
    shutil.copytree(data, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"data\.train\.annotations"):
        start(configured(tmp_path / "copy"), resume=True)


def test_a_run_of_an_older_version_goes_on_with_a_warning(
    data: Path, start: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = start(configured(data))
    (run / "data.json").write_text('{"train": {"images": 9, "annotations": 12, "repairs": {}, "examples": []}}')
    start(configured(data), resume=True)
    assert "not noted which data the run began with" in caplog.text
    assert recorded(run)["train"]["images"] == 12  # from now on it is


def test_other_pictures_under_the_same_names_are_said(
    data: Path, start: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    start(configured(data))
    noise = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(data / "images" / "train3.png")
    with caplog.at_level(logging.WARNING):
        start(configured(data), resume=True)
    assert [record for record in caplog.messages if "the image files of train have" in record]
    assert "the image files of test" not in caplog.text


def test_exemplar_lists_are_data(data: Path, start: Callable[..., Path]) -> None:
    (data / "t2.txt").write_text("1\n2\n")
    config = configured(data, exemplars=ExemplarOptions(list=str(data / "t{task}.txt")))
    start(config)
    start(config, resume=True)
    (data / "t2.txt").write_text("2\n1\n")
    with pytest.raises(DataError, match="the exemplar list of task 2 is not the one"):
        start(config, resume=True)


def test_a_changed_schedule_file_is_another_configuration(data: Path, start: Callable[..., Path]) -> None:
    (data / "schedule.yaml").write_text("tasks: [[cat], [dog]]")

    def config() -> RunConfig:
        found = configured(data)
        sets = {name: getattr(found.data, name) for name in ("train", "val", "test")}
        found.data = DataOptions(tasks=str(data / "schedule.yaml"), synthetic=None, **sets)
        return found

    start(config())
    (data / "schedule.yaml").write_text("tasks: [[dog], [cat]]")
    with pytest.raises(ConfigError, match=r"data\.tasks"):
        start(config(), resume=True)


def test_scoring_says_that_the_test_set_is_another_one(
    data: Path, start: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = start(configured(data))
    open_ground_truth([run], None)
    assert not caplog.text
    change(data / "test.json", exchange)
    test, _, _ = open_ground_truth([run], None)
    assert "the test set is not the one that the run was scored on: 5 images" in caplog.text
    assert "which box has which" in str(difference_in_test_set(run, test))
    (run / "data.json").unlink()
    assert difference_in_test_set(run, test) is None


# -- the backbone of a run ---------------------------------------------------------------------------------------------


def test_a_backbone_in_the_folder_is_not_taken_for_other_images_or_options(data: Path, tmp_path: Path) -> None:
    """As an ablation finds it there. The images of a finished backbone may be gone."""

    def config(**options: Any) -> RunConfig:
        tiny = {"arch": ResNetOptions(width=0.125), "view_size": 16, "steps": 1, "batch_size": 4, **options}
        found = configured(data)
        return RunConfig(data=found.data, pretrain=PretrainOptions(**tiny), model=ModelOptions(device="cpu"))

    folder = tmp_path / "seed0"
    written = run_backbone(config(), folder).stat().st_mtime_ns
    assert run_backbone(config(), folder).stat().st_mtime_ns == written
    with pytest.raises(CheckpointError, match="was made with steps 1, now it is 2"):
        run_backbone(config(steps=2), folder)
    change(data / "train.json", first_five)
    with pytest.raises(CheckpointError, match="was made of other images: 12 files then, 5 now"):
        run_backbone(config(), folder)
    assert run_backbone(config(images=str(tmp_path / "gone")), folder).stat().st_mtime_ns == written


# -- the digests themselves -------------------------------------------------------------------------------------------


def test_identity_is_that_of_the_content(data: Path, tmp_path: Path) -> None:
    """Also through the cache of parsed annotations, with absolute and relative paths, and of images alone."""
    plain = identity_of(read_coco(data / "train.json"))
    shutil.copytree(data, tmp_path / "b" / "c")
    assert identity_of(read_coco(tmp_path / "b" / "c" / "train.json")) == plain
    dataset = read_coco(data / "train.json")
    assert identity_of(dataset.select(np.arange(12))) == plain
    part, rest = identity_of(dataset.select([1, 2])), identity_of(dataset.select([2, 1]))
    assert part["digest"]["images"] != rest["digest"]["images"] and part["images"] == rest["images"] == 2
    assert identity_of(renamed(dataset, {}, ["dog", "cat"])) == plain
    exchanged = identity_of(renamed(dataset, {"dog": "cat", "cat": "dog"}))
    assert exchanged["digest"]["classes"] != plain["digest"]["classes"]
    assert exchanged["digest"]["boxes"] == plain["digest"]["boxes"]
    assert plain["image_bytes"] == sum(path.stat().st_size for path in (data / "images").glob("train*"))
