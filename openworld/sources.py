"""The data of a run: training, held-out and test sets, from the synthetic world or from a person's own files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openworld.config import RunConfig
from openworld.data.loader import load_record
from openworld.data.options import DataOptions
from openworld.data.records import Dataset, Record, read_dataset
from openworld.data.splits import check_schedule, hold_out
from openworld.data.synthetic import make_world, pretrain_folder, world_sources
from openworld.data.transforms import as_float, resize
from ssl_backbones.images import find_images
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
        every = max(1, -(-len(places) // PROBE_CROPS))
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
    train_set = read_dataset(options.train, options.rename)
    test_set = read_dataset(options.test, options.rename)
    check_schedule(options.tasks, train_set, test_set)
    if options.val.annotations is not None:
        held_out = read_dataset(options.val, options.rename)
    else:
        train_set, held_out = hold_out(train_set, options.held_out_fraction)
    return Sources(train_set, held_out, test_set, pretraining)


def pretraining_world(folder: Path, options: PretrainOptions) -> tuple[list[Path], tuple[list[Tensor], list[int]]]:
    """The synthetic world as a set of images without labels, and crops of its test objects for the kNN probe."""
    sources = open_sources(RunConfig(pretrain=options), folder)
    return sources.pretraining_images(options), sources.labelled_crops(options.view_size)
