"""Open annotated sets: those of a run, from the synthetic world or from files, and those to score or to audit."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openworld.config import RunConfig
from openworld.configfile import read_config
from openworld.data.benchmarks.reader import read_test, read_training, read_validation
from openworld.data.formats.coco import coco_category_names
from openworld.data.formats.read import read_dataset
from openworld.data.identity import identity_of
from openworld.data.loader import load_record
from openworld.data.options import DataOptions, Orientation, SourceOptions, SyntheticOptions
from openworld.data.orientation import warn_of_orientation
from openworld.data.schedules import Schedule, read_schedule
from openworld.data.splits import check_schedule, hold_out
from openworld.data.synthetic import make_world, pretrain_folder, world_sources
from openworld.data.transforms import as_float, resize
from openworld.errors import ConfigError, DataError
from openworld.records import Dataset, check_files, renamed
from openworld.run.same_data import difference_in_test_set
from openworld.runtime import distributed
from openworld.runtime.image_depth import warn_of_depth
from openworld.runtime.images import find_images
from ssl_backbones.options import PretrainOptions

logger = logging.getLogger("openworld.run")

PROBE_CROPS = 600
"""Most object crops that the kNN probe of a backbone looks at."""


@dataclass(frozen=True)
class Sources:
    """The three annotated sets of a run, and where images for pretraining lie."""

    train: Dataset
    held_out: Dataset
    test: Dataset
    pretraining_folder: Path | None

    def summary(self) -> dict[str, Any]:
        """Counts, repairs and identity of each set, for data.json."""
        sets = {"train": self.train, "held_out": self.held_out, "test": self.test}
        return {name: {**dataset.as_json(), **identity_of(dataset)} for name, dataset in sets.items()}

    def pretraining_images(self, options: PretrainOptions) -> list[Path]:
        """Images without labels: the folder that the options name, or else the world's, or else the training images."""
        if options.images is not None:
            return find_images(Path(options.images))
        if self.pretraining_folder is not None:
            return find_images(self.pretraining_folder)
        return [Path(str(path)) for path in self.train.paths]

    def labelled_crops(self, side_px: int) -> tuple[list[Tensor], list[int]]:
        """Objects cut out of the test images, with the position of their category: what the kNN probe votes on.

        Returns:
            crops, each (3, side_px, side_px) uint8, and their categories. At most :data:`PROBE_CROPS`, spread evenly.
        """
        every = max(1, math.ceil(self.test.num_annotations / PROBE_CROPS))
        chosen = np.zeros(self.test.num_annotations, dtype=np.bool_)
        chosen[::every] = True
        crops, categories = [], []
        for record in self.test.select(np.arange(len(self.test)), chosen):
            if len(record):
                image = load_record(record)
                crops += [_crop(image, box, side_px) for box in record.boxes.tolist()]
                categories += record.categories.tolist()
        return crops, categories


def _crop(image: Tensor, box: list[float], side_px: int) -> Tensor:
    """The square around a box, a tenth larger, cut at the image's border and resized."""
    height, width = image.shape[-2:]
    center_x, center_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = 0.55 * max(box[2] - box[0], box[3] - box[1])
    left, right = max(0, int(center_x - half)), min(width, int(center_x + half) + 1)
    top, bottom = max(0, int(center_y - half)), min(height, int(center_y + half) + 1)
    crop = resize(as_float(image[:, top:bottom, left:right]), (side_px, side_px))
    return (crop * 255).round().clamp(0, 255).to(torch.uint8)


def open_sources(config: RunConfig, folder: Path) -> Sources:
    """Read and check all annotations of a run; the synthetic world is written into its folder first.

    Raises:
        DataError: files that are missing or cannot be used, a class of the schedule that no file has.
    """
    options, pretraining = config.data, None
    if options.synthetic is not None:
        world = folder / "world"
        drawn = drawn_world(options.synthetic, pretrains=config.pretrain is not None)
        make_world(world, drawn)
        train, val, test = world_sources(world)
        options = DataOptions(tasks=options.tasks, synthetic=None, train=train, val=val, test=test)
        pretraining = pretrain_folder(world, drawn)
    if options.benchmark is not None:
        return _open_benchmark(options, config.last_task)
    sets = {
        role: check_files(dataset, getattr(options, role).annotations)
        for role, dataset in _annotated_sets(options).items()
    }
    check_schedule(options.tasks, sets["train"], sets["test"])
    _warn_of_pictures(sets)
    if "val" not in sets:
        sets["train"], sets["val"] = hold_out(sets["train"], options.held_out_fraction)
    return Sources(sets["train"], sets["val"], sets["test"], pretraining)


def drawn_world(world: SyntheticOptions, *, pretrains: bool) -> SyntheticOptions:
    """Return the synthetic world that is drawn: without images for pretraining, if nothing is pretrained."""
    return world if pretrains else replace(world, pretrain_images=0)


def _warn_of_pictures(sets: Mapping[str, Dataset]) -> None:
    """Log what samples of the images leave in doubt: their orientation, their brightness."""
    if distributed.is_first():
        for name, dataset in sets.items():
            warn_of_orientation(dataset, name)
            warn_of_depth([Path(str(path)) for path in dataset.paths], dataset.white_level, name)


def _annotated_sets(options: DataOptions) -> dict[str, Dataset]:
    """The sets that have annotations, by role, with the class names of the schedule."""
    sources = {"train": options.train, "val": options.val, "test": options.test}
    return {
        role: _named(read_dataset(source, role), options)
        for role, source in sources.items()
        if source.annotations is not None
    }


def _named(dataset: Dataset, options: DataOptions) -> Dataset:
    """A data set as read, with the class names of the schedule, to be decoded as the options say."""
    return renamed(replace(dataset, white_level=options.loader.white_level), options.rename)


def open_test(config: RunConfig, folder: Path) -> Dataset:
    """Open the test set of a run alone; a synthetic world is drawn again if it is not in the folder.

    Other image files need not exist, see :func:`openworld.records.check_files`.

    Args:
        config: of the run.
        folder: of the run.

    Raises:
        DataError: files that are missing or cannot be used.
    """
    options = config.data
    if options.benchmark is not None:
        return _named(read_test(options.benchmark), options)
    if options.synthetic is not None:
        return open_sources(config, folder).test
    return _named(read_dataset(options.test, "test"), options)


def _open_benchmark(options: DataOptions, last_task: int) -> Sources:
    """The sets of a published benchmark; only the lists of tasks that are run are read."""
    sets = _benchmark_sets(options, last_task)
    for dataset in sets.values():
        check_files(dataset, options.benchmark.root if options.benchmark is not None else "")
    check_schedule(options.tasks[:last_task], sets["train"], sets["test"])
    _warn_of_pictures(sets)
    if "val" not in sets:
        sets["train"], sets["val"] = hold_out(sets["train"], options.held_out_fraction)
    return Sources(sets["train"], sets["val"], sets["test"], None)


def _benchmark_sets(options: DataOptions, last_task: int) -> dict[str, Dataset]:
    """The sets of a published benchmark by role, with the class names of the schedule."""
    benchmark = options.benchmark
    assert benchmark is not None
    sets = {"train": read_training(benchmark, last_task), "test": read_test(benchmark)}
    if benchmark.val_list == "published":
        sets["val"] = read_validation(benchmark)
    return {role: _named(dataset, options) for role, dataset in sets.items()}


def pretraining_world(folder: Path, options: PretrainOptions) -> tuple[list[Path], tuple[list[Tensor], list[int]]]:
    """The synthetic world as a set of images without labels, and crops of its test objects for the kNN probe."""
    sources = open_sources(RunConfig(pretrain=options), folder)
    return sources.pretraining_images(options), sources.labelled_crops(options.view_size)


def open_ground_truth(
    predictions: Sequence[Path],
    annotations: str | None,
    *,
    image_set: str | None = None,
    orientation: Orientation = "auto",
    schedule: str | None = None,
) -> tuple[Dataset, Schedule | None, dict[int, str] | None]:
    """The annotations that predictions are scored on; image files are not needed (a synthetic world is drawn again).

    Args:
        predictions: where the predictions lie. The first run's folder among them gives what is not named otherwise.
        annotations: as ``data.test.annotations``; None takes the test set of the run.
        image_set: as ``data.test.image_set``.
        orientation: as ``data.test.orientation``.
        schedule: see :func:`openworld.data.schedules.read_schedule`; None takes the run's.

    Returns:
        the data set; the schedule, if there is one; and for a COCO file the names of its category ids.

    Raises:
        ConfigError: no annotations and no run that has them; a schedule that is not one.
        DataError: files that are missing or cannot be used.
    """
    run = next((path for path in predictions if (path / "config.yaml").is_file()), None)
    found = read_schedule(schedule) if schedule is not None else read_schedule(run) if run is not None else None
    if annotations is None:
        if run is None:
            if (absent := next((path for path in predictions if not path.exists()), None)) is not None:
                raise DataError("no such file or folder", where=str(absent), remedy="check the path of the predictions")
            raise ConfigError(
                "nothing to score against",
                remedy="name the annotations with --ground-truth, or give the folder of a run, which has its own",
            )
        try:
            test = open_test(read_config(run / "config.yaml"), run)
        except DataError as error:
            raise DataError(
                f"the annotations of the run's test set cannot be opened ({error.problem}: {error.where})",
                where=str(run),
                remedy="bring the data back to where the run had them, or name their annotations with --ground-truth",
            ) from error
        if difference := difference_in_test_set(run, test):
            logger.warning("%s: %s; its predictions are scored on the set of now", run, difference)
        return test, found, None
    rename = {} if found is None else found.rename
    source = SourceOptions(annotations=annotations, image_set=image_set, orientation=orientation)
    dataset = renamed(read_dataset(source, "test"), rename)
    if found is not None:
        check_schedule(found.tasks, dataset)
    if Path(annotations).suffix.lower() != ".json":
        return dataset, found, None
    names = coco_category_names(Path(annotations))
    return dataset, found, {number: rename.get(name, name) for number, name in names.items()}


def open_split(
    named: Mapping[str, SourceOptions],
    *,
    schedule: str | None,
    config: str | None,
    complete: bool = True,
) -> tuple[dict[str, Dataset], tuple[tuple[str, ...], ...]]:
    """The sets of a split and its schedule, for an audit or a check; image files are not needed.

    Args:
        named: ``train``, ``val`` and ``test``, or some of them; those without annotations are left out.
        schedule: see :func:`openworld.data.schedules.read_schedule`.
        config: a run's configuration, whose ``data`` says all of it instead.
        complete: False, any set will do, and without a schedule there are no tasks.

    Raises:
        ConfigError: no set at all, or no test set or no schedule where they are needed; a configuration beside sets or
            a schedule.
        DataError: files that are missing or cannot be used.
    """
    given = {name: source for name, source in named.items() if source.annotations is not None}
    if config is not None:
        if given or schedule is not None or any(source.orientation != "auto" for source in named.values()):
            raise ConfigError(
                "a configuration and single sets, a schedule or an orientation are given",
                remedy="give either --config or the others",
            )
        options = read_config(Path(config)).data
        if options.synthetic is not None:
            raise ConfigError(
                "the data are the synthetic world",
                where=config,
                remedy="give a configuration with data.train and data.test",
            )
        if options.benchmark is not None:
            sets = _benchmark_sets(options, len(options.tasks))
        else:
            sets = _annotated_sets(options)
        return sets, tuple(tuple(names) for names in options.tasks)
    if complete and ("test" not in given or schedule is None):
        raise ConfigError(
            "the test set and a schedule are needed",
            remedy="name them with --test and --schedule, or give a run's configuration with --config",
        )
    if not given:
        raise ConfigError(
            "no annotations are given",
            remedy="name them with --train, --val and --test, or give a run's configuration with --config",
        )
    found = None if schedule is None else read_schedule(schedule)
    sets = {role: read_dataset(source, role) for role, source in given.items()}
    if found is None:
        return sets, ()
    return {role: renamed(dataset, found.rename) for role, dataset in sets.items()}, found.tasks
