"""One schedule file through both engines, and a kill in the engine that is made of detectron2's parts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from .conftest import TINY, assert_same_bits, final_weights, killed_run, openworld

pytestmark = [pytest.mark.slow, pytest.mark.detectron2, pytest.mark.timeout(1800)]


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def numbers(content: Any) -> list[float]:
    if isinstance(content, dict | list):
        return [x for part in (content.values() if isinstance(content, dict) else content) for x in numbers(part)]
    return [content] if isinstance(content, int | float) else []


def test_three_tasks_in_both_engines_and_a_kill(tmp_path: Path) -> None:
    """The same files with finite scores; killed in task 2 and resumed, the same weights bit for bit."""
    config = yaml.safe_load(TINY)
    config |= {"pretrain": None, "data": {**config["data"], "tasks": [["ball"], ["star"], ["ring"]]}}
    config["model"]["arch"] = {"name": "resnet18", "width": 0.125}
    schedule = tmp_path / "three.yaml"
    schedule.write_text(yaml.safe_dump(config))
    ours, theirs, killed = (tmp_path / name for name in ("torchvision", "detectron2", "killed"))
    openworld("run", "--config", schedule, "--output", ours)
    openworld("run", "--config", schedule, "--engine", "detectron2", "--output", theirs)
    assert files(ours) == files(theirs)
    assert any(name.startswith("engine.model.proposal_generator") for name in final_weights(theirs, 3))
    for run in (ours, theirs):
        for task in (1, 2, 3):
            scores = json.loads((run / f"task{task}" / "metrics.json").read_text())
            assert scores["task"] == task and all(map(math.isfinite, numbers(scores)))
        assert all(scores[name] is not None for name in ("previous_ap50", "current_ap50", "unknown_recall50", "a_ose"))

    killed_run(schedule, killed, "--engine", "detectron2", event="step", stage="train", task=2, step=3)
    assert (killed / "task2").is_dir() and not (killed / "task2" / "metrics.json").exists()
    openworld("run", "--config", schedule, "--engine", "detectron2", "--output", killed, "--resume")
    for task in (2, 3):
        assert_same_bits(final_weights(theirs, task), final_weights(killed, task))
