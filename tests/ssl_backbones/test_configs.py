"""The shipped recipes: readable, complete, and the papers'."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml

from openworld.errors import ConfigError
from ssl_backbones.options import ArchOptions, PretrainOptions

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"
NAMES = ("simclr", "moco_v2", "simclr_cpu")


def read(name: str) -> PretrainOptions:
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(PretrainOptions)
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return PretrainOptions(**{**parser.parse_object(content).as_dict(), "arch": ArchOptions(**content["arch"])})


@pytest.mark.parametrize("name", NAMES)
def test_holds_exactly_the_fields(name: str) -> None:
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert list(content) == [field.name for field in dataclasses.fields(PretrainOptions)]
    assert list(content["arch"]) == [field.name for field in dataclasses.fields(ArchOptions)]
    assert dataclasses.asdict(read(name)) == content


def test_papers_numbers() -> None:
    simclr, moco = read("simclr"), read("moco_v2")
    assert simclr.lr == pytest.approx(0.3 * simclr.batch_size / 256)
    assert simclr.steps == 1000 * (1_281_167 // 4096) and simclr.warmup == 10 * (1_281_167 // 4096)
    assert moco.steps == 200 * (1_281_167 // 256)
    assert (moco.lr, moco.temperature, moco.queue_size, moco.teacher_momentum) == (0.03, 0.2, 65536, 0.999)


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "byol"), ("batch_size", 1), ("temperature", 0.0), ("teacher_momentum", 1.5), ("lr", float("nan"))],
)
def test_bad_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        PretrainOptions(**{field: value})  # type: ignore[arg-type]
