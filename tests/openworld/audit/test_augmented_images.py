"""The sheet of augmented images, and the command that draws it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torch import Tensor

from openworld.audit import augmented_images
from openworld.audit.augmented_images import COLUMNS, augmented_sheet
from openworld.cli import main
from openworld.data.options import LoaderOptions
from openworld.records import Record
from openworld.structures import Target

LOADER = LoaderOptions(min_size=48, max_size=48, augment="strong")


def record(folder: Path, number: int, crowd: tuple[bool, ...]) -> Record:
    path = folder / f"{number}.png"
    Image.new("RGB", (60, 40), (30 * number, 90, 90)).save(path)
    boxes = np.tile(np.array([[5, 5, 40, 30]], dtype=np.float32), (len(crowd), 1))
    categories = np.arange(len(crowd), dtype=np.int64)
    no_flags = np.zeros(len(crowd), dtype=np.bool_)
    return Record(number, path, 60, 40, boxes, categories, no_flags, crowd=np.array(crowd, dtype=np.bool_))


def test_rows_of_whole_images_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Crowds are not drawn, and images that cannot be read have no row."""
    drawn: list[tuple[Target, str]] = []
    panel = augmented_images._panel

    def noted(image: Tensor, target: Target, names: Sequence[str], title: str) -> Image.Image:
        drawn.append((target, title))
        return panel(image, target, names, title)

    monkeypatch.setattr(augmented_images, "_panel", noted)
    records = [record(tmp_path, 2, (False, True)), record(tmp_path, 3, (False,)), record(tmp_path, 4, (False,))]
    records[1].path.write_bytes(b"")
    sheet = augmented_sheet(records, ("cat", "crowd"), LOADER)()
    assert sheet is not None and sheet.width > COLUMNS * 384 and sheet.height > 2 * 256
    assert len(drawn) == 2 * COLUMNS and all(target.labels.tolist() == [0] for target, _ in drawn)
    assert [title for _, title in drawn if title.endswith(".png")] == ["2.png", "4.png"]
    assert augmented_sheet(records[1:2], ("cat",), LOADER)() is None


def test_the_check_of_a_configuration_draws_it(tmp_path: Path) -> None:
    for name, number in (("train", 1), ("test", 2)):
        record(tmp_path, number, ())
        content = {
            "images": [{"id": 1, "file_name": f"{number}.png", "width": 60, "height": 40}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 5, 30, 20]}],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    sets = {
        name: {"annotations": str(tmp_path / f"{name}.json"), "images": str(tmp_path)} for name in ("train", "test")
    }
    config = {"data": {"synthetic": None, **sets, "tasks": [["cat"]], "loader": {"augment": "light"}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    main(["data", "check", "--config", str(tmp_path / "run.yaml"), "--samples", "1", "--output", str(tmp_path / "out")])
    with Image.open(tmp_path / "out/samples/augmented_train.png") as sheet:
        assert sheet.width > COLUMNS * 384
