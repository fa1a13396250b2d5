"""A run's detectors there and back between the engines: the same tensors, and the same predictions where both exist."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from openworld.config import RunConfig
from openworld.configfile import dump_config
from openworld.convert.between_engines import convert_engine
from openworld.data.options import DataOptions, LoaderOptions
from openworld.detector import build_detector
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.errors import CheckpointError, ConfigError
from openworld.labels import LabelSpace
from openworld.run.checkpoints import Progress, load_task, save_progress
from openworld.run.detect import detect_images
from openworld.runtime.runlog import RunLog
from ssl_backbones.backbones import ResNetOptions

TASKS = [["ball", "cube"], ["star", "ring"]]
LOADER = LoaderOptions(min_size=64, max_size=64)
IMAGE = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def config(neck: str, layout: str) -> RunConfig:
    model = ModelOptions(
        weights="weights/gone.pth",
        arch=ResNetOptions(width=0.125),
        neck=neck,  # type: ignore[arg-type]
        layout=layout,  # type: ignore[arg-type]
        fpn_channels=8,
        device="cpu",
        rpn=RpnOptions(test_proposals=20),
        roi=RoiOptions(hidden_dim=12, score_threshold=0.0),
    )
    return RunConfig(pretrain=None, data=DataOptions(tasks=TASKS, loader=LOADER), model=model)


def written_run(folder: Path, chosen: RunConfig) -> Path:
    """A run with two finished tasks of random weights, large enough that scores differ."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(chosen))
    for task in (1, 2):
        torch.manual_seed(task)
        labels = LabelSpace.of(TASKS, task, chosen.model.layout)
        detector = build_detector(chosen, labels, None)
        for parameter in detector.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
        for buffer in detector.method.buffers():
            if buffer.is_floating_point():
                nn.init.normal_(buffer)
        progress, log = Progress(task, "calibrate", 1, True, labels.known), RunLog(folder / "metrics.jsonl")
        save_progress(folder / f"task{task}" / "checkpoint", detector, progress, log)
        (folder / f"task{task}" / "calibration.json").write_text("{}")
    return folder


def tensors_of(run: Path, task: int) -> dict[str, Tensor]:
    from openworld.runtime.checkpoint import newest_valid

    checkpoint = newest_valid(run / f"task{task}" / "checkpoint")
    assert checkpoint is not None
    return checkpoint.tensors


@pytest.mark.parametrize(("neck", "layout"), [("fpn", "growing"), ("c4", "fixed")])
def test_there_and_back_is_the_same_run(tmp_path: Path, neck: str, layout: str) -> None:
    chosen = config(neck, layout)
    run = written_run(tmp_path / "run", chosen)
    assert convert_engine(run, tmp_path / "there", "detectron2").model.engine == "detectron2"
    convert_engine(tmp_path / "there", tmp_path / "back", "torchvision")
    for task in (1, 2):
        before, there, after = (tensors_of(folder, task) for folder in (run, tmp_path / "there", tmp_path / "back"))
        assert before.keys() == after.keys() and all(
            torch.equal(value.nan_to_num(-7), after[name].nan_to_num(-7)) for name, value in before.items()
        )
        assert len(there) == len(before) + 1
        assert (tmp_path / "back" / f"task{task}" / "calibration.json").exists()
    native = tmp_path / "there" / "detectron2" / "task2"
    keys = yaml.safe_load((native / "config.yaml").read_text())
    node = keys["OPENWORLD"]
    assert node["TASKS"] == TASKS and node["TASK"] == 2 and node["LAYOUT"] == layout and node["METHOD"]["NAME"] == "ore"
    state = torch.load(native / "model_final.pth", weights_only=True)["model"]
    assert "roi_heads.box_predictor.method.prototypes.vectors" in state and "pixel_mean" not in state
    with pytest.raises(ConfigError, match="its engine is detectron2 already"):
        convert_engine(tmp_path / "there", tmp_path / "again", "detectron2")
    found = load_task(tmp_path / "back", replace(chosen), 2)
    assert len(detect_images(found, [IMAGE], LOADER)[0]) > 0


def test_a_run_without_a_finished_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(config("fpn", "growing")))
    with pytest.raises(CheckpointError, match="no finished task"):
        convert_engine(tmp_path, tmp_path / "new", "detectron2")


@pytest.mark.detectron2
@pytest.mark.skipif(find_spec("detectron2") is None, reason="detectron2 is not installed")
@pytest.mark.parametrize(("neck", "layout"), [("fpn", "growing"), ("c4", "fixed")])
def test_predictions_are_equal_in_the_engine_and_in_detectron2_itself(tmp_path: Path, neck: str, layout: str) -> None:
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from openworld.engines.detectron2.parts import add_openworld_config

    chosen = config(neck, layout)
    run = written_run(tmp_path / "run", chosen)
    there = convert_engine(run, tmp_path / "there", "detectron2")
    wanted = detect_images(load_task(run, chosen, 2), [IMAGE], LOADER)[0]
    found = detect_images(load_task(tmp_path / "there", there, 2), [IMAGE], LOADER)[0]
    assert len(wanted) > 3 and torch.equal(wanted.labels, found.labels)
    torch.testing.assert_close(found.boxes, wanted.boxes, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.extras["energy"], wanted.extras["energy"], atol=1e-4, rtol=1e-4)

    cfg = get_cfg()
    add_openworld_config(cfg)
    cfg.merge_from_file(str(tmp_path / "there" / "detectron2" / "task2" / "config.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    result = DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert not result.get("missing_keys") and not result.get("unexpected_keys")
    from openworld.data.transforms import prepare

    pixels, _ = prepare(IMAGE, LOADER)
    with torch.no_grad():
        instances = model([{"image": 255 * pixels, "height": 64, "width": 80}])[0]["instances"]
    assert instances.pred_classes.tolist() == wanted.labels.tolist()
    torch.testing.assert_close(instances.pred_boxes.tensor, wanted.boxes, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(instances.extra_energy, wanted.extras["energy"], atol=1e-4, rtol=1e-4)
