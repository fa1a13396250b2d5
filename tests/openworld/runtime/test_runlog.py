"""The log of a run: lines, truncation, half-written ends."""

import os
import time
from pathlib import Path

import pytest

from openworld.runtime.runlog import RunLog


def test_truncate_forgets_what_came_after(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    log.append("step", task=1, step=1, loss=0.5)
    offset = log.offset
    log.append("step", task=1, step=2, loss=float("nan"))
    assert log.read()[1]["loss"] is None
    log.truncate(offset)
    assert [entry["step"] for entry in log.read()] == [1]


def test_offset_of_a_task(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    log.append("step", stage="pretrain", step=1)
    start = log.offset
    assert log.offset_of_task(1) == start
    log.append("step", task=1, step=1)
    log.append("step", task=2, step=1)
    assert log.offset_of_task(1) == start
    log.truncate(log.offset_of_task(2))
    assert [entry.get("task") for entry in log.read()] == [None, 1]


def test_a_phase_is_written_when_it_is_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU time of the process and of its children, in the system too."""
    before, after = [1, 10, 100, 1000, 0], [2, 30, 400, 5000, 7]
    told = iter([before, after, before])
    monkeypatch.setattr("os.times", lambda: os.times_result(next(told)))
    log = RunLog(tmp_path / "metrics.jsonl")
    with log.phase("train", 2):
        time.sleep(0.01)
        log.append("step", step=1)
    with pytest.raises(KeyboardInterrupt), log.phase("replay", 2):
        raise KeyboardInterrupt
    step, phase = log.read()
    assert step["event"] == "step" and phase.pop("seconds") >= 0.01
    assert phase.pop("cpu_seconds") == 1 + 20 + 300 + 4000
    assert phase == {"event": "phase", "stage": "train", "task": 2}


def test_a_half_written_line_is_passed_over(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    log.append("step", step=1)
    with open(log.path, "a") as stream:
        stream.write('{"event": "st')
    assert [entry["step"] for entry in log.read()] == [1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_names_the_log(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        RunLog(tmp_path / "metrics.jsonl").append("step", task=1)
