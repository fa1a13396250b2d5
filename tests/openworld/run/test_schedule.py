"""The stages of a task: which ones it has, what is done again after a kill, and with which detector each one starts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from openworld.config import PhaseOptions, RunConfig
from openworld.data.options import DataOptions, ExemplarOptions, LoaderOptions, SyntheticOptions
from openworld.detector import Detector, build_detector, detector_to_load
from openworld.distillation.options import DistillationOptions
from openworld.engines import weights
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.errors import CheckpointError
from openworld.run import checkpoints, evaluate, schedule
from openworld.run.checkpoints import Progress, load_task, save_progress
from openworld.run.folder import Run
from openworld.run.schedule import run_schedule, run_task, start_stage
from openworld.runtime.checkpoint import newest_valid
from openworld.runtime.runlog import RunLog
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.handover import load_backbone_file
from ssl_backbones.options import PretrainOptions

TASKS = [["cat", "dog"], ["cow"], ["kite"]]


def config(
    strategy: str = "herding", enabled: bool = True, replay_steps: int = 3, pseudo_label_score: float | None = None
) -> RunConfig:
    return RunConfig(
        data=DataOptions(tasks=TASKS),
        pretrain=None,
        model=ModelOptions(
            arch=ResNetOptions(width=1 / 64), fpn_channels=4, roi=RoiOptions(hidden_dim=4), device="cpu"
        ),
        exemplars=ExemplarOptions(per_class=1, strategy=strategy, enabled=enabled),  # type: ignore[arg-type]
        distillation=DistillationOptions(pseudo_label_score=pseudo_label_score),
        train=PhaseOptions(steps=4, lr=1e-3),
        increment=PhaseOptions(steps=4, lr=1e-3),
        replay=PhaseOptions(steps=replay_steps, lr=1e-3),
    )


def open_run(folder: Path, chosen: RunConfig | None = None) -> Run:
    sources: Any = SimpleNamespace()  # no stage that looks at data runs here
    return Run(chosen or config(), folder, sources, RunLog(folder / "metrics.jsonl"))


def save(run: Run, task: int, stage: str, step: int, *, done: bool, seed: int = 0) -> Detector:
    """A checkpoint of random weights; one of a stage that goes on has an optimiser."""
    torch.manual_seed(seed)
    detector = detector_to_load(run.config, run.space(task))
    progress = Progress(task, stage, step, done, run.space(task).known)
    going_on = {"optimizer": torch.optim.SGD(detector.parameters(), lr=1.0).state_dict()}
    save_progress(run.checkpoints(task), detector, progress, run.log, going_on)
    return detector


def equal(one: Detector, two: Detector) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value.nan_to_num(-7), second[name].nan_to_num(-7)) for name, value in first.items()
    )


# -- which stages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "task", "expected"),
    [
        ({}, 1, ["train", "exemplars", "calibrate", "evaluate"]),
        ({}, 2, ["train", "exemplars", "replay", "calibrate", "evaluate"]),
        ({"strategy": "balanced"}, 2, ["exemplars", "train", "replay", "calibrate", "evaluate"]),
        ({"replay_steps": 0}, 2, ["train", "exemplars", "calibrate", "evaluate"]),
        ({"enabled": False}, 2, ["train", "calibrate", "evaluate"]),
        ({"pseudo_label_score": 0.5}, 1, ["train", "exemplars", "calibrate", "evaluate"]),
        ({"pseudo_label_score": 0.5}, 2, ["pseudo_labels", "train", "exemplars", "replay", "calibrate", "evaluate"]),
    ],
)
def test_the_stages_of_a_task(options: dict[str, Any], task: int, expected: list[str]) -> None:
    assert [stage.name for stage in schedule.STAGES if stage.when(config(**options), task)] == expected


def test_the_model_changes_in_the_order_in_which_checkpoints_are_sorted() -> None:
    names = [stage.name for stage in schedule.STAGES if stage.name in checkpoints.STAGES]
    assert tuple(names) == checkpoints.STAGES
    places = [Progress(1, stage, step, False, ()).position for stage in checkpoints.STAGES for step in (1, 9, 10)]
    assert places == sorted(set(places))


# -- what is left to do -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left_by", "expected"),
    [
        ((), ["train", "exemplars", "replay", "calibrate", "evaluate"]),
        ((("train", 2, False),), ["train", "exemplars", "replay", "calibrate", "evaluate"]),
        ((("train", 4, True),), ["exemplars", "replay", "calibrate", "evaluate"]),
        ((("train", 4, True), ("replay", 1, False)), ["exemplars", "replay", "calibrate", "evaluate"]),
        ((("replay", 3, True),), ["exemplars", "calibrate", "evaluate"]),
        ((("replay", 3, True), ("calibrate", 1, True)), ["exemplars", "evaluate"]),
    ],
)
def test_only_what_is_not_done_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_by: tuple[tuple[str, int, bool], ...], expected: list[str]
) -> None:
    run, ran = open_run(tmp_path), list[str]()

    def noted(name: str, run: Run, task: int) -> None:
        ran.append(name)
        if name == "evaluate":
            (run.task_folder(task) / "metrics.json").write_text('{"task": 2}')

    for stage, step, done in left_by:
        save(run, 2, stage, step, done=done)
    run.task_folder(2).mkdir(exist_ok=True)
    stages = [replace(stage, run=partial(noted, stage.name)) for stage in schedule.STAGES]
    monkeypatch.setattr(schedule, "STAGES", stages)
    assert run_task(run, 2) == {"task": 2}
    assert ran == expected
    (run.task_folder(2) / "exemplars.json").write_text("{}")
    ran.clear()
    run_task(run, 2)
    assert "exemplars" not in ran and "evaluate" not in ran


# -- the detector that a stage starts with ----------------------------------------------------------------------------


def test_the_first_stage_alone_builds_on_the_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def noted(config: RunConfig, space: Any, backbone: Path | None) -> Detector:
        built.append((space.task, backbone))
        return build_detector(config, space, None)

    monkeypatch.setattr(schedule, "build_detector", noted)
    chosen = config()
    run = open_run(tmp_path, replace(chosen, model=replace(chosen.model, weights="gone.pth")))
    start_stage(run, 1, "train")
    assert built == [(1, Path("gone.pth"))]
    save(run, 1, "train", 4, done=True)
    start_stage(run, 1, "calibrate")
    save(run, 1, "calibrate", 1, done=True)
    start_stage(run, 2, "train")
    assert len(built) == 1


def test_a_run_loads_its_backbone_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks to their end, of which the first training alone needs the file: it is gone afterwards."""
    file, loaded = tmp_path / "backbone.pth", []
    torch.save(ResNetOptions(width=1 / 64).build().state_dict(), file)

    def noted(path: Path, **options: Any) -> Any:
        loaded.append(path)
        return load_backbone_file(path, **options)

    calibrate = evaluate.calibrate

    def without_file(run: Run, task: int, detector: Detector) -> dict[str, Any]:
        file.unlink(missing_ok=True)
        return calibrate(run, task, detector)

    monkeypatch.setattr(weights, "load_backbone_file", noted)
    monkeypatch.setattr(evaluate, "calibrate", without_file)
    world = SyntheticOptions(train_images=24, val_images=4, test_images=2, pretrain_images=0, size=64)
    one_step = PhaseOptions(steps=1, lr=1e-3, batch_size=2)
    chosen = replace(
        config(),
        data=DataOptions(tasks=[["ball"], ["cube"]], synthetic=world, loader=LoaderOptions(min_size=64, max_size=64)),
        model=replace(
            config().model, weights=str(file), arch=None, rpn=RpnOptions(train_proposals=8, test_proposals=8)
        ),
        train=one_step,
        increment=one_step,
        replay=one_step,
    )
    metrics = run_schedule(chosen, tmp_path / "run", resume=False)
    assert [found["task"] for found in metrics] == [1, 2] and loaded == [file]
    (tmp_path / "run" / "task2" / "metrics.json").unlink()
    assert run_schedule(chosen, tmp_path / "run", resume=True) == metrics  # its architecture is in config.yaml
    assert loaded == [file]


def test_a_backbone_is_not_pretrained_again_once_a_task_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that was moved without its backbone folder."""
    run, pretrained = open_run(tmp_path, replace(config(), pretrain=PretrainOptions())), list[Path]()
    monkeypatch.setattr(schedule, "pretrain", lambda options, images, folder, **_: pretrained.append(folder))
    sources = SimpleNamespace(pretraining_images=lambda options: [], labelled_crops=lambda side: ([], []))
    run = replace(run, sources=sources)
    schedule.pretrain_backbone(run, resume=True)
    assert pretrained == [tmp_path / "backbone"]
    save(run, 1, "train", 2, done=False)
    schedule.pretrain_backbone(run, resume=True)
    assert len(pretrained) == 1


@pytest.mark.parametrize(
    ("own", "of_the_loader", "used"), [(None, 4095, 4095), (1023, 4095, 1023), (None, 65535, None)]
)
def test_a_backbone_is_pretrained_with_the_white_level_of_the_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int | None, of_the_loader: int, used: int | None
) -> None:
    chosen = replace(config(), pretrain=PretrainOptions(white_level=own))
    chosen.data.loader.white_level = of_the_loader
    run, seen = open_run(tmp_path, chosen), list[int | None]()
    monkeypatch.setattr(schedule, "pretrain", lambda options, images, folder, **_: seen.append(options.white_level))
    sources = SimpleNamespace(pretraining_images=lambda options: [], labelled_crops=lambda side: ([], []))
    schedule.pretrain_backbone(replace(run, sources=sources), resume=True)
    assert seen == [used]


def test_an_interrupted_stage_goes_on_from_its_own_checkpoint(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    save(run, 1, "train", 1, done=False, seed=1)
    expected = save(run, 1, "train", 2, done=False, seed=2)
    detector, resumed = start_stage(run, 1, "train")
    assert equal(detector, expected)
    assert resumed is not None and Progress.of(resumed).step == 2 and resumed.state["optimizer"]["param_groups"]


def test_a_later_stage_starts_where_the_one_before_ended(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    save(run, 2, "train", 2, done=False, seed=1)
    expected = save(run, 2, "train", 4, done=True, seed=2)
    detector, resumed = start_stage(run, 2, "replay")
    assert equal(detector, expected) and resumed is None


def test_a_task_starts_from_the_task_before_with_more_rows(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    before = save(run, 1, "calibrate", 1, done=True, seed=3)
    detector, resumed = start_stage(run, 2, "train")
    assert resumed is None and detector.space == run.space(2)
    rows: list[Tensor] = [model.state_dict()["engine.cls_score.weight"] for model in (before, detector)]
    assert len(rows[1]) == len(rows[0]) + 1 and torch.equal(rows[1][:2], rows[0][:2])


@pytest.mark.parametrize("stage", ["train", "replay"])
def test_a_task_does_not_start_from_one_that_is_not_finished(tmp_path: Path, stage: str) -> None:
    run = open_run(tmp_path)
    save(run, 1, stage, 4, done=True)
    with pytest.raises(CheckpointError, match="task 2 needs the detector of task 1"):
        start_stage(run, 2, "train")
    with pytest.raises(CheckpointError, match="has no finished task 1"):
        load_task(tmp_path, run.config, 1)


def test_a_damaged_checkpoint_sends_a_task_back_to_the_stage_of_the_one_before(tmp_path: Path) -> None:
    """The optimiser of a stage that goes on is needed, so the stage begins again without it."""
    run = open_run(tmp_path)
    expected = save(run, 2, "train", 4, done=True, seed=1)
    save(run, 2, "replay", 2, done=False, seed=2)
    (run.checkpoints(2) / "replay-000002" / "state.pt").write_bytes(b"")
    detector, resumed = start_stage(run, 2, "replay")
    assert resumed is None and equal(detector, expected)


def test_the_log_forgets_what_is_done_again(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.log.append("step", stage="train", task=1, step=1)
    save(run, 1, "train", 1, done=False)
    run.log.append("step", stage="train", task=1, step=2)
    start_stage(run, 1, "train")
    assert [entry["step"] for entry in run.log.read()] == [1]


# -- what a checkpoint says -------------------------------------------------------------------------------------------


def test_the_manifest_says_what_it_is_a_checkpoint_of(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    save(run, 2, "train", 2, done=False)
    manifest = json.loads((run.checkpoints(2) / "train-000002" / "manifest.json").read_text())
    assert manifest["position"] == [0, 2]
    assert manifest["about"] == {
        "task": 2,
        "stage": "train",
        "step": 2,
        "done": False,
        "known": ["cat", "dog", "cow"],
        "log_offset": 0,
    }


@pytest.mark.parametrize(
    ("stage", "done", "expected"),
    [("train", True, False), ("replay", True, False), ("calibrate", False, False), ("calibrate", True, True)],
)
def test_a_task_is_finished_when_its_last_stage_is_done(stage: str, done: bool, expected: bool) -> None:
    assert Progress(1, stage, 1, done, ()).task_is_finished is expected


def test_a_finished_task_is_loaded_from_its_tensors_alone(tmp_path: Path) -> None:
    """Frozen layers as well, which task 1 takes from a backbone file that is not needed any more."""
    frozen = replace(config().model, weights="gone.pth", norm="frozen", freeze_stages=2)
    run = open_run(tmp_path, replace(config(), model=frozen))
    save(run, 1, "train", 2, done=False)
    expected = save(run, 1, "calibrate", 1, done=True, seed=5)
    save(run, 2, "train", 4, done=True)  # not finished: the newest finished task is the first
    assert sorted(path.name for path in (run.checkpoints(1) / "calibrate-000001").iterdir()) == [
        "manifest.json",
        "model.safetensors",
    ]
    detector = load_task(tmp_path, run.config, None)
    assert equal(detector, expected) and not detector.training


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    save(run, 1, "calibrate", 1, done=True)
    other = replace(run.config, data=replace(run.config.data, tasks=[["cat", "horse"], ["cow"]]))
    with pytest.raises(CheckpointError, match=r"holds the classes \['cat', 'dog'\], the configuration \['cat', 'ho"):
        load_task(tmp_path, other, 1)


def test_a_checkpoint_that_is_not_of_a_task_is_named(tmp_path: Path) -> None:
    from openworld.runtime.checkpoint import save_checkpoint

    save_checkpoint(tmp_path, "other", position=(1,), tensors={}, state=None)
    found = newest_valid(tmp_path)
    assert found is not None
    with pytest.raises(CheckpointError, match="does not say of which task"):
        Progress.of(found)
