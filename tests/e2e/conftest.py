"""A run that is small enough for a test and goes through everything a large one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

TINY = """
name: tiny
threads: 1
data:
  tasks: [[ball, cube], [star, ring]]
  synthetic: {train_images: 24, val_images: 16, test_images: 10, size: 64}
  loader: {min_size: 64, max_size: 64}
pretrain:
  arch: {width: 0.125}
  steps: 3
  batch_size: 8
  view_size: 32
  warmup: 1
  checkpoint_every: 2
model:
  fpn_channels: 16
  rpn: {train_proposals: 40, test_proposals: 20, anchor_sizes: [8, 16, 32, 64]}
  roi: {sampled_regions: 16, hidden_dim: 24, score_threshold: 0.02}
method:
  name: ore
  clustering: {start_step: 2, update_every: 2}
  energy: {min_samples: 5}
exemplars: {per_class: 4}
train: {steps: 6, batch_size: 2, lr: 1e-3, warmup_steps: 2, checkpoint_every: 2}
increment: {steps: 4, batch_size: 2, lr: 1e-3, warmup_steps: 2, checkpoint_every: 2}
replay: {steps: 3, batch_size: 2, lr: 1e-3, warmup_steps: 1, checkpoint_every: 2}
"""


def openworld(
    *arguments: str | Path, check: bool = True, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, in a working directory."""
    result = subprocess.run(
        [sys.executable, "-m", "openworld", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        },
        cwd=directory,
        check=False,
    )
    if check and result.returncode:
        raise AssertionError(f"openworld {arguments} exited with {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def killed_run(config: Path, folder: Path, *arguments: str, **wanted: Any) -> None:
    """Start a run, and SIGKILL it when its log has an entry with such values, or after ten minutes."""
    command = [sys.executable, "-m", "openworld", "run", "--config", str(config), "--output", str(folder), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        log = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
        entries = [json.loads(line) for line in log.splitlines() if line.endswith("}")]
        if any(all(entry.get(key) == value for key, value in wanted.items()) for entry in entries):
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def final_weights(run: Path, task: int = 2) -> dict[str, torch.Tensor]:
    """The tensors that a task ended with."""
    return safetensors.torch.load_file(run / f"task{task}" / "checkpoint" / "calibrate-000001" / "model.safetensors")


def assert_same_bits(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> None:
    """Every tensor; NaN stands for what is not fitted, and is not equal to itself."""
    assert expected.keys() == got.keys()
    assert [key for key in expected if not torch.equal(expected[key].nan_to_num(-7), got[key].nan_to_num(-7))] == []


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    openworld("run", "--config", tiny_config, "--output", folder)
    return folder
