"""The folder of a run: its lock, its configuration, and the open run that its stages use.

config.yaml                 the configuration, every leaf written out, the architecture resolved
env.json, data.json         machine and versions; counts, repairs and identity of the data
metrics.jsonl               the log
backbone/                   the pretraining, if the run has one
task<n>/checkpoint/         see :mod:`openworld.run.checkpoints`
task<n>/exemplars.json, pseudo_labels.json (if it has any), calibration.json, predictions.json, metrics.json
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from openworld.config import RunConfig
from openworld.configfile import dump_config, read_config
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.run.checkpoints import checkpoints_of
from openworld.run.notices import say_absent_classes, say_repairs
from openworld.run.replay import check_lists, list_path
from openworld.run.same_data import LISTS, check_same_data, names_its_data
from openworld.run.sources import Sources, open_sources
from openworld.runtime import distributed
from openworld.runtime.dotted import leaves
from openworld.runtime.environment import describe
from openworld.runtime.files import sha256_of, write_atomic, write_json
from openworld.runtime.folders import is_hidden
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
    """Open the data of a claimed folder, say what is odd about them, and write env.json and data.json.

    Raises:
        DataError: data or lists of exemplars are missing or cannot be used, are not those that the run in the folder
            began with, or leave a task nothing to train on.
    """
    with distributed.first_goes_ahead():
        sources = open_sources(config, folder)
    run = Run(config, folder, sources, RunLog(folder / "metrics.jsonl"), profile_steps)
    data = distributed.on_first(lambda: described_data(run))
    if config.exemplars.list is not None:
        check_lists(sources.train, sources.held_out, run.space(1), config.exemplars.list, config.last_task)
    run.write_json("env.json", {**describe(), "processes": distributed.world_size()})
    run.write_json("data.json", data)
    return run


def described_data(run: Run) -> dict[str, Any]:
    """Return the content of data.json; say what was repaired and which classes nobody shows.

    Raises:
        DataError: the run in the folder began with other data; or a task has nothing to train on.
    """
    data = identified_data(run.config, run.sources)
    if has_begun(run.folder):
        check_data(run.config, run.folder, data)
    sources = run.sources
    say_repairs({"train": sources.train, "held_out": sources.held_out, "test": sources.test})
    say_absent_classes(sources, [run.space(task) for task in range(1, run.config.last_task + 1)])
    return data


def identified_data(config: RunConfig, sources: Sources) -> dict[str, Any]:
    """Return counts, repairs and identity of the data of a run, and the digests of its lists of exemplars."""
    data, pattern = sources.summary(), config.exemplars.list
    if pattern is not None:
        lists = {task: list_path(pattern, task) for task in range(1, config.last_task + 1)}
        data[LISTS] = {str(task): sha256_of(path) for task, path in lists.items() if path.is_file()}
    return data


def check_data(config: RunConfig, folder: Path, data: Mapping[str, Any]) -> None:
    """Check that data are those that the run in a folder began with.

    Args:
        config: of the run.
        folder: of the run, which has begun.
        data: see :func:`identified_data`.

    Raises:
        DataError: a set or a list of exemplars is another one.
    """
    options = config.data
    named = {role: getattr(options, role).annotations for role in ("train", "val", "test")}
    held_out = named.pop("val") or named["train"]
    places = {name: place or str(folder / "world") for name, place in {**named, "held_out": held_out}.items()}
    if options.benchmark is not None:
        places = dict.fromkeys(places, options.benchmark.root)
    check_same_data(folder, data, {**places, LISTS: str(config.exemplars.list)})


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
    """Check that every process gets the same number of images of each part of a batch.

    Raises:
        ConfigError: the number of processes, or of parts, or of both together does not divide a batch size.
    """
    processes = distributed.world_size()
    for name, options in (("train", config.train), ("increment", config.increment), ("replay", config.replay)):
        if options.batch_size % options.accumulate:
            raise ConfigError(
                f"{name}.accumulate is {options.accumulate}, which does not divide the batch of {options.batch_size}",
                remedy=f"give a divisor of {name}.batch_size, as batch_factor leaves it",
            )
        if options.batch_size // options.accumulate % processes:
            raise ConfigError(
                f"{name}.batch_size is {options.batch_size}, which {processes} processes cannot share equally"
                + (f" in {options.accumulate} parts" if options.accumulate > 1 else ""),
                remedy="it counts the images of all processes together: give a multiple of "
                f"{processes * options.accumulate}, or start another number of processes",
            )


# -- ownership of the folder ------------------------------------------------------------------------------------------

PLACES = (
    *(
        f"data.{role}.{key}"
        for role in ("train", "val", "test")
        for key in ("annotations", "images", "image_set", "cache")
    ),
    *(f"data.benchmark.{key}" for key in ("root", "voc2007", "voc2012", "coco", "cache")),
    "pretrain.images",
)
"""Options that say where data lie. They may differ when a run is resumed, since the data themselves are compared."""


def claim(config: RunConfig, folder: Path, *, resume: bool) -> RunConfig:
    """Write config.yaml into a folder, or check that it holds this run already.

    A folder in which no work has begun is free, even if a failed start left its config.yaml there.

    Returns:
        The configuration with ``model.arch`` resolved, as in config.yaml; where the data of a run have moved, with
        their new place, which :func:`note_places` writes there once they are known to be the same.

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
        return same_run(config, path)
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
    return any(path.name != "exemplars.json" and not is_hidden(path.name) for path in left)


def same_run(config: RunConfig, path: Path) -> RunConfig:
    """Return a configuration with what a run resolved; check that both are the same run.

    Args:
        config: the configuration.
        path: config.yaml of a run that has begun.

    Raises:
        ConfigError: they differ; the message names the keys.
        CheckpointError: ``model.arch`` is null, and the backbone file is damaged.
    """
    there = read_config(path)
    model = config.model
    if model.weights is not None and (model.arch is not None or not Path(model.weights).exists()):
        # the file says nothing new, and a finished task needs none
        network = there.model.weights_network if model.weights_network is None else model.weights_network
        config = replace(config, model=replace(model, arch=model.arch or there.model.arch, weights_network=network))
    elif model.arch is None:
        config = with_arch(config)
    may_differ = PLACES if names_its_data(path.parent) else ()
    difference = config_difference(there, config, may_differ)
    if difference:
        raise ConfigError(
            "the configuration differs from the one that the run began with: " + "; ".join(difference),
            where=str(path),
            remedy="resume with the same configuration, or start a new run in another folder",
        )
    return config


def note_places(config: RunConfig, folder: Path) -> None:
    """Write a claimed configuration to config.yaml if its data have moved since the run began."""
    path = folder / "config.yaml"
    if read_config(path) != config:
        write_atomic(path, dump_config(config))


def with_arch(config: RunConfig) -> RunConfig:
    """Resolve ``model.arch`` in a configuration, so that checkpoints can be read without the backbone file.

    The architecture is the given one, else that of the pretraining, else that of the weight file's card or tensors,
    else the demo's. If the weight file holds several networks, ``model.weights_network`` becomes the one that is taken.

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
    elif weights is not None and (given is None or Path(weights).exists()):  # a converted run needs no file
        backbone = load_backbone_file(Path(weights), arch=given, network=config.model.weights_network)
        taken = backbone.prefix if backbone.choice else config.model.weights_network
        return replace(config, model=replace(config.model, arch=backbone.arch, weights_network=taken))
    else:
        arch = given or ResNetOptions()
    return replace(config, model=replace(config.model, arch=arch))


def _network(arch: BackboneOptions) -> BackboneOptions:
    """Drop the options of initialisation and of the training of norms, which the detector sets itself."""
    return arch.without_initialisation().in_detector("batch")


def config_difference(old: RunConfig, new: RunConfig, may_differ: Collection[str] = ()) -> list[str]:
    """Return the leaves in which two configurations differ, as ``key: old → new``, but for some."""
    before, after = dict(leaves(asdict(old))), dict(leaves(asdict(new)))
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if key not in may_differ and before.get(key) != after.get(key)
    ]
