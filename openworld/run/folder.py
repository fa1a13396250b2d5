"""The folder of a run: its lock, its configuration, and the open run that its stages use.

config.yaml                 the configuration, every leaf written out, the architecture resolved
env.json, data.json         machine and versions; counts and repairs of the data
metrics.jsonl               the log
backbone/                   the pretraining, if the run has one
task<n>/checkpoint/         see :mod:`openworld.run.checkpoints`
task<n>/exemplars.json, calibration.json, predictions.json, metrics.json
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from openworld.config import RunConfig
from openworld.configfile import dump_config, read_config
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.run.checkpoints import checkpoints_of
from openworld.run.replay import check_lists
from openworld.run.sources import Sources, open_sources
from openworld.runtime import distributed
from openworld.runtime.dotted import leaves
from openworld.runtime.environment import describe
from openworld.runtime.files import write_atomic, write_json
from openworld.runtime.lock import take_lock
from openworld.runtime.runlog import RunLog
from ssl_backbones.backbones import BackboneOptions, ResNetOptions
from ssl_backbones.handover import load_backbone_file


@dataclass(frozen=True)
class Run:
    """An open run: its configuration, folder, data and log."""

    config: RunConfig
    folder: Path
    sources: Sources
    log: RunLog
    profile_steps: int = 0
    """Number of steps of each optimisation phase to time for profile.json."""

    def task_folder(self, task: int) -> Path:
        return self.folder / f"task{task}"

    def checkpoints(self, task: int) -> Path:
        return checkpoints_of(self.folder, task)

    def space(self, task: int) -> LabelSpace:
        return LabelSpace.of(self.config.schedule, task, self.config.model.layout)

    @property
    def backbone(self) -> Path | None:
        """The weight file that task 1 starts from: of the run's pretraining, a given one, or None."""
        if self.config.pretrain is not None:
            return self.folder / "backbone" / "backbone.safetensors"
        return Path(self.config.model.weights) if self.config.model.weights else None

    def write_json(self, name: str, content: Any) -> None:
        """Write a file below the folder; only the first process writes, since all have the same content."""
        if distributed.is_first():
            write_json(self.folder / name, content)


def open_run(config: RunConfig, folder: Path, profile_steps: int = 0) -> Run:
    """Open the data of a claimed folder; write env.json and data.json.

    Raises:
        DataError: data or lists of exemplars are missing or cannot be used.
    """
    with distributed.first_goes_ahead():
        sources = open_sources(config, folder)
    run = Run(config, folder, sources, RunLog(folder / "metrics.jsonl"), profile_steps)
    run.write_json("env.json", {**describe(), "processes": distributed.world_size()})
    run.write_json("data.json", sources.summary())
    if config.exemplars.list is not None:
        check_lists(sources.train, sources.held_out, run.space(1), config.exemplars.list, config.last_task)
    return run


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder against other runs; the lock ends with the (first) process, however it ends.

    Raises:
        ConfigError: another process works in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not distributed.is_first():
        yield
        return
    with open(folder / ".lock", "a+") as stream:
        if not take_lock(stream):
            stream.seek(0)
            raise ConfigError(
                f"process {stream.read().strip() or '?'} works in this folder",
                where=str(folder),
                remedy="wait for it, or choose another --output",
            )
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def check_shares(config: RunConfig) -> None:
    """Check that every process gets the same number of images of a batch.

    Raises:
        ConfigError: the number of processes does not divide a batch size.
    """
    processes = distributed.world_size()
    for name, options in (("train", config.train), ("increment", config.increment), ("replay", config.replay)):
        if options.batch_size % processes:
            raise ConfigError(
                f"{name}.batch_size is {options.batch_size}, which {processes} processes cannot share equally",
                remedy=f"it counts the images of all processes together: give a multiple of {processes}, or start "
                "another number of processes",
            )


# -- ownership of the folder ------------------------------------------------------------------------------------------


def claim(config: RunConfig, folder: Path, *, resume: bool) -> RunConfig:
    """Write config.yaml into a folder, or check that it holds this run already.

    A folder in which no work has begun is free, even if a failed start left its config.yaml there.

    Returns:
        The configuration with ``model.arch`` resolved, as in config.yaml.

    Raises:
        ConfigError: a run has begun there, and ``resume`` is not set or the run has another configuration.
        CheckpointError: ``model.arch`` is null, and the backbone file is missing or damaged.
    """
    path = folder / "config.yaml"
    if path.exists() and has_begun(folder):
        if not resume:
            raise ConfigError(
                "holds a run already",
                where=str(folder),
                remedy="add --resume to go on with it, or choose another --output",
            )
        return _same_run(config, path)
    config = with_arch(config)
    if path.exists():
        for chosen in folder.glob("task*/exemplars.json"):  # with the options of the start that failed
            chosen.unlink()
    write_atomic(path, dump_config(config))
    return config


def has_begun(folder: Path) -> bool:
    """Return whether a run has left work in its folder: a line of its log, or a file of a stage.

    The choice of exemplars before the first training does not count, since it is quickly repeated.
    """
    log = folder / "metrics.jsonl"
    if log.exists() and log.stat().st_size > 0:
        return True
    left = (path for pattern in ("backbone/*", "task*/*") for path in folder.glob(pattern))
    return any(path.name != "exemplars.json" for path in left)


def _same_run(config: RunConfig, path: Path) -> RunConfig:
    """Return the configuration with the architecture of the run at ``path``; check that both are the same run."""
    there = read_config(path)
    weights = config.model.weights
    if config.model.arch is None and weights is not None and not Path(weights).exists():
        config = replace(config, model=replace(config.model, arch=there.model.arch))  # a finished task needs no file
    elif config.model.arch is None:
        config = with_arch(config)
    difference = config_difference(there, config)
    if difference:
        raise ConfigError(
            "the configuration differs from the one that the run began with: " + "; ".join(difference),
            where=str(path),
            remedy="resume with the same configuration, or start a new run in another folder",
        )
    return config


def with_arch(config: RunConfig) -> RunConfig:
    """Resolve ``model.arch`` in a configuration, so that checkpoints can be read without the backbone file.

    The architecture is the given one, else that of the pretraining, else that of the weight file's card or tensors,
    else the demo's.

    Raises:
        ConfigError: ``model.arch`` and ``pretrain.arch`` are different networks.
        CheckpointError: the weight file is needed, and is missing or damaged.
    """
    given, pretrain, weights = config.model.arch, config.pretrain, config.model.weights
    if pretrain is not None:
        arch = given or pretrain.arch
        if _network(arch) != _network(pretrain.arch):
            raise ConfigError(
                f"model.arch {arch} is not the network of pretrain.arch {pretrain.arch}",
                remedy="leave model.arch out (null), and the detector takes that of the pretraining",
            )
    elif given is None and weights is not None:
        arch = load_backbone_file(Path(weights)).arch
    else:
        arch = given or ResNetOptions()
    return replace(config, model=replace(config.model, arch=arch))


def _network(arch: BackboneOptions) -> BackboneOptions:
    """Drop the options of initialisation and of the training of norms, which the detector sets itself."""
    return arch.without_initialisation().in_detector("batch")


def config_difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Return the leaves in which two configurations differ, as ``key: old → new``."""
    before, after = dict(leaves(asdict(old))), dict(leaves(asdict(new)))
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
