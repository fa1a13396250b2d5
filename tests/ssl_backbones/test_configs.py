"""The shipped recipes: what each file says is known, builds, and has the values of its paper."""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from openworld.errors import CheckpointError, ConfigError
from openworld.runtime.files import read_yaml
from openworld.runtime.option_trees import Given, construct
from ssl_backbones.options import PretrainOptions

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Any:
    """A recipe, by the name of its file. Keys that are not options are refused."""
    path = FOLDER / f"{name}.yaml"
    return construct(PretrainOptions, [Given(read_yaml(path, remedy="correct it"), str(path))])


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_file(name: str) -> None:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    found = dataclasses.asdict(read(name))
    assert name.startswith(content["method"]["name"])
    for section in ("method", "arch"):
        for key, value in content.pop(section).items():
            assert found[section][key] == value, key
    for key, value in content.items():
        assert found[key] == value, key


@pytest.mark.parametrize("name", NAMES)
def test_builds(name: str) -> None:
    """At full size, without memory for the tensors; what needs files of the user says so."""
    recipe: PretrainOptions = read(name)
    if name == "clip":
        recipe.method = dataclasses.replace(recipe.method, vocabulary=None)  # type: ignore[call-arg]
    with torch.device("meta"):
        if name == "distillation":
            with pytest.raises(CheckpointError, match=r"teacher\.pth"):
                recipe.method.implementation()(recipe)
            return
        method = recipe.method.implementation()(recipe)
    assert sum(p.numel() for p in method.encoder.parameters()) > (10e6 if recipe.arch.width == 1 else 2e6)


def test_a_misspelt_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"method\.queue_sise is not an option"):
        construct(PretrainOptions, [Given({"method": {"name": "moco_v2", "queue_sise": 1}}, None)])
    with pytest.raises(ConfigError, match=r"method\.clusters is not an option"):  # of another method
        construct(PretrainOptions, [Given({"method": {"name": "moco_v2", "clusters": [2]}}, None)])


IMAGES = 1_281_167
"""Of ImageNet-1k."""


def epochs(count: int, batch: int) -> int:
    """Steps of whole batches."""
    return count * (IMAGES // batch)


BANK = {"method.temperature": 0.07, "method.projection_dim": 128, "method.bank_momentum": 0.5, "method.form": "nce"}
PCL = {
    "method.clusters": [25000, 50000, 100000],
    "method.negatives": 16384,
    "method.queue_size": 16384,
    "method.warmup_epochs": 20,
    "method.iterations": 20,
    "method.restarts": 5,
    "method.temperature": 0.2,
    "lr": 0.03,
    "steps": epochs(200, 256),
}
MULTI_CROP = {"weight_decay": 1e-6, "method.temperature": 0.1, "method.projection_dim": 128}
PAPERS: dict[str, dict[str, Any]] = {
    "simclr": {
        "batch_size": 4096,
        "lr": 0.3 * 4096 / 256,
        "steps": epochs(1000, 4096),
        "warmup": epochs(10, 4096),
        "method.temperature": 0.1,
    },
    "moco_v1": {
        "lr": 0.03,
        "lr_milestones": [epochs(120, 256), epochs(160, 256)],
        "method.temperature": 0.07,
        "method.queue_size": 65536,
    },
    "moco_v2": {
        "lr": 0.03,
        "lr_milestones": [],
        "steps": epochs(200, 256),
        "method.temperature": 0.2,
        "method.queue_size": 65536,
        "method.teacher_momentum": 0.999,
    },
    "moco_v3": {
        "batch_size": 4096,
        "lr": 0.3 * 4096 / 256,
        "steps": epochs(1000, 4096),
        "warmup": epochs(10, 4096),
        "method.temperature": 1.0,
        "method.teacher_momentum": 0.996,
        "method.hidden_dim": 4096,
        "arch.zero_init_residual": True,
    },
    "byol": {
        "batch_size": 4096,
        "lr": 0.2 * 4096 / 256,
        "steps": 1000 * IMAGES // 4096,
        "warmup": 10 * IMAGES // 4096,
        "method.teacher_momentum": 0.996,
        "method.projection_dim": 256,
        "method.hidden_dim": 4096,
        "arch.zero_init_residual": True,
    },
    "simsiam": {
        "batch_size": 512,
        "lr": 0.05 * 512 / 256,
        "steps": epochs(100, 512),
        "method.projection_dim": 2048,
        "method.predictor_dim": 512,
        "arch.zero_init_residual": True,
    },
    "barlow_twins": {
        "batch_size": 2048,
        "lr": 0.2 * 2048 / 256,
        "final_lr": 0.2 * 2048 / 256 / 1000,
        "warmup": epochs(10, 2048),
        "method.bias_lr_scale": 0.0048 / 0.2,
        "method.projection_dim": 8192,
        "method.hidden_dim": 8192,
        "arch.zero_init_residual": True,
    },
    "sup_con": {
        "lr": 0.5,
        "final_lr": 0.5 * 0.1**3,
        "steps": 1000 * (50_000 // 1024),  # CIFAR-10
        "method.temperature": 0.1,
        "arch.stem": "cifar3x3",
    },
    "pcl_v1": {**PCL, "lr_milestones": [epochs(120, 256), epochs(160, 256)]},
    "pcl_v2": {**PCL, "lr_milestones": []},
    "nnclr": {"batch_size": 4096, "lr": 0.3 * 4096 / 256, "method.queue_size": 98304, "method.temperature": 0.1},
    "swav": {
        **MULTI_CROP,
        "batch_size": 4096,
        "lr": 4.8,
        "final_lr": 0.0048,
        "steps": epochs(800, 4096),
        "method.prototypes": 3000,
    },
    "swav_small_batch": {
        **MULTI_CROP,
        "batch_size": 256,
        "lr": 0.6,
        "final_lr": 0.0006,
        "steps": epochs(200, 256),
        "method.queue_length": 3840,
        "method.queue_start": epochs(15, 256),
    },
    "deepcluster_v2": {
        **MULTI_CROP,
        "batch_size": 4096,
        "final_lr": 0.0048,
        "steps": epochs(400, 4096),
        "view_size": 160,
        "local_view_size": 96,
        "method.clusters": [3000, 3000, 3000],
    },
    "sela_v2": {
        **MULTI_CROP,
        "lr": 4.8,
        "steps": epochs(400, 4096),
        "method.clusters": [3000, 3000, 3000],
    },
    "dino": {
        "batch_size": 512,
        "lr": 0.03 * 512 / 256,
        "steps": epochs(100, 512),
        "method.outputs": 65536,
        "method.frozen_steps": epochs(1, 512),
        "method.teacher_momentum": 0.996,
    },
    "instdisc": {
        **BANK,
        "lr_milestones": [epochs(120, 256), epochs(160, 256)],
        "steps": epochs(200, 256),
        "weight_decay": 1e-4,
        "method.negatives": 4096,
    },
    "cmc": {
        **BANK,
        "lr_milestones": [epochs(120, 128), epochs(160, 128), epochs(200, 128)],
        "steps": epochs(240, 128),
        "weight_decay": 1e-4,
        "method.negatives": 16384,
    },
    "pirl": {
        **BANK,
        "batch_size": 1024,
        "lr": 0.03 * 1024 / 256,
        "final_lr": 1.2e-4,
        "steps": epochs(800, 1024),
        "weight_decay": 1e-4,
        "method.negatives": 32000,
    },
    "cpc": {
        "lr": 2e-4,
        "weight_decay": 0.0,
        "view_size": 256,
        "method.temperature": 1.0,
        "method.skipped_rows": 0,
        "method.predicted_rows": 5,
    },
    "cpc_v2": {
        "view_size": 260,
        "method.directions": 4,
        "method.projection_dim": 64,
        "method.temperature": 1 / 0.1,
        "method.skipped_rows": 2,
        "method.predicted_rows": 1,
        "arch.norm": "layer",
    },
    "clip": {
        "lr": 5e-4,
        "weight_decay": 0.2,
        "steps": 32 * (400_000_000 // 32768),
        "warmup": 2000,
        "method.projection_dim": 1024,
        "method.text_width": 512,
        "method.text_layers": 12,
        "method.text_heads": 8,
        "method.context_length": 77,
        "method.temperature": 0.07,
        "method.largest_scale": 100.0,
        "arch.stem": "clip",
    },
    "curl": {"lr": 1e-3, "method.projection_dim": 50, "method.teacher_momentum": 0.95, "method.frames": 3},
    "distillation": {
        "batch_size": 4096,
        "lr": 0.1 * 4096**0.5,
        "steps": epochs(400, 4096),
        "warmup": epochs(20, 4096),
        "method.temperature": 1.0,
        "method.targets": "classes",
    },
}
"""What the papers and the authors' code say, by hand; a mapping from a dotted key to its value for each recipe."""


def test_every_recipe_but_ours_is_a_papers() -> None:
    assert set(NAMES) == {*PAPERS, "simclr_cpu", "simsiam_cpu"}


@pytest.mark.parametrize("name", PAPERS)
def test_values_are_the_papers(name: str) -> None:
    recipe = read(name)
    for key, value in PAPERS[name].items():
        found = attrgetter(key)(recipe)
        assert found == (pytest.approx(value) if isinstance(value, float) else value), key


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"method": "vicreg"}, r"method\.name is 'vicreg'"),
        ({"method": {"name": "moco_v2", "teacher_momentum": 1.5}}, r"method\.teacher_momentum is 1\.5"),
        ({"method": {"temperature": 0.0}}, r"method\.temperature is 0\.0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"views": "blurred"}, "views is 'blurred'"),
    ],
)
def test_bad_values_are_named_with_their_key(content: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        construct(PretrainOptions, [Given(content, None)])
