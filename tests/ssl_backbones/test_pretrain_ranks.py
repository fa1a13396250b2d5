"""Pretraining by two gloo processes: the weights of one process, and of a run that was killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from openworld.runtime.images import find_images
from openworld.runtime.runlog import RunLog
from openworld.runtime.seeding import seed_everything
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.method import Method
from ssl_backbones.methods.moco_options import MoCoV2Options
from ssl_backbones.methods.simclr_options import SimCLROptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.pretrain import pretrain
from tests.two_processes import TwoProcesses

SMALL: dict[str, Any] = {
    "view_size": 32,
    "steps": 4,
    "batch_size": 8,
    "warmup": 1,
    "lr": 0.001,
    "checkpoint_every": 2,
    "probe_every": 2,
}
# Without batch norm, the queue moving on in four pieces a step; and with batch norm that sees all processes, for one
# step: of a deep network with four channels and sixteen views, rounding makes another one within a few.
CASES = {
    "moco": PretrainOptions(
        method=MoCoV2Options(queue_size=12, projection_dim=8),
        accumulate=2,
        arch=ResNetOptions(width=1 / 16, norm="frozen", stem="cifar3x3"),
        **SMALL,
    ),
    "simclr": PretrainOptions(
        method=SimCLROptions(projection_dim=8),
        sync_batch_norm=True,
        arch=ResNetOptions(width=1 / 16, stem="cifar3x3"),
        **{**SMALL, "steps": 1},
    ),
}
KILLED = "moco"


class Killed(Exception):
    """Stands for the power cut."""


def crops() -> tuple[list[np.ndarray], list[str]]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(6)], ["one", "other"] * 3


def train(name: str, images: Path, output: Path, **more: Any) -> None:
    log = RunLog(output.with_suffix(".jsonl"))
    pretrain(CASES[name], find_images(images), output, seed=3, log=log, labelled_crops=crops(), **more)


def kill_at(step_of_death: int) -> Any:
    """A method's ``after_step`` that dies."""
    before = CASES[KILLED].method.implementation().after_step

    def after_step(self: Method, step: int, steps: int) -> None:
        before(self, step, steps)
        if step == step_of_death:
            raise Killed

    return after_step


def process(rank: int, folder: Path) -> None:
    """What one process does."""
    for name in CASES:
        train(name, folder / "images", folder / f"{name}-two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CASES[KILLED].method.implementation(), "after_step", kill_at(2))
        with pytest.raises(Killed):
            train(KILLED, folder / "images", folder / "cut")
    torch.manual_seed(99 + rank)
    train(KILLED, folder / "images", folder / "cut", resume=True)


def test_two_processes_are_one_and_resume_exactly(tmp_path: Path, two_processes: TwoProcesses) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(17):
        pixels = random.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    two_processes.run(process, tmp_path)
    for name in CASES:
        train(name, tmp_path / "images", tmp_path / f"{name}-one")
    for name in CASES:
        one, two = (
            safetensors.torch.load_file(tmp_path / f"{name}-{many}" / "backbone.safetensors") for many in ("one", "two")
        )
        seed_everything(3, "pretrain")
        before = CASES[name].method.implementation()(CASES[name]).backbone().state_dict()
        for key, value in one.items():
            moved, apart = (float((value - other[key]).double().norm()) for other in (before, two))
            assert apart <= 0.01 * moved, f"{name}: {key}"
        logs = [RunLog(tmp_path / f"{name}-{many}.jsonl").read() for many in ("one", "two")]
        # steps, and probes before the first and after each second one
        assert len(logs[0]) == len(logs[1]) == {"moco": 4 + 3, "simclr": 1}[name]
        for alone, shared in zip(*logs, strict=True):
            assert (shared.pop("event"), shared.pop("stage")) == (alone.pop("event"), alone.pop("stage"))
            for each in (alone, shared):
                each.pop("spread", None)  # a mean over the shares, each of which has a spread of its own
            assert shared == pytest.approx(alone, rel=1e-3, abs=1e-5)
    whole, cut = (tmp_path / name / "backbone.safetensors" for name in (f"{KILLED}-two", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    assert RunLog(tmp_path / f"{KILLED}-two.jsonl").read() == RunLog(tmp_path / "cut.jsonl").read()
    assert (whole.parent / "card.json").read_text() == (cut.parent / "card.json").read_text()
