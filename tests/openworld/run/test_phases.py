"""Phases with an average of the weights, validations, batches in parts and a length in epochs; killed and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from openworld.config import PhaseOptions, RunConfig
from openworld.data.options import DataOptions, ExemplarOptions, LoaderOptions, SyntheticOptions
from openworld.data.splits import View
from openworld.distillation.options import DistillationOptions
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, OreOptions
from openworld.run import phases, pseudo_labels, validation
from openworld.run.schedule import run_schedule
from openworld.run.train import Phase
from openworld.runtime.checkpoint import load_checkpoint
from openworld.runtime.runlog import RunLog
from ssl_backbones.backbones import ResNetOptions

SCORES = {3: 0.25, 6: 0.75, 7: 0.5}
"""Validations by their steps. The best one has a checkpoint before it, at step 4, that does not hold it."""


def config(**changes: Any) -> RunConfig:
    """One task of seven steps; seven of eight images show a class, so that four epochs are 28 images."""
    options: dict[str, Any] = {
        "epochs": 4.0,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup_steps": 1,
        "checkpoint_every": 2,
        "ema_decay": 0.8,
        "accumulate": 2,
        "validate_every": 3,
    }
    phase = PhaseOptions(**{**options, **changes})
    return RunConfig(
        name="phases",
        threads=1,
        data=DataOptions(
            tasks=[["ball", "cube", "ring", "star"]],
            synthetic=SyntheticOptions(train_images=8, val_images=2, test_images=1, pretrain_images=0, size=64),
            loader=LoaderOptions(min_size=64, max_size=64),
        ),
        pretrain=None,
        model=ModelOptions(
            arch=ResNetOptions(width=1 / 32),
            fpn_channels=4,
            rpn=RpnOptions(train_candidates=20, train_proposals=12, test_proposals=5, anchor_sizes=[8, 16, 32, 64]),
            roi=RoiOptions(sampled_regions=8, hidden_dim=8),
            device="cpu",
        ),
        method=OreOptions(
            clustering=ClusteringOptions(start_step=1, update_every=2), energy=EnergyOptions(enabled=False)
        ),
        exemplars=ExemplarOptions(enabled=False),
        train=phase,
    )


class Killed(BaseException):
    pass


def events(run: Path, *kinds: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["event"] in kinds]


def tensors(run: Path, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(run / "task1" / "checkpoint" / name / "model.safetensors")


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value.nan_to_num(), other[name].nan_to_num()) for name, value in one.items()
    )


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, Tensor]]:
    """State dicts of what was validated, by step; the scores are those of :data:`SCORES`."""
    seen: dict[int, dict[str, Tensor]] = {}
    score = validation.Validation._known_ap50
    steps: list[int] = []

    best_of = validation.Validation.best_of

    def noted(self: Any, detector: Any, average: Any, step: int, best: Any) -> Any:
        steps.append(step)
        return best_of(self, detector, average, step, best)

    def scored(self: Any, detector: Any) -> float:
        assert 0 <= score(self, detector) <= 1
        seen[steps[-1]] = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
        return SCORES[steps[-1]]

    monkeypatch.setattr(validation.Validation, "best_of", noted)
    monkeypatch.setattr(validation.Validation, "_known_ap50", scored)
    return seen


def run_with_kills(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the best validation and its checkpoint, and behind the last one, which is worse."""
    append = RunLog.append
    for moment in (6, 7):
        with monkeypatch.context() as patch:

            def until(self: RunLog, event: str, moment: int = moment, **fields: Any) -> None:
                append(self, event, **fields)
                if event == "validation" and fields["step"] == moment:
                    raise Killed

            patch.setattr(RunLog, "append", until)
            with pytest.raises(Killed):
                run_schedule(config(), folder, resume=(folder / "config.yaml").exists())
    run_schedule(config(), folder, resume=True)


def test_kills_leave_no_trace_and_the_best_average_is_the_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    weights: dict[int, dict[str, Tensor]],
) -> None:
    run_schedule(config(), tmp_path / "whole", resume=False)
    assert "note: task 1 train: 4 epochs of 7 images are 7 steps of 4\n" in capsys.readouterr().err
    (length,) = events(tmp_path / "whole", "length")
    assert (length["epochs"], length["images"], length["steps"]) == (4.0, 7, 7)
    validations = events(tmp_path / "whole", "validation")
    assert [(entry["step"], entry["ap50"], entry["best"]) for entry in validations] == [
        (3, 0.25, True),
        (6, 0.75, True),
        (7, 0.5, False),
    ]
    end = tensors(tmp_path / "whole", "train-000007")
    assert equal(end, weights[6]) and not equal(end, weights[7])

    run_with_kills(tmp_path / "killed", monkeypatch)
    for name in ("train-000007", "calibrate-000001"):
        assert equal(tensors(tmp_path / "killed", name), tensors(tmp_path / "whole", name))
    kinds = ("length", "step", "validation", "meters")
    assert events(tmp_path / "killed", *kinds) == events(tmp_path / "whole", *kinds)


def test_without_a_choice_the_end_is_the_last_average(tmp_path: Path, weights: dict[int, dict[str, Tensor]]) -> None:
    """Of which the weights that train know nothing: they are in the checkpoint of a running phase."""
    kept: dict[str, Any] = {}
    after = Phase.after

    def noted(self: Phase, step: int) -> Any:
        if step == 7:
            running = load_checkpoint(tmp_path / "run" / "task1" / "checkpoint" / "train-000006")
            kept.update(plain=running.tensors, state=running.state)
        return after(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Phase, "after", noted)
        run_schedule(config(keep_best=False), tmp_path / "run", resume=False)
    assert equal(tensors(tmp_path / "run", "train-000007"), weights[7])
    averaged, best = kept["state"]["average"], kept["state"]["best"]
    assert best["step"] == 6 and best["tensors"] == {}  # its score is logged, its weights are not kept
    name = "engine.cls_score.weight"
    assert not torch.equal(kept["plain"][name], averaged[name])
    assert set(kept["plain"]) - set(averaged) > {"engine.pixel_mean", "method.memory.features"}


def test_the_length_of_a_replay_is_known_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    options = PhaseOptions(epochs=0.5, batch_size=3, lr=0.1)
    phases._print_length(2, "replay", options, 30)
    assert capsys.readouterr().err == "note: task 2 replay: 0.5 epochs of 30 images are 5 steps of 3\n"
    phases._print_length(2, "replay", PhaseOptions(steps=3, lr=0.1), 30)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("share", "size", "expected"), [(0.0, 8, 0), (0.05, 8, 1), (0.25, 8, 2), (0.5, 2, 1), (0.9, 4, 3)]
)
def test_a_batch_has_some_exemplars_and_an_image_of_the_task(share: float, size: int, expected: int) -> None:
    chosen = RunConfig(
        exemplars=ExemplarOptions(during_training=share), increment=PhaseOptions(steps=2, lr=0.1, batch_size=size)
    )
    assert [phases.num_mixed(chosen, task) for task in (1, 2)] == [0, expected]


def test_an_increment_is_as_long_as_was_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In epochs, with rare classes repeated and one pseudo-label, of a class that is rare for that."""

    def one_label(detector: Any, view: View, *_: Any) -> list[dict[str, Any]]:
        return [{"image": view.images.image_ids[0], "boxes": [[1, 1, 9, 9]], "classes": ["ball"], "scores": [1.0]}]

    monkeypatch.setattr(pseudo_labels, "pseudo_labels", one_label)
    chosen = config()
    data = replace(chosen.data, tasks=[["ball", "cube"], ["ring", "star"]])
    data.loader.repeat_threshold = 1.0
    later = PhaseOptions(epochs=1.5, batch_size=2, lr=1e-3, warmup_steps=1)
    chosen = replace(
        chosen,
        data=data,
        exemplars=ExemplarOptions(per_class=1),
        distillation=DistillationOptions(pseudo_label_score=0.05),
        train=PhaseOptions(steps=1, batch_size=2, lr=1e-3),
        increment=later,
        replay=replace(later, epochs=None, steps=1),
    )
    run_schedule(chosen, tmp_path, resume=False)
    (length,) = events(tmp_path, "length")
    said = f"1.5 epochs of {length['images']} images are {length['steps']} steps of 2"
    assert said in capsys.readouterr().err
    steps = [entry for entry in events(tmp_path, "step") if entry["task"] == 2 and entry["stage"] == "train"]
    assert len(steps) == length["steps"]
