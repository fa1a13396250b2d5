"""Configuration files: YAML to dataclasses and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml

from openworld.config import RunConfig
from openworld.errors import ConfigError
from openworld.runtime.files import read_yaml
from openworld.runtime.option_trees import Given, construct, expanded

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "_configs" if (_PACKAGE / "_configs").is_dir() else _PACKAGE.parent / "configs"
"""Folder of the shipped configurations: inside an installed wheel, or beside the package in a checkout."""
_REMEDY = "write `name: value` lines, as in configs/ore/reference.yaml"


def find_config(name: str) -> Path:
    """Find a configuration file: at the path as given, or below the project's configs/ folder.

    Raises:
        ConfigError: the file is in neither place.
    """
    path = Path(expanded(name))
    for candidate in (path, CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        inside = path / "config.yaml"
        remedy = f"give {inside}" if inside.is_file() else "give a path to a .yaml file"
        raise ConfigError(f"configuration file {name!r} is a folder", remedy=remedy)
    shipped = [file.relative_to(CONFIGS).with_suffix("").as_posix() for file in CONFIGS.rglob("*.yaml")]
    close = get_close_matches(str(Path(name).with_suffix("")).removeprefix("configs/"), shipped, n=1)
    hint = f"; did you mean {close[0]}.yaml?" if close else ""
    raise ConfigError(f"configuration file {name!r} does not exist", remedy=f"give a path to a .yaml file{hint}")


def read_options(path: Path) -> dict[str, Any]:
    """Read the tree of options in a YAML file, without the defaults.

    Raises:
        ConfigError: the file is not YAML, or does not hold a mapping.
    """
    return read_yaml(path, remedy=_REMEDY)


def read_config(*paths: Path) -> RunConfig:
    """Read the configuration of a run from YAML files; later files override earlier ones.

    Raises:
        ConfigError: a file does not exist or is not YAML, a key does not exist, or a value has another type.
    """
    return construct(RunConfig, layers_of(paths))


def read_config_of_run(folder: Path) -> RunConfig:
    """Read the configuration in the folder of a run.

    Raises:
        ConfigError: the folder does not hold a run, or its configuration cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        remedy = "give the folder that `openworld run --output` wrote; its config.yaml is there"
        raise ConfigError("is not the folder of a run", where=str(folder), remedy=remedy)
    return read_config(folder / "config.yaml")


def layers_of(paths: Sequence[Path | str]) -> list[Given]:
    """Read the trees of YAML files, for :func:`openworld.runtime.option_trees.construct`.

    Raises:
        ConfigError: a file does not exist or is not YAML.
    """
    files = [find_config(str(path)) for path in paths]
    return [Given(read_yaml(file, remedy=_REMEDY, as_written=True), str(file)) for file in files]


def dump_config(config: object) -> str:
    """Return a resolved configuration as YAML, every leaf written out."""
    return yaml.safe_dump(asdict(config), sort_keys=False)  # type: ignore[call-overload,no-any-return]
