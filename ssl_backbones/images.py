"""Images without labels: decoded, kept in memory where they fit, and turned into batches of views."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openworld.errors import ConfigError, DataError
from openworld.runtime.images import WHITE_LEVEL, read_rgb
from openworld.runtime.seeding import generator
from ssl_backbones.captions import Captions
from ssl_backbones.method import Batch
from ssl_backbones.views import ViewRecipe, evaluation_view, sample_view

logger = logging.getLogger(__name__)


def read_image(path: Path, side: int | None = None, *, white_level: int = WHITE_LEVEL) -> Tensor:
    """Decode one image to (3, H, W) uint8 RGB, upright as its EXIF tag says.

    Args:
        path: the file.
        side: the shorter side is reduced to that many pixels. None: it stays.
        white_level: value of a 16-bit grey image that is white.

    Raises:
        DataError: as :func:`openworld.runtime.images.read_rgb`.
    """
    image = read_rgb(path, upright=True, white_level=white_level, shorter_side=side)
    factor = 1.0 if side is None else side / min(image.size)
    if factor < 1:
        reduced = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(reduced, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # stays HWC in memory: faster to crop and resize


def labels_of(paths: Sequence[Path]) -> list[int]:
    """Return the classes of images in one folder per class (``images/<class>/*.jpg``): positions in the sorted names.

    Raises:
        DataError: all images lie in folders of one name, so that there is only one class.
    """
    names = sorted({path.parent.name for path in paths})
    if len(names) < 2:
        raise DataError(
            f"the {len(paths)} images have no labels: all lie in a folder named {', '.join(names) or '(none)'}",
            where=str(paths[0].parent) if paths else None,
            remedy="sort the images into one folder per class, images/<class>/*.jpg; only probes and methods that "
            "learn from labels need this",
        )
    return [names.index(path.parent.name) for path in paths]


class ImagePool:
    """The images of one pretraining, by position.

    If all images fit into ``cache_megabytes`` at ``side`` pixels, they are decoded once and broken ones are left out.
    Otherwise each is decoded on request, and the next one replaces a broken one. Both cases are logged as warnings.

    Attributes:
        labels: class of each image, where labels were given.

    Raises:
        DataError: fewer than two images are usable; contrastive methods need at least two.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        side: int,
        cache_megabytes: int,
        labels: Sequence[int] | None = None,
        white_level: int = WHITE_LEVEL,
    ) -> None:
        self._paths, self._white_level = list(paths), white_level
        self.labels = None if labels is None else list(labels)
        self._cache: list[Tensor] | None = None
        self._broken: set[int] = set()
        expected = len(self._paths) * 3 * side * side * 4 / 3 / 2**20  # a 4:3 image whose shorter side is ``side``
        if expected <= cache_megabytes:
            with ThreadPoolExecutor(max_workers=2) as threads:
                decoded = list(threads.map(lambda path: _or_error(path, side, white_level), self._paths))
            whole = [position for position, image in enumerate(decoded) if isinstance(image, Tensor)]
            self._cache = [image for image in decoded if isinstance(image, Tensor)]
            self._paths = [self._paths[position] for position in whole]
            if self.labels is not None:
                self.labels = [self.labels[position] for position in whole]
            problems = [problem for problem in decoded if isinstance(problem, DataError)]
            if problems:
                logger.warning("%d of %d images left out; the first: %s", len(problems), len(paths), problems[0])
        if len(self) < 2:
            raise DataError(
                f"{len(self)} usable images of {len(paths)} given",
                where="pretraining",
                remedy="give a folder with at least two readable images",
            )

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, position: int) -> Path:
        """File of the image at a position."""
        return self._paths[position]

    def __getitem__(self, position: int) -> Tensor:
        """Return the image at a position, (3, H, W) uint8."""
        return self.find(position)[0]

    def find(self, position: int) -> tuple[Tensor, int]:
        """Return the image (3, H, W) uint8 and its true position, which differs if another one replaces it."""
        if self._cache is not None:
            return self._cache[position], position
        for shift in range(len(self._paths)):
            where = (position + shift) % len(self._paths)
            image = _or_error(self._paths[where], None, self._white_level)
            if isinstance(image, Tensor):
                return image, where
            if where not in self._broken:
                self._broken.add(where)
                logger.warning("broken image number %d replaced by the next: %s", len(self._broken), image)
        raise DataError("no image can be decoded", where="pretraining", remedy="check the image files")

    def stack(self, position: int, frames: int) -> Tensor:
        """Return (3 F, H, W) uint8: the image and those before it, oldest first; the first of a folder is repeated.

        The images of a folder are the frames of one video, in the order of their names, numbers in them by value.

        Raises:
            DataError: the frames of one folder differ in size.
        """
        taken = [position]
        while len(taken) < frames:
            taken.append(self._previous[taken[-1]])
        images = [self[one] for one in reversed(taken)]
        if len({image.shape for image in images}) > 1:
            sizes = " and ".join(sorted({f"{image.shape[2]} x {image.shape[1]}" for image in images}))
            raise DataError(
                f"frames have different sizes, {sizes} pixels",
                where=str(self.path(position).parent),
                remedy="keep each video in its own folder",
            )
        return torch.cat(images)

    @cached_property
    def _previous(self) -> list[int]:
        """The position of the frame before each; for the first frame of a folder that is itself."""
        videos: dict[Path, list[int]] = defaultdict(list)
        for position, path in enumerate(self._paths):
            videos[path.parent].append(position)
        before = list(range(len(self)))
        for positions in videos.values():
            positions.sort(key=lambda position: _by_number(self._paths[position].name))
            for earlier, later in pairwise(positions):
                before[later] = earlier
        return before


def _by_number(name: str) -> list[tuple[int, str]]:
    """Key that sorts frame9 before frame10."""
    return [(int(part) if part.isdecimal() else -1, part) for part in re.split(r"(\d+)", name)]


def _or_error(path: Path, side: int | None, white_level: int) -> Tensor | DataError:
    try:
        return read_image(path, side, white_level=white_level)
    except DataError as error:
        return error


class BatchPlan:
    """The images of each step: a fresh permutation per epoch, cut into batches; the rest is dropped.

    Each batch is cut into ``accumulate`` consecutive micro-batches, and each of these into the shares of ``ranks``
    processes: together they see the same images as one process, in the same order.

    Attributes:
        batch_size: images per step, over all processes.

    Raises:
        ConfigError: the batch cannot be cut into ``accumulate * ranks`` equal parts of at least two images.
    """

    def __init__(
        self, images: int, batch_size: int, seed: int, *, accumulate: int = 1, rank: int = 0, ranks: int = 1
    ) -> None:
        parts = accumulate * ranks
        usable = min(batch_size, images) // parts * parts
        if batch_size % parts or (parts > 1 and usable < 2 * parts):
            raise ConfigError(
                f"batch_size is {batch_size} of {images} images, for {ranks} processes with {accumulate} micro-batches "
                "each",
                remedy=f"choose a multiple of {parts} that leaves each part two images or more",
            )
        self.images, self.batch_size, self.seed = images, usable, seed
        self.accumulate, self.rank, self.ranks = accumulate, rank, ranks
        self.steps_per_epoch = images // self.batch_size

    def steps(self, start: int, stop: int) -> Iterator[list[tuple[int, int, int]]]:
        """Yield this process's share of each micro-batch, for each step from ``start`` to ``stop`` - 1.

        Yields:
            lists of (step, position in the batch, image).
        """
        epoch, order = -1, []
        share = self.batch_size // (self.accumulate * self.ranks)
        for step in range(start, stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = torch.randperm(self.images, generator=generator(self.seed, "epoch", epoch)).tolist()
            first = step % self.steps_per_epoch * self.batch_size
            for micro in range(self.accumulate):
                place = (micro * self.ranks + self.rank) * share
                yield [(step, at, order[first + at]) for at in range(place, place + share)]


class _Views(Dataset[tuple[list[Tensor], int, int | None, Tensor | None]]):
    """Views by (step, position, image); picklable, so that worker processes can make them."""

    def __init__(
        self,
        pool: ImagePool,
        recipes: Sequence[ViewRecipe],
        size: int,
        local_size: int,
        seed: int,
        captions: Captions | None,
        frames: int,
    ) -> None:
        self.pool, self.recipes, self.seed, self.captions = pool, recipes, seed, captions
        self.sizes = [local_size if recipe.local else size for recipe in recipes]
        self.frames = frames if recipes[0].kind == "frames" else 1

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[list[Tensor], int, int | None, Tensor | None]:
        step, place, index = key
        source = generator(self.seed, "view", step, place)
        image, where = self.pool.find(index)
        if self.frames > 1:
            image = self.pool.stack(index, self.frames)
        label = None if self.pool.labels is None else self.pool.labels[where]
        sized = zip(self.recipes, self.sizes, strict=True)
        views = [sample_view(image, recipe, size, source) for recipe, size in sized]
        chosen = generator(self.seed, "caption", step, place)
        text = None if self.captions is None else self.captions.draw(self.pool.path(where), chosen)
        return views, index, label, text


class _Steps:
    """The plan from one step to another, as a sampler for DataLoader."""

    def __init__(self, plan: BatchPlan, start: int, stop: int) -> None:
        self.plan, self.start, self.stop = plan, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        return self.plan.steps(self.start, self.stop)


def view_batches(
    pool: ImagePool,
    recipes: Sequence[ViewRecipe],
    size: int,
    plan: BatchPlan,
    *,
    start: int,
    stop: int,
    workers: int,
    local_size: int = 0,
    captions: Captions | None = None,
    frames: int = 1,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Load the micro-batches of the steps ``start`` to ``stop`` - 1. They depend on the plan and the step only.

    Views are ``size`` pixels wide and high; those whose recipe is ``local`` are ``local_size``. With ``captions``, of
    all images of the pool, batches carry one caption per image. Recipes of ``frames`` get stacks of ``frames`` images.
    """
    return DataLoader(
        _Views(pool, recipes, size, local_size, plan.seed, captions, frames),  # type: ignore[arg-type]
        batch_sampler=_Steps(plan, start, stop),
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # DataLoader draws a seed for its workers; not from the global generator
    )


def eval_batches(pool: ImagePool, recipe: ViewRecipe, size: int, batch_size: int) -> Iterator[Batch]:
    """Yield all images in order, one undistorted view each."""
    for start in range(0, len(pool), batch_size):
        index = range(start, min(start + batch_size, len(pool)))
        views = torch.stack([evaluation_view(pool[i], size, recipe.preprocess()) for i in index])
        yield Batch([views], torch.tensor(index))


def _collate(items: list[tuple[list[Tensor], int, int | None, Tensor | None]]) -> Batch:
    views, index, labels, texts = zip(*items, strict=True)
    classes = None if labels[0] is None else torch.tensor(labels)
    text = None if texts[0] is None else torch.stack(texts)
    return Batch([torch.stack(group) for group in zip(*views, strict=True)], torch.tensor(index), classes, text)
