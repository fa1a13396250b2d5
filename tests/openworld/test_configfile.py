"""Configuration files: round trip, unknown keys, defaults that stay when one leaf changes."""

from dataclasses import replace
from pathlib import Path

import pytest

from openworld.config import RunConfig
from openworld.configfile import CONFIGS, dump_config, read_config, read_config_of_run
from openworld.data.options import DataOptions
from openworld.errors import ConfigError
from openworld.run.folder import config_difference


def test_round_trip(tmp_path: Path) -> None:
    config = replace(RunConfig(), seed=7, pretrain=None)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", ["0E0", "1e-3", "no", "7", "2024-01-01", "~", "cat"])
def test_class_names_that_look_like_something_else_stay_texts(tmp_path: Path, name: str) -> None:
    config = RunConfig(data=DataOptions(tasks=[[name]]), pretrain=None)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "config.yaml").data.tasks == [[name]]


def test_one_leaf_changes_and_its_neighbours_keep_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {lr: 5e-4}\nmethod:\n  clustering: {margin: 3.0}\n")
    config, default = read_config(tmp_path / "config.yaml"), RunConfig()
    assert config_difference(default, config) == [
        f"method.clustering.margin: {default.method.clustering.margin} → 3.0",
        f"train.lr: {default.train.lr} → 0.0005",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {stepz: 3}", "stepz"),
        ("trian: {steps: 3}", "trian"),
        ("train: {steps: many}", "steps"),
        ("seed: [1", "config.yaml"),
        ("model: {weights: a.safetensors}", "pretrain is on"),
        ("tasks: 9", "the schedule has 3"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "config.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        read_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "path", [*sorted((CONFIGS / "owod").glob("*.yaml")), CONFIGS / "demo.yaml"], ids=lambda p: p.stem
)
def test_shipped_configurations_are_valid(path: Path) -> None:
    read_config(path)


def test_the_demo_file_is_the_default() -> None:
    assert config_difference(RunConfig(), read_config(CONFIGS / "demo.yaml")) == []


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run") as caught:
        read_config_of_run(tmp_path)
    assert str(tmp_path) in str(caught.value) and "--output" in str(caught.value)
