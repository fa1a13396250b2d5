"""Schedules in detectron2's catalogs: one data set per task and stage.

- ``NAME_t1_train``, ``NAME_t2_train``, …: training images with the classes of their task alone.
- ``NAME_t2_replay``, …: the exemplars with all known classes.
- ``NAME_t1_held_out``, …: the images that the method is calibrated on.
- ``NAME_t1_test``, …: every object; those of classes that are not known are *unknown*.

Only :mod:`openworld.data.splits` decides which annotations a task may see. A ``category_id`` is a head row of
:class:`openworld.labels.LabelSpace`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from openworld.config import RunConfig
from openworld.configfile import read_config
from openworld.data.benchmarks import BENCHMARKS, read_list
from openworld.data.options import BenchmarkOptions, DataOptions
from openworld.data.orientation import as_upright
from openworld.data.splits import View, held_out_view, replay_view, test_view, training_view
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.records import Dataset
from openworld.run.replay import chosen_exemplars, listed_exemplars, replayed_images
from openworld.run.sources import Sources, open_sources

Kind = Literal["train", "replay", "held_out", "test"]
KINDS: tuple[Kind, ...] = ("train", "replay", "held_out", "test")


@dataclass(frozen=True)
class Registered:
    """The data set behind a registered name."""

    labels: LabelSpace
    kind: Kind
    sources: Callable[[], Sources]

    @property
    def truth(self) -> Dataset:
        """The annotated test images, for scoring."""
        return self.sources().test


_REGISTERED: dict[str, Registered] = {}


def registered(name: str) -> Registered | None:
    """Return what is behind a name in ``DatasetCatalog``; None if :func:`register_schedule` did not register it."""
    return _REGISTERED.get(name)


def register_schedule(
    schedule: str,
    *,
    layout: Literal["growing", "fixed"] = "growing",
    root: str | Path | None = None,
    held_out_with_unknown: bool = False,
) -> list[str]:
    """Register all data sets of a schedule; they are read only when detectron2 asks for one of them.

    Registering again replaces the former entries, so that another ``layout`` may be chosen.

    Args:
        schedule: name of a published benchmark, such as ``m_owodb``; or the .yaml of a run, whose data are used. The
            names of the data sets begin with the benchmark's name or the file's stem.
        layout: of the rows; ``OPENWORLD.LAYOUT``.
        root: folder with VOCdevkit/ and coco/, or folder for a synthetic world; by default the environment variable
            ``DETECTRON2_DATASETS``, or ``datasets``.
        held_out_with_unknown: the held-out sets show labels of unknown objects, for a fit on annotated unknowns.

    Returns:
        the names.

    Raises:
        ConfigError: ``schedule`` is neither a benchmark nor a configuration file.
    """
    folder = Path(root if root is not None else os.environ.get("DETECTRON2_DATASETS", "datasets"))
    config = run_config(schedule, folder)
    names = []
    for task in range(1, len(config.schedule) + 1):
        labels = LabelSpace.of(config.schedule, task, layout)
        sources = cache(partial(_upright_sources, replace(config, tasks=task), folder / schedule_name(schedule)))
        for kind in KINDS:
            if kind == "replay" and task == 1:
                continue
            name = f"{schedule_name(schedule)}_t{task}_{kind}"
            if name in DatasetCatalog.list():
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
            _REGISTERED[name] = Registered(labels, kind, sources)
            DatasetCatalog.register(name, partial(_dicts, name, config, held_out_with_unknown))
            classes = [row for row in labels.row_names if row != "background"]
            MetadataCatalog.get(name).set(thing_classes=classes, evaluator_type="openworld", task=task)
            names.append(name)
    return names


def _upright_sources(config: RunConfig, folder: Path) -> Sources:
    """Open the sources of a run for detectron2, whose mapper applies the EXIF tag of every image."""
    found = open_sources(config, folder)
    train, held_out, test = (as_upright(dataset) for dataset in (found.train, found.held_out, found.test))
    return replace(found, train=train, held_out=held_out, test=test)


def schedule_name(schedule: str) -> str:
    """Return the prefix of the names of a schedule's data sets."""
    return schedule if schedule in BENCHMARKS else Path(schedule).stem


def run_config(schedule: str, root: Path) -> RunConfig:
    """Return the configuration that holds the data of a schedule."""
    if schedule in BENCHMARKS:
        benchmark = BenchmarkOptions(name=schedule, root=str(root))  # type: ignore[arg-type]
        if BENCHMARKS[schedule].validation is not None:
            benchmark.val_list = "published"
        return RunConfig(name=schedule, pretrain=None, data=DataOptions(benchmark=benchmark))
    if Path(schedule).suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(
            f"schedule {schedule!r} is neither a benchmark nor a .yaml file",
            remedy=f"name one of {', '.join(BENCHMARKS)}, or give the configuration of a run",
        )
    return read_config(Path(schedule))


def view_of(name: str, config: RunConfig, *, held_out_with_unknown: bool) -> View:
    """Return the images of a registered name with the annotations that may be seen."""
    entry = _REGISTERED[name]
    labels, sources = entry.labels, entry.sources()
    if entry.kind == "train":
        return training_view(sources.train, labels)
    if entry.kind == "held_out":
        return held_out_view(sources.held_out, labels, with_unknown=held_out_with_unknown)
    if entry.kind == "test":
        return test_view(sources.test, labels)
    return replay_view(sources.train, labels, replayed_ids(sources, labels, config))


def replayed_ids(sources: Sources, labels: LabelSpace, config: RunConfig) -> list[int | str]:
    """Return the images that a task replays: the benchmark's published list, or the choice of ``exemplars``.

    Raises:
        ConfigError: the strategy needs the trained detector of each task.
    """
    options, benchmark = config.exemplars, config.data.benchmark
    if benchmark is not None and (listed := BENCHMARKS[benchmark.name].replay[labels.task - 1]):
        return [name for name in dict.fromkeys(read_list(benchmark.name, listed)) if name in sources.train.position_of]
    if options.needs_detector:
        raise ConfigError(
            f"exemplars.strategy {options.strategy!r} needs the detector of each task",
            remedy="choose balanced, greedy or random, or `openworld run --engine detectron2`",
        )
    spaces = [labels.at(task) for task in range(1, labels.task + 1)]
    if options.list is not None:
        return replayed_images(
            [listed_exemplars(sources.train, sources.held_out, space, options.list) for space in spaces]
        )
    seed, loader = config.seed, config.data.loader
    return replayed_images(
        [chosen_exemplars(sources.train, space, options, seed, detector=None, loader=loader) for space in spaces]
    )


def _dicts(name: str, config: RunConfig, held_out_with_unknown: bool) -> list[dict[str, Any]]:
    """Return the data set in detectron2's form. Images that are listed several times appear once."""
    return [
        {
            "file_name": str(record.path),
            "image_id": record.image_id,
            "height": record.height,
            "width": record.width,
            "annotations": [
                {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": row, "iscrowd": int(ignored)}
                for box, row, ignored in zip(record.boxes.tolist(), labels.tolist(), record.crowd.tolist(), strict=True)
            ],
        }
        for record, labels in view_of(name, config, held_out_with_unknown=held_out_with_unknown)
    ]
