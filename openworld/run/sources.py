"""Annotated sets, opened: a run's, from the synthetic world or a person's own files, and those to score or to audit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openworld.config import RunConfig
from openworld.configfile import read_config
from openworld.data.benchmarks.reader import read_test, read_training, read_validation
from openworld.data.formats.coco import coco_category_names
from openworld.data.formats.yolo import for_role
from openworld.data.loader import load_record
from openworld.data.options import DataOptions, SourceOptions
from openworld.data.records import Dataset, Record, read_dataset
from openworld.data.schedules import Schedule, read_schedule
from openworld.data.splits import check_schedule, hold_out
from openworld.data.synthetic import make_world, pretrain_folder, world_sources
from openworld.data.transforms import as_float, resize
from openworld.errors import ConfigError, DataError
from openworld.runtime.images import find_images
from ssl_backbones.options import PretrainOptions

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
        """Counts and repairs of each set, for data.json."""
        return {"train": self.train.as_json(), "held_out": self.held_out.as_json(), "test": self.test.as_json()}

    def pretraining_images(self, options: PretrainOptions) -> list[Path]:
        """Images without labels: the folder that the options name, or else the world's, or else the training images."""
        if options.images is not None:
            return find_images(Path(options.images))
        if self.pretraining_folder is not None:
            return find_images(self.pretraining_folder)
        return [record.path for record in self.train.records]

    def labelled_crops(self, side_px: int) -> tuple[list[Tensor], list[int]]:
        """Objects cut out of the test images, with the position of their category: what the kNN probe votes on.

        Returns:
            crops, each (3, side_px, side_px) uint8, and their categories. At most :data:`PROBE_CROPS`, spread evenly.
        """
        places = [(record, index) for record in self.test.records for index in range(len(record.boxes))]
        every = max(1, math.ceil(len(places) / PROBE_CROPS))
        crops, categories = [], []
        loaded: tuple[Record, Tensor] | None = None
        for record, index in places[::every]:
            if loaded is None or loaded[0] is not record:
                loaded = (record, load_record(record))
            crops.append(_crop(loaded[1], record.boxes[index].tolist(), side_px))
            categories.append(int(record.categories[index]))
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
        make_world(world, options.synthetic)
        train, val, test = world_sources(world)
        options = DataOptions(tasks=options.tasks, synthetic=None, train=train, val=val, test=test)
        pretraining = pretrain_folder(world, config.data.synthetic) if config.data.synthetic else None
    if options.benchmark is not None:
        return _open_benchmark(options, config.last_task)
    train_set = read_dataset(for_role(options.train, "train"), options.rename)
    test_set = read_dataset(for_role(options.test, "test"), options.rename)
    check_schedule(options.tasks, train_set, test_set)
    if options.val.annotations is not None:
        held_out = read_dataset(for_role(options.val, "val"), options.rename)
    else:
        train_set, held_out = hold_out(train_set, options.held_out_fraction)
    return Sources(train_set, held_out, test_set, pretraining)


def open_test(config: RunConfig, folder: Path, *, need_images: bool = True) -> Dataset:
    """Open the test set of a run alone; a synthetic world is drawn again if it is not in the folder.

    Args:
        config: of the run.
        folder: of the run.
        need_images: image files must be there.

    Raises:
        DataError: files that are missing or cannot be used.
    """
    options = config.data
    if options.benchmark is not None:
        return read_test(options.benchmark, options.rename, need_images=need_images)
    if options.synthetic is not None:
        return open_sources(config, folder).test
    return read_dataset(for_role(options.test, "test"), options.rename, need_images=need_images)


def _open_benchmark(options: DataOptions, last_task: int) -> Sources:
    """The sets of a published benchmark; only the lists of tasks that are run are read."""
    benchmark = options.benchmark
    assert benchmark is not None
    train = read_training(benchmark, options.rename, last_task)
    test = read_test(benchmark, options.rename)
    check_schedule(options.tasks[:last_task], train, test)
    if benchmark.val_list == "published":
        return Sources(train, read_validation(benchmark, options.rename), test, None)
    return Sources(*hold_out(train, options.held_out_fraction), test, None)


def pretraining_world(folder: Path, options: PretrainOptions) -> tuple[list[Path], tuple[list[Tensor], list[int]]]:
    """The synthetic world as a set of images without labels, and crops of its test objects for the kNN probe."""
    sources = open_sources(RunConfig(pretrain=options), folder)
    return sources.pretraining_images(options), sources.labelled_crops(options.view_size)


def open_ground_truth(
    predictions: Sequence[Path],
    annotations: str | None,
    *,
    image_set: str | None = None,
    schedule: str | None = None,
) -> tuple[Dataset, Schedule | None, dict[int, str] | None]:
    """The annotations that predictions are scored on; image files are not needed (a synthetic world is drawn again).

    Args:
        predictions: where the predictions lie. The first run's folder among them gives what is not named otherwise.
        annotations: COCO .json file, VOC folder or YOLO data.yaml; None takes the test set of the run.
        image_set: of a VOC folder, name or path of the list; of a YOLO data set, its set, by default ``test``.
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
            raise ConfigError(
                "nothing to score against",
                remedy="name the annotations with --ground-truth, or give the folder of a run, which has its own",
            )
        try:
            return open_test(read_config(run / "config.yaml"), run, need_images=False), found, None
        except DataError as error:
            raise DataError(
                f"the annotations of the run's test set cannot be opened ({error.problem}: {error.where})",
                where=str(run),
                remedy="bring the data back to where the run had them, or name their annotations with --ground-truth",
            ) from error
    rename = {} if found is None else dict(found.rename)
    source = for_role(SourceOptions(annotations=annotations, image_set=image_set), "test")
    dataset = read_dataset(source, rename, need_images=False)
    if found is not None:
        check_schedule(found.tasks, dataset)
    path = Path(annotations)
    return dataset, found, coco_category_names(path, rename) if path.suffix.lower() == ".json" else None


def open_split(
    named: Mapping[str, tuple[str | None, str | None]],
    *,
    schedule: str | None,
    config: str | None,
    complete: bool = True,
) -> tuple[dict[str, Dataset], tuple[tuple[str, ...], ...]]:
    """The sets of a split and its schedule, for an audit or a check; image files are not needed.

    Args:
        named: annotations and image set of ``train``, ``val`` and ``test``; those without annotations are left out.
        schedule: see :func:`openworld.data.schedules.read_schedule`.
        config: a run's configuration, whose ``data`` says all of it instead.
        complete: False, any set will do, and without a schedule there are no tasks.

    Raises:
        ConfigError: no set at all, or no test set or no schedule where they are needed; a configuration beside sets or
            a schedule.
        DataError: files that are missing or cannot be used.
    """
    given = {name: source for name, source in named.items() if source[0] is not None}
    if config is not None:
        if given or schedule is not None:
            raise ConfigError(
                "a configuration and single sets or a schedule are given", remedy="give either --config or the others"
            )
        options = read_config(Path(config)).data
        if options.synthetic is not None:
            raise ConfigError(
                "the data are the synthetic world",
                where=config,
                remedy="give a configuration with data.train and data.test",
            )
        if options.benchmark is not None:
            return _benchmark_split(options), tuple(tuple(names) for names in options.tasks)
        sources = {"train": options.train, "val": options.val, "test": options.test}
        rename, tasks = options.rename, tuple(tuple(names) for names in options.tasks)
    else:
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
        sources = {
            name: SourceOptions(annotations=annotations, image_set=listed)
            for name, (annotations, listed) in given.items()
        }
        rename, tasks = ({}, ()) if found is None else (dict(found.rename), found.tasks)
    return {
        name: read_dataset(for_role(source, name), rename, need_images=False)
        for name, source in sources.items()
        if source.annotations is not None
    }, tasks


def _benchmark_split(options: DataOptions) -> dict[str, Dataset]:
    """The sets of a published benchmark by name, without image files."""
    benchmark = options.benchmark
    assert benchmark is not None
    sets = {
        "train": read_training(benchmark, options.rename, len(options.tasks), need_images=False),
        "test": read_test(benchmark, options.rename, need_images=False),
    }
    if benchmark.val_list == "published":
        sets["val"] = read_validation(benchmark, options.rename, need_images=False)
    return sets
