"""Detections of other programs: converted from ours and back they score alike; each bad value is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openworld.data.schedules import COCO_TO_VOC, Schedule
from openworld.errors import ConfigError, DataError
from openworld.labels import LabelSpace
from openworld.predictions.arrays import Predictions
from openworld.predictions.file import PredictedImage, read_predictions, write_predictions
from openworld.predictions.foreign.coco_results import read_coco_results
from openworld.predictions.foreign.voc_text import read_voc_detections
from openworld.predictions.open import open_predictions
from openworld.predictions.score import evaluate_predictions
from openworld.records import Dataset, Record
from openworld.repairs import Repairs
from openworld.structures import Detections

TASKS = (("cat", "traffic light"), ("wine_glass",), ("cow",))
SCHEDULE = Schedule("own", TASKS, {"hound": "cat"})
SPACE = SCHEDULE.at(2)
CATEGORIES = ("cat", "cow", "glass", "traffic light", "wine_glass")
NAMES = {11: "cat", 12: "cow", 13: "glass", 14: "traffic light", 15: "wine_glass"}
IDS = {name: number for number, name in NAMES.items()} | {"unknown": 99}


def record(image_id: int | str, file: str, categories: list[int], seed: int = 0) -> Record:
    generator = np.random.default_rng(seed)
    corner = generator.integers(0, 50, (len(categories), 2))
    boxes = np.concatenate([corner, corner + generator.integers(5, 40, (len(categories), 2))], axis=1)
    return Record(
        image_id=image_id,
        path=Path(file),
        width=100,
        height=100,
        boxes=boxes.astype(np.float32),
        categories=np.array(categories, dtype=np.int64),
        ignore=np.zeros(len(categories), dtype=np.bool_),
    )


DATASET = Dataset.from_records(
    CATEGORIES,
    (
        record(7, "images/000000000007.jpg", [0, 1, 2, 3, 4, 0], seed=1),
        record(139, "images/000000000139.jpg", [3, 3, 1], seed=2),
        record(4, "images/000000000004.jpg", []),
    ),
)


def some_predictions(path: Path, seed: int = 0) -> Predictions:
    """Boxes near the annotated ones, on a grid of tenths, with scores of three decimals and no ties."""
    generator = np.random.default_rng(seed)
    images = []
    scores = iter(generator.permutation(np.arange(1, 999)) / 1000)
    for entry in (DATASET[0], DATASET[1]):
        boxes = np.repeat(entry.boxes, 4, axis=0) + np.round(generator.normal(0, 3, (4 * len(entry), 4)), 1)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        count = len(boxes)
        found = Detections(
            torch.tensor(boxes),
            torch.tensor([next(scores) for _ in range(count)], dtype=torch.float64),
            torch.tensor(generator.integers(0, 4, count)),
            torch.tensor(generator.integers(0, 3, count)),
            {"energy": torch.zeros(count)},
        )
        images.append(PredictedImage(entry.image_id, str(entry.path), 100, 100, found))
    images.append(PredictedImage(4, "images/000000000004.jpg", 100, 100, Detections.empty()))
    write_predictions(path, SPACE, images)
    return read_predictions(path)


def coco_results(predictions: Predictions, name_image: Callable[[int | str], Any] = lambda name: name) -> list[Any]:
    names = (*SPACE.known, "unknown")
    return [
        {
            "image_id": name_image(predictions.image_ids[image]),
            "category_id": IDS[names[label]],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for image, (x1, y1, x2, y2), label, score in zip(
            predictions.image_index, predictions.boxes.tolist(), predictions.labels, predictions.scores.tolist()
        )
    ]


def write_voc(folder: Path, predictions: Predictions, template: str) -> None:
    """As the evaluator of JosephKJ/OWOD writes: one file a class, no newline at the end, corners counted from 1."""
    folder.mkdir()
    for row, name in enumerate((*SPACE.known, "unknown")):
        lines = [
            f"{predictions.image_ids[predictions.image_index[n]]:012} {predictions.scores[n]:.3f} "
            f"{predictions.boxes[n, 0] + 1:.1f} {predictions.boxes[n, 1] + 1:.1f} "
            f"{predictions.boxes[n, 2]:.1f} {predictions.boxes[n, 3]:.1f}"
            for n in np.flatnonzero(predictions.labels == row)
        ]
        (folder / template.format(name)).write_text("\n".join(lines))
    (folder / template.format("cow")).write_text("")  # the evaluator writes classes of later tasks, too


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def read_coco(path: Path, content: Any, **settings: Any) -> Predictions:
    given = {"category_names": NAMES, "unknown_category": 99, "dataset": DATASET, "space": SPACE, **settings}
    return read_coco_results(write(path / "results.json", content), **given)


def assert_same(one: Predictions, other: Predictions, tolerance: float) -> None:
    assert (one.label_space, one.image_ids, one.files) == (other.label_space, other.image_ids, other.files)
    for name in ("image_index", "labels", "widths", "heights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("boxes", "scores"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=tolerance)
    assert one.extras == {} and (one.best_known == -1).all()


@pytest.mark.parametrize("name_image", [int, float, str, "{:012}".format])
def test_coco_results_score_as_ours_do(tmp_path: Path, name_image: Callable[[Any], Any]) -> None:
    ours = some_predictions(tmp_path / "predictions.json")
    results = coco_results(ours, name_image)
    np.random.default_rng(0).shuffle(results)  # type: ignore[arg-type]
    theirs = read_coco(tmp_path, results)
    assert_same(theirs, ours, 1e-9)
    scored = evaluate_predictions(theirs, DATASET)
    assert scored == evaluate_predictions(ours, DATASET)
    assert 0 < scored["known_ap50"] < 1 and 0 < scored["unknown_recall50"] < 1 and scored["a_ose"] > 0


@pytest.mark.parametrize("template", ["{}.txt", "comp4_det_test_{}.txt", "comp_det_all_task_test_{}.txt"])
def test_voc_detections_score_as_ours_do(tmp_path: Path, template: str) -> None:
    ours = some_predictions(tmp_path / "predictions.json")
    write_voc(tmp_path / "det", ours, template)
    theirs = read_voc_detections(tmp_path / "det", DATASET, SPACE)
    assert_same(theirs, ours, 1e-4)  # ours went through float32
    scored, expected = evaluate_predictions(theirs, DATASET), evaluate_predictions(ours, DATASET)
    for name in ("known_ap50", "unknown_ap50", "unknown_recall50", "wi", "a_ose", "counts"):
        assert scored[name] == expected[name], name


def test_voc_corners_by_hand(tmp_path: Path) -> None:
    """The first pixel is 1 and the last one belongs to the box."""
    folder = tmp_path / "det"
    folder.mkdir()
    (folder / "cat.txt").write_text("7 0.5 1 1 100 50\n\n139 0.25 11.0 21.0 20.0 30.5\r\n")
    read = read_voc_detections(folder, DATASET, SPACE)
    assert read.boxes.tolist() == [[0, 0, 100, 50], [10, 20, 20, 30.5]]
    assert read.scores.tolist() == [0.5, 0.25] and read.image_index.tolist() == [0, 1]
    assert read.image_ids == (7, 139, 4) and read.widths.tolist() == [100] * 3


def test_the_longest_class_and_other_spellings(tmp_path: Path) -> None:
    """``glass`` ends ``wine_glass``, and the set is called ``my_wine``; ``hound`` is the files' word for ``cat``."""
    folder = tmp_path / "det"
    folder.mkdir()
    (folder / "comp3_det_my_set_wine_glass.txt").write_text("7 0.5 1 1 9 9")
    (folder / "comp3_det_my_set_hound.txt").write_text("7 0.6 1 1 9 9")
    (folder / "comp3_det_my_set_glass.txt").write_text("\n")
    read = read_voc_detections(folder, DATASET, SPACE, rename=SCHEDULE.rename)
    assert read.labels.tolist() == [0, 2]


def test_nothing_detected(tmp_path: Path) -> None:
    (tmp_path / "det").mkdir()
    (tmp_path / "det/cat.txt").write_text("")
    for read in (read_coco(tmp_path, []), read_voc_detections(tmp_path / "det", DATASET, SPACE)):
        assert len(read) == 0 and read.image_ids == (7, 139, 4) and read.boxes.shape == (0, 4)
        assert evaluate_predictions(read, DATASET)["unknown_recall50"] == 0.0
        assert len(read.files) == 3
    nothing = Dataset.from_records(CATEGORIES, ())
    assert read_coco(tmp_path, [], dataset=nothing).image_ids == ()


def test_the_unknown_has_a_name_or_a_number(tmp_path: Path) -> None:
    results = [{"image_id": 7, "category_id": 99, "bbox": [0, 0, 5, 5], "score": 1}]
    by_name = read_coco(tmp_path, results, category_names=NAMES | {99: "unknown"}, unknown_category=None)
    assert by_name.labels.tolist() == read_coco(tmp_path, results).labels.tolist() == [SPACE.unknown]
    fixed = LabelSpace(TASKS, 2, "fixed")
    assert read_coco(tmp_path, results, space=fixed).labels.tolist() == [SPACE.unknown]
    with pytest.raises(ConfigError, match="unknown_category 13 is the class 'glass'"):
        read_coco(tmp_path, results, unknown_category=13)


def test_a_class_of_a_later_task(tmp_path: Path) -> None:
    results = [
        {"image_id": 7, "category_id": number, "bbox": [0, 0, 5, 5], "score": score}
        for number, score in ((11, 0.9), (12, 0.8), (13, 0.7), (12, 0.6))
    ]
    with pytest.raises(DataError, match=r"record 1: category_id 12 \('cow'\) is of task 3, and this is .* of task 2"):
        read_coco(tmp_path, results)
    with pytest.raises(DataError, match=r"record 0: category_id 13 \('glass'\) is in the ground truth, but of no task"):
        read_coco(tmp_path, results[2:])
    repairs = Repairs()
    dropped = read_coco(tmp_path, results, unseen="drop", repairs=repairs)
    assert dropped.labels.tolist() == [0]
    assert repairs.counts == {"detections of unseen classes dropped": 3}
    assert any("2 of 'cow'" in example for example in repairs.examples)
    repairs = Repairs()
    taken = read_coco(tmp_path, results, unseen="unknown", repairs=repairs)
    assert taken.labels.tolist() == [0, 3, 3, 3]
    assert repairs.counts == {"detections of unseen classes taken as unknown": 3}
    with pytest.raises(ConfigError, match="unseen='ignore'"):
        read_coco(tmp_path, results, unseen="ignore")
    folder = tmp_path / "det"
    folder.mkdir()
    (folder / "cow.txt").write_text("\n7 0.5 1 1 9 9")
    with pytest.raises(DataError, match=r"cow\.txt, line 2: class 'cow' is of task 3"):
        read_voc_detections(folder, DATASET, SPACE)
    assert len(read_voc_detections(folder, DATASET, SPACE, unseen="drop")) == 0


def test_an_id_that_may_mean_two_images(tmp_path: Path) -> None:
    twins = Dataset.from_records(
        CATEGORIES, (record(1, "a/x.jpg", []), record(2, "b/x.jpg", []), record("1", "c.jpg", []))
    )
    entry = {"image_id": "x", "category_id": 11, "bbox": [0, 0, 5, 5], "score": 0.5}
    with pytest.raises(DataError, match=r"record 0: image_id 'x' may mean 2 images: 1 .*, 2 "):
        read_coco(tmp_path, [entry], dataset=twins)
    for position, name in ((0, 1), (2, "1")):
        read = read_coco(tmp_path, [{**entry, "image_id": name}], dataset=twins)
        assert read.image_index.tolist() == [position]


GOOD = {"image_id": 7, "category_id": 11, "bbox": [0, 0, 5, 5], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"score": float("nan")}, "score nan"),
        ({"score": float("inf")}, "score inf"),
        ({"score": 3.2}, "score 3.2"),
        ({"score": -0.1}, "score -0.1"),
        ({"score": 3.2}, "turn logits into probabilities"),
        ({"score": 10**400}, "score inf"),
        ({"score": None}, "score None"),
        ({"score": "0.5"}, "score '0.5'"),
        ({"score": True}, "score True"),
        ({"score": ...}, "has no 'score'"),
        ({"bbox": [0, 0, 5]}, "bbox [0, 0, 5]"),
        ({"bbox": None}, "bbox None"),
        ({"bbox": ...}, "has no 'bbox'"),
        ({"bbox": [0, 0, 5, "5"]}, "bbox [0, 0, 5, '5']"),
        ({"bbox": [3, 3, -1, 5]}, "bbox [3, 3, -1, 5]"),
        ({"bbox": [3, 3, 5, float("inf")]}, "bbox [3, 3, 5, inf]"),
        ({"bbox": [10**400, 3, 5, 5]}, "bbox [1000"),
        ({"bbox": [-1e308, 3, -1e308, 5]}, "width and height of at least 0"),
        ({"image_id": 8}, "image_id 8 is not in the ground truth, which has 3 images"),
        ({"image_id": "000000000138"}, "the nearest is '000000000139'"),
        ({"image_id": None}, "image_id None"),
        ({"image_id": True}, "image_id True"),
        ({"image_id": [7]}, "image_id [7]"),
        ({"image_id": ...}, "has no 'image_id'"),
        ({"category_id": 80}, "category_id 80 is not a category"),
        ({"category_id": "11"}, "category_id '11'"),
        ({"category_id": float("nan")}, "category_id nan is not a category"),
        ({"category_id": ...}, "has no 'category_id'"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    """The first of two bad records."""
    bad = {key: value for key, value in {**GOOD, **change}.items() if value is not ...}
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path, [GOOD, GOOD, bad, GOOD, bad])
    message = str(caught.value)
    assert words in message and "results.json, record 2:" in message and "What to do:" in message


def test_a_class_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path, [GOOD, {**GOOD, "category_id": 1}], category_names=NAMES | {1: "Trafic Light"})
    assert "record 1: category_id 1 ('Trafic Light') is not known" in str(caught.value)
    assert "did you mean 'traffic light'?" in str(caught.value)
    folder = tmp_path / "det"
    folder.mkdir()
    for name in ("wineglass.txt", "comp4_det_test_wineglass.txt"):
        (folder / name).write_text("")
        with pytest.raises(DataError) as caught:
            read_voc_detections(folder, DATASET, SPACE)
        assert f"{name}: file name: class 'wineglass' is not known" in str(caught.value)
        assert "did you mean 'wine_glass'?" in str(caught.value)
        (folder / name).unlink()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ('[{"image_id": 7, "cat', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "holds a dict where a COCO results file has a list"),
        ("3", "holds a int"),
        ("[3]", "record 0: 3 is not an object"),
        ("[[]]", "record 0: [] is not an object"),
    ],
)
def test_a_file_that_is_no_results_file(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path, text)
    assert words in str(caught.value) and "results.json" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("7 0.5 1 1 9", "5 fields: '7 0.5 1 1 9'"),
        ("7 cat 0.5 1 1 9 9", "7 fields"),
        ("7 0.5 1 one 9 9", "ymin 'one' is not a number"),
        ("7 high 1 1 9 9", "score 'high' is not a number"),
        ("7 nan 1 1 9 9", "score nan"),
        ("7 12.5 1 1 9 9", "turn logits into probabilities"),
        ("7 0.5 1 1 inf 9", "xmin ymin xmax ymax 1 1 inf 9"),
        ("7 0.5 9 1 7 9", "xmin ymin xmax ymax 9 1 7 9"),
        ("8 0.5 1 1 9 9", "image_id '8' is not in the ground truth"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    folder = tmp_path / "det"
    folder.mkdir()
    good = "7 0.5 1 1 9 9"
    (folder / "cat.txt").write_text(good)
    (folder / "traffic light.txt").write_text(f"{good}\n\n{line}\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_voc_detections(folder, DATASET, SPACE)
    message = str(caught.value)
    assert words in message and "traffic light.txt, line 3:" in message and "What to do:" in message


def test_bad_folders(tmp_path: Path) -> None:
    folder = tmp_path / "det"
    folder.mkdir()
    with pytest.raises(DataError, match=r"not a folder with \.txt files"):
        read_voc_detections(folder, DATASET, SPACE)
    (folder / "cat.txt").write_text("")
    (folder / "hound.txt").write_text("")
    with pytest.raises(DataError, match=r"hound\.txt: holds the class 'cat', as cat\.txt does"):
        read_voc_detections(folder, DATASET, SPACE, rename=SCHEDULE.rename)
    (folder / "hound.txt").write_bytes(b"\x81\xff")
    with pytest.raises(DataError, match=r"hound\.txt: cannot be read"):
        read_voc_detections(folder, DATASET, SPACE, rename={"hound": "cow"})


def test_open_tells_the_forms_apart(tmp_path: Path) -> None:
    ours = some_predictions(tmp_path / "predictions.json")
    write(tmp_path / "results.json", coco_results(ours))
    write_voc(tmp_path / "det", ours, "{}.txt")
    settings: dict[str, Any] = {"category_names": NAMES, "unknown_category": 99}
    for name in ("predictions.json", "results.json", "det"):
        (read,) = open_predictions(tmp_path / name, DATASET, SCHEDULE, 2, **settings)
        assert read.task == 2 and read.labels.tolist() == ours.labels.tolist()
    (read,) = open_predictions(tmp_path / "predictions.json", DATASET)
    assert read.tasks == TASKS and not np.isnan(read.extras["energy"]).all()


def test_open_needs_what_a_foreign_form_does_not_say(tmp_path: Path) -> None:
    write(tmp_path / "results.json", "\n [ ]")
    (tmp_path / "det").mkdir()
    (tmp_path / "det/cat.txt").write_text("")
    for name in ("results.json", "det"):
        with pytest.raises(ConfigError, match="a schedule"):
            open_predictions(tmp_path / name, DATASET, None, 2)
        with pytest.raises(ConfigError, match="a task"):
            open_predictions(tmp_path / name, DATASET, SCHEDULE)
        with pytest.raises(ConfigError, match="task 4 is not in a schedule of 3"):
            open_predictions(tmp_path / name, DATASET, SCHEDULE, 4, category_names=NAMES)
    with pytest.raises(ConfigError, match="names of the categories"):
        open_predictions(tmp_path / "results.json", DATASET, SCHEDULE, 2)


def test_open_a_run(tmp_path: Path) -> None:
    for task in (2, 1, 10):
        folder = tmp_path / f"task{task}"
        folder.mkdir()
        space = LabelSpace.of([[f"class {number}"] for number in range(10)], task)
        write_predictions(folder / "predictions.json", space, [])
    read = open_predictions(tmp_path, DATASET)
    assert [predictions.task for predictions in read] == [1, 2, 10]
    assert [predictions.task for predictions in open_predictions(tmp_path, DATASET, task=2)] == [2]
    with pytest.raises(DataError, match=r"no predictions of task 3.*(\n.*)*tasks 1, 2, 10"):
        open_predictions(tmp_path, DATASET, task=3)
    (tmp_path / "task2/predictions.json").write_text((tmp_path / "task1/predictions.json").read_text())
    with pytest.raises(DataError, match="holds predictions of task 1, not of task 2"):
        open_predictions(tmp_path, DATASET)


def test_open_refuses_schedules_and_tasks_that_disagree(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    some_predictions(path)
    assert open_predictions(path, DATASET, Schedule("longer", (("traffic light", "cat"), ("wine_glass",), ("new",))))
    with pytest.raises(DataError, match="task 1 of the file and of the schedule 'other' differ in: cow, traffic light"):
        open_predictions(path, DATASET, Schedule("other", (("cat", "cow"), ("wine_glass",))))
    with pytest.raises(DataError, match="task 2 of the file and of the schedule 'short' differ in: wine_glass"):
        open_predictions(path, DATASET, Schedule("short", TASKS[:1]))
    with pytest.raises(DataError, match="holds predictions of task 2, not of task 1"):
        open_predictions(path, DATASET, SCHEDULE, 1)


def test_open_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_predictions(tmp_path / "nowhere", DATASET)
    with pytest.raises(DataError, match="neither task<number>"):
        open_predictions(tmp_path, DATASET)
    with pytest.raises(DataError, match="is one text file"):
        open_predictions(write(tmp_path / "cat.txt", ""), DATASET, SCHEDULE, 1)
    with pytest.raises(DataError, match="is not JSON"):
        open_predictions(write(tmp_path / "empty.json", ""), DATASET, SCHEDULE, 1)
    with pytest.raises(DataError, match="the format is None"):
        open_predictions(write(tmp_path / "coco.json", {"images": []}), DATASET, SCHEDULE, 1)


def test_names_of_coco_in_a_published_schedule(tmp_path: Path) -> None:
    """airplane.txt holds aeroplanes."""
    (tmp_path / "airplane.txt").write_text("a 0.5 1 1 9 9")
    dataset = Dataset.from_records(("aeroplane",), (record("a", "a.jpg", [0]),))
    schedule = Schedule("voc", (("tvmonitor", "aeroplane"),), COCO_TO_VOC)
    (read,) = open_predictions(tmp_path, dataset, schedule, 1)
    assert read.labels.tolist() == [1]
