"""Overlap with the best anchor: against all anchors of the RPN, and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.ops import box_iou

from openworld.audit.anchors import anchor_findings, anchor_fit, best_overlap
from openworld.cli import main
from openworld.data.options import LoaderOptions
from openworld.engines.options import ModelOptions, RpnOptions
from openworld.engines.weights import build_engine
from openworld.labels import LabelSpace
from openworld.records import Dataset, Record
from ssl_backbones.backbones import ResNetOptions


def model(neck: str, *sizes: float) -> ModelOptions:
    arch = ResNetOptions(name="resnet18", width=0.125)
    return ModelOptions(arch=arch, neck=neck, rpn=RpnOptions(anchor_sizes=list(sizes)), fpn_channels=16)  # type: ignore[arg-type]


def dataset(*boxes: list[float], crowd: str = "", size: tuple[int, int] = (100, 70)) -> Dataset:
    crowds = np.array([mark == "x" for mark in crowd.ljust(len(boxes))], dtype=np.bool_)
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    record = Record(1, Path("none.jpg"), *size, array, np.zeros(len(boxes), dtype=np.int64), crowds, crowd=crowds)
    return Dataset.from_records(("cat",), (record,))


LOADER = LoaderOptions(min_size=140, max_size=300)


@pytest.mark.parametrize(("neck", "sizes"), [("fpn", (9, 20, 40, 81)), ("c4", (9, 20, 40, 81, 150)), ("c4", (33,))])
def test_best_anchor_of_all(neck: str, sizes: tuple[float, ...]) -> None:
    """The nearest centres of each shape reach what all anchors that the RPN lays over the image reach."""
    height, width = 70, 101
    options = model(neck, *sizes)
    engine = build_engine(LabelSpace.of((("cat",),), 1), options, None).eval()
    rng = np.random.default_rng(0)
    corner = rng.uniform(-3, [width - 2, height - 2], (200, 2)).clip(min=0)
    side = np.exp(rng.uniform(0, 4.6, (200, 2)))
    boxes = np.concatenate([corner, np.minimum(corner + side, [width, height])], axis=1)
    batch = engine.normalise([torch.zeros(3, height, width)])
    levels = list(engine.features(batch.tensors).values())
    cells = np.tile([level.shape[:1:-1] for level in levels], (len(boxes), 1, 1))
    expected = box_iou(torch.from_numpy(boxes), engine.rpn._anchors(levels).double()).max(1).values.numpy()
    np.testing.assert_allclose(best_overlap(boxes, cells, options, sizes), expected, atol=1e-12)
    record = Record(1, Path("x.jpg"), width, height, boxes.astype(np.float32), np.zeros(200, int), np.zeros(200, bool))
    fit = anchor_fit(Dataset.from_records(("cat",), (record,)), options, LoaderOptions(min_size=height, max_size=width))
    assert fit["fitting"] == (expected >= 0.5).mean() and fit["missed"] == (expected < 0.3).mean()


def test_boxes_are_measured_as_the_model_sees_them() -> None:
    """Images of 100 by 70 enter at twice the size: a box of 16 px around a cell is the anchor of 32 px itself."""
    fit = anchor_fit(dataset([24, 24, 40, 40]), model("fpn", 32, 64, 128, 256), LOADER)
    assert fit["sides"] == [32.0, 32.0, 32.0] and fit["fitting"] == 1.0 and fit["missed"] == 0.0
    assert anchor_findings(fit) == []


def test_crowds_and_empty_sets() -> None:
    boxes = [24, 24, 40, 40], [0, 0, 1, 1]
    fit = anchor_fit(dataset(*boxes, crowd=" x"), model("fpn", 32, 64, 128, 256), LOADER)
    assert fit["boxes"] == 1 and fit["fitting"] == 1.0
    nothing = anchor_fit(dataset(), model("fpn", 32, 64, 128, 256), LOADER)
    assert nothing["boxes"] == 0 and nothing["fitting"] is None and anchor_findings(nothing) == []


def test_the_command_proposes_anchors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes of 6 px, anchors from 64 px: none fits; anchors from 6 px fit all. Without a configuration nobody asks."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"images/{name}.png")
    for name, stem in (("train", "a"), ("test", "b")):
        content = {
            "images": [{"id": 1, "file_name": f"{stem}.png", "width": 64, "height": 64}],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": 1, "bbox": [4 * number + 1, 5, 6, 6]}
                for number in range(1, 11)
            ],
            "categories": [{"id": 1, "name": "cat"}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    config = {
        "data": {
            "synthetic": None,
            "train": {"annotations": str(tmp_path / "train.json")},
            "test": {"annotations": str(tmp_path / "test.json")},
            "tasks": [["cat"]],
            "loader": {"min_size": 64, "max_size": 64},
        },
        "model": {"rpn": {"anchor_sizes": [64, 128, 256, 512]}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    output = tmp_path / "out"
    main(["data", "check", "--config", str(tmp_path / "run.yaml"), "--samples", "0", "--output", str(output)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "An anchor of the model fits 0 % of 10 boxes of train (IoU 0.5), and 100 % have none that is near" in printed
    assert "Set model.rpn.anchor_sizes to [6, 12, 24, 48], which fit 100 %" in printed
    assert json.loads((output / "check.json").read_text())["anchors"]["better_sizes"] == [6.0, 12.0, 24.0, 48.0]
    main(["data", "check", "--train", str(tmp_path / "train.json"), "--samples", "0"])
    assert "anchor" not in capsys.readouterr().out
