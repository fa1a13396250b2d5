"""A finished run that is used elsewhere: what is written of its detector, and on which device it computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openworld.config import RunConfig
from openworld.configfile import dump_config
from openworld.data.options import DataOptions, LoaderOptions
from openworld.detector import build_detector
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from openworld.labels import LabelSpace
from openworld.methods.ore.options import EnergyOptions, OreOptions
from openworld.run.checkpoints import Progress, checkpoints_of, save_progress
from openworld.run.predict import predict_folder
from openworld.runtime import environment
from openworld.runtime.environment import device_of_finished_run, select_device
from openworld.runtime.runlog import RunLog
from ssl_backbones.backbones import ResNetOptions
from tests.photographs import upright_picture, write_photograph

TASKS = [["ball", "cube"]]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def finished_run(folder: Path, device: str = "cpu", **energy: object) -> Path:
    config = RunConfig(
        pretrain=None,
        data=DataOptions(tasks=TASKS, loader=LoaderOptions(min_size=64, max_size=64)),
        model=ModelOptions(
            arch=ResNetOptions(width=1 / 64),
            fpn_channels=4,
            rpn=RpnOptions(test_proposals=10),
            roi=RoiOptions(hidden_dim=4, score_threshold=0.0),
            device="cpu",
        ),
        method=OreOptions(energy=EnergyOptions(**energy)),  # type: ignore[arg-type]
    )
    space = LabelSpace.of(TASKS, 1)
    torch.manual_seed(0)
    log, progress = RunLog(folder / "metrics.jsonl"), Progress(1, "calibrate", 1, True, space.known)
    save_progress(checkpoints_of(folder, 1), build_detector(config, space, None), progress, log)
    written = replace(config, model=replace(config.model, device=device, weights="weights/gone.pth"))
    (folder / "config.yaml").write_text(dump_config(written))
    return folder


@pytest.mark.parametrize(("fit_on", "told"), [("auto_labelled", False), ("annotated_and_auto", True)])
def test_predictions_say_that_labels_of_unknown_objects_were_used(
    tmp_path: Path, picture: Path, fit_on: str, told: bool
) -> None:
    run = finished_run(tmp_path / "run", fit_on=fit_on)
    assert predict_folder(run, None, picture, tmp_path / "found", score=0.0) == (1, [])
    content = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert content["uses_unknown_labels"] is told
    assert content["images"][0]["detections"]


def test_images_of_one_stem_have_a_drawing_each(tmp_path: Path, picture: Path) -> None:
    run, folder = finished_run(tmp_path / "run"), tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "b.jpg", "below/a.jpg"):
        Image.open(picture).save(folder / name)
    assert predict_folder(run, None, folder, tmp_path / "found", score=0.5) == (4, [])
    drawings = tmp_path / "found" / "drawings"
    found = {path.relative_to(drawings).as_posix() for path in drawings.rglob("*.png")}
    assert found == {"a.png.png", "a.jpg.png", "b.png", "below/a.png"}


def test_a_run_of_a_gpu_that_is_not_here_predicts_on_what_is(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same result as the run of the same weights that was trained on a CPU; a GPU that is asked for by name is
    not replaced."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    there = finished_run(tmp_path / "gpu", device="cuda:0")
    predict_folder(there, 1, picture, tmp_path / "found", score=0.5)
    assert "the run's model.device cuda:0 is not on this machine: cpu is used" in caplog.text
    predict_folder(finished_run(tmp_path / "cpu"), 1, picture, tmp_path / "expected", score=0.5)
    found, expected = ((tmp_path / name / "predictions.json").read_bytes() for name in ("found", "expected"))
    assert found == expected
    caplog.clear()
    predict_folder(there, 1, picture, tmp_path / "found", score=0.5, device="cpu")
    assert not caplog.records
    with pytest.raises(EnvironmentProblem, match="device 'cuda:0' was asked for and torch sees no GPU"):
        predict_folder(there, 1, picture, tmp_path / "found", score=0.5, device="cuda:0")


@pytest.mark.parametrize(
    ("configured", "wanted", "gpus", "expected"),
    [
        ("auto", None, 0, "cpu"),
        ("auto", None, 1, "cuda"),
        ("cpu", None, 1, "cpu"),
        ("cuda", None, 0, "cpu"),
        ("cuda:3", None, 4, "cuda:3"),
        ("cuda:3", None, 2, "cuda"),
        ("cuda:3", "auto", 0, "cpu"),
        ("cpu", "cuda:1", 2, "cuda:1"),
    ],
)
def test_the_device_of_a_finished_run(
    monkeypatch: pytest.MonkeyPatch, configured: str, wanted: str | None, gpus: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(environment, "lacks_kernels", lambda _: None)
    assert device_of_finished_run(configured, wanted) == expected


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EnvironmentProblem, match="device 'cuda:2' was asked for"):
        select_device("cuda:2")


def test_a_task_that_does_not_exist_is_answered_with_those_that_do(picture: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no finished task 9") as caught:
        predict_folder(run, 9, picture, tmp_path / "out", score=0.5)
    assert caught.value.remedy == "choose from 1"


@pytest.mark.parametrize("tag", [1, 3, 6, 7])
def test_photographs_are_seen_and_drawn_as_viewers_show_them(tmp_path: Path, tag: int) -> None:
    """The same detections as on a file without a tag that holds the upright pixels."""
    run = finished_run(tmp_path / "run")
    (tmp_path / "tagged").mkdir()
    (tmp_path / "plain").mkdir()
    write_photograph(tmp_path / "tagged" / "x.png", tag)
    Image.fromarray(upright_picture()).save(tmp_path / "plain" / "x.png")
    found = {}
    for name in ("tagged", "plain"):
        predict_folder(run, None, tmp_path / name, tmp_path / f"of {name}", score=1.0)
        found[name] = json.loads((tmp_path / f"of {name}" / "predictions.json").read_text())
    assert found["tagged"]["orientation"] == "upright"
    (tagged,), (plain,) = (content["images"] for content in found.values())
    assert (tagged["width"], tagged["height"]) == (48, 64) and tagged["detections"] == plain["detections"] != []
    drawn = [np.asarray(Image.open(tmp_path / f"of {name}" / "drawings" / "x.png")) for name in found]
    np.testing.assert_array_equal(*drawn)


def test_photographs_as_they_are_stored(tmp_path: Path) -> None:
    path = write_photograph(tmp_path / "x.png", 6)
    predict_folder(finished_run(tmp_path / "run"), None, path, tmp_path / "found", score=1.0, upright=False)
    content = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert content["orientation"] == "stored" and content["images"][0]["width"] == 64


@pytest.mark.parametrize("score", [30.0, -0.1, 1.01, float("nan")])
def test_a_score_that_is_not_a_fraction_is_refused(tmp_path: Path, picture: Path, score: float) -> None:
    with pytest.raises(ConfigError, match=r"scores are fractions(.|\n)*0\.3 for 30 %"):
        predict_folder(finished_run(tmp_path / "run"), None, picture, tmp_path / "found", score=score)
    assert not (tmp_path / "found").exists()


def test_files_of_other_kinds_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("a.jpg", "b.jfif", "c.jpe", "d.gif", "e.ppm", "f.jp2", "g.PNG"):
        Image.fromarray(upright_picture()).save(folder / name, None if name != "b.jfif" else "JPEG")
    for name in ("h.heic", "i.HEIC", "j.dng", "labels.txt", "._a.jpg.bak", "k"):
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic")
    count, broken = predict_folder(finished_run(tmp_path / "run"), None, folder, tmp_path / "found", score=1.0)
    assert (count, broken) == (7, [])
    assert "because they are of other kinds: 1 x .dng, 2 x .heic, 1 x no suffix" in caplog.text
    for path in folder.glob("[a-g].*"):
        path.unlink()
    with pytest.raises(DataError, match=r"holds no images of a kind that can be read; there are 1 x \.dng, 2 x \.heic"):
        predict_folder(tmp_path / "run", None, folder, tmp_path / "again", score=1.0)


def test_the_white_level_of_a_run_holds_for_its_predictions(tmp_path: Path) -> None:
    """12 bits in a 16-bit file, read with their white level, are found as the same picture in 8 bits."""
    run = finished_run(tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("white_level: 65535", "white_level: 4095"))
    values = np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)
    (tmp_path / "deep").mkdir()
    (tmp_path / "eight").mkdir()
    Image.fromarray(values).save(tmp_path / "deep" / "x.png")
    Image.fromarray((values >> 4).astype(np.uint8)).save(tmp_path / "eight" / "x.png")
    seen = []
    for name in ("deep", "eight"):
        predict_folder(run, None, tmp_path / name, tmp_path / f"of {name}", score=1.0)
        seen.append(json.loads((tmp_path / f"of {name}" / "predictions.json").read_text())["images"][0]["detections"])
    assert seen[0] == seen[1] != []
