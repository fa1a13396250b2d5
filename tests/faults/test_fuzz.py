"""Damaged annotation files load, are repaired, or raise an error of the package; the process survives them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openworld.data.boxes import MIN_SIDE
from openworld.data.formats.coco import read_coco

ROOT = Path(__file__).resolve().parents[2]


def fuzz(folder: Path, coco: int, voc: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    script = Path(__file__).with_name("fuzz_readers.py")
    command = [sys.executable, str(script), str(folder), str(coco), str(voc)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=150)


def test_mutations_never_kill_the_process(tmp_path: Path) -> None:
    done = fuzz(tmp_path / "fuzz", 2000, 500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert sum(found["coco"].values()) == 2000 and sum(found["voc"].values()) == 500
    for outcomes in found.values():  # the mutations reach every kind of end
        assert all(outcomes.get(kind, 0) >= 20 for kind in ("loaded", "repaired", "refused")), found


number = st.one_of(
    st.floats(width=64),
    st.floats(-50, 150),
    st.integers(-(10**30), 10**30),
    st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324, 10**400, "12", "1e999", " 3 "]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(boxes=st.lists(st.tuples(number, number, number, number), max_size=6), side=st.integers(1, 200))
def test_any_box_of_a_file_is_usable_or_dropped(
    tmp_path: Path, boxes: list[tuple[float | str, ...]], side: int
) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": side, "height": 50}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": position, "image_id": 1, "category_id": 1, "bbox": list(box)} for position, box in enumerate(boxes)
        ],
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(content))
    dataset = read_coco(path)
    (record,) = dataset
    assert np.isfinite(record.boxes).all() and (record.boxes >= 0).all()
    assert (record.boxes <= [side, 50, side, 50]).all()
    assert (record.boxes[:, 2:] - record.boxes[:, :2] >= MIN_SIDE).all()
    for position, box in enumerate(boxes):  # slow restatement of what is kept
        x, y, width, height = (float(value) if abs(float(value)) < 1e300 else np.inf for value in map(_finite, box))
        kept = position in record.annotation_ids
        inside = min(x + width, side) - max(x, 0) >= 1.001 and min(y + height, 50) - max(y, 0) >= 1.001
        if inside and max(abs(x), abs(y), abs(x + width), abs(y + height)) <= 1e6:
            assert kept
        if not inside and not (min(x + width, side) - max(x, 0) >= 0.999 and min(y + height, 50) - max(y, 0) >= 0.999):
            assert not kept
    dropped = sum(count for kind, count in dataset.repairs.counts.items() if kind.startswith("dropped"))
    assert len(record) + dropped == len(boxes)


def _finite(value: float | str) -> float:
    """A number that the restatement can compare; what has no value becomes infinite."""
    try:
        found = float(value)
    except OverflowError:
        return float("inf")
    return float("inf") if np.isnan(found) else found


@pytest.mark.slow
def test_many_more_mutations(tmp_path: Path) -> None:
    done = fuzz(tmp_path / "fuzz", 40_000, 10_000)
    assert done.returncode == 0, done.stderr[-3000:]
