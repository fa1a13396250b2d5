"""A method of somebody else, in a folder outside the package: it trains, calibrates, resumes, predicts, is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from .conftest import assert_same_bits, final_weights, interrupted_run, openworld

THEIR_METHOD = '''
"""A gate on region features, trained to tell annotated objects from the rest."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from openworld.methods.base import OpenWorldMethod
from openworld.methods.options import MethodOptions
from openworld.structures import Decision, RegionScores


@dataclass(kw_only=True)
class GateOptions(MethodOptions):
    """Options of the gate."""

    METHOD: ClassVar[str] = "gate:Gate"

    name: str = "gate:GateOptions"
    weight: float = 0.5
    """Factor of its loss."""


class Gate(OpenWorldMethod):
    samples = ("open",)
    extras = ("gate", "above")

    def __init__(self, space, feature_dim, weight):
        super().__init__(space)
        self.weight = weight
        self.gate = nn.Linear(feature_dim, 1)
        self.register_buffer("level", torch.tensor(torch.nan))

    @classmethod
    def of(cls, options, space, feature_dim):
        return cls(space, feature_dim, options.weight)

    @property
    def unused_rows(self):
        return (self.space.unknown,)

    @property
    def calibrates_on(self):
        return "known"

    def losses(self, regions, step, *, replay, ranks):
        wanted = (regions.labels != self.space.background).float()
        return {"gate": self.weight * functional.binary_cross_entropy_with_logits(self.opened(regions), wanted)}

    def opened(self, regions):
        return self.gate(regions.features)[:, 0]

    def score(self, regions):
        scores = regions.logits.softmax(1)
        gate = self.opened(regions).sigmoid()
        scores[:, self.space.unknown] = gate * (1 - scores[:, : self.space.num_known].amax(1))
        return RegionScores(scores, {"gate": gate})

    def decide(self, candidates):
        kept = torch.ones_like(candidates.rows, dtype=torch.bool)
        above = candidates.extras["gate"] - self.level
        return Decision(candidates.rows, candidates.scores, kept, {"above": above})

    def collect(self, regions, image_sizes):
        return {"open": self.opened(regions).sigmoid()[self.space.is_known(regions.labels)]}

    def calibrate(self, samples):
        found = samples["open"]
        self.level.fill_(found.median() if len(found) else 0.5)
        return {"status": "fitted", "reason": None, "level": float(self.level), "regions_seen": len(found)}
'''


@pytest.fixture(scope="module")
def gate_config(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny configuration with the method of another folder, found by its import path."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "gate.py").write_text(THEIR_METHOD)
    (folder / "gate.yaml").write_text(
        'method: {name: "gate:GateOptions", weight: 0.25}\n'
        "pretrain: null\nmodel: {arch: {name: resnet18, width: 0.125}}\n"
    )
    return folder / "gate.yaml"


def test_a_method_outside_the_package(
    tiny_config: Path,
    gate_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.syspath_prepend(gate_config.parent)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    stacked = ("--config", str(gate_config))
    openworld("run", "--config", tiny_config, *stacked, "--output", whole)
    # It trains: its loss is in the log, with its weight; and its parameters move.
    steps = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["losses"] for entry in steps if entry["event"] == "step" and "losses" in entry]
    assert all(list(each)[-1] == "gate" and each["gate"] > 0 and "clustering" not in each for each in losses)
    weights = [final_weights(whole, task) for task in (1, 2)]
    assert not weights[0]["method.gate.weight"].equal(weights[1]["method.gate.weight"])
    # It calibrates: its record is in the folder of each task, its buffer in the checkpoint.
    for task in (1, 2):
        record = json.loads((whole / f"task{task}" / "calibration.json").read_text())
        assert record["method"] == "gate:GateOptions" and record["status"] == "fitted"
        assert record["level"] == pytest.approx(float(weights[task - 1]["method.level"]))
    # Its columns are in the predictions.
    predictions = json.loads((whole / "task2" / "predictions.json").read_text())
    found = [detection for image in predictions["images"] for detection in image["detections"]]
    assert found and all({"gate", "above"} <= detection.keys() and "energy" not in detection for detection in found)
    level = float(weights[1]["method.level"])
    assert all(each["above"] == pytest.approx(each["gate"] - level, abs=1e-6) for each in found)
    # It is in the report.
    report = (whole / "report.html").read_text()
    assert "gate:GateOptions" in report and "regions_seen" in report
    # It resumes: a run that is interrupted in the second task ends with the same bits.
    request.getfixturevalue("no_reports")
    interrupted_run(tiny_config, resumed, *stacked, task=2, stage="train", step=2)
    openworld("run", "--config", tiny_config, *stacked, "--output", resumed, "--resume")
    for task in (1, 2):
        assert_same_bits(final_weights(whole, task), final_weights(resumed, task))
    assert (resumed / "task2" / "predictions.json").read_text() == (whole / "task2" / "predictions.json").read_text()
    # It predicts.
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    openworld("predict", tmp_path / "red.png", "--run", whole, "--score", "0.01", "--output", tmp_path / "seen")
    assert json.loads((tmp_path / "seen" / "predictions.json").read_text())["images"][0]["id"]
