"""The demo, killed ten times at random moments and resumed each time, ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

KILLS = 10


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "openworld", "demo", "--output", str(folder), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "task3" / "checkpoint" / "energy-000001" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    undisturbed = Path(os.environ.get("OPENWORLD_DEMO_RUN", tmp_path / "undisturbed"))  # a finished `openworld demo`
    killed = tmp_path / "killed"
    if not undisturbed.exists():
        assert start(undisturbed).wait() == 0
    log = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(entry["seconds"] for entry in log if entry["event"] == "phase")
    draw = random.Random(0)
    kills = 0
    while True:
        process = start(killed, *(["--resume"] if (killed / "config.yaml").exists() else []))
        try:
            # Work is lost between checkpoints, so the moments are spread over more than the undisturbed time.
            code = process.wait(timeout=draw.uniform(4, 2.6 * seconds / KILLS) if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            phase = [e for e in map(json.loads, _whole_lines(killed / "metrics.jsonl")) if e["event"] == "step"][-1:]
            print(f"kill {kills}: {[(e['stage'], e.get('task'), e['step']) for e in phase]}")
            continue
        assert code == 0
        break
    expected, got = weights(undisturbed), weights(killed)
    assert expected.keys() == got.keys()
    different = [key for key in expected if not torch.equal(expected[key].nan_to_num(), got[key].nan_to_num())]
    assert different == []
    print(f"{kills} kills, {len(expected)} tensors equal")
    assert kills >= KILLS // 2


def _whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
