"""Losses of short trainings against those recorded in tests/golden: a change that was to leave the numbers alone did.

Numbers that change on purpose are recorded anew, in a commit of their own that says why::

    OPENWORLD_RECORD_GOLDEN=1 python -m pytest tests/test_golden_losses.py

Everything computes in float64: in float32 another processor's rounding grows to another training within ten steps. For
the same reason detectors see images unresized, and views are of recipes that resize in whole numbers everywhere.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openworld.configfile import read_config
from openworld.run.schedule import run_schedule
from openworld.runtime.images import find_images
from openworld.runtime.runlog import RunLog
from ssl_backbones.pretrain import pretrain
from tests.double_precision import in_double_precision

GOLDEN = Path(__file__).parent / "golden"
CONFIGS = Path(__file__).parents[1] / "configs"
TOLERANCE = 1e-5
"""Relative, and absolute for losses near 0."""


def phase(steps: int) -> dict[str, Any]:
    return {"steps": steps, "batch_size": 2, "lr": 0.002, "warmup_steps": 2, "checkpoint_every": 100}


# -- configurations ---------------------------------------------------------------------------------------------------
# A key that gets another name is changed here and nowhere else in this file.

DETECTOR: dict[str, Any] = {
    "name": "golden",
    "threads": 1,
    "seed": 3,
    "data": {
        "tasks": [["ball", "cube"], ["star", "ring"]],
        "synthetic": {"train_images": 20, "val_images": 12, "test_images": 4, "pretrain_images": 12, "size": 64},
        "loader": {"min_size": 64, "max_size": 64, "scale_jitter": [1.0, 1.0]},
    },
    "model": {
        "device": "cpu",
        "fpn_channels": 16,
        "rpn": {"anchor_sizes": [8.0, 16.0, 32.0, 48.0], "train_proposals": 40, "test_proposals": 20},
        "roi": {"sampled_regions": 16, "hidden_dim": 24, "score_threshold": 0.02},
    },
    "train": phase(10),
    "increment": phase(4),
    "replay": phase(3),
}
SHORT = {
    "method": {"name": "ore", "clustering": {"start_step": 2, "update_every": 3}, "energy": {"min_samples": 3}},
    "exemplars": {"per_class": 2},
}
SCRATCH = {"pretrain": None, "model": {"arch": {"name": "resnet18", "width": 0.125}}}
C4 = {
    "model": {"neck": "c4", "arch": {"name": "resnet50", "width": 0.0625}},
    **{stage: {"lr": 0.0001} for stage in ("train", "increment", "replay")},
}
FIXED = {"model": {"layout": "fixed", "roi": {"mask_future": "always"}}}
DEMO = {
    "pretrain": {"views": "simclr", "steps": 5, "batch_size": 8, "view_size": 32, "warmup": 1, "arch": {"width": 0.125}}
}
DETECTORS: dict[str, list[str | dict[str, Any]]] = {
    "demo": ["demo.yaml", DETECTOR, SHORT, DEMO],
    "paper_fpn": [DETECTOR, SCRATCH, "ore/paper.yaml", SHORT],
    "paper_c4": [DETECTOR, SCRATCH, C4, "ore/paper.yaml", SHORT],
    "reference_fpn": [DETECTOR, SCRATCH, "ore/reference.yaml", SHORT],
    "reference_c4": [DETECTOR, SCRATCH, C4, "ore/reference.yaml", SHORT],
    "fixed_layout": [DETECTOR, SCRATCH, FIXED, SHORT],
}
"""Files of configs/ and dictionaries; the later one wins."""

PRETRAIN: dict[str, Any] = {
    "arch": {"width": 0.125},
    "view_size": 32,
    "local_view_size": 16,
    "steps": 12,
    "batch_size": 8,
    "lr": 0.02,
    "warmup": 2,
    "checkpoint_every": 100,
    "probe_every": 0,
}
SHARED = {"projection_dim": 16}
QUEUE = {**SHARED, "queue_size": 24, "teacher_momentum": 0.99}
PRETRAININGS: dict[str, dict[str, Any]] = {
    "simclr": {"views": "simclr", "method": {"name": "simclr", **SHARED}},
    "moco_v2": {"views": "simclr", "lr": 0.004, "method": {"name": "moco_v2", "shuffle_groups": 2, **QUEUE}},
    "byol": {"views": "byol", "optimizer": "lars", "method": {"name": "byol", "hidden_dim": 32, **SHARED}},
    "pcl_v2": {
        "views": "simclr",
        "method": {"name": "pcl_v2", "clusters": [4, 6], "negatives": 3, "restarts": 1, **QUEUE},
    },
    "swav": {
        "views": "dino",
        "local_views": 2,
        "method": {"name": "swav", "prototypes": 8, "queue_length": 16, "queue_start": 4, "frozen_steps": 2, **SHARED},
    },
}


# -- losses -----------------------------------------------------------------------------------------------------------


def steps(folder: Path) -> list[dict[str, Any]]:
    """Of each step of a run or a pretraining its place and its losses."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = ("stage", "task", "step", "loss", "losses")
    return [{key: entry[key] for key in kept if key in entry} for entry in entries if entry["event"] == "step"]


def detector_steps(name: str, folder: Path) -> list[dict[str, Any]]:
    """Train the detector of a configuration; the steps of both tasks."""
    stack = []
    for number, part in enumerate(DETECTORS[name]):
        stack.append(CONFIGS / part if isinstance(part, str) else folder / f"{number}.yaml")
        if isinstance(part, dict):
            stack[-1].write_text(json.dumps(part))
    run_schedule(read_config(*stack), folder / "run", resume=False)
    return steps(folder / "run")


def pretraining_steps(name: str, folder: Path) -> list[dict[str, Any]]:
    """Pretrain on 24 images of coloured squares, as large as a view: what a clustering sees is not resized."""
    random = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    for number in range(24):
        squares = random.integers(0, 216, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)
        noise = random.integers(0, 40, squares.shape)
        Image.fromarray((squares + noise).astype(np.uint8)).save(images / f"{number:02d}.png")
    (folder / "config.yaml").write_text(json.dumps({"pretrain": {**PRETRAIN, **PRETRAININGS[name]}}))
    options = read_config(folder / "config.yaml").pretrain
    assert options is not None
    pretrain(options, find_images(images), folder, seed=5, log=RunLog(folder / "metrics.jsonl"))
    return steps(folder)


def difference(expected: Any, found: Any, place: str) -> str | None:
    """The first difference of two trees of JSON, None if all floats are equal to the tolerance."""
    if isinstance(expected, dict) and isinstance(found, dict):
        if expected.keys() != found.keys():
            return f"{place} has {sorted(found)} in place of {sorted(expected)}"
        each = (difference(value, found[key], f"{place} {key}") for key, value in expected.items())
        return next((text for text in each if text), None)
    if isinstance(expected, float) and isinstance(found, float):
        return (
            None
            if abs(found - expected) <= TOLERANCE * max(1.0, abs(expected))
            else f"{place}: {found}, not {expected}"
        )
    return None if found == expected else f"{place}: {found}, not {expected}"


@pytest.mark.parametrize("name", [*DETECTORS, *PRETRAININGS])
def test_losses_are_those_recorded(name: str, tmp_path: Path) -> None:
    with in_double_precision():
        found = detector_steps(name, tmp_path) if name in DETECTORS else pretraining_steps(name, tmp_path)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("OPENWORLD_RECORD_GOLDEN"):
        path.write_text("[\n" + ",\n".join(json.dumps(step) for step in found) + "\n]\n")
    expected = json.loads(path.read_text())
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        where = " ".join(str(one[key]) for key in ("stage", "task", "step") if key in one)
        assert (text := difference(one, other, where)) is None, text
