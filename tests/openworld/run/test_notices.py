"""What is said before the first step: tasks without training images, records that were dropped or repaired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openworld.config import RunConfig
from openworld.data.options import DataOptions, SourceOptions, SyntheticOptions
from openworld.data.splits import check_training
from openworld.engines.options import ModelOptions
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.records import Dataset, Record
from openworld.repairs import Repairs
from openworld.run import schedule
from openworld.run.notices import say_repairs
from openworld.run.schedule import run_schedule
from ssl_backbones.backbones import ResNetOptions

from .test_same_data import change, write_set

TASKS = (("cat",), ("dog", "cow"), ("kite",))
NAMES = ("cat", "dog", "cow", "kite")


def dataset(*shown: str, crowd: str = "", task_images: tuple[frozenset[int | str], ...] = ()) -> Dataset:
    """An image per word, with an object of each class whose first letter it has; those of ``crowd`` are crowds."""
    records = []
    for number, letters in enumerate(shown):
        rows = np.array([row for row, name in enumerate(NAMES) for letter in letters if letter == name[:2][-1]])
        boxes = np.tile(np.array([[1, 1, 9, 9]], dtype=np.float32), (len(rows), 1))
        crowds = np.array([NAMES[row] == crowd for row in rows], dtype=np.bool_)
        records.append(
            Record(number, Path(f"{number}.jpg"), 20, 20, boxes, rows.astype(np.int64), crowds, crowd=crowds)
        )
    return Dataset.from_records(NAMES, records, task_images=task_images)


def spaces(last: int = 3) -> list[LabelSpace]:
    return [LabelSpace.of(TASKS, task) for task in range(1, last + 1)]


# The second letters of cat, dog, cow and kite are a, o, o and i: both classes of task 2 are called by o.


def test_a_schedule_whose_classes_are_all_shown_needs_no_word() -> None:
    assert check_training(dataset("a", "o", "i"), dataset(), spaces()) == []


@pytest.mark.parametrize(
    ("train", "held_out", "task", "reason"),
    [
        (dataset("a", "o"), dataset(), 3, "'kite': 0 objects on 2 images"),
        (dataset("a", "o"), dataset("i"), 3, "'kite': 1 object on held-out images: lower held_out_fraction"),
        (dataset("a", "oi", "i", crowd="kite"), dataset(), 3, "'kite': 2 objects as crowds"),
        (dataset("o", "i"), dataset(), 1, "'cat': 0 objects"),
        (
            dataset("a", "o", "i", task_images=(frozenset([0]), frozenset([1]), frozenset([1]))),
            dataset(),
            3,
            "'kite': 1 object on images that are not on the list of the task",
        ),
    ],
    ids=["absent", "held out", "crowds", "first task", "lists"],
)
def test_a_task_without_training_images_is_refused(train: Dataset, held_out: Dataset, task: int, reason: str) -> None:
    with pytest.raises(DataError, match=f"no training image shows a class of task {task} ") as refused:
        check_training(train, held_out, spaces())
    assert reason in str(refused.value) and ("(tasks: 2)" in str(refused.value)) == (task == 3)


def test_a_task_that_is_not_run_need_not_be_shown() -> None:
    assert check_training(dataset("a", "o"), dataset(), spaces(2)) == []


def test_a_single_absent_class_is_a_warning() -> None:
    whole = dataset("a", "o", "i")
    only_dogs = whole.select(np.arange(3), whole.box_categories != NAMES.index("cow"))
    (said,) = check_training(only_dogs, dataset(), spaces())
    assert (
        said
        == "no training image shows the class 'cow' of task 2 (0 objects on 3 images), so that it cannot be learned"
    )


def configured(data: Path, tasks: list[list[str]]) -> RunConfig:
    sets = {name: SourceOptions(annotations=str(data / f"{name}.json")) for name in ("train", "val", "test")}
    return RunConfig(
        data=DataOptions(tasks=tasks, synthetic=None, **sets),
        pretrain=None,
        model=ModelOptions(arch=ResNetOptions(width=1 / 64), device="cpu"),
    )


def test_it_is_known_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of a run is in the folder, so that the corrected command needs no --resume."""
    for name, images in (("train", 8), ("val", 2), ("test", 4)):
        write_set(tmp_path, name, images)
        change(tmp_path / f"{name}.json", lambda content: content["categories"].append({"id": 3, "name": "cow"}))
    trained: list[int] = []
    monkeypatch.setattr(schedule, "run_task", lambda run, task: trained.append(task) or {"task": task})
    with pytest.raises(DataError, match=r"no training image shows a class of task 2 \('cow': 0 objects on 8 images\)"):
        run_schedule(configured(tmp_path, [["cat"], ["cow"]]), tmp_path / "run", resume=False)
    assert trained == []
    run_schedule(configured(tmp_path, [["cat"], ["dog", "cow"]]), tmp_path / "run", resume=False)
    assert trained == [1, 2] and "the class 'cow' of task 2" in caplog.text


def test_the_drawn_world_shows_its_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from openworld.run.folder import open_run

    world = SyntheticOptions(train_images=24, val_images=2, test_images=2, pretrain_images=0, size=64)
    data = DataOptions(tasks=[["ball"], ["cube"]], synthetic=world)
    open_run(RunConfig(pretrain=None, data=data, model=ModelOptions(device="cpu")), tmp_path)
    assert not caplog.text


# -- repairs ----------------------------------------------------------------------------------------------------------


def with_repairs(*kinds: str) -> Dataset:
    repairs = Repairs()
    for number, kind in enumerate(kinds):
        repairs.add(kind, f"case {number}")
    return Dataset.from_records(NAMES, [], repairs)


def test_dropped_records_are_said_before_training(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind with its own first cases, and once for images that were read with those of training."""
    read = with_repairs(*["polygon turned into its box"] * 30, "dropped: inverted", *["dropped: without area"] * 4)
    say_repairs({"train": read, "held_out": read.select([]), "test": with_repairs("clipped to the image")})
    assert caplog.messages == [
        "train: dropped: inverted (1), for instance case 30",
        "train: dropped: without area (4), for instance case 31; case 32; case 33",
    ]
    assert capsys.readouterr().err == (
        "note: train: repaired while reading: polygon turned into its box (30)\n"
        "note: test: repaired while reading: clipped to the image (1)\n"
    )


def test_a_run_says_what_it_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, images in (("train", 8), ("val", 2), ("test", 4)):
        write_set(tmp_path, name, images)
    change(tmp_path / "train.json", lambda content: content["annotations"][5].update(category_id=9))
    monkeypatch.setattr(schedule, "run_task", lambda run, task: {"task": task})
    run_schedule(configured(tmp_path, [["cat"], ["dog"]]), tmp_path / "run", resume=False)
    (said,) = caplog.messages
    assert said.startswith("train: dropped: category_id that nothing has (1), for instance ") and "train.json" in said
