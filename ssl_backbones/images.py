"""Images without labels: found, decoded, kept in memory where they fit, and turned into batches of views."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openworld.errors import DataError
from openworld.runtime.seeding import generator
from ssl_backbones.method import Batch
from ssl_backbones.views import ViewRecipe, evaluation_view, sample_view

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted by path.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError("is no folder", where=str(folder), remedy="give the folder that holds the images")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not found:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError("holds no images", where=str(folder), remedy=f"put images there ({suffixes})")
    return found


def read_image(path: Path, side: int | None = None) -> Tensor:
    """Decode one image to (3, H, W) uint8 RGB; with ``side``, its shorter side is reduced to that many pixels.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as opened:
            if side is not None:
                opened.draft("RGB", (side, side))
            image = opened.convert("RGB")
        factor = 1.0 if side is None else side / min(image.size)
        if factor < 1:
            reduced = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            image = image.resize(reduced, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # stays HWC in memory: faster to crop and resize
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot be decoded ({error})", where=str(path), remedy="repair or remove the file") from error


def labels_of(paths: Sequence[Path]) -> list[int]:
    """Classes of images that lie in one folder a class (``images/<class>/*.jpg``): positions in the sorted names.

    Raises:
        DataError: all images lie in folders of one name, so that there is nothing to tell apart.
    """
    names = sorted({path.parent.name for path in paths})
    if len(names) < 2:
        raise DataError(
            f"the {len(paths)} images have no labels: all lie in a folder named {', '.join(names) or '(none)'}",
            where="pretraining",
            remedy="sort the images into one folder a class, images/<class>/*.jpg, or choose a method without labels",
        )
    return [names.index(path.parent.name) for path in paths]


class ImagePool:
    """The images of one pretraining, by position.

    Where all fit into ``cache_megabytes`` at ``side`` pixels, they are decoded once and broken ones are left out.
    Otherwise each is decoded when asked for, and the next one stands in for a broken one. Both are warned of.

    Attributes:
        labels: class of each image, where labels were given.

    Raises:
        DataError: fewer than two images are usable; a contrast needs a second one.
    """

    def __init__(
        self, paths: Sequence[Path], *, side: int, cache_megabytes: int, labels: Sequence[int] | None = None
    ) -> None:
        self._paths = list(paths)
        self.labels = None if labels is None else list(labels)
        self._cache: list[Tensor] | None = None
        self._broken: set[int] = set()
        expected = len(self._paths) * 3 * side * side * 4 / 3 / 2**20  # a 4:3 image whose shorter side is ``side``
        if expected <= cache_megabytes:
            with ThreadPoolExecutor(max_workers=2) as threads:
                decoded = list(threads.map(lambda path: _or_error(path, side), self._paths))
            self._cache = [image for image in decoded if isinstance(image, Tensor)]
            if labels is not None:
                self.labels = [label for label, image in zip(labels, decoded, strict=True) if isinstance(image, Tensor)]
            problems = [problem for problem in decoded if isinstance(problem, DataError)]
            if problems:
                logger.warning("%d of %d images left out; the first: %s", len(problems), len(paths), problems[0])
        if len(self) < 2:
            raise DataError(
                f"{len(self)} usable images of {len(self._paths)} given",
                where="pretraining",
                remedy="give a folder with at least two readable images",
            )

    def __len__(self) -> int:
        return len(self._paths) if self._cache is None else len(self._cache)

    def __getitem__(self, position: int) -> Tensor:
        """(3, H, W) uint8."""
        return self.find(position)[0]

    def find(self, position: int) -> tuple[Tensor, int]:
        """The image (3, H, W) uint8, and the position of the one that it really is: a broken one has a stand-in."""
        if self._cache is not None:
            return self._cache[position], position
        for shift in range(len(self._paths)):
            where = (position + shift) % len(self._paths)
            image = _or_error(self._paths[where])
            if isinstance(image, Tensor):
                return image, where
            if where not in self._broken:
                self._broken.add(where)
                logger.warning("broken image number %d replaced by the next: %s", len(self._broken), image)
        raise DataError("no image can be decoded", where="pretraining", remedy="check the image files")


def _or_error(path: Path, side: int | None = None) -> Tensor | DataError:
    try:
        return read_image(path, side)
    except DataError as error:
        return error


class BatchPlan:
    """Which images a step sees: a fresh permutation each epoch, cut into batches, the rest dropped."""

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed = images, min(batch_size, images), seed
        self.steps_per_epoch = images // self.batch_size

    def steps(self, start: int, stop: int) -> Iterator[list[tuple[int, int, int]]]:
        """For each step from ``start`` to ``stop`` - 1 a batch of (step, position in the batch, image)."""
        epoch, order = -1, []
        for step in range(start, stop):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = torch.randperm(self.images, generator=generator(self.seed, "epoch", epoch)).tolist()
            first = step % self.steps_per_epoch * self.batch_size
            yield [(step, place, index) for place, index in enumerate(order[first : first + self.batch_size])]


class _Views(Dataset[tuple[list[Tensor], int, int | None]]):
    """Views by (step, position, image); picklable, so that worker processes can make them."""

    def __init__(self, pool: ImagePool, recipes: Sequence[ViewRecipe], size: int, local_size: int, seed: int) -> None:
        self.pool, self.recipes, self.seed = pool, recipes, seed
        self.sizes = [local_size if recipe.local else size for recipe in recipes]

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[list[Tensor], int, int | None]:
        step, place, index = key
        source = generator(self.seed, "view", step, place)
        image, where = self.pool.find(index)
        label = None if self.pool.labels is None else self.pool.labels[where]
        sized = zip(self.recipes, self.sizes, strict=True)
        views = [sample_view(image, recipe, size, source) for recipe, size in sized]
        return views, index, label


class _Steps:
    """The plan from one step to another as the sampler that DataLoader wants."""

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
) -> DataLoader[Batch]:
    """The batches of the steps ``start`` to ``stop`` - 1. They depend on the plan's seed and the step only.

    Views are ``size`` pixels wide and high, those whose recipe is ``local`` are ``local_size``.
    """
    return DataLoader(
        _Views(pool, recipes, size, local_size, plan.seed),  # type: ignore[arg-type]
        batch_sampler=_Steps(plan, start, stop),
        collate_fn=_collate,
        num_workers=workers,
        generator=torch.Generator(),  # DataLoader draws a seed for its workers; not from the global generator
    )


def eval_batches(pool: ImagePool, recipe: ViewRecipe, size: int, batch_size: int) -> Iterator[Batch]:
    """All images in order, one undistorted view each."""
    for start in range(0, len(pool), batch_size):
        index = range(start, min(start + batch_size, len(pool)))
        views = torch.stack([evaluation_view(pool[i], size, recipe.preprocess()) for i in index])
        yield Batch([views], torch.tensor(index))


def _collate(items: list[tuple[list[Tensor], int, int | None]]) -> Batch:
    views, index, labels = zip(*items, strict=True)
    classes = None if labels[0] is None else torch.tensor(labels)
    return Batch([torch.stack(group) for group in zip(*views, strict=True)], torch.tensor(index), classes)
