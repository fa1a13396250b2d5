"""A profiled run: the parts of its steps, and losses that are those of a run without a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn

from openworld.config import PhaseOptions, RunConfig
from openworld.data.options import DataOptions, ExemplarOptions, LoaderOptions, SyntheticOptions
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.methods.ore.options import EnergyOptions, OreOptions
from openworld.run import train
from openworld.run.schedule import run_schedule
from openworld.runtime.gradients import GradientAverage
from ssl_backbones.backbones import ResNetOptions

PARTS = {"data", "trunk", "FPN", "RPN", "regions", "RoI head", "method", "backward", "optimiser", "logging", "other"}


def config() -> RunConfig:
    """One task of five steps, with a checkpoint after the fourth."""
    phase = PhaseOptions(steps=5, batch_size=2, lr=1e-3, warmup_steps=1, checkpoint_every=4)
    return RunConfig(
        name="profile",
        data=DataOptions(
            tasks=[["ball", "cube"]],
            synthetic=SyntheticOptions(train_images=4, val_images=2, test_images=2, pretrain_images=0, size=64),
            loader=LoaderOptions(min_size=64, max_size=64),
        ),
        pretrain=None,
        model=ModelOptions(
            arch=ResNetOptions(name="resnet18", width=0.125),
            fpn_channels=8,
            rpn=RpnOptions(train_candidates=20, train_proposals=12, test_proposals=5, anchor_sizes=[8, 16, 32, 64]),
            roi=RoiOptions(sampled_regions=8, hidden_dim=16),
            device="cpu",
        ),
        method=OreOptions(energy=EnergyOptions(enabled=False)),
        exemplars=ExemplarOptions(enabled=False),
        train=phase,
        increment=phase,
        replay=phase,
    )


def losses(run: Path) -> list[dict[str, Any]]:
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [entry for entry in entries if entry["event"] == "step"]


def test_the_parts_of_a_step_are_told_apart_and_the_losses_stay(tmp_path: Path) -> None:
    owners = (torch.optim.Optimizer, torch.optim.AdamW, torch.Tensor, nn.utils, dist, train, GradientAverage)
    before = [dict(vars(owner)) for owner in owners]
    for name, steps in (("plain", 0), ("profiled", 2)):
        run_schedule(config(), tmp_path / name, resume=False, profile_steps=steps)
    assert losses(tmp_path / "profiled") == losses(tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile.json").exists()
    (phase,) = json.loads((tmp_path / "profiled" / "profile.json").read_text())["phases"]
    parts = {part["name"]: part for part in phase["parts"]}
    assert phase["steps"] == 2 and parts.keys() == {*PARTS, "checkpoint"}  # the fourth and the fifth of five steps
    assert all(part["seconds"] > 0 for part in parts.values())
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    for owner, names in zip(owners, before, strict=True):
        assert {name: vars(owner)[name] for name in names} == names, owner
