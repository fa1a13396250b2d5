"""Methods with prototypes, neighbours, banks or patches, killed anywhere and resumed: the same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openworld.runtime.images import find_images
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.method import Method
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.pretrain import pretrain
from ssl_backbones.views import RECIPES

# 9 images in batches of 3: epochs start at steps 0 and 3.
SMALL: dict[str, Any] = {
    "view_size": 32,
    "local_view_size": 16,
    "local_views": 2,
    "steps": 6,
    "batch_size": 3,
    "warmup": 1,
    "checkpoint_every": 1,
}
PCL = {"queue_size": 5, "clusters": [2, 4], "warmup_epochs": 1, "negatives": 1, "iterations": 3, "restarts": 2}
OWN: dict[str, dict[str, Any]] = {
    "pcl_v1": PCL,
    "pcl_v2": PCL,
    "nnclr": {"queue_size": 5, "hidden_dim": 16},
    "swav": {"prototypes": 4, "frozen_steps": 2, "queue_length": 4, "queue_start": 1},
    "deepcluster_v2": {"clusters": [2, 3, 4], "iterations": 3},
    "sela_v2": {"clusters": [2, 3, 4]},
    "dino": {"outputs": 12, "frozen_steps": 2, "teacher_temperature_start": 0.03, "teacher_temperature_warmup": 5},
    "instdisc": {"negatives": 4},
    "cmc": {"negatives": 4},
    "pirl": {"negatives": 4},
    "cpc": {"context_dim": 8, "predicted_rows": 2},
}


def options(name: str, **changes: Any) -> PretrainOptions:
    views: Any = {"pcl_v1": "moco_v1", "nnclr": "simclr"}.get(name, name if name in RECIPES else "moco_v2")
    method = MethodOptions.named(name)(**{"projection_dim": 8, **OWN[name]})
    return PretrainOptions(method=method, views=views, arch=ResNetOptions(width=1 / 16), **{**SMALL, **changes})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60)).save(folder / f"{i}.png")
    return find_images(folder)


class Killed(Exception):
    """Stands for the power cut."""


State = dict[str, Tensor]


def watched(name: str, patch: pytest.MonkeyPatch, *, kill_at: int | None = None) -> dict[int, State]:
    """Make the method die after the loss of step ``kill_at``; returns the state before each step's loss, by step."""
    seen: dict[int, State] = {}
    method = MethodOptions.named(name).implementation()
    before_step, after_backward = method.before_step, method.after_backward

    def note(self: Method, step: int, steps: int) -> None:
        seen[step] = {key: value.clone() for key, value in self.state_dict().items()}
        before_step(self, step, steps)

    def kill(self: Method, step: int, steps: int) -> None:
        if step == kill_at:
            raise Killed
        after_backward(self, step, steps)

    patch.setattr(method, "before_step", note)
    patch.setattr(method, "after_backward", kill)
    return seen


@pytest.mark.parametrize("name", OWN)
def test_resume_is_exact_within_an_epoch_and_across_its_end(
    name: str, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        expected = watched(name, patch)
        whole = pretrain(options(name, checkpoint_every=6), paths, tmp_path / "whole", seed=7)
    resumed: dict[int, State] = {}
    for start, kill_at in ((0, 3), (3, 4)):  # resumed with an epoch, and within one
        torch.manual_seed(12345)
        with monkeypatch.context() as patch:
            seen = watched(name, patch, kill_at=kill_at)
            with pytest.raises(Killed):
                pretrain(options(name), paths, tmp_path / "cut", seed=7, resume=True)
        assert list(seen) == list(range(start, kill_at + 1))
        resumed |= seen
    torch.manual_seed(12345)
    with monkeypatch.context() as patch:
        seen = watched(name, patch)
        cut = pretrain(options(name), paths, tmp_path / "cut", seed=7, resume=True)
    assert list(seen) == [4, 5]
    resumed |= seen
    assert cut.path.read_bytes() == whole.path.read_bytes()
    for step, state in expected.items():  # parameters, assignments, prototypes, centre, queue: everything
        assert state.keys() == resumed[step].keys()
        assert all(torch.equal(value, resumed[step][key]) for key, value in state.items()), step


@pytest.mark.parametrize(("name", "warm_up"), [("pcl_v2", 1), ("deepcluster_v2", 0)])
def test_assignments_stay_during_an_epoch_and_change_between(
    name: str, warm_up: int, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(name, monkeypatch)
    pretrain(options(name, lr=0.1), paths, tmp_path, seed=1)
    keys = [key for key in seen[0] if key.endswith((".assignments", ".centroids"))]
    assert len(keys) == 2 * (2 if name == "pcl_v2" else 3)
    for step in range(1, 6):
        same = all(torch.equal(seen[step][key], seen[step - 1][key]) for key in keys)
        assert same == (step % 3 != 0), step
    assigned = next(key for key in keys if key.endswith(".assignments"))
    assert [bool((seen[3 * epoch][assigned] >= 0).all()) for epoch in range(2)] == [warm_up == 0, True]
