"""A backbone that is not a ResNet, from its pretraining to what its detector finds: quick, and in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from openworld.config import PhaseOptions, RunConfig
from openworld.configfile import read_config
from openworld.data.options import DataOptions, LoaderOptions, SyntheticOptions
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.run.checkpoints import load_task
from openworld.run.predict import predict_folder
from openworld.run.schedule import run_schedule
from ssl_backbones.backbones import ConvNeXtOptions
from ssl_backbones.backbones.convnext import ConvNeXt
from ssl_backbones.handover import load_backbone_file
from ssl_backbones.options import PretrainOptions

ARCH = ConvNeXtOptions(width=1 / 12, depths=[1, 1, 1, 1], layer_scale=0.1)
PHASE = PhaseOptions(steps=3, batch_size=2, lr=1e-3, warmup_steps=1)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return RunConfig(
        name="convnext",
        data=DataOptions(
            tasks=[["ball", "cube"], ["star"]],
            synthetic=SyntheticOptions(train_images=8, val_images=4, test_images=4, pretrain_images=8, size=64),
            loader=LoaderOptions(min_size=64, max_size=64),
        ),
        tasks=1,
        pretrain=PretrainOptions(arch=ARCH, steps=3, batch_size=4, view_size=32, warmup=1),
        model=ModelOptions(
            fpn_channels=16,
            rpn=RpnOptions(train_proposals=40, test_proposals=20, anchor_sizes=[8, 16, 32, 64]),
            roi=RoiOptions(sampled_regions=16, hidden_dim=24, score_threshold=0.02),
        ),
        train=PHASE,
        increment=PHASE,
        replay=PHASE,
    )


@pytest.fixture(scope="module")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "convnext"
    run_schedule(config, folder, resume=False)
    return folder


def test_it_is_pretrained_and_its_card_names_it(finished: Path) -> None:
    backbone = load_backbone_file(finished / "backbone")
    assert backbone.arch == ARCH and isinstance(backbone.network(), ConvNeXt)
    torch.manual_seed(0)
    assert not torch.equal(backbone.state_dict["features.0.0.weight"], ARCH.build().features[0][0].weight)


def test_the_configuration_comes_back_from_the_folder(finished: Path, config: RunConfig) -> None:
    found = read_config(finished / "config.yaml")
    assert found.pretrain == config.pretrain and found.model.arch == ARCH


def test_the_detector_trained_on_from_the_handed_over_weights(finished: Path) -> None:
    """All weights of the restored detector have moved from those, by a few steps at most."""
    start = safetensors.torch.load_file(finished / "backbone" / "backbone.safetensors")
    detector = load_task(finished, read_config(finished / "config.yaml"), 1)
    trained = detector.engine.backbone.state_dict()
    assert set(trained) == set(start)
    moved = {key: float((trained[key] - start[key]).abs().max()) for key in start}
    assert all(0 < distance < 0.01 for distance in moved.values())


def test_it_predicts(finished: Path, tmp_path: Path) -> None:
    images = finished / "world" / "images" / "test"
    number = sum(path.is_file() for path in images.rglob("*"))
    count, broken = predict_folder(finished, None, images, tmp_path / "out", score=0.5)
    assert (count, broken) == (number, [])
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert len(entries) == number and any(entry["detections"] for entry in entries)
