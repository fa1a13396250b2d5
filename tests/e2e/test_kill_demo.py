"""The demo, killed ten times at random moments and resumed each time, ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

KILLS = 10


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "openworld", "demo", "--output", str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "task3" / "checkpoint" / "calibrate-000001" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    undisturbed = Path(os.environ.get("OPENWORLD_DEMO_RUN", tmp_path / "undisturbed"))  # a finished `openworld demo`
    killed = tmp_path / "killed"
    if not undisturbed.exists():
        assert start(undisturbed).wait() == 0
    draw = random.Random(0)
    moments = sorted(draw.sample(steps_of(undisturbed), KILLS), key=steps_of(undisturbed).index)
    for number, moment in enumerate(moments, start=1):
        process = start(killed, *(["--resume"] if (killed / "config.yaml").exists() else []))
        while moment not in steps_of(killed):
            assert process.poll() is None, f"ended before {moment}"
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        print(f"kill {number} at {moment}")
    assert start(killed, "--resume").wait() == 0
    expected, got = weights(undisturbed), weights(killed)
    assert expected.keys() == got.keys()
    different = [key for key in expected if not torch.equal(expected[key].nan_to_num(), got[key].nan_to_num())]
    assert different == []
    print(f"{KILLS} kills, {len(expected)} tensors equal")


def steps_of(run: Path) -> list[tuple[str, int | None, int]]:
    """(stage, task, step) of every optimisation step in the log of a run."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    return [(entry["stage"], entry.get("task"), entry["step"]) for entry in entries if entry["event"] == "step"]
