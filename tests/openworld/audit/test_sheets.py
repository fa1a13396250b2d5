"""A check on the terminal and as files, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from openworld.audit.sheets import repairs_csv, write_check
from openworld.audit.terminal import print_check
from openworld.cli import main
from openworld.data.schedules import read_schedule
from openworld.records import Dataset
from openworld.repairs import Repairs


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Three training images and a broken one, and a test image that is a copy, smaller, of the first."""
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((100, 80), Image.Resampling.BICUBIC)
        for name, size in (("train", (100, 80)), *((("test", (50, 40)),) if number == 0 else ())):
            folder = tmp_path / "mine/images" / name
            folder.mkdir(parents=True, exist_ok=True)
            picture.resize(size).save(folder / f"{number}.png")
            labels = tmp_path / "mine/labels" / name
            labels.mkdir(parents=True, exist_ok=True)
            lines = ["0 0.5 0.5 0.4 0.4", "1 0.2 0.2 0.02 0.3", "1 0.5 0.5 0.4 0.4", "2 0.9 0.9 0.3 0.3"][: 4 - number]
            (labels / f"{number}.txt").write_text("\n".join(lines))
    (tmp_path / "mine/images/train/3.png").write_bytes((tmp_path / "mine/images/train/2.png").read_bytes()[:300])
    (tmp_path / "mine/labels/train/3.txt").write_text("0 0.5 0.5 0.4 0.4")
    content = {"train": "images/train", "test": "images/test", "names": ["cat", "a/b [x]", "cow"]}
    (tmp_path / "mine/data.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "mine"


def test_three_steps(yolo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule, output = tmp_path / "schedule.yaml", tmp_path / "check"
    data = ["--train", str(yolo)]
    main(["data", "tasks", *data, "--tasks", "2", "--leave-unknown", "1", "--output", str(schedule)])
    assert read_schedule(schedule).tasks == (("a/b [x]",), ("cat",))
    printed = capsys.readouterr().out
    assert "    - a/b [x]" in printed or "    - 'a/b [x]'" in printed

    main(["data", "check", *data, "--test", str(yolo), "--schedule", str(schedule), "--output", str(output)])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "1 image of train cannot be read" in printed.replace("\n", " ")
    assert "Size of the boxes" in printed and "█" in printed
    content = json.loads((output / "check.json").read_text())
    assert content["sets"]["train"]["objects"] == 10
    names = {path.name for path in (output / "samples").glob("*.png")}
    assert names == {
        "task1_train.png",
        "task2_train.png",
        "class_cat_train.png",
        "class_a_b_x_train.png",
        "class_cow_train.png",
        "class_cat_test.png",
        "class_a_b_x_test.png",
        "class_cow_test.png",
        "suspicious_tiny_train.png",
        "suspicious_tiny_test.png",
        "suspicious_extreme_shape_train.png",
        "suspicious_extreme_shape_test.png",
        "suspicious_two_classes_train.png",
        "suspicious_two_classes_test.png",
        "alike_train_test.png",
    }
    for path in [output / "histograms.png", *(output / "samples").glob("*.png")]:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 100

    main(["data", "check", *data, "--samples", "0", "--output", str(output)])
    assert not list((output / "samples").glob("*.png"))


def test_without_tasks_and_without_anything(tmp_path: Path, yolo: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from openworld.audit.images_and_boxes import check_data
    from openworld.data.formats.yolo import read_yolo

    sets = {"train": read_yolo(yolo, image_set="train")}
    written = write_check(check_data(sets), sets, tmp_path / "out", num_samples=2)
    assert tmp_path / "out/samples/images_train.png" in written
    nothing = {"val": Dataset.from_records((), ())}
    result = check_data(nothing)
    console = Console(file=StringIO(), width=80)
    print_check(result, console)
    assert "Nothing was found that looks wrong." in console.file.getvalue()  # type: ignore[attr-defined]
    assert len(write_check(result, nothing, tmp_path / "none")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "no annotations are given"),
        (["check", "--train", "x", "--config", "y.yaml"], "a configuration and single sets"),
        (["tasks", "--train", "none.json", "--tasks", "2", "--output", "s.yaml"], "no such file or folder"),
    ],
)
def test_what_cannot_be_done(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_every_repaired_record_is_listed(tmp_path: Path, yolo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dropped line behind thirty polygons is named on the terminal and in the list; a later check without repairs
    leaves no list."""
    labels = [yolo / "labels/train" / f"{number}.txt" for number in range(3)]
    clean = labels[2].read_text()
    labels[0].write_text("0 0.1 0.1 0.4 0.1 0.2 0.5\n" * 30)
    labels[2].write_text("0 0.5 0.5 0.4 0.4\n7 0.5 0.5 0.1 0.1\n9 0.5 0.5 0.1 0.1\n0 0.9 0.5 0.4 0.4")
    (yolo / "images/train/3.png").unlink()
    (yolo / "labels/train/3.txt").unlink()
    output = tmp_path / "check"
    main(["data", "check", "--train", str(yolo), "--samples", "0", "--output", str(output)])
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "warning: Annotations of train were repaired while reading: dropped: class number that nothing has (2)." in told
    )
    assert "2.txt, line 2 has class 7 of 3" in told.replace("/ ", "/") and "line 3 has class 9 of 3" in told
    assert "note: Annotations of train were repaired while reading: clipped to the image (1)." in told
    with (output / "repairs.csv").open(newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["set", "kind", "record"] and {row[0] for row in rows} == {"train"}
    kinds = [row[1] for row in rows]
    assert kinds.count("polygon turned into its box") == 30 and len(rows) == 33
    where = labels[2]
    assert [row[2][: len(f"{where}, line 0")] for row in rows if row[1] != "polygon turned into its box"] == [
        f"{where}, line {line}" for line in (4, 2, 3)
    ]
    labels[0].write_text("")
    labels[2].write_text(clean)
    main(["data", "check", "--train", str(yolo), "--samples", "0", "--output", str(output)])
    assert not (output / "repairs.csv").exists()


def test_the_list_of_repairs_says_where_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Repairs, "MAX_CASES", 2)
    repairs = Repairs()
    for number in range(1234):
        repairs.add("clipped, say", f"case {number}")
    assert repairs_csv({"val": Dataset.from_records((), (), repairs)}).splitlines() == [
        "set,kind,record",
        'val,"clipped, say",case 0',
        'val,"clipped, say",case 1',
        'val,"clipped, say","and 1,232 more"',
    ]
