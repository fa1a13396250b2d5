"""What a check and an audit say of images that are not where they were looked for, and the option that names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from openworld.audit.images_and_boxes import check_data
from openworld.audit.split import audit_split
from openworld.cli import main
from openworld.data.formats.read import read_dataset
from openworld.data.options import SourceOptions
from openworld.records import Dataset

REPLACE = "Replace the files, or remove them and their annotations"


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    """Four images of 40 x 30 pixels in photos/, where nobody looks unasked; three say no size."""
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (40, 30), (60 * number, 0, 0)).save(tmp_path / f"photos/{number}.png")
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(4)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": number, "image_id": number % 4, "category_id": 1 + number % 2, "bbox": [1, 2, 10, 20]}
            for number in range(6)
        ],
    }
    content["images"][0] |= {"width": 40, "height": 30}
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    return path


def dataset(annotations: Path, images: Path | None = None) -> Dataset:
    return read_dataset(SourceOptions(annotations=str(annotations), images=images and str(images)), "train")


def problems(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["finding"], one["remedy"]) for one in result["findings"] if one["level"] == "problem"]


def test_a_set_without_its_images_is_a_wrong_folder(annotations: Path) -> None:
    result = check_data({"val": dataset(annotations)})
    ((finding, remedy),) = problems(result)
    folder = annotations.parent
    assert finding == f"4 of 4 images of val do not exist (e.g. {folder}/0.png; looked in {folder})."
    assert remedy == (
        "Name the folder that holds them with --val-images, or as data.val.images of a configuration; or fetch them."
    )
    assert result["sets"]["val"]["missing"]["images"] == result["sets"]["val"]["unreadable"]["images"] == 4
    assert REPLACE not in json.dumps(result)


def test_half_of_the_images_missing_and_one_broken(annotations: Path) -> None:
    folder = annotations.parent / "photos"
    (folder / "0.png").write_bytes(b"no image")
    found = dataset(annotations, folder)
    for number in (1, 2):
        (folder / f"{number}.png").unlink()
    (missing, _), (broken, remedy) = problems(check_data({"train": found}))
    assert missing == f"2 of 4 images of train do not exist (e.g. {folder}/1.png)."
    assert broken.startswith(f"1 image of train cannot be read (e.g. {folder}/0.png: ") and REPLACE in remedy


def test_a_single_missing_image_is_one(annotations: Path) -> None:
    folder = annotations.parent / "photos"
    found = dataset(annotations, folder)
    (folder / "1.png").unlink()
    ((finding, remedy),) = problems(check_data({"train": found}))
    assert finding == f"1 image of train cannot be read (e.g. {folder}/1.png: image does not exist)."
    assert remedy.startswith(REPLACE)


def test_the_audit_says_where_it_looked(annotations: Path) -> None:
    found = dataset(annotations)
    result = audit_split(found, [["cat"], ["dog"]], train=found)
    (note,) = [one for one in result["findings"] if "could not be read" in one["finding"]]
    folder = annotations.parent
    assert f"(train: looked in {folder}; test: looked in {folder})" in note["finding"]
    assert "--test-images" in note["remedy"] and result["sets"]["test"]["searched"] == f"looked in {folder}"


def test_the_option_of_the_command_line(annotations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = annotations.parent
    named = [
        f"--{name}{end}={value}"
        for name in ("train", "val", "test")
        for end, value in (("", annotations), ("-images", folder / "photos"))
    ]
    (folder / "schedule.yaml").write_text("tasks: [[cat], [dog]]")
    main(["data", "check", *named, "--samples", "0", "--output", str(folder / "out")])
    sets = json.loads((folder / "out/check.json").read_text())["sets"]
    for name in ("train", "val", "test"):
        assert sets[name]["unreadable"]["images"] == 0 and sets[name]["repairs"] == {"size read from the image file": 3}
    schedule, output = str(folder / "schedule.yaml"), folder / "audit.json"
    main(["data", "audit", *named, "--schedule", schedule, "--output", str(output)])
    files = json.loads(output.read_text())["files"]
    assert files["compared"] == 4 and files["not_found"] == 0
    main(["data", "tasks", *named[:2], "--tasks", "2", "--output", str(folder / "tasks.yaml")])
    assert yaml.safe_load((folder / "tasks.yaml").read_text())["tasks"] == [["cat"], ["dog"]]
    assert "could not be read" not in capsys.readouterr().out


def test_the_option_has_no_meaning_beside_a_data_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images\n")
    with pytest.raises(SystemExit):
        main(["data", "check", "--train", str(tmp_path), "--train-images", str(tmp_path / "images")])
    assert "has no meaning beside a data.yaml" in " ".join(capsys.readouterr().err.split())
