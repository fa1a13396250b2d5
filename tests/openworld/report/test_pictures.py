"""Which detections and which images are shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openworld.errors import DataError
from openworld.report.findings import (
    Objects,
    Shown,
    best_unknown_threshold,
    choose,
    image_evidence,
    shown_detections,
)
from openworld.report.pictures import pictures, sample_sheet
from openworld.report.run_folder import read_run
from tests.photographs import BOX, STORED, object_in, upright_picture, write_photograph


def _found(label: str, score: float) -> dict[str, object]:
    return {"bbox": [1, 2, 3, 4], "label": label, "score": score}


def test_known_by_threshold_and_the_best_unknowns() -> None:
    entry = {
        "detections": [
            _found("a", 0.2),
            _found("a", 0.4),
            *[{**_found("unknown", s), "bbox": [5, 2, 3, 4]} for s in (0.01, 0.05, 0.03)],
            {"bbox": None},
        ]
    }
    shown = shown_detections(entry, 0.3, 2)
    assert shown.names == ("a", "unknown", "unknown") and shown.scores == (0.4, 0.05, 0.03)
    assert shown.boxes[0].tolist() == [1, 2, 4, 6]
    assert shown_detections({}, 0.3, 2).boxes.shape == (0, 4)


def test_evidence_of_an_object_that_gets_its_name() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    shown = {1: Shown(box, ("unknown",), (0.5,)), 2: Shown(box + 1, ("cat",), (0.5,))}
    known = {1: frozenset({"dog"}), 2: frozenset({"dog", "cat"})}
    evidence = image_evidence(shown, Objects(box, ("cat",)), known)
    assert evidence == {("unknown", "cat"): 1, ("known", "cat"): 1, ("named", "cat"): 1}
    # "unknown" on a known object, a wrong name and a box elsewhere count for nothing
    assert not image_evidence({2: shown[1]}, Objects(box, ("cat",)), known)
    assert not image_evidence({2: shown[2]}, Objects(box, ("dog",)), known)
    assert not image_evidence({2: shown[2]}, Objects(box + 50, ("cat",)), known)


def test_choice_is_varied_and_does_not_hang_on_the_order() -> None:
    evidence = {
        "1": Counter({("named", "cat"): 1, ("known", "dog"): 2}),
        "2": Counter({("named", "cat"): 1, ("known", "dog"): 1}),
        "3": Counter({("unknown", "cow"): 2, ("known", "dog"): 1}),
        "4": Counter[tuple[str, str]](),
    }
    assert choose(evidence, 3) == choose(dict(reversed(evidence.items())), 3) == ["1", "3", "2"]
    assert choose({}, 3) == []


def test_the_same_images_for_every_task(fake_run: tuple[Path, object]) -> None:
    run, test = fake_run
    shown, notes = pictures(read_run(run), test, num_images=2)  # type: ignore[arg-type]
    assert len(shown) == 2 and not notes
    for picture in shown:
        assert [panel.task for panel in picture.panels] == [1, 2, 3]
        assert all(panel.truth is not None and panel.found is not None for panel in picture.panels)


def test_an_image_that_is_gone_is_said(fake_run: tuple[Path, object], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = fake_run
    (run / "world" / "img_000.png").unlink()
    (run / "world" / "img_001.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    started: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **options: started.append(arguments))
    shown, notes = pictures(read_run(run), None)
    assert not started  # a picture never starts an interpreter
    assert len(shown) == 2 and len(notes) == 2 and "img_000.png" in " ".join(notes)


def test_sample_sheet(make_run: Callable[..., tuple[Path, object]], tmp_path: Path) -> None:
    run, test = make_run("two", [["a", "b"], ["c"]], images=3)
    sheet = Image.open(sample_sheet(run, test, tmp_path / "sheet.png", num_images=2, size=128))  # type: ignore[arg-type]
    assert sheet.width > 3 * 128  # annotations and two tasks
    for task in (1, 2):
        (run / f"task{task}" / "predictions.json").unlink()
    with pytest.raises(DataError, match="evaluate"):
        sample_sheet(run, None, tmp_path / "none.png")


@pytest.mark.parametrize(
    ("orientation", "tag"), [("upright", 3), ("upright", 6), ("stored", 3), ("size", 3), (None, 8)]
)
def test_photographs_are_shown_as_they_were_detected_on(tmp_path: Path, orientation: str | None, tag: int) -> None:
    write_photograph(tmp_path / "x.png", tag)
    upright = orientation == "upright" or tag == 8  # of 8 the size below tells
    pixels = upright_picture() if upright else STORED[tag](upright_picture())
    image = {"id": 1, "file": "x.png", "width": pixels.shape[1], "height": pixels.shape[0], "detections": []}
    content = {"tasks": [["mug"]], "task": 1, "orientation": orientation, "images": [image]}
    (tmp_path / "task1").mkdir()
    (tmp_path / "task1" / "predictions.json").write_text(json.dumps(content))
    (tmp_path / "config.yaml").write_text("data: {loader: {white_level: 4095}}")
    ((picture,), notes) = pictures(read_run(tmp_path), None, size=64)
    shown = np.asarray(picture.panels[0].found).transpose(2, 0, 1)[:, : pixels.shape[0], : pixels.shape[1]]
    assert notes == [] and object_in(shown) == (BOX if upright else object_in(pixels.transpose(2, 0, 1)))


def entry_of(*detections: tuple[list[float], str, float]) -> dict[str, Any]:
    return {"detections": [{"bbox": box, "label": label, "score": score} for box, label, score in detections]}


def test_an_unknown_box_on_a_better_known_one_is_not_drawn() -> None:
    entry = entry_of(
        ([0, 0, 10, 10], "cat", 0.9),
        ([0, 0, 10, 9], "unknown", 0.8),
        ([20, 0, 10, 10], "unknown", 0.7),
        ([20, 0, 10, 10], "cat", 0.6),
        ([40, 0, 10, 10], "unknown", 0.5),
        ([40, 0, 10, 10], "cat", 0.2),
    )
    shown = shown_detections(entry, 0.3, 9)
    assert list(zip(shown.names, shown.scores, strict=True)) == [
        ("cat", 0.9),
        ("unknown", 0.7),
        ("cat", 0.6),
        ("unknown", 0.5),
    ]
    assert shown_detections(entry, 0.3, 9, 0.6).scores == (0.9, 0.7, 0.6)


def test_the_threshold_of_unknown_has_the_best_f1() -> None:
    """Three unknown objects; by falling score right, wrong, right, wrong, wrong: F1 2/4, 2/5, 4/6, 4/7, 4/8."""
    entries = {
        "1": entry_of(([0, 0, 10, 10], "unknown", 0.9), ([50, 0, 10, 10], "unknown", 0.8), ([0, 0, 9, 9], "cat", 0.99)),
        "2": entry_of(([0, 0, 10, 10], "unknown", 0.7), ([0, 0, 10, 10], "unknown", 0.6)),
        "3": entry_of(([30, 0, 10, 10], "unknown", 0.5)),
    }
    box = np.array([[0.0, 0, 10, 10]])
    objects = {
        "1": Objects(np.concatenate([box, box + 90]), ("cow", "cow")),
        "2": Objects(box, ("cow",)),
        "3": Objects(box + 30, ("cat",)),
    }
    assert best_unknown_threshold(entries, objects, frozenset({"cat"})) == 0.7
    assert best_unknown_threshold({"3": entries["3"]}, objects, frozenset({"cat"})) == 0
    assert best_unknown_threshold({}, {}, frozenset()) == 0
