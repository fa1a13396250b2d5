"""The LazyConfig of the demo: the detector of demo.yaml, and a training by detectron2's plain trainer."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.config import instantiate
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from openworld.plugins.detectron2 import command, lazy
from openworld.plugins.detectron2.trainer import CpuAmpTrainer

from .conftest import CONFIGS, ROOT

pytestmark = pytest.mark.detectron2

SMALL = """
dataloader.train.total_batch_size=2 dataloader.train.mapper.augmentations.0.short_edge_length=[64]
train.log_period=1 model.proposal_generator.post_nms_topk=[30,60]
model.roi_heads.box_predictor.roi.sampled_regions=16 model.roi_heads.box_predictor.method.energy.min_samples=3
model.roi_heads.box_predictor.method.clustering.start_step=0
"""


@pytest.fixture
def lazy_arguments(world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Namespace]:
    """What the command line parses to, for the small world."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world.parent))

    def parsed(output: Path, *more: str, resume: bool = False, eval_only: bool = False) -> Namespace:
        keys = f"{SMALL} openworld.schedule={world} openworld.name=world train.output_dir={output}".split()
        return Namespace(config_file=str(CONFIGS / "demo.py"), opts=[*keys, *more], resume=resume, eval_only=eval_only)

    return parsed


def test_it_is_the_detector_of_the_yaml_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same losses from the same weights, and the same detections."""
    monkeypatch.chdir(ROOT)
    yacs = command.setup(Namespace(config_file="configs/detectron2/demo.yaml", opts=["MODEL.DEVICE", "cpu"]))
    python = lazy.setup(Namespace(config_file="configs/detectron2/demo.py", opts=["train.device=cpu"]))
    torch.manual_seed(0)
    models = [build_model(yacs), instantiate(python.model)]
    models[1].load_state_dict(models[0].state_dict())
    predictors = [model.roi_heads.box_predictor for model in models]
    assert predictors[0].roi == predictors[1].roi and predictors[0].space == predictors[1].space
    for name in ("clustering", "unknown_labels", "energy"):
        assert getattr(predictors[0].method, name) == getattr(predictors[1].method, name)
    assert [model.roi_heads.num_classes for model in models] == [4, 4]
    assert [model.roi_heads.batch_size_per_image for model in models] == [48, 48]
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1)) * 255
    objects = Instances((96, 96), gt_boxes=Boxes(torch.tensor([[8.0, 8, 50, 60]])), gt_classes=torch.tensor([1]))
    found: list[Any] = []
    for model in models:
        torch.manual_seed(2)
        with EventStorage():
            losses = model([{"image": image, "instances": objects}])
        with torch.no_grad():
            (detected,) = model.eval()([{"image": image, "height": 96, "width": 96}])
        found.append((losses, detected["instances"]))
    (losses, detections), (other_losses, other_detections) = found
    assert len(detections) > 0
    assert losses.keys() == other_losses.keys()
    assert all(torch.equal(value, other_losses[name]) for name, value in losses.items())
    assert torch.equal(detections.pred_boxes.tensor, other_detections.pred_boxes.tensor)
    assert torch.equal(detections.scores, other_detections.scores)


def test_two_steps_then_the_next_task(
    lazy_arguments: Callable[..., Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of task 1 with its energy and scores, another one after a resume, evaluation alone, and the model that
    task 2 starts from."""
    first, again, second = (tmp_path / name for name in ("t1", "again", "t2"))
    seen: list[int] = []
    step = CpuAmpTrainer.run_step

    def watched(self: CpuAmpTrainer) -> None:
        seen.append(self.iter)
        step(self)

    monkeypatch.setattr(CpuAmpTrainer, "run_step", watched)
    lazy.run(lazy_arguments(first, "train.amp.enabled=True", "train.max_iter=1"))
    lazy.run(lazy_arguments(first, "train.amp.enabled=True", "train.max_iter=2", resume=True))
    assert seen == [0, 1]
    state = torch.load(first / "model_final.pth", weights_only=True)["model"]
    head = "roi_heads.box_predictor"
    assert state[f"{head}.cls_score.weight"].shape == (5, 256) and int(state[f"{head}.method.energy_model.state"]) > 0
    assert json.loads((first / "calibration.json").read_text())["status"] in ("fitted", "fallback")
    (scores,) = json.loads((first / "inference" / "world_t1_test" / "metrics.json").read_text())
    assert scores["task"] == 1 and scores["counts"]["images"] == 4
    logged = {name for line in (first / "metrics.json").read_text().splitlines() for name in json.loads(line)}
    assert {"loss_cls", "loss_clustering", "openworld/num_remembered", "lr"} <= logged

    weights = f"train.init_checkpoint={first / 'model_final.pth'}"
    lazy.run(lazy_arguments(again, weights, eval_only=True))
    files = [folder / "inference" / "world_t1_test" / "predictions.json" for folder in (first, again)]
    assert files[0].read_text() == files[1].read_text()

    cfg = lazy.setup(lazy_arguments(second, weights, "openworld.task=2"))
    cfg.train.init_checkpoint = lazy.grow_weights(cfg)
    grown = torch.load(second / "start_of_task2.pth", weights_only=True)["model"]
    old = state[f"{head}.cls_score.weight"]
    assert torch.equal(grown[f"{head}.cls_score.weight"][[0, 1, 2, 6, 7]], old)
    lazy.build_model(cfg).load_state_dict(grown)
    assert cfg.openworld.task == 2 and cfg.dataloader.train.dataset.names == "world_t2_train"
