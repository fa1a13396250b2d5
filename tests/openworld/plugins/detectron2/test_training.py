"""detectron2's own trainer with our heads: one task, the next task, a kill between, fine-tuning, evaluation alone."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.engine import HookBase

from openworld.plugins.detectron2 import command
from openworld.plugins.detectron2.trainer import CpuAmpTrainer, OpenWorldTrainer

pytestmark = pytest.mark.detectron2

HEAD = "roi_heads.box_predictor"


def model_of(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return state


def scores_of(folder: Path, task: int) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = json.loads(
        (folder / "inference" / f"world_t{task}_test" / "metrics.json").read_text()
    )
    return result


class Killed(HookBase):
    """Ends the training after a step, as a kill does."""

    def after_step(self) -> None:
        if self.trainer.iter == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_two_tasks_with_a_kill_and_a_resume(
    arguments: Callable[..., Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, tuned = (tmp_path / name for name in ("t1", "t2", "t2_ft"))
    command.run(arguments(first, 1, "train", "SOLVER.MAX_ITER", "3"))
    state = model_of(first / "model_final.pth")
    assert state[f"{HEAD}.cls_score.weight"].shape == (5, 12) and int(state[f"{HEAD}.num_known"]) == 3
    assert (
        bool(state[f"{HEAD}.method.prototypes.present"].any()) and int(state[f"{HEAD}.method.memory.counts"].sum()) > 0
    )
    energy = json.loads((first / "calibration.json").read_text())
    assert int(state[f"{HEAD}.method.energy_model.state"]) == {"fitted": 1, "fallback": 2}[energy["status"]]
    (scores,) = scores_of(first, 1)
    assert scores["protocol"] == "unique" and scores["task"] == 1 and scores["counts"]["images"] == 4
    logged = {name for line in (first / "metrics.json").read_text().splitlines() for name in json.loads(line)}
    wanted = {"loss_cls", "loss_box_reg", "loss_clustering", "loss_rpn_cls"}
    wanted |= {"openworld/num_prototypes", "openworld/num_remembered"}
    assert wanted | {"openworld/num_unknown_samples", "roi_head/num_fg_samples", "openworld/unknown_recall50"} <= logged

    more = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2")
    start = ("MODEL.WEIGHTS", str(first / "model_final.pth"))
    hooks = OpenWorldTrainer.build_hooks
    with monkeypatch.context() as patch:
        patch.setattr(OpenWorldTrainer, "build_hooks", lambda self: [*hooks(self), Killed()])
        with pytest.raises(KeyboardInterrupt):
            command.run(arguments(second, 2, "train", *more, *start))
    grown = model_of(second / "start_of_task2.pth")
    assert grown[f"{HEAD}.cls_score.weight"].shape == (8, 12)
    old = state[f"{HEAD}.cls_score.weight"]
    assert torch.equal(grown[f"{HEAD}.cls_score.weight"][[0, 1, 2, 6, 7]], old)
    prototypes = f"{HEAD}.method.prototypes.vectors"
    assert torch.equal(grown[prototypes][:3], state[prototypes][:3]) and not grown[prototypes][3:6].any()
    halfway = model_of(second / "model_0000001.pth")
    assert bool(halfway[f"{HEAD}.method.prototypes.present"].any())

    seen: list[int] = []
    with monkeypatch.context() as patch:
        step = OpenWorldTrainer.run_step
        patch.setattr(OpenWorldTrainer, "run_step", lambda self: (seen.append(self.iter), step(self))[1])
        command.run(arguments(second, 2, "train", *more, *start, resume=True))
    assert seen == [2, 3]
    assert int(model_of(second / "model_final.pth")[f"{HEAD}.num_known"]) == 6 and scores_of(second, 2)

    last = (
        "MODEL.WEIGHTS",
        str(second / "model_final.pth"),
        "OPENWORLD.FIRST_STEP",
        "4",
        "OPENWORLD.METHOD.CLUSTERING.DURING_REPLAY",
        "False",
    )
    command.run(arguments(tuned, 2, "replay", *last, "SOLVER.MAX_ITER", "1"))
    before, after = (model_of(folder / "model_final.pth") for folder in (second, tuned))
    assert torch.equal(before[prototypes], after[prototypes])  # nothing is clustered in this stage
    assert not torch.equal(before[f"{HEAD}.cls_score.weight"], after[f"{HEAD}.cls_score.weight"])

    weights = ("MODEL.WEIGHTS", str(tuned / "model_final.pth"), "OPENWORLD.PROTOCOL", "ore")
    command.run(arguments(tmp_path / "again", 2, "train", *weights, eval_only=True))
    assert scores_of(tmp_path / "again", 2)[0]["protocol"] == "ore"
    predicted = [
        (folder / "inference" / "world_t2_test" / "predictions.json").read_text()
        for folder in (tuned, tmp_path / "again")
    ]
    assert predicted[0] == predicted[1]


def test_bf16_on_a_cpu(arguments: Callable[..., Namespace], tmp_path: Path) -> None:
    parsed = arguments(
        tmp_path,
        1,
        "train",
        "SOLVER.AMP.ENABLED",
        "True",
        "SOLVER.MAX_ITER",
        "1",
        "DATASETS.TEST",
        "()",
        "OPENWORLD.METHOD.ENERGY.ENABLED",
        "False",
    )
    cfg = command.setup(parsed)
    cfg.OPENWORLD.HELD_OUT = ""
    trainer = OpenWorldTrainer(cfg)
    assert isinstance(trainer._trainer, CpuAmpTrainer)
    seen: list[torch.dtype] = []
    trainer.model.backbone.bottom_up.stem.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    predictor = trainer.model.roi_heads.box_predictor
    predictor.register_forward_hook(lambda *given: seen.extend(part.dtype for part in given[2]))
    trainer.train()
    assert seen[:4] == [torch.bfloat16, torch.float32, torch.float32, torch.float32]


def test_rows_of_new_classes_are_drawn_from_the_seed(
    arguments: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def noted(cfg: Any) -> str:
        seeds.append(torch.initial_seed())
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "grow_weights", noted)
    for before in (11, 12):
        torch.manual_seed(before)
        with pytest.raises(KeyboardInterrupt):
            command.run(arguments(tmp_path, 2, "train"))
    assert seeds == [1, 1]
