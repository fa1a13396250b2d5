"""Validation during a phase: scores by hand, the labels that it reads, and what it leaves as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from openworld.data.options import LoaderOptions
from openworld.data.splits import training_view
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.records import Dataset, Record
from openworld.run.validation import Best, Validation, validation_view
from openworld.runtime.seeding import rng_state
from openworld.structures import Detections

NAMES = ("cat", "dog", "cow")
TASKS = (("cat",), ("dog",), ("cow",))
BOX = [2.0, 2.0, 12.0, 12.0]
OPTIONS = LoaderOptions(min_size=16, max_size=16)


def dataset(folder: Path, *shown: str) -> Dataset:
    """An image of 16 x 16 pixels per word, with the same box for each class whose first two letters it has."""
    records = []
    for number, word in enumerate(shown):
        path = folder / f"{number}.png"
        Image.new("RGB", (16, 16)).save(path)
        rows = np.array([row for row, name in enumerate(NAMES) if name[:2] in word], dtype=np.int64)
        boxes = np.tile(np.array([BOX], dtype=np.float32), (len(rows), 1))
        records.append(Record(number, path, 16, 16, boxes, rows, np.zeros(len(rows), dtype=np.bool_)))
    return Dataset.from_records(NAMES, records)


class Says(nn.Module):
    """A detector that says the same on every image; its layers draw random numbers and have a mode."""

    def __init__(self, space: LabelSpace, rows: list[int]) -> None:
        super().__init__()
        self.space, self.rows = space, rows
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm2d(1)
        self.seen: list[tuple[bool, float]] = []

    def detect(self, images: list[Tensor]) -> list[Detections]:
        torch.rand(3)
        np.random.rand()
        self.seen.append((self.norm.training, self.weight.item()))
        rows = torch.tensor(self.rows)
        one = Detections(torch.tensor([BOX] * len(rows)), torch.linspace(0.9, 0.8, len(rows)), rows, rows.clamp(max=0))
        return [one] * len(images)


def score(detector: Says, held_out: Dataset, stage: str) -> float:
    validation = Validation(validation_view(held_out, detector.space, stage), OPTIONS)
    ap50, best = validation.best_of(detector, {}, 1, None)  # type: ignore[arg-type]
    assert (best.step, best.ap50) == (1, ap50)
    return ap50


# Of task 2: cat is row 0, dog row 1, and row 2 is unknown in the growing layout, where the fixed one has cow.
@pytest.mark.parametrize(
    ("layout", "rows", "stage", "expected"),
    [
        ("growing", [1], "train", 1.0),  # both dogs; what else is on the images does not count
        ("growing", [0], "train", 0.0),
        ("growing", [2, 1], "train", 1.0),
        ("fixed", [3, 1], "train", 1.0),  # the second detection is unknown: not a cow
        ("growing", [1], "replay", (0 + 1) / 2),
        ("growing", [0, 1], "replay", (5 / 6 + 1) / 2),
    ],
)
def test_the_mean_ap_of_the_classes_that_a_stage_trains(
    tmp_path: Path, layout: str, rows: list[int], stage: str, expected: float
) -> None:
    """All scores of a class are equal, so that the images come in their order.

    In replay the first three count. The dogs are right, right, wrong: 1. The cats are right, wrong, right: 1 up to half
    of the recall, 2 / 3 from there.
    """
    held_out = dataset(tmp_path, "cado", "docow", "ca", "co")
    space = LabelSpace.of(TASKS, 2, layout)  # type: ignore[arg-type]
    assert score(Says(space, rows), held_out, stage) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("stage", "keeps_old", "names", "images"),
    [
        ("train", False, {"dog"}, {0, 1}),
        ("train", True, {"cat", "dog"}, {0, 1, 2}),
        ("replay", False, {"cat", "dog"}, {0, 1, 2}),
    ],
)
def test_no_other_label_is_in_reach(
    tmp_path: Path, stage: str, keeps_old: bool, names: set[str], images: set[int]
) -> None:
    held_out = dataset(tmp_path, "cado", "docow", "ca", "co")
    view = validation_view(held_out, LabelSpace.of(TASKS, 2), stage, keeps_old=keeps_old)
    assert {NAMES[row] for row in view.images.box_categories} == names
    assert set(view.images.image_ids) == images


def test_a_phase_that_no_held_out_image_can_judge_is_refused(tmp_path: Path) -> None:
    held_out = dataset(tmp_path, "ca")
    validation_view(held_out, LabelSpace.of(TASKS, 2), "replay")
    with pytest.raises(DataError, match=r"no held-out image shows a class that train of task 2 trains"):
        validation_view(held_out, LabelSpace.of(TASKS, 2), "train")


def test_nothing_of_the_training_changes(tmp_path: Path) -> None:
    detector = Says(LabelSpace.of(TASKS, 1), [0]).train()
    view = training_view(dataset(tmp_path, "ca", "ca"), detector.space)
    before = rng_state()
    weights = {"weight": torch.tensor([7.0])}
    _, best = Validation(view, OPTIONS).best_of(detector, weights, 4, None)  # type: ignore[arg-type]
    after = rng_state()
    assert detector.seen == [(False, 7.0)]
    assert detector.weight.item() == 1.0 and detector.norm.training
    assert best.tensors["weight"].item() == 7.0 and best.tensors.keys() == detector.state_dict().keys()
    assert torch.equal(before["torch"], after["torch"])
    assert (before["python"], before["numpy"]) == (after["python"], after["numpy"])


@pytest.mark.parametrize(("before", "kept"), [(1.5, 3), (1.0, 4), (0.5, 4)])
def test_the_later_of_equals_is_the_best(tmp_path: Path, before: float, kept: int) -> None:
    """The detector reaches 1."""
    detector = Says(LabelSpace.of(TASKS, 1), [0])
    view = training_view(dataset(tmp_path, "ca"), detector.space)
    old = Best(3, before, {})
    _, best = Validation(view, OPTIONS).best_of(detector, {}, 4, old)  # type: ignore[arg-type]
    assert best.step == kept
    _, score = Validation(view, OPTIONS, keep=False).best_of(detector, {}, 4, old)  # type: ignore[arg-type]
    assert score.step == kept and not score.tensors


def test_an_image_that_cannot_be_read_has_no_detections(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held_out = dataset(tmp_path, "ca", "ca")
    (tmp_path / "0.png").write_bytes(b"no image")
    assert score(Says(LabelSpace.of(TASKS, 1), [0]), held_out, "train") == pytest.approx(0.5)
    assert "0.png" in caplog.text
