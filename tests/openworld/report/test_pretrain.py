"""The page of a pretraining: complete, with anything missing, and with hostile names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openworld.errors import DataError
from openworld.report import plots
from openworld.report.pretrain import build_pretrain_report, probe_rows, training_curves

KNN = {"trained": 0.5, "untrained": 0.25, "chance": 0.125, "k": 20, "samples": 160, "test_samples": 40}
CARD: dict[str, Any] = {
    "method": "simclr",
    "arch": {"name": "resnet18", "width": 0.5},
    "data": {"images": 200, "source": "<photos> & more", "labels": None},
    "steps": 30,
    "knn": {**KNN, "leave_one_out": False, "classes": 8, "source": "photos"},
    "linear": {
        "trained": {"top1": 0.5, "top5": 0.9},
        "untrained": {"top1": 0.3, "top5": 0.8},
        "chance": 0.125,
        "train_samples": 160,
        "test_samples": 40,
    },
    "alignment": {
        "trained": {"alignment": 0.4, "uniformity": -2.5},
        "untrained": {"alignment": 1.0, "uniformity": -1.5},
        "samples": 200,
    },
    "collapse": {"collapsed_at": None, "first_rank": 40.0, "feature_std": 0.7, "effective_rank": 30.0},
    "options": {"method": "simclr", "lr": 0.01},
}
LOG: list[dict[str, Any]] = [
    {"event": "probe", "step": 0, "knn": 0.25},
    *({"event": "step", "step": step, "loss": 4 / step, "lr": 0.01, "effective_rank": 30.0} for step in range(1, 31)),
    {"event": "probe", "step": 30, "knn": 0.5},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pretraining of five images, of which one is gone. Figures are empty; test_curves is about them."""
    random = np.random.default_rng(0)
    images = [str(tmp_path / f"{number} <b>.png") for number in range(5)]
    for path in images[1:]:
        Image.fromarray(random.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    near = [{"image": path, "similarity": 0.875} for path in (images[2], images[0])]
    queries = [{"image": path, "trained": near, "untrained": near} for path in images[:2]]
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    (tmp_path / "neighbours.json").write_text(json.dumps({"queries": queries}))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, LOG)))
    return tmp_path


def test_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "svg", lambda *_: "<svg></svg>")
    path = build_pretrain_report(folder)
    text = path.read_text(encoding="utf-8")
    assert path == folder / "report.html"
    assert "simclr trained a resnet18 of width 0.5 for 30 steps on 200 images" in text
    assert "50.0\u00a0% of labelled images right" in text and "before training 25.0\u00a0%" in text
    assert "40 held-out images are asked about 160 others" in text
    assert "<svg></svg>" in text and "Read first" not in text
    assert text.count("data:image/jpeg;base64,") == 3  # a query, and its neighbour that is still there, twice
    assert "&lt;photos&gt; &amp; more" in text and "<b>.png" not in text and "1 &lt;b&gt;.png" in text
    assert "0 &lt;b&gt;.png cannot be opened: it and its neighbours are not shown" in text
    assert text.count(">0.88<") == 4  # the neighbour that is gone keeps its similarity


def test_what_is_missing_is_said(folder: Path) -> None:
    (folder / "neighbours.json").unlink()
    (folder / "metrics.jsonl").unlink()
    card = {**CARD, "knn": None, "linear": None, "collapse": {**CARD["collapse"], "collapsed_at": 7}}
    (folder / "card.json").write_text(json.dumps(card))
    text = build_pretrain_report(folder).read_text(encoding="utf-8")
    assert "neighbours.json is missing" in text and "metrics.jsonl is missing" in text
    assert "No labelled images were given, so no classifier" in text
    assert "The features collapsed at step 7" in text and "30.00, which was 40.00 at first" in text
    (folder / "card.json").unlink()
    with pytest.raises(DataError, match="no finished pretraining"):
        build_pretrain_report(folder)


def test_rows_of_the_probes() -> None:
    assert probe_rows(CARD) == [
        ("kNN, k = 20: top-1, %", ["50.0", "25.0", "12.5"]),
        ("linear, closed form: top-1, %", ["50.0", "30.0", "12.5"]),
        ("linear, closed form: top-5, %", ["90.0", "80.0", "–"]),
        ("alignment (0 is best)", ["0.40", "1.00", "–"]),
        ("uniformity (lower is better)", ["−2.50", "−1.50", "–"]),
    ]
    assert probe_rows({"knn": None}) == []


def test_curves_have_a_panel_for_what_was_logged() -> None:
    drawn = training_curves(LOG)
    assert drawn is not None
    for title in ("Loss", "Learning rate", "kNN accuracy, %", "Effective rank of the features"):
        assert f">{title}<" in drawn
    assert "Spread" not in drawn
    assert training_curves([{"event": "step", "step": 1, "loss": None}]) is None
