"""From standard folders to what each task sees: the published lists decide, labels of other tasks stay hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from openworld.config import RunConfig
from openworld.configfile import dump_config, read_config
from openworld.data.benchmarks.reader import (
    Folders,
    read_images,
    read_test,
    read_training,
    read_validation,
)
from openworld.data.formats.coco import read_coco, widen_to_pixels
from openworld.data.options import BenchmarkOptions, DataOptions, SourceOptions, SyntheticOptions
from openworld.data.schedules import SCHEDULES
from openworld.data.splits import held_out_view, replay_view, test_view, training_view
from openworld.errors import ConfigError, DataError
from openworld.records import Dataset, check_files, renamed
from openworld.run.sources import open_ground_truth, open_sources, open_split

SCHEDULE = SCHEDULES["m_owodb"]
RENAME = SCHEDULE.rename


def seen(view: Any, dataset: Dataset) -> dict[str, list[str]]:
    """Names of the boxes that a view shows, by image."""
    return {
        str(sample.record.image_id): [dataset.categories[number] for number in sample.record.categories]
        for sample in view
    }


def run_config(tiny: Any, **fields: Any) -> RunConfig:
    return RunConfig(data=DataOptions(benchmark=tiny.options(**fields)), pretrain=None)


def test_each_task_trains_on_its_list_and_sees_its_classes(tiny: Any, tmp_path: Path) -> None:
    train = open_sources(run_config(tiny, val_list="published"), tmp_path).train
    views = {task: seen(training_view(train, SCHEDULE.at(task)), train) for task in (1, 2, 3, 4)}
    assert views == {
        # 9 has a person and a tvmonitor, but no image of COCO is on the first list
        1: {"000002": ["dog"], "000003": ["cat", "person"], "2008_000001": ["person"]},
        # the truck of 30 is a crowd
        2: {"000000000030": ["bench"], "000000000009": ["truck"]},
        # 9 is on the third list and has no class of the third task; kites of 25 are a crowd
        3: {"000000000025": ["frisbee"]},
        4: {"000000000030": ["bed"]},
    }
    assert "000000000034" not in train.position_of  # on no list


def test_replay_and_energy_fitting_see_known_classes_alone(tiny: Any, tmp_path: Path) -> None:
    sources = open_sources(run_config(tiny, val_list="published"), tmp_path)
    train = sources.train
    replayed = replay_view(train, SCHEDULE.at(2), ["000000000009", "000002"])
    assert seen(replayed, train) == {"000000000009": ["truck", "person", "tvmonitor"], "000002": ["dog"]}
    held_out = sources.held_out
    assert seen(held_out_view(held_out, SCHEDULE.at(1)), held_out) == {
        "000002": ["dog"],
        "000000000009": ["person", "tvmonitor"],
    }
    # images that are held out of training: those of later lists wait for their task
    whole = renamed(read_training(tiny.options(), 4), RENAME)
    assert set(seen(held_out_view(whole, SCHEDULE.at(1)), whole)) == {"000002", "000003", "2008_000001"}
    assert "000000000009" in seen(held_out_view(whole, SCHEDULE.at(2)), whole)
    assert "000000000025" not in seen(held_out_view(whole, SCHEDULE.at(2)), whole)


def test_held_out_images_keep_the_lists(tiny: Any, tmp_path: Path) -> None:
    config = run_config(tiny)
    config.data.held_out_fraction = 0.5
    sources = open_sources(config, tmp_path)
    assert sources.train.task_images == sources.held_out.task_images and len(sources.train.task_images) == 4
    ids = {record.image_id for record in (*sources.train, *sources.held_out)}
    assert ids == {"000002", "000003", "2008_000001", "000000000009", "000000000025", "000000000030"}


def test_the_test_set_keeps_repeats_or_not(tiny: Any, tmp_path: Path) -> None:
    test = open_sources(run_config(tiny, val_list="published"), tmp_path).test
    assert [(record.image_id, record.listed) for record in test] == [
        ("000001", 1),
        ("000000000139", 2),
        ("000000000285", 1),
    ]
    view = test_view(test, SCHEDULE.at(1))
    unknown = {s.record.image_id: int((s.labels == SCHEDULE.at(1).unknown).sum()) for s in view}
    assert unknown == {"000001": 0, "000000000139": 2, "000000000285": 1}
    difficult = next(s for s in view if s.record.image_id == "000001")
    assert difficult.record.ignore.tolist() == [False, True]
    assert test.find("000000000139").crowd.tolist() == [False, True, False]
    unique = read_test(tiny.options(test_list="unique"))
    assert {record.listed for record in unique} == {1} and len(unique) == 3
    other = read_test(tiny.options(test_list="t2_ft"))
    assert [record.image_id for record in other] == ["000000000009", "000002"]
    with pytest.raises(ConfigError, match="did you mean 'all_task_test'"):
        read_test(tiny.options(test_list="all_tasks_test"))


def test_only_what_is_run_is_needed(tiny: Any, tmp_path: Path) -> None:
    (tiny.root / "coco" / "annotations" / "instances_train2017.json").unlink()
    config = run_config(tiny)
    config.tasks = 1
    assert len(open_sources(config, tmp_path).train.task_images) == 1
    config.tasks = 2
    with pytest.raises(DataError, match=r"instances_train2017\.json: does not exist"):
        open_sources(config, tmp_path)


def test_what_is_missing_is_named(tiny: Any) -> None:
    (tiny.root / "coco" / "val2017" / "000000000285.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images do not exist: .*000000000285\.jpg"):
        check_files(read_test(tiny.options()), tiny.root)
    assert len(read_test(tiny.options())) == 3
    (tiny.root / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").unlink()
    with pytest.raises(DataError, match="1 of 1 listed images have no annotations: 000001") as raised:
        read_test(tiny.options())
    assert "VOC2007" in str(raised.value)
    file = tiny.root / "coco" / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    content["images"] = [entry for entry in content["images"] if entry["id"] != 25]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="1 of 3 listed images have no annotations: 000000000025") as raised:
        read_training(tiny.options(), 4)
    assert str(file) in str(raised.value)


def test_records_are_those_of_the_readers(tiny: Any) -> None:
    dataset = renamed(read_images(tiny.options(), ["000000000009", "2008_000001", "000002"]), RENAME)
    first, second, third = dataset
    assert [record.image_id for record in dataset] == ["000000000009", "2008_000001", "000002"]
    assert first.path == tiny.root / "coco" / "train2017" / "000000000009.jpg"
    assert second.path == tiny.root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_000001.jpg"
    np.testing.assert_allclose(first.boxes[0], [1.4, 2.6, 11.6, 10.6], atol=1e-5)
    np.testing.assert_array_equal(third.boxes, [[1, 2, 20, 20]])
    assert [dataset.categories[number] for number in first.categories] == ["truck", "person", "tvmonitor"]
    assert len(set(dataset.categories)) == len(dataset.categories) == 80


def test_empty_lists(tiny: Any) -> None:
    assert len(read_images(tiny.options(), [])) == 0


def test_boxes_widened_to_pixels(tiny: Any) -> None:
    def converted(x: float, y: float, width: float, height: float) -> list[int]:
        """The corners in XML, and what the reader of the published code makes of them."""
        xml = [int(x + 1), int(y + 1), int(x + width + 1), int(y + height + 1)]
        return [xml[0] - 1, xml[1] - 1, xml[2], xml[3]]

    given = [(1.4, 2.6, 10.2, 8.0), (3.0, 3.0, 5.0, 5.0), (10.0, 10.0, 6.0, 6.0)]
    record = read_images(tiny.options(coco_boxes="whole_pixels"), ["000000000009"])[0]
    np.testing.assert_array_equal(record.boxes, [converted(*box) for box in given])
    at_border = widen_to_pixels(np.array([[30.5, 20.5, 32.0, 24.0]]), 32, 24)
    np.testing.assert_array_equal(at_border, [[30, 20, 32, 24]])


def test_whole_pixels_keep_what_is_thinner_than_a_pixel(tmp_path: Path) -> None:
    thin = [[4.2, 5.0, 0.4, 7.0], [9.0, 3.5, 3.0, 0.0]]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 32, "height": 24}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(thin)],
    }
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    exact = read_coco(file)
    assert len(exact[0]) == 0 and sum(exact.repairs.counts.values()) == 2
    widened = read_coco(file, whole_pixels=True)
    np.testing.assert_array_equal(widened[0].boxes, [[4, 5, 5, 13], [9, 3, 13, 4]])
    assert not widened.repairs.counts


def test_widening_nothing() -> None:
    assert widen_to_pixels(np.zeros((0, 4)), 32, 24).shape == (0, 4)


def test_folders(tmp_path: Path) -> None:
    options = BenchmarkOptions(name="m_owodb", root=str(tmp_path))
    assert Folders.of(options).voc2007 == tmp_path / "VOCdevkit" / "VOC2007"
    (tmp_path / "VOC2007").mkdir()
    assert Folders.of(options).voc2007 == tmp_path / "VOC2007"
    elsewhere = BenchmarkOptions(name="m_owodb", root=str(tmp_path), voc2012="/a/VOC2012", coco="/b/coco")
    folders = Folders.of(elsewhere)
    assert folders.images("voc2012") == Path("/a/VOC2012/JPEGImages")
    assert folders.annotations("val2017") == Path("/b/coco/annotations/instances_val2017.json")


def test_a_list_that_the_benchmark_does_not_have(tiny: Any) -> None:
    options = BenchmarkOptions(name="voc_10_10", root=str(tiny.root), val_list="published")
    with pytest.raises(ConfigError, match="no published list for energy fitting"):
        read_validation(options)


def test_options_take_classes_and_names_from_the_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        yaml.safe_dump({"pretrain": None, "data": {"benchmark": {"name": "voc_15_5", "root": "somewhere"}}})
    )
    config = read_config(file)
    assert config.schedule == SCHEDULES["voc_15_5"].tasks and config.data.synthetic is None
    assert config.data.rename["airplane"] == "aeroplane" and config.data.benchmark is not None
    again = tmp_path / "config.yaml"
    again.write_text(dump_config(config))
    assert read_config(again) == config
    benchmark = BenchmarkOptions(name="voc_15_5")
    for fields in (
        {"tasks": [["cat"]]},
        {"synthetic": SyntheticOptions(size=256)},
        {"test": SourceOptions(annotations="test.json")},
    ):
        with pytest.raises(ConfigError, match="leave it out"):
            DataOptions(benchmark=benchmark, **fields)  # type: ignore[arg-type]


def test_scoring_and_audit_read_the_benchmark_of_a_configuration(tiny: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(run_config(tiny, val_list="published")))
    (tiny.root / "coco" / "val2017" / "000000000285.jpg").unlink()  # neither needs image files
    dataset, schedule, _ = open_ground_truth([run], None)
    assert len(dataset) == 3 and schedule is not None and schedule.tasks == SCHEDULE.tasks
    sets, tasks = open_split({}, schedule=None, config=str(run / "config.yaml"))
    assert set(sets) == {"train", "val", "test"} and tasks == SCHEDULE.tasks
    assert len(sets["train"]) == 6


@pytest.mark.parametrize(
    "name",
    ["owod/m_owodb", "owod/s_owodb", "incremental/voc_10_10", "incremental/voc_15_5", "incremental/voc_19_1"],
)
def test_the_shipped_configurations(name: str) -> None:
    config = read_config(Path(name))
    benchmark = config.data.benchmark
    assert benchmark is not None and benchmark.name == name.split("/")[1]
    assert config.schedule == SCHEDULES[benchmark.name].tasks
