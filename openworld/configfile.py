"""Configuration files: YAML to dataclasses and back, through jsonargparse (types, unknown keys, overrides)."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace

from openworld.config import RunConfig
from openworld.errors import ConfigError
from openworld.runtime.files import read_yaml

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent
CONFIGS = _PACKAGE / "_configs" if (_PACKAGE / "_configs").is_dir() else _PACKAGE.parent / "configs"
"""The configurations that the project ships: inside an installed wheel, or beside the package in a checkout."""


def find_config(name: str) -> Path:
    """A configuration file: the path as given, or below the project's configs/ folder.

    Raises:
        ConfigError: it is in neither place.
    """
    for candidate in (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    raise ConfigError(f"configuration file {name!r} does not exist", remedy="give a path to a .yaml file")


def dump_config(config: object) -> str:
    """A resolved configuration as YAML, every leaf written out."""
    return yaml.safe_dump(asdict(config), sort_keys=False)  # type: ignore[call-overload,no-any-return]


def make_parser(**settings: Any) -> ArgumentParser:
    """An argument parser that takes no abbreviations: a misspelt key is an error."""
    return ArgumentParser(allow_abbrev=False, **settings)


def build(owner: type[T], arguments: Namespace) -> T:
    """An options dataclass out of instantiated arguments, which may hold more than its fields."""
    return owner(**{field.name: arguments[field.name] for field in fields(owner)})  # type: ignore[arg-type]


def with_options(options: T, tree: Mapping[str, Any], prefix: str = "") -> T:
    """An options dataclass with the leaves of a tree in the place of its own.

    Args:
        options: stays as it is.
        tree: as :func:`read_options` gives it; what it does not name stays.
        prefix: of the keys, in errors.

    Raises:
        ConfigError: a key that it does not have; a value that it does not take.
    """
    names = {field.name for field in fields(options)}  # type: ignore[arg-type]
    changes = {}
    for name, value in tree.items():
        if name not in names:
            raise ConfigError(f"there is no option {prefix + name!r}", remedy="`openworld run --help` lists them")
        own = getattr(options, name)
        changes[name] = (
            with_options(own, value, f"{prefix}{name}.") if is_dataclass(own) and isinstance(value, Mapping) else value
        )
    return replace(options, **changes)  # type: ignore[type-var]


def read_config(path: Path) -> RunConfig:
    """A run's configuration from a YAML file alone.

    Raises:
        ConfigError: no such file, a key that does not exist, a value of another type, a file that is not YAML.
    """
    parser = make_parser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(RunConfig, None)
    try:
        return build(RunConfig, parser.instantiate(parser.parse_args(["--config", str(find_config(str(path)))])))
    except ArgumentError as error:
        raise ConfigError(
            str(error), where=str(path), remedy="correct the key or the value; `openworld run --help` lists them"
        ) from error


def read_options(path: Path) -> dict[str, Any]:
    """The tree of options in a YAML file, as it is written.

    Raises:
        ConfigError: the file is not YAML, or holds no mapping.
    """
    return read_yaml(path, remedy="write `name: value` lines, as in configs/ore/reference.yaml")
