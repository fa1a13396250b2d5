"""The energy stage of a task: what it is shown, what it writes, and what its results say of the labels it used."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from openworld.config import RunConfig
from openworld.detector import Detector
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, OreOptions
from openworld.records import Dataset, Record
from openworld.report.terminal import print_table
from openworld.run.evaluate import evaluate_task
from openworld.run.folder import Run
from openworld.run.schedule import calibrate
from openworld.runtime.checkpoint import newest_valid
from openworld.runtime.runlog import RunLog
from openworld.structures import Detections, Regions, Target

NAMES = ("cat", "dog", "cow", "kite")  # kite is in no task
TASKS = [["cat", "dog"], ["cow"]]


class Watched(Detector):
    """A detector whose regions are the boxes that it is shown, and one background region per image."""

    def __init__(self, method: Ore) -> None:
        engine: Any = nn.Module()
        engine.space = method.space
        super().__init__(engine, method)
        self.shown: list[tuple[int | str, int]] = []
        self.generator = torch.Generator().manual_seed(0)

    def matched_regions(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Regions, Tensor]:
        space, parts = self.method.space, []
        for index, target in enumerate(targets):
            self.shown += [(target.image_id, row) for row in target.labels.tolist()]
            count = len(target) + 1
            labels = torch.cat([target.labels, torch.tensor([space.background])])
            high = torch.where(space.is_known(labels), 8.0, 3.0)
            logits = high[:, None] + torch.randn(count, space.num_rows, generator=self.generator)
            boxes = torch.cat([target.boxes, torch.tensor([[0.0, 0.0, 9.0, 9.0]])])
            iou = torch.ones(count).index_fill(0, torch.tensor([count - 1]), 0.0)
            index_R = torch.full((count,), index)
            parts.append(Regions(boxes, index_R, torch.zeros(count), iou, labels, logits=logits))
        names = ("boxes", "image_index", "objectness", "iou", "labels", "logits")
        joined = Regions(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
        return joined, torch.full((len(images), 2), 16)


@pytest.fixture
def held_out(tmp_path: Path) -> Dataset:
    """Thirty images with a known and an unknown object each, ten with an unknown one alone."""
    records = []
    for number in range(40):
        path = tmp_path / "images" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
        categories = [number % 2, 2 + number % 2] if number < 30 else [3]
        boxes = np.array([[0, 0, 8, 8], [8, 8, 16, 16]], dtype=np.float32)[: len(categories)]
        records.append(
            Record(
                image_id=number,
                path=path,
                width=16,
                height=16,
                boxes=boxes,
                categories=np.array(categories, dtype=np.int64),
                ignore=np.zeros(len(categories), dtype=bool),
            )
        )
    return Dataset.from_records(NAMES, tuple(records))


def fitted(tmp_path: Path, held_out: Dataset, **energy: Any) -> tuple[Run, Watched]:
    config = RunConfig(method=OreOptions(energy=EnergyOptions(**energy), clustering=ClusteringOptions(enabled=False)))
    config.data.tasks = TASKS
    sources: Any = SimpleNamespace(train=held_out, held_out=held_out, test=held_out)
    run = Run(config, tmp_path / "run", sources, RunLog(tmp_path / "run" / "metrics.jsonl"))
    labels = LabelSpace.of(TASKS, 1)
    detector = Watched(config.method.build(labels, 4))
    (tmp_path / "run" / "task1").mkdir()
    calibrate(run, 1, "calibrate", detector, None)
    return run, detector


@pytest.mark.parametrize(
    ("options", "unknown_samples", "images"),
    [
        ({}, 30, 30),
        ({"fit_on": "annotated_unknown"}, 40, 40),
        ({"fit_on": "annotated_and_auto"}, 80, 40),
        ({"fit_on": "known_only", "decision": "threshold"}, 0, 30),
        ({"enabled": False, "fit_on": "annotated_unknown"}, 0, 0),
    ],
)
def test_only_a_fit_on_annotated_unknowns_sees_their_labels(
    tmp_path: Path, held_out: Dataset, options: dict[str, Any], unknown_samples: int, images: int
) -> None:
    run, detector = fitted(tmp_path, held_out, **options)
    told = options.get("fit_on", "").startswith("annotated") and options.get("enabled", True)
    rows = {row for _, row in detector.shown}
    assert (detector.method.space.unknown in rows) == told and len({image for image, _ in detector.shown}) == images
    record = json.loads((run.task_folder(1) / "calibration.json").read_text())
    assert record["uses_unknown_labels"] is told
    assert len(record["samples"]["unknown"]) == unknown_samples
    assert record["status"] == ("fitted" if options.get("enabled", True) else "off")
    checkpoint = newest_valid(run.task_folder(1) / "checkpoint")
    assert checkpoint is not None and checkpoint.about["stage"] == "calibrate"
    twin = run.config.method.build(detector.method.space, 4)
    twin.load_state_dict({name.removeprefix("method."): value for name, value in checkpoint.tensors.items()})
    values = torch.linspace(0, 12, 200)
    assert torch.equal(twin.energy_model.verdict(values), detector.method.energy_model.verdict(values))


def test_a_checkpoint_has_the_entries_that_it_always_had(tmp_path: Path, held_out: Dataset) -> None:
    run, _ = fitted(tmp_path, held_out, decision="window")
    checkpoint = newest_valid(run.task_folder(1) / "checkpoint")
    assert checkpoint is not None
    entries = {name for name in checkpoint.tensors if "energy_model" in name}
    assert entries == {f"method.energy_model.{name}" for name in ("state", "known", "unknown", "boundary")}


@pytest.mark.parametrize("fit_on", ["auto_labelled", "annotated_unknown"])
def test_the_metrics_and_the_table_say_which_labels_were_used(
    tmp_path: Path, held_out: Dataset, fit_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, detector = fitted(tmp_path, held_out, fit_on=fit_on)
    monkeypatch.setattr("openworld.run.evaluate.restore_detector", lambda *_: detector)
    monkeypatch.setattr(
        "openworld.run.evaluate.detect_prepared", lambda _, images, *__: [Detections.empty()] * len(images)
    )
    evaluate_task(run, 1)
    metrics = json.loads((run.task_folder(1) / "metrics.json").read_text())
    told = fit_on == "annotated_unknown"
    assert metrics["uses_unknown_labels"] is told
    assert json.loads((run.task_folder(1) / "predictions.json").read_text())["uses_unknown_labels"] is told
    shown = io.StringIO()
    print_table([metrics], Console(file=shown, width=160))
    assert ("Uses labels of unknown objects" in shown.getvalue()) == told
