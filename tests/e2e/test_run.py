"""From the command line to the report, and back after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from openworld.configfile import read_config
from openworld.data.splits import training_view
from openworld.labels import LabelSpace
from openworld.run.sources import open_sources

from .conftest import assert_same_bits, final_weights, killed_run, openworld, own_process

METRICS = ("known_ap50", "previous_ap50", "current_ap50", "unknown_recall50", "unknown_ap50", "wi", "a_ose")


def lines(run: Path) -> list[dict]:  # type: ignore[type-arg]
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for entry in entries:
        entry.pop("seconds", None)
        entry.pop("cpu_seconds", None)
    return entries


def test_a_run_leaves_every_artefact(tiny_run: Path) -> None:
    for name in ("config.yaml", "env.json", "data.json", "metrics.jsonl", "report.html", "backbone/card.json"):
        assert (tiny_run / name).is_file(), name
    for task in (1, 2):
        folder = tiny_run / f"task{task}"
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["protocol"] == "unique"
        assert all(name in metrics for name in METRICS)
        assert json.loads((folder / "calibration.json").read_text())["status"] in ("fitted", "fallback")
        assert json.loads((folder / "exemplars.json").read_text())["images"]
        assert not (folder / "detections.partial").exists()
        files = [entry["file"] for entry in json.loads((folder / "predictions.json").read_text())["images"]]
        assert len(files) == 10 and all(not Path(file).is_absolute() and (tiny_run / file).is_file() for file in files)
    report = (tiny_run / "report.html").read_text()
    assert "data:image/" in report and "cannot be opened" not in report
    assert "http://" not in report and "https://" not in report
    stages = [(entry["stage"], entry["task"]) for entry in lines(tiny_run) if entry["event"] == "phase"]
    assert stages == [
        ("pretrain", None),
        ("train", 1),
        ("calibrate", 1),
        ("evaluate", 1),
        ("train", 2),
        ("replay", 2),
        ("calibrate", 2),
        ("evaluate", 2),
    ]


def test_no_step_is_missing_or_twice(tiny_run: Path) -> None:
    steps = [(e["stage"], e["task"], e["step"]) for e in lines(tiny_run) if e["event"] == "step" and e.get("task")]
    expected = [("train", 1, n) for n in range(1, 7)] + [("train", 2, n) for n in range(1, 5)]
    assert steps == expected + [("replay", 2, n) for n in range(1, 4)]


def test_the_log_holds_the_meters_of_the_method(tiny_run: Path) -> None:
    meters = [entry for entry in lines(tiny_run) if entry["event"] == "meters"]
    ends = {("train", 1, 6), ("train", 2, 4), ("replay", 2, 3)}
    assert ends <= {(entry["stage"], entry["task"], entry["step"]) for entry in meters}
    assert all(entry["num_prototypes"] >= 0 and entry["num_remembered"] > 0 for entry in meters)


def test_evaluate_scores_the_file_alone(tiny_run: Path, tmp_path: Path) -> None:
    result = tmp_path / "metrics.json"
    openworld(
        "evaluate",
        "--predictions",
        tiny_run / "task2" / "predictions.json",
        "--ground-truth",
        tiny_run / "world" / "test.json",
        "--output",
        result,
    )
    assert json.loads(result.read_text()) == json.loads((tiny_run / "task2" / "metrics.json").read_text())


def test_what_predict_writes_scores_like_the_run(tiny_run: Path, tmp_path: Path) -> None:
    """The images have other ids in the annotations: they are matched by their files, and it is said."""
    images = {
        Path(entry["file_name"]).parent for entry in json.loads((tiny_run / "world/test.json").read_text())["images"]
    }
    (folder,) = images
    openworld("predict", tiny_run / "world" / "images" / folder, "--run", tiny_run, "--output", tmp_path / "found")
    scored = ("--ground-truth", tiny_run / "world" / "test.json", "--output", tmp_path / "m.json")
    result = openworld("evaluate", "--predictions", tmp_path / "found" / "predictions.json", *scored)
    assert "images matched by the names of their files: 10" in result.stdout
    found = json.loads((tmp_path / "m.json").read_text())
    expected = json.loads((tiny_run / "task2" / "metrics.json").read_text())
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    assert found["counts"]["images"] == expected["counts"]["images"] == 10


def test_a_run_does_not_go_on_with_other_annotations(tiny_run: Path, tmp_path: Path) -> None:
    """Nor does its report keep silent about another test set."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.copytree(tiny_run / "world", tmp_path / "data")
    config = yaml.safe_load((run / "config.yaml").read_text())
    sources = {name: {"annotations": str(tmp_path / f"data/{name}.json")} for name in ("train", "val", "test")}
    config["data"] |= {"synthetic": None, **sources}
    config["pretrain"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    openworld("run", "--config", run / "config.yaml", "--output", run, "--resume")
    annotations = json.loads((tmp_path / "data" / "test.json").read_text())
    annotations["annotations"].pop()
    (tmp_path / "data" / "test.json").write_text(json.dumps(annotations))
    refused = openworld("run", "--config", run / "config.yaml", "--output", run, "--resume", check=False)
    assert refused.returncode == 2 and "test is not the set that the run began with: 10 images with" in refused.stderr
    said = openworld("report", run)
    assert "the test set is not the one that the run was scored on" in said.stderr
    assert "The test set is not the one that the run was scored on: 10 images" in (run / "report.html").read_text()


def test_prototypes_and_memory_are_in_the_checkpoint_and_grow(tiny_run: Path) -> None:
    tensors = final_weights(tiny_run)
    rows = 4 + 1  # known classes of both tasks, and unknown
    present = [value for key, value in tensors.items() if key.endswith("prototypes.present")]
    assert len(present) == 1 and present[0].shape == (rows,) and bool(present[0].any())
    assert tensors["engine.cls_score.weight"].shape[0] == rows + 1


def test_training_saw_no_label_of_a_later_task(tiny_run: Path) -> None:
    config = read_config(tiny_run / "config.yaml")
    view = training_view(open_sources(config, tiny_run).train, LabelSpace.of(config.schedule, 1))
    names = {int(row) for sample in view for row in sample.labels}
    assert names == {0, 1}


def test_killed_in_every_kind_of_phase_and_resumed_is_bit_for_bit_the_same(
    tiny_config: Path, tiny_run: Path, tmp_path: Path, no_reports: None
) -> None:
    """SIGKILL when the log first shows the second step of a phase, four times; the run ends with the same weights."""
    folder = tmp_path / "killed"
    for number, (stage, task) in enumerate((("pretrain", None), ("train", 1), ("train", 2), ("replay", 2))):
        wanted = {} if task is None else {"task": task}
        killed_run(tiny_config, folder, *["--resume"][:number], event="step", stage=stage, step=2, **wanted)
        assert not (folder / f"task{task or 1}" / "metrics.json").exists()
    openworld("run", "--config", tiny_config, "--output", folder, "--resume")
    assert_same_bits(final_weights(tiny_run), final_weights(folder))
    assert lines(folder) == lines(tiny_run)
    assert json.loads((folder / "task2" / "metrics.json").read_text()) == json.loads(
        (tiny_run / "task2" / "metrics.json").read_text()
    )


def test_a_folder_with_a_run_is_not_overwritten(tiny_config: Path, tiny_run: Path) -> None:
    result = openworld("run", "--config", tiny_config, "--output", tiny_run, check=False)
    assert result.returncode == 2 and "holds a run already" in result.stderr and "Traceback" not in result.stderr


def test_resume_with_another_configuration_names_the_difference(tiny_config: Path, tiny_run: Path) -> None:
    result = openworld(
        "run", "--config", tiny_config, "--output", tiny_run, "--resume", "--train.lr", "0.5", check=False
    )
    assert result.returncode == 2 and "train.lr: 0.001 → 0.5" in result.stderr


def test_predict_draws_a_folder_and_leaves_out_broken_images(tiny_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 255, (90, 40), dtype=np.uint8)).save(folder / "more" / "grey.jpg")
    (folder / "broken.jpg").write_bytes(b"not an image")
    result = openworld("predict", folder, "--run", tiny_run, "--score", "0.0", "--output", tmp_path / "out")
    assert "2 images, 1 left out" in result.stdout and "broken.jpg" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "drawings").rglob("*.png")) == ["a.png", "grey.png"]
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [(entry["id"], entry["width"], entry["height"]) for entry in images] == [
        ("a.png", 70, 50),
        ("more/grey.jpg", 40, 90),
    ]


def test_predict_needs_nothing_but_the_run(tiny_run: Path, tmp_path: Path) -> None:
    """From a copy of config.yaml and one checkpoint in another folder, from another working directory, the run having
    been trained on a GPU and started from a backbone file that is gone: the detections of the run itself."""
    moved, elsewhere = tmp_path / "moved", tmp_path / "elsewhere"
    checkpoint = "task2/checkpoint/calibrate-000001"
    shutil.copytree(tiny_run / checkpoint, moved / checkpoint)
    elsewhere.mkdir()
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert config["model"]["arch"]["width"] == 0.125  # of the pretraining, resolved
    config |= {"pretrain": None, "model": config["model"] | {"device": "cuda:99", "weights": "weights/gone.pth"}}
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    openworld("predict", tmp_path / "a.png", "--run", tiny_run, "--device", "cpu", "--output", tmp_path / "expected")
    for name, arguments in {"asked": ("--device", "cpu"), "left": ()}.items():
        result = openworld(
            "predict", "../a.png", "--run", "../moved", "--output", name, *arguments, directory=elsewhere
        )
        assert ("model.device cuda:99 is not on this machine" in result.stderr) == (name == "left")
        found, expected = (
            json.loads((folder / "predictions.json").read_text())["images"][0]["detections"]
            for folder in (elsewhere / name, tmp_path / "expected")
        )
        assert found == expected and found


def test_a_run_whose_data_have_gone(tiny_run: Path, tmp_path: Path) -> None:
    """The page has its numbers and says why it has no pictures; scoring says what is missing."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    shutil.rmtree(run / "world")
    config = yaml.safe_load((run / "config.yaml").read_text())
    source = {"annotations": "gone/test.json"}
    config["data"] |= {"synthetic": None, "train": {"annotations": "gone/train.json"}, "test": source}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    openworld("report", run)
    page = (run / "report.html").read_text()
    assert "The test set cannot be opened any more, so there are no pictures (gone/test.json: no such file" in page
    assert "data:image/" not in page and "Known mAP@50" in page
    result = openworld("evaluate", "--predictions", run, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "the annotations of the run's test set cannot be opened (no such file or folder: gone/test.json)" in (
        result.stderr
    )
    assert "--ground-truth" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--output", "x", "--train.step", "3"), "train.step"),
        (("run", "--output", "x", "--train.steps", "-3"), "steps is -3"),
        (("run", "--config", "tiny", "--output", "x", "--data.tasks", "[[ball, unicorn]]"), "unicorn"),
        (("predict", "absent.png", "--run", "nowhere", "--output", "x"), "nowhere"),
        (("evaluate", "--predictions", "absent.json", "--ground-truth", "absent.json"), "absent.json"),
    ],
)
def test_bad_input_is_one_clear_message(
    arguments: tuple[str, ...], message: str, tiny_config: Path, tmp_path: Path
) -> None:
    paths = {"x": tmp_path / "x", "tiny": tiny_config}
    result = openworld(*(paths.get(argument, argument) for argument in arguments), check=False)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr


def test_doctor_finds_this_installation_sound() -> None:
    assert "torch and torchvision" in openworld("doctor").stdout


def test_the_module_is_a_command() -> None:
    """In a process of its own an error is an exit code and a message."""
    wrong = own_process("run", "--output", "x", "--train.steps", "-3")
    assert wrong.returncode == 2 and "steps is -3" in wrong.stderr and "Traceback" not in wrong.stderr
