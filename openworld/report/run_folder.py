"""The folder of a run, read once and leniently: a missing or unreadable file becomes a note, not an error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openworld.errors import DataError
from openworld.report.text import number
from openworld.runtime.files import read_yaml


@dataclass(frozen=True)
class TaskArtefacts:
    """Content of one ``taskN`` folder; a field is None if its file is missing or unreadable."""

    number: int
    metrics: dict[str, Any] | None
    calibration: dict[str, Any] | None
    exemplars: dict[str, Any] | None
    predictions: dict[str, Any] | None


@dataclass(frozen=True)
class RunArtefacts:
    """Content of the folder of a run, as far as the report shows it.

    Args:
        path: the folder.
        config: config.yaml, always there.
        environment, data, card: env.json, data.json and backbone/card.json, or None.
        profile: profile.json, which only a run with ``--profile`` has.
        log: lines of metrics.jsonl, [] without it.
        tasks: in rising order of their number.
        notes: one sentence for every artefact that is missing or cannot be read.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any] | None
    data: dict[str, Any] | None
    profile: dict[str, Any] | None
    card: dict[str, Any] | None
    log: list[dict[str, Any]]
    tasks: tuple[TaskArtefacts, ...]
    notes: tuple[str, ...]

    @property
    def method(self) -> str:
        """Name of the open-world method."""
        return str(mapping(self.config.get("method")).get("name", ""))

    @property
    def scored(self) -> list[tuple[int, dict[str, Any]]]:
        """Number and metrics of every task that has been evaluated, in rising order."""
        return [(task.number, task.metrics) for task in self.tasks if task.metrics is not None]

    @property
    def schedule(self) -> tuple[tuple[str, ...], ...]:
        """Class names that each task introduces: from predictions.json, or else from the classes in the metrics."""
        for task in reversed(self.tasks):
            listed = (task.predictions or {}).get("tasks")
            if isinstance(listed, list) and all(isinstance(names, list) for names in listed):
                return tuple(tuple(str(name) for name in names) for names in listed)
        seen: set[str] = set()
        introduced: list[tuple[str, ...]] = []
        for task in self.tasks:
            names = [str(name) for name in mapping(mapping(task.metrics).get("classes")) if str(name) not in seen]
            while len(introduced) < task.number - 1:
                introduced.append(())
            introduced.append(tuple(names))
            seen.update(names)
        return tuple(introduced)

    def known(self, task: int) -> tuple[str, ...]:
        """Classes known at a task, counted from 1."""
        return tuple(name for names in self.schedule[:task] for name in names)


def read_run(path: Path) -> RunArtefacts:
    """Read the folder of a run.

    Raises:
        DataError: the folder does not exist.
        ConfigError: config.yaml is missing or is not a YAML mapping.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(
            "there is no such folder", where=str(path), remedy="pass the folder that a run wrote (--output)"
        )
    config = read_yaml(path / "config.yaml", remedy="every run writes config.yaml into its folder; pass that folder")
    notes: list[str] = []

    def read(name: str, what: str) -> dict[str, Any] | None:
        return read_json(path / name, name, what, notes)

    environment = read("env.json", "the environment of the run is not known")
    data = read("data.json", "what was repaired in the data is not known")
    profile = None
    if (path / "profile.json").exists():
        profile = read("profile.json", "the time per part of a step is not shown")
    card = read("backbone/card.json", "no backbone was pretrained in this run, or its card is gone")
    log = read_log(path / "metrics.jsonl", notes)
    numbers = sorted(
        int(match[1])
        for child in path.iterdir()
        if child.is_dir() and (match := re.fullmatch(r"task(\d+)", child.name)) is not None
    )
    if not numbers:
        notes.append("There is no task folder: the detector was not trained in this run, or not yet.")
    tasks = tuple(
        TaskArtefacts(
            number,
            metrics=read(f"task{number}/metrics.json", "its numbers are not shown"),
            calibration=read(f"task{number}/calibration.json", "how known and unknown were told apart is not shown"),
            exemplars=read(f"task{number}/exemplars.json", "the images kept for replay are not known"),
            predictions=read(f"task{number}/predictions.json", "its detections are not shown"),
        )
        for number in numbers
    )
    return RunArtefacts(path, config, environment, data, profile, card, log, tasks, tuple(notes))


def mapping(value: Any) -> dict[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    """Return the value if it is a list, else an empty one."""
    return list(value) if isinstance(value, list | tuple) else []


def class_ap(metrics: Mapping[str, Any], name: str) -> float | None:
    """Return the AP@50 of the class ``name`` in the content of a metrics.json."""
    return number(mapping(mapping(metrics.get("classes")).get(name)).get("ap50"))


def flatten(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested mappings as (dotted key, value), in order; lists stay whole."""
    if isinstance(tree, Mapping) and tree:
        return [
            leaf for key, value in tree.items() for leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, tree)] if prefix else []


def read_json(path: Path, name: str, what: str, notes: list[str]) -> dict[str, Any] | None:
    """Read the object in a JSON file; if that fails, return None and add a note that names the file and ``what``."""
    return _noted(path, name, what, notes, lambda text: _as_mapping(json.loads(text)))


def _as_mapping(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, not an object")
    return content


def read_log(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl; if it is missing, return none and note it."""

    def parse(text: str) -> dict[str, Any]:
        entries = []
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # half a line, of a killed process
            if isinstance(entry, dict):
                entries.append(entry)
        return {"entries": entries}

    found = _noted(path, "metrics.jsonl", "losses and times are not shown", notes, parse)
    return list(found["entries"]) if found else []


def _noted(
    path: Path, name: str, what: str, notes: list[str], parse: Callable[[str], dict[str, Any]]
) -> dict[str, Any] | None:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{name} is missing: {what}.")
    except (OSError, ValueError) as error:
        notes.append(f"{name} cannot be read ({error}): {what}.")
    return None
