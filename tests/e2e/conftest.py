"""A run that is small enough for a test and goes through everything a large one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
ore:
  clustering: {start_step: 2, update_every: 2}
  energy: {min_samples: 5}
  exemplars: {per_class: 4}
train: {steps: 6, batch_size: 2, lr: 1e-3, warmup_steps: 2, checkpoint_every: 2}
increment: {steps: 4, batch_size: 2, lr: 1e-3, warmup_steps: 2, checkpoint_every: 2}
replay: {steps: 3, batch_size: 2, lr: 1e-3, warmup_steps: 1, checkpoint_every: 2}
"""


def openworld(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "openworld", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        check=False,
    )
    if check and result.returncode:
        raise AssertionError(f"openworld {arguments} exited with {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


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
