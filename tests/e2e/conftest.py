"""A run that is small enough for a test and goes through everything a large one does."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import safetensors.torch
import torch

from openworld.cli import main
from openworld.runtime.runlog import RunLog

TINY = """
name: tiny
threads: 1
data:
  tasks: [[ball, cube], [star, ring]]
  synthetic: {train_images: 24, val_images: 16, test_images: 10, pretrain_images: 24, size: 64}
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
exemplars: {per_class: 4, during_training: 0.5}
distillation: {pseudo_label_score: 0.05, class_weight: 1.0, box_weight: 1.0, feature_weight: 0.1}
train: {steps: 6, batch_size: 2, lr: 1e-3, warmup_steps: 2, checkpoint_every: 2}
increment: {steps: 4, batch_size: 2, lr: 1e-3, warmup_steps: 2, checkpoint_every: 2}
replay: {steps: 3, batch_size: 2, lr: 1e-3, warmup_steps: 1, checkpoint_every: 2}
"""


def openworld(
    *arguments: str | Path, check: bool = True, directory: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command line in this process, in a working directory: importing torch takes longer than most commands."""
    words = [str(argument) for argument in arguments]
    output, errors = io.StringIO(), io.StringIO()
    shown = logging.StreamHandler(errors)
    shown.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger().addHandler(shown)
    threads, code = torch.get_num_threads(), 0
    try:
        with redirect_stdout(output), redirect_stderr(errors), chdir(directory or Path.cwd()):
            main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        logging.getLogger().removeHandler(shown)
        torch.set_num_threads(threads)
    result = subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())
    if check and code:
        raise AssertionError(f"openworld {words} exited with {code}\n{result.stdout}\n{result.stderr}")
    return result


def own_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line as a user starts it."""
    command = [sys.executable, "-m", "openworld", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def killed_run(config: Path, folder: Path, *arguments: str, **wanted: Any) -> None:
    """Start a run, and SIGKILL it when its log has an entry with such values, or after ten minutes.

    The process is a fork of this one, which has imported torch already.
    """
    words = ["run", "--config", str(config), "--output", str(folder), *arguments]
    process = multiprocessing.get_context("fork").Process(target=_silently, args=(words,))
    process.start()
    deadline, size, log = time.monotonic() + 600, 0, folder / "metrics.jsonl"
    while time.monotonic() < deadline and process.is_alive():
        if log.exists() and log.stat().st_size != size:
            size = log.stat().st_size
            if any(_matches(line, wanted) for line in log.read_text().splitlines()):
                break
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def interrupted_run(config: Path, folder: Path, *arguments: str, **wanted: Any) -> None:
    """A run in this process that ends like one with Ctrl-C when its log has an entry with such values."""
    append = RunLog.append

    def append_or_end(self: RunLog, event: str, **fields: Any) -> None:
        append(self, event, **fields)
        if wanted.items() <= {"event": event, **fields}.items():
            raise KeyboardInterrupt

    with patch.object(RunLog, "append", append_or_end):
        ended = openworld("run", "--config", config, "--output", folder, *arguments, check=False)
    assert ended.returncode == 130 and "--resume" in ended.stderr


def _silently(words: list[str]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    main(words)


def _matches(line: str, wanted: dict[str, Any]) -> bool:
    """Whether a complete line of a log has these values."""
    return line.endswith("}") and wanted.items() <= json.loads(line).items()


def final_weights(run: Path, task: int = 2) -> dict[str, torch.Tensor]:
    """The tensors that a task ended with."""
    return safetensors.torch.load_file(run / f"task{task}" / "checkpoint" / "calibrate-000001" / "model.safetensors")


def assert_same_bits(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor]) -> None:
    """Every tensor; NaN stands for what is not fitted, and is not equal to itself."""
    assert expected.keys() == got.keys()
    assert [key for key in expected if not torch.equal(expected[key].nan_to_num(-7), got[key].nan_to_num(-7))] == []


@pytest.fixture
def no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end without a page: drawing its figures takes longer than the rest."""
    monkeypatch.setattr("openworld.report.build.build_report", lambda run, *_, **__: run / "report.html")


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no message is broken into lines."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to read only."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    openworld("run", "--config", tiny_config, "--output", folder)
    return folder
