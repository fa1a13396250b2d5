"""`openworld evaluate` and `openworld data audit` from the command line, on small files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from openworld.cli import main

CLASSES = ("cat", "dog", "cow")
PLACES = ([10.0, 10.0, 40.0, 40.0], [60.0, 10.0, 30.0, 50.0], [10.0, 60.0, 20.0, 20.0])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two images with a cat, a dog and a cow each; a schedule of two tasks; a cow is unknown for ever."""
    truth = {
        "images": [{"id": i, "file_name": f"{i:06d}.jpg", "width": 120, "height": 100} for i in (1, 2)],
        "categories": [{"id": 10 + row, "name": name} for row, name in enumerate(CLASSES)],
        "annotations": [
            {"id": 3 * i + row, "image_id": i, "category_id": 10 + row, "bbox": box, "area": 1, "iscrowd": 0}
            for i in (1, 2)
            for row, box in enumerate(PLACES)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "schedule.yaml").write_text("tasks: [[cat], [dog]]\n")
    found = [
        {"image_id": i, "category_id": category, "bbox": box, "score": score}
        for i in (1, 2)
        for category, box, score in ((10, PLACES[0], 0.9), (10, PLACES[2], 0.5), (99, PLACES[1], 0.8))
    ]
    (tmp_path / "results.json").write_text(json.dumps(found))
    return tmp_path


def evaluate(files: Path, *more: str) -> list[str]:
    return [
        *("evaluate", "--predictions", str(files / "results.json"), "--ground-truth", str(files / "truth.json")),
        *("--schedule", str(files / "schedule.yaml"), "--task", "1", "--unknown-category", "99", *more),
    ]


def test_foreign_results_under_all_protocols(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cat is found, the dog is called unknown, the cow is called a cat."""
    main(evaluate(files, "--protocol", "all", "--output", str(files / "out")))
    printed = capsys.readouterr().out
    assert re.search(r"1\s+orthogonaldet", printed) and "U-Recall" in printed
    results = json.loads((files / "out" / "metrics.json").read_text())["results"]
    assert [result["protocol"] for result in results] == ["unique", "ore", "owdetr", "randbox", "orthogonaldet"]
    for result in results:
        assert result["known_ap50"] == 1.0 and result["unknown_recall50"] == 0.5
        assert result["a_ose"] == 2 and result["unknown_hits"] == {"unknown": 2, "known": 0, "background": 0}
        assert result["coco"]["ap"] == pytest.approx(1.0)
    names = {file.name for file in (files / "out").iterdir()}
    assert {"results.csv", "results.md", "results.tex", "precision_recall.png"} <= names


def test_rules_of_ones_own(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(evaluate(files, "--rules.score_threshold", "0.85", "--output", str(files / "m.json"), "--coco", "false"))
    metrics = json.loads((files / "m.json").read_text())
    assert metrics["protocol"] == "unique (score_threshold=0.85)" and metrics["rules"]["score_threshold"] == 0.85
    assert metrics["unknown_recall50"] == 0.0 and metrics["a_ose"] == 0 and metrics["coco"] is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda rows: rows[1].update(score=float("nan")), ("results.json", "score", "nan")),
        (lambda rows: rows[1].update(image_id=77), ("results.json", "77", "image_id")),
        (lambda rows: rows[1].update(category_id=55), ("results.json", "55", "category_id")),
        (lambda rows: rows[1].update(category_id=11), ("results.json", "dog", "task")),
        (lambda rows: rows[1].pop("bbox"), ("results.json", "bbox")),
    ],
    ids=["nan score", "unknown image", "unknown category", "class of a later task", "no box"],
)
def test_bad_records_are_named(
    files: Path, capsys: pytest.CaptureFixture[str], damage: object, words: tuple[str, ...]
) -> None:
    rows = json.loads((files / "results.json").read_text())
    damage(rows)  # type: ignore[operator]
    (files / "results.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit) as stopped:
        main(evaluate(files))
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "What to do:" in told
    assert all(word in told for word in words), told


def test_a_truncated_file_is_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (files / "results.json").read_text()
    (files / "results.json").write_text(text[: len(text) // 2])
    with pytest.raises(SystemExit):
        main(evaluate(files))
    told = capsys.readouterr().err
    assert "results.json" in told and "not JSON" in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--protocol", "voc"), ("voc", "unique, ore")),
        (("--rules.iou_treshold", "0.6"), ("rules.iou_treshold", "did you mean rules.iou_threshold?")),
        (("--schedule", "m_owod"), ("m_owod", "m_owodb")),
    ],
)
def test_bad_options_are_named(
    files: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit):
        main(evaluate(files, *options))
    told = capsys.readouterr().err
    assert all(word in told for word in words), told


def test_nothing_to_score_against(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--predictions", str(files / "results.json")])
    assert "--ground-truth" in capsys.readouterr().err


def test_audit_finds_a_repeated_image(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A VOC folder whose list names one of two images twice: 1 of 2 cows and dogs is unknown in 3 lines."""
    annotations = files / "voc" / "Annotations"
    annotations.mkdir(parents=True)
    for name in ("000001", "000002"):
        objects = "".join(
            f"<object><name>{name_of}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for name_of, (x, y, w, h) in zip(CLASSES, PLACES, strict=True)
        )
        size = "<size><width>120</width><height>100</height><depth>3</depth></size>"
        (annotations / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (files / "list.txt").write_text("000001\n000002\n000001\n")
    main(
        [
            *("data", "audit", "--test", str(files / "voc"), "--test-set", str(files / "list.txt")),
            *("--schedule", str(files / "schedule.yaml"), "--output", str(files / "audit.json")),
        ]
    )
    printed = capsys.readouterr().out
    assert "1 of 3 lines" in " ".join(printed.split())
    found = json.loads((files / "audit.json").read_text())
    ceilings = {(row["task"], row["protocol"]): row for row in found["ceilings"]}
    assert ceilings[1, "ore"]["unknown_recall50"] == pytest.approx(2 / 3)
    assert ceilings[1, "ore"]["unknown_recall_factor"] == pytest.approx(3 / 2)
    assert ceilings[1, "unique"]["unknown_recall50"] == 1.0


def test_audit_needs_a_test_set_and_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "audit"])
    assert "--test" in capsys.readouterr().err


def test_a_run_brings_its_own_annotations_without_its_images(files: Path) -> None:
    """The folder of a run: configuration, schedule and test annotations come from there; no image file exists."""
    (files / "config.yaml").write_text(
        f"pretrain: null\ndata: {{synthetic: null, train: {{annotations: {files}/truth.json}}, "
        f"test: {{annotations: {files}/truth.json}}, tasks: [[cat], [dog]]}}\n"
    )
    found = [
        {"bbox": box, "label": label, "score": 0.9}
        for box, label in zip(PLACES, ("cat", "unknown", "unknown"), strict=True)
    ]
    images = [{"id": i, "file": "", "width": 120, "height": 100, "detections": found} for i in (1, 2)]
    (files / "task1").mkdir()
    (files / "task1" / "predictions.json").write_text(
        json.dumps({"format": "openworld-predictions/1", "tasks": [["cat"], ["dog"]], "task": 1, "images": images})
    )
    main(["evaluate", "--predictions", str(files), "--output", str(files / "m.json")])
    metrics = json.loads((files / "m.json").read_text())
    assert metrics["known_ap50"] == metrics["unknown_recall50"] == 1.0


def test_dropped_annotations_of_the_ground_truth_are_said(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    truth = json.loads((files / "truth.json").read_text())
    truth["annotations"][4]["category_id"] = 77
    (files / "truth.json").write_text(json.dumps(truth))
    main(evaluate(files, "--coco", "false"))
    (said,) = caplog.messages
    assert said.startswith("ground truth: dropped: category_id that nothing has (1), for instance ") and "77" in said


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        (("results.json", "--ground-truth", "truth.json"), "needs a schedule and a task", "add --schedule and --task:"),
        (("results.json", "--ground-truth", "truth.json", "--task", "1"), "needs a schedule", "add --schedule:"),
        (("truth.json", "--ground-truth", "truth.json"), "holds COCO annotations, not predictions", "predictions.json"),
        (("nowhere",), "nowhere: no such file or folder", "check the path of the predictions"),
        (("results.json",), "nothing to score against", "--ground-truth"),
    ],
)
def test_what_is_missing_is_named_with_its_option(
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    problem: str,
    remedy: str,
) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--predictions", *arguments])
    first, second = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and problem in first and second.startswith("What to do: ") and remedy in second
