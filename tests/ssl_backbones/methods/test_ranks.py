"""Two gloo processes with half of a batch each, and one process with the whole of it: losses, gradients and stores.

Batch norm that is not synchronised has the statistics of its own
process, so the encoders here have none and the heads frozen statistics; shuffle-BN, whose groups are those of the
processes, has batch norm. The encoders are two convolutions: what is tested is what methods gather, and the rounding of
a deep network in fp32 is larger than the tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from openworld.runtime.distributed import mean_over_ranks, rank, world_size
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.method import Batch, Method
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES
from tests.two_processes import TwoProcesses

IMAGES = 8
SHUFFLED = "moco_v2, shuffled"
CASES = [
    *["simclr", "sup_con", "moco_v1", "moco_v2", SHUFFLED, "moco_v3", "byol", "simsiam", "barlow_twins", "nnclr"],
    *["pcl_v2", "swav", "deepcluster_v2", "sela_v2", "dino", "instdisc", "pirl", "clip", "curl", "distillation"],
]
DOUBLE = "barlow_twins"
"""In float64: its standardisation divides by what little eight images differ, and the rounding grows by as much."""
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
SIDES = {"image": (3, 16), "frames": (9, 16), "patches": (3, 36)}


class Encoder(Backbone):
    """Stands for a backbone: two convolutions."""

    def __init__(self, arch: EncoderOptions) -> None:
        super().__init__(arch, {"c2": 6, "c3": 6, "c4": 6, "c5": 8})
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, stride=2), nn.Conv2d(6, self.dim, 3, stride=2)
        self.norm = nn.BatchNorm2d(6) if arch.norm == "batch" else nn.Identity()

    def stem(self, images: Tensor) -> Tensor:
        return self.norm(self.conv1(images)).relu()

    def stages(self) -> list[nn.Module]:
        return [nn.Identity(), nn.Identity(), nn.Identity(), self.conv2]


@dataclass(kw_only=True)
class EncoderOptions(ResNetOptions):
    """Of the network above."""

    def build(self) -> Encoder:  # type: ignore[override]
        return Encoder(self)


def own_options(name: str, folder: Path, shuffle_groups: int) -> MethodOptions:
    """Small ones."""
    clusterings = {"clusters": [2, 3], "warmup_epochs": 0, "candidates": "paper", "iterations": 3, "restarts": 1}
    shared: dict[str, Any] = {
        "projection_dim": 8,
        "queue_size": 11,
        "temperature": 0.5,
        "shuffle_groups": shuffle_groups,
        "hidden_dim": 16,
        "negatives": 5,
    }
    own: dict[str, dict[str, Any]] = {
        "pcl_v1": {**clusterings, "negatives": 16384},
        "pcl_v2": {**clusterings, "negatives": 16384},
        "swav": {"prototypes": 5, "frozen_steps": 0, "queue_length": IMAGES},
        "deepcluster_v2": {"clusters": [2, 3, 4], "iterations": 3},
        "sela_v2": {"clusters": [2, 3, 4]},
        "dino": {"outputs": 12, "frozen_steps": 0, "clip_gradient": 0.0},
        "clip": {"text_width": 16, "text_layers": 1, "pooling": "average"},
        "distillation": {"teacher": str(folder / "teacher.safetensors"), "teacher_temperature": 0.5},
    }
    kind = MethodOptions.named(name)
    names = {field.name for field in fields(kind)}
    return kind(**{key: value for key, value in shared.items() if key in names} | own.get(name, {}))


def build(case: str, folder: Path) -> Method:
    """The method, alike in all processes."""
    name = case.split(",")[0]
    views = {"sela_v2": "deepcluster_v2"}.get(name, name if name in RECIPES else "moco_v2")
    options = PretrainOptions(
        method=own_options(name, folder, 2 if case == SHUFFLED else 1),
        views=views,  # type: ignore[arg-type]
        arch=EncoderOptions(norm="batch" if case == SHUFFLED else "frozen"),
        view_size=32,
    )
    torch.manual_seed(3)
    method = options.method.implementation()(options)
    method.allocate(IMAGES)
    method.train()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    return method.double() if case == DOUBLE else method


def batch(method: Method, step: int) -> Batch:
    """This process's share of the images, and all of them in one process."""
    source = torch.Generator().manual_seed(step)
    kinds = [*method.view_kinds, *["image"] * method.takes_small_views]
    views = []
    for kind in kinds:
        channels, side = SIDES[kind]
        colours = torch.randn(IMAGES, channels, 1, 1, generator=source)
        views.append(colours + torch.randn(IMAGES, channels, side, side, generator=source))
    text = torch.randint(1, 256, (IMAGES, 9), generator=source)
    text[:, 8] = 257
    share = slice(rank() * IMAGES // world_size(), (rank() + 1) * IMAGES // world_size())
    index = torch.randperm(IMAGES, generator=source)
    return Batch([view[share] for view in views], index[share], (index % 3)[share], text[share])


def whole_set() -> list[Batch]:
    """What a clustering looks at, in each process."""
    images = torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    return [Batch([images[part]], part) for part in torch.arange(IMAGES).split(3)]


def steps(case: str, folder: Path) -> dict[str, Any]:
    """Losses, gradients and state of three steps."""
    method = build(case, folder)
    weights = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.01)
    losses, gradients = [], []
    method.before_epoch(0, whole_set)
    for step in range(3):
        method.before_step(step, 10)
        shared = batch(method, step)
        dtype = next(method.parameters()).dtype
        loss, _ = method.loss(replace(shared, views=[view.to(dtype) for view in shared.views]))
        optimizer.zero_grad()
        loss.backward()
        for weight in weights:
            weight.grad = None if weight.grad is None else mean_over_ranks(weight.grad)
        method.after_backward(step, 10)
        losses.append(loss.detach())
        gradients.append(torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in weights]))
        optimizer.step()
        method.after_step(step, 10)
    state = {key: value for key, value in method.state_dict().items() if not key.endswith(STATISTICS)}
    return {"losses": torch.stack(losses), "gradients": gradients, "state": state}


def every_case(_: int, folder: Path) -> dict[str, Any]:
    return {case: steps(case, folder) for case in CASES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the teacher of distillation."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ranks")
    safetensors.torch.save_file(ResNet(ResNetOptions(width=1 / 32)).state_dict(), folder / "teacher.safetensors")
    return folder


@pytest.fixture(scope="module")
def shared(folder: Path, two_processes: TwoProcesses) -> list[dict[str, Any]]:
    """Of each process the steps of every case."""
    return two_processes.run(every_case, folder, seconds=170)


def close(found: Tensor, expected: Tensor) -> bool:
    """To 1e-6 of the largest value."""
    found, expected = found.double(), expected.double()
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return torch.allclose(found, expected, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case: str, shared: list[dict[str, Any]], folder: Path) -> None:
    first, second = (found[case] for found in shared)
    alone = steps(case, folder)
    assert close((first["losses"] + second["losses"]) / 2, alone["losses"])
    for here, there, expected in zip(first["gradients"], second["gradients"], alone["gradients"], strict=True):
        assert torch.equal(here, there)
        assert close(here, expected), (here - expected).abs().max()
    assert first["state"].keys() == alone["state"].keys()
    for key, expected in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        assert close(first["state"][key], expected), key
