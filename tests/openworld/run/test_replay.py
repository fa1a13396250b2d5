"""Exemplars on a data set: what the choice may see, what a detector says of a box, and when a run chooses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from openworld.config import PhaseOptions, RunConfig
from openworld.data.options import DataOptions, ExemplarOptions, LoaderOptions, SourceOptions
from openworld.data.splits import replay_view, training_view
from openworld.detector import build_detector
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.errors import CheckpointError, DataError
from openworld.labels import LabelSpace
from openworld.records import Dataset, Record
from openworld.run import phases
from openworld.run import schedule as tasks
from openworld.run.checkpoints import Progress, save_progress
from openworld.run.folder import Run
from openworld.run.replay import (
    annotated_instances,
    best_regions,
    check_lists,
    chosen_exemplars,
    image_names,
    listed_exemplars,
    replayed_images,
)
from openworld.run.sources import Sources
from openworld.runtime.runlog import RunLog
from openworld.structures import Regions, Target
from ssl_backbones.backbones import ResNetOptions

STRATEGIES = ("balanced", "greedy", "random", "herding", "by_score")
CLASSES = [["a", "b"], ["c"], ["d", "e"]]
LOADER = LoaderOptions(min_size=64, max_size=64)
OUTSIDE = "f"
"""A category that no task names."""


def record(image_id: int | str, categories: Sequence[int], folder: Path = Path()) -> Record:
    count = len(categories)
    boxes = [[4 * number, 4, 4 * number + 20, 40] for number in range(count)]
    return Record(
        image_id=image_id,
        path=folder / f"{image_id}.png",
        width=64,
        height=64,
        boxes=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        categories=np.array(categories, dtype=np.int64),
        ignore=np.zeros(count, dtype=np.bool_),
    )


def dataset(*images: Sequence[int], folder: Path = Path()) -> Dataset:
    """Categories a to f; images are numbered from 1."""
    names = ("a", "b", "c", "d", "e", OUTSIDE)
    return Dataset.from_records(
        names, tuple(record(number, rows, folder) for number, rows in enumerate(images, start=1))
    )


def written(*images: Sequence[int], folder: Path) -> Dataset:
    """The same with image files of noise."""
    made = dataset(*images, folder=folder)
    for item in made:
        pixels = np.random.default_rng(int(item.image_id)).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(item.path)
    return made


def config(**exemplars: Any) -> RunConfig:
    one = PhaseOptions(steps=1, lr=1e-3)
    return RunConfig(
        pretrain=None,
        data=DataOptions(
            tasks=CLASSES,
            synthetic=None,
            train=SourceOptions(annotations="x"),
            test=SourceOptions(annotations="x"),
            loader=LOADER,
        ),
        model=ModelOptions(
            device="cpu",
            arch=ResNetOptions(name="resnet18", width=0.125),
            fpn_channels=16,
            rpn=RpnOptions(test_proposals=20),
            roi=RoiOptions(hidden_dim=24, sampled_regions=16),
        ),
        exemplars=ExemplarOptions(**exemplars),
        train=one,
        increment=one,
        replay=one,
    )


class FixedDetector:
    """Proposals that lie on the annotated boxes, with features and logits that depend on the images alone."""

    engine = SimpleNamespace(feature_dim=3)

    def matched_regions(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Regions, Tensor]:
        boxes = torch.cat([target.boxes for target in targets])
        index = torch.cat([torch.full((len(target),), place) for place, target in enumerate(targets)])
        mean = torch.stack([image.mean() for image in images])[index]
        seed = (mean[:, None] * 1e4 + boxes[:, :1]) * torch.arange(1, 8)
        labels = torch.cat([target.labels for target in targets])
        features, logits = seed[:, :3].sin(), seed.cos()
        found = Regions(
            boxes, index, seed[:, 0].sin(), torch.ones(len(boxes)), labels, features=features, logits=logits
        )
        return found, torch.zeros(len(images), 2)


# -- what the choice may see ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    images=st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=1, max_size=8),
    task=st.integers(1, 3),
    strategy=st.sampled_from(STRATEGIES),
    mixing=st.randoms(use_true_random=False),
)
def test_no_label_of_a_later_task_has_a_part_in_the_choice(
    tmp_path_factory: pytest.TempPathFactory, images: list[list[int]], task: int, strategy: str, mixing: Any
) -> None:
    """Other labels, and more boxes, of classes that the task does not know change nothing."""
    folder = tmp_path_factory.mktemp("images")
    labels = LabelSpace.of(CLASSES, task)
    hidden = list(range(labels.num_known, 6))
    other = [[row if row < labels.num_known else mixing.choice(hidden) for row in rows] for rows in images]
    other = [[*rows, mixing.choice(hidden)] for rows in other]
    options = ExemplarOptions(strategy=strategy, per_class=2)  # type: ignore[arg-type]
    records = []
    for variant in (images, other):
        train = written(*variant, folder=folder)
        detector: Any = FixedDetector() if options.needs_detector else None
        records.append(chosen_exemplars(train, labels, options, 7, detector=detector, loader=LOADER))
    assert records[0] == records[1]
    assert list(records[0]["instances"]) == list(labels.known)
    shown = [number for number, rows in enumerate(images, 1) if any(row < labels.num_known for row in rows)]
    assert set(records[0]["images"]) <= set(shown)


def test_greedy_chooses_among_all_tasks_so_far_and_the_others_among_their_own() -> None:
    train = dataset([0], [1, 2], [2], [3], [0, 5])
    space = LabelSpace.of(CLASSES, 2)
    found = {
        name: chosen_exemplars(train, space, ExemplarOptions(strategy=name), 0, detector=None, loader=LOADER)  # type: ignore[arg-type]
        for name in ("greedy", "balanced", "random")
    }
    assert found["greedy"]["images"] == [1, 2, 3, 5] and found["greedy"]["covers"] == "known"
    assert found["greedy"]["instances"] == {"a": 2, "b": 1, "c": 2}
    for name in ("balanced", "random"):
        assert found[name]["images"] == [2, 3] and found[name]["covers"] == "current"
        assert found[name]["instances"] == {"a": 0, "b": 0, "c": 2}


def test_replay_goes_back_to_the_last_list_of_all_known_classes() -> None:
    current = [{"images": [1, 2]}, {"images": [2, 3], "covers": "current"}]
    assert replayed_images(current) == [1, 2, 3]
    assert replayed_images([*current, {"images": [9, 1], "covers": "known"}]) == [9, 1]
    assert replayed_images([*current, {"images": [9], "covers": "known"}, {"images": [4]}]) == [9, 4]


# -- what a detector says of a box ------------------------------------------------------------------------------------


def test_best_regions_equal_a_slow_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(40, 2, generator=generator) * 60
    regions = Regions(
        boxes=torch.cat([corners, corners + 5 + torch.rand(40, 2, generator=generator) * 30], dim=1),
        image_index=torch.arange(40) // 20,
        objectness=torch.randn(40, generator=generator),
        iou=torch.zeros(40),
        labels=torch.zeros(40, dtype=torch.int64),
        features=torch.randn(40, 6, generator=generator),
        logits=torch.randn(40, 4, generator=generator),
    )
    boxes = torch.tensor([[0.0, 0, 30, 30], [20, 20, 70, 60], [900, 900, 950, 950]])
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    full = Target(boxes, torch.tensor([0, 1, 1]))
    features, scores, found = best_regions(regions, [full, full, empty, full])
    assert features.shape == (9, 6) and scores.shape == (9,) and found.tolist() == [True, True, False] * 2 + [False] * 3
    for index, (image, number) in enumerate((image, number) for image in (0, 1) for number in (0, 1)):
        row = image * 3 + number
        x1, y1, x2, y2 = boxes[number].tolist()
        best, best_iou = -1, 0.0
        for place in range(20 * image, 20 * image + 20):
            a, b, c, d = regions.boxes[place].tolist()
            shared = max(0.0, min(x2, c) - max(x1, a)) * max(0.0, min(y2, d) - max(y1, b))
            iou = shared / ((x2 - x1) * (y2 - y1) + (c - a) * (d - b) - shared)
            if iou > best_iou:
                best, best_iou = place, iou
        assert regions.features is not None and regions.logits is not None, index
        assert torch.equal(features[row], regions.features[best])
        logits = regions.logits[best].double().tolist()
        share = np.exp(logits[number]) / sum(np.exp(value) for value in logits)
        assert float(scores[row]) == pytest.approx(share / (1 + np.exp(-float(regions.objectness[best]))), rel=1e-5)
    assert not features[[2, 5, 6, 7, 8]].any() and not scores[[2, 5, 6, 7, 8]].any()
    nothing = best_regions(regions, [empty, empty])
    assert [len(part) for part in nothing] == [0, 0, 0]


def test_an_image_that_cannot_be_read_has_no_instances(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = written([0], [0, 1], [1], folder=tmp_path)
    (tmp_path / "2.png").write_bytes(b"not an image")
    view = training_view(train, LabelSpace.of(CLASSES, 1))
    detector: Any = FixedDetector()
    seen = annotated_instances(detector, view, LOADER, keep_features=False, title="")
    assert seen.image_ids == (1, 3) and seen.rows.tolist() == [0, 1] and seen.features.shape == (2, 0)
    assert "2.png" in caplog.text
    empty = replay_view(train, LabelSpace.of(CLASSES, 1), [])
    nothing = annotated_instances(detector, empty, LOADER, keep_features=True, title="")
    assert nothing.image_ids == () and len(nothing.scores) == len(nothing.found) == 0


# -- lists ------------------------------------------------------------------------------------------------------------


def test_an_image_is_found_by_its_id_its_file_and_its_number(tmp_path: Path) -> None:
    files = {139: "000000000139.jpg", 4: "x/same.jpg", 5: "y/same.jpg", 6: "7.jpg", 7: "6.jpg", 8: "2008_000001.jpg"}
    records = tuple(replace(record(number, [0]), path=Path(file)) for number, file in files.items())
    train = Dataset.from_records(("a", "b", "c", "d", "e", OUTSIDE), records)
    assert image_names(train) == {
        "139": 139,
        "000000000139": 139,
        "4": 4,
        "5": 5,
        "6": 6,
        "7": 7,
        "8": 8,
        "2008_000001": 8,
    }


def test_lists_of_a_run(tmp_path: Path) -> None:
    train, held_out = dataset([0], [2], [2, 4], [3]), Dataset.from_records(("a",), (record(40, [0]),))
    pattern, spaces = str(tmp_path / "t{task}_ft.txt"), [LabelSpace.of(CLASSES, task) for task in (1, 2, 3)]
    (tmp_path / "t2_ft.txt").write_text("3\n1\n3\n40\n")
    (tmp_path / "t3_ft.txt").write_text("3\n")
    check_lists(train, held_out, spaces[0], pattern, 3)
    first, second, third = (listed_exemplars(train, held_out, space, pattern) for space in spaces)
    assert first["images"] == [] and first["instances"] == {"a": 0, "b": 0} and first.keys() == second.keys()
    assert second["images"] == [1, 3] and second["repeats"] == 1 and second["held_out"] == ["40"]
    assert second["instances"] == {"a": 1, "b": 0, "c": 1}  # e is not known yet
    assert third["instances"] == {"a": 0, "b": 0, "c": 1, "d": 0, "e": 1}
    assert replayed_images([first, second, third]) == [3]
    (tmp_path / "t3_ft.txt").write_text("40\n")
    with pytest.raises(DataError, match=r"t3_ft\.txt: names no image"):
        check_lists(train, held_out, spaces[0], pattern, 3)
    (tmp_path / "t3_ft.txt").unlink()
    with pytest.raises(DataError, match=r"t3_ft\.txt"):
        check_lists(train, held_out, spaces[0], pattern, 3)


# -- when a run chooses -----------------------------------------------------------------------------------------------


class Staged:
    """Stands in for the stages that change the model, and for evaluation: writes what they leave, and notes whether the
    choice is there."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.seen, self.broken_at = run, list[tuple[str, int, bool]](), ""
        stages = [
            stage if stage.name == "exemplars" else replace(stage, run=partial(self, stage.name))
            for stage in tasks.STAGES
        ]
        monkeypatch.setattr(tasks, "STAGES", stages)

    def __call__(self, stage: str, run: Run, task: int) -> None:
        folder = self.run.task_folder(task)
        if stage == "evaluate":
            (folder / "metrics.json").write_text("{}")
            return
        self.seen.append((stage, task, (folder / "exemplars.json").exists()))
        if stage == self.broken_at:
            raise KeyboardInterrupt
        torch.manual_seed(task)
        space = self.run.space(task)
        detector = build_detector(self.run.config, space, None)
        save_progress(folder / "checkpoint", detector, Progress(task, stage, 1, True, space.known), self.run.log)


def open_run(folder: Path, **exemplars: Any) -> Run:
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    train = written([0, 0, 1], [1, 2], [2, 0], [0], [1, 3], [2, 2], folder=images)
    nothing = Dataset.from_records(train.categories, ())
    (folder / "run").mkdir(exist_ok=True)
    return Run(
        config(**exemplars), folder / "run", Sources(train, nothing, nothing, None), RunLog(folder / "run" / "l")
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_choice_before_training_or_right_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    run = open_run(tmp_path, strategy=strategy, per_class=1)
    staged = Staged(run, monkeypatch)
    tasks.run_task(run, 1)
    tasks.run_task(run, 2)
    before = strategy not in ("herding", "by_score")
    assert staged.seen == [
        ("train", 1, before),
        ("calibrate", 1, True),
        ("train", 2, before),
        ("replay", 2, True),
        ("calibrate", 2, True),
    ]
    view = phases.exemplar_view(run, 2, 2)
    assert view and {int(row) for sample in view for row in sample.labels} <= {0, 1, 2}
    own = json.loads((run.task_folder(2) / "exemplars.json").read_text())
    assert own["strategy"] == strategy and set(own["images"]) <= {sample.record.image_id for sample in view}


@pytest.mark.parametrize("strategy", ["herding", "by_score"])
def test_a_killed_run_chooses_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    run = open_run(tmp_path, strategy=strategy, per_class=1)
    staged = Staged(run, monkeypatch)
    staged.broken_at = "calibrate"
    path = run.task_folder(1) / "exemplars.json"
    with pytest.raises(KeyboardInterrupt):
        tasks.run_task(run, 1)
    chosen = path.read_bytes()
    path.unlink()  # killed before it was written
    staged.broken_at = ""
    tasks.run_task(run, 1)
    assert path.read_bytes() == chosen
    assert [stage for stage, _, _ in staged.seen] == ["train", "calibrate", "calibrate"]  # no training twice
    path.unlink()
    with pytest.raises(CheckpointError, match="exemplars of task 1 are missing"):
        tasks.run_task(run, 1)


def test_no_detector_chooses_where_nothing_is_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(tmp_path, strategy="herding", enabled=False)
    staged = Staged(run, monkeypatch)
    tasks.run_task(run, 1)
    assert staged.seen == [("train", 1, False), ("calibrate", 1, False)]


def test_a_run_replays_the_list_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t2.txt").write_text("3\n1\n5\n")
    run = open_run(tmp_path, strategy="herding", list=str(tmp_path / "t{task}.txt"))
    staged = Staged(run, monkeypatch)
    tasks.run_task(run, 1)
    tasks.run_task(run, 2)
    assert all(chosen for _, _, chosen in staged.seen)
    view = phases.exemplar_view(run, 2, 2)
    assert [sample.record.image_id for sample in view] == [1, 3, 5]
    assert [sample.labels.tolist() for sample in view] == [[0, 0, 1], [2, 0], [1]]
