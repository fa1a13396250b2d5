"""85 images of detections in 44 classes and what an independent VOC evaluator printed for them (Cartucho/mAP).

Its settings: IoU of at least 0.5 in inclusive pixels, area AP, every class with ground truth in the mean.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate
from openworld.metrics.protocols import UNIQUE, with_rules

pytestmark = pytest.mark.oracle

FOLDER = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[2] / "oracles"))


def oracle_folder() -> Path | zipfile.Path:
    folder = FOLDER / "voc_map_85"
    return folder if folder.is_dir() else zipfile.Path(FOLDER / "voc_map_85.zip")


def rows(folder: Path | zipfile.Path) -> list[tuple[str, list[str]]]:
    """(image, words of a line), images sorted."""
    return [
        (file.name, line.split())
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        for line in file.read_text().splitlines()
        if line.strip()
    ]


def test_mean_and_every_class() -> None:
    root = oracle_folder()
    expected = (root / "expected_main_py_output.txt").read_text()
    printed = {name: float(ap) for ap, name in re.findall(r"^([\d.]+)% = (\S+) AP", expected, re.M)}
    mean = float(re.search(r"^mAP = ([\d.]+)%", expected, re.M)[1])  # type: ignore[index]
    objects, detections = rows(root / "ground-truth"), rows(root / "detection-results")
    assert mean == 31.05 and len(objects) == 686 and len(detections) == 494
    names = sorted({words[0] for _, words in objects})
    images = sorted({image for image, _ in objects + detections})
    inclusive = np.array([0, 0, 1, 1])
    truth = GroundTruth.from_arrays(
        images,
        [images.index(image) for image, _ in objects],
        np.array([words[1:5] for _, words in objects], dtype=float) + inclusive,
        [names.index(words[0]) for _, words in objects],
        len(names),
    )
    scored = [(image, words) for image, words in detections if words[0] in names]
    found = ScoredBoxes.from_arrays(
        [images.index(image) for image, _ in scored],
        np.array([words[2:6] for _, words in scored], dtype=float) + inclusive,
        [names.index(words[0]) for _, words in scored],
        [float(words[1]) for _, words in scored],
    )
    result = evaluate(truth, found, 0, len(names), with_rules(UNIQUE, {"detections_per_image": None}), names)
    assert round(100 * result["known_ap50"], 2) == mean
    assert {name: round(100 * entry["ap50"], 2) for name, entry in result["classes"].items()} == printed
