"""A benchmark's images out of VOC2007, VOC2012 and COCO 2017 as their archives unpack: nothing is copied or converted.

The form of an id says where its image lies: ``NNNNNN`` in VOC 2007, ``YYYY_NNNNNN`` in VOC 2012, twelve digits in COCO.
Published results were computed on XML files made of COCO's annotations, all boxes as ordinary objects. Here a crowd
keeps its flag and the protocol says what it means (:class:`openworld.metrics.protocols.Protocol`, ``ignore``); training
leaves crowds out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from openworld.columns import ImageId, Names
from openworld.data.benchmarks.lists import benchmark_named, read_list
from openworld.data.formats.cache import cache_folder
from openworld.data.formats.coco import read_coco
from openworld.data.formats.voc import read_voc
from openworld.data.options import BenchmarkOptions
from openworld.errors import AnnotationError, ConfigError
from openworld.records import Dataset, merged

SOURCES = ("voc2007", "voc2012", "train2017", "val2017")
"""Where images come from: two folders of VOC, two sets of COCO."""


@dataclass(frozen=True)
class Folders:
    """Where the sources lie.

    Args:
        voc2007: holds ``Annotations/`` and ``JPEGImages/``.
        voc2012: holds the same.
        coco: holds ``annotations/instances_{train,val}2017.json``, ``train2017/`` and ``val2017/``.
    """

    voc2007: Path
    voc2012: Path
    coco: Path

    @classmethod
    def of(cls, options: BenchmarkOptions) -> Folders:
        """Folders that the options name, or below their root ``VOCdevkit/VOC2007`` (or ``VOC2007``), …, ``coco``."""
        root = Path(options.root)

        def voc(given: str | None, name: str) -> Path:
            if given is not None:
                return Path(given)
            bare = root / name
            return bare if bare.is_dir() and not (root / "VOCdevkit" / name).is_dir() else root / "VOCdevkit" / name

        coco = Path(options.coco) if options.coco is not None else root / "coco"
        return cls(voc(options.voc2007, "VOC2007"), voc(options.voc2012, "VOC2012"), coco)

    def annotations(self, source: str) -> Path:
        """Folder of the XML files, or the .json file, of a source."""
        if source in ("voc2007", "voc2012"):
            return self.voc(source) / "Annotations"
        return self.coco / "annotations" / f"instances_{source}.json"

    def images(self, source: str) -> Path:
        """Folder of the images of a source."""
        return self.voc(source) / "JPEGImages" if source in ("voc2007", "voc2012") else self.coco / source

    def voc(self, source: str) -> Path:
        """Folder of a source of VOC."""
        return self.voc2007 if source == "voc2007" else self.voc2012


def source_of(image_id: str) -> str:
    """Which of :data:`SOURCES` an image of a published list belongs to."""
    if "_" in image_id:
        return "voc2012"
    if len(image_id) == 6:
        return "voc2007"
    return "val2017" if image_id in _val2017() else "train2017"


@cache
def _val2017() -> frozenset[str]:
    """The annotated images of val2017: S-OWODB tests on all of them. No list names one of the others."""
    return frozenset(read_list("s_owodb", "test"))


def training_lists(options: BenchmarkOptions, last_task: int) -> list[list[str]]:
    """The ids that each task up to ``last_task`` trains on."""
    return [read_list(options.name, name) for name in benchmark_named(options.name).train[:last_task]]


def validation_list(options: BenchmarkOptions) -> list[str]:
    """The published ids for energy fitting; none, where a share of the training images is held out instead.

    Raises:
        ConfigError: the published list is wanted and the benchmark has none.
    """
    if options.val_list == "held_out":
        return []
    name = benchmark_named(options.name).validation
    if name is None:
        raise ConfigError(
            f"benchmark {options.name!r} has no published list for energy fitting",
            remedy="set data.benchmark.val_list to held_out",
        )
    return read_list(options.name, name)


def test_list(options: BenchmarkOptions) -> list[str]:
    """The ids of the test, with repeats if they are wanted.

    Raises:
        ConfigError: ``options.test_list`` is neither published, nor unique, nor a list of the benchmark.
    """
    published = benchmark_named(options.name).test
    if options.test_list == "unique":
        return list(dict.fromkeys(read_list(options.name, published)))
    return read_list(options.name, published if options.test_list == "published" else options.test_list)


test_list.__test__ = False  # type: ignore[attr-defined]  # pytest shall not collect it


def read_training(options: BenchmarkOptions, last_task: int) -> Dataset:
    """Read the images of the tasks up to ``last_task``, each once.

    ``Dataset.task_images`` says which task trains on which.

    Raises:
        DataError: see :func:`read_images`.
    """
    lists = training_lists(options, last_task)
    dataset = read_images(options, list(dict.fromkeys(image_id for ids in lists for image_id in ids)))
    return replace(dataset, task_images=tuple(frozenset[ImageId](ids) for ids in lists))


def read_validation(options: BenchmarkOptions) -> Dataset:
    """Read the images of the published list for energy fitting.

    Raises:
        ConfigError: the benchmark has no such list.
        DataError: see :func:`read_images`.
    """
    return read_images(options, validation_list(options))


def read_test(options: BenchmarkOptions) -> Dataset:
    """Read the images of the test, each once; ``Record.listed`` says how often the list names it.

    Raises:
        ConfigError: see :func:`test_list`.
        DataError: see :func:`read_images`.
    """
    return read_images(options, test_list(options))


def read_images(options: BenchmarkOptions, ids: Iterable[str]) -> Dataset:
    """Read the named images out of their sources.

    Args:
        options: where the sources lie.
        ids: as published lists write them; an image that is named n times becomes one with ``listed`` n.

    Returns:
        images in the order of their first mention; ids as in the list. Categories of COCO in the order of its file,
        then those that only VOC has, all with the names of the annotation files.

    Raises:
        DataError: annotations that are missing, naming the first few; or that cannot be used.
    """
    folders, counts = Folders.of(options), Counter(ids)
    cache = cache_folder() if options.cache else None
    parts: list[Dataset] = []
    for source in reversed(SOURCES):
        wanted = {image_id: times for image_id, times in counts.items() if source_of(image_id) == source}
        if not wanted:
            continue
        _check_annotations(folders, source)
        annotations, images = folders.annotations(source), folders.images(source)
        if source in ("voc2007", "voc2012"):
            whole = read_voc(annotations.parent, images, cache=cache)
        else:
            widened = options.coco_boxes == "whole_pixels"
            whole = read_coco(annotations, images, whole_pixels=widened, cache=cache)
        parts.append(_pick(whole, wanted, annotations))
    found = merged(parts)
    return found.select([found.position_of[image_id] for image_id in counts])


def _check_annotations(folders: Folders, source: str) -> None:
    path = folders.annotations(source)
    if not path.exists():
        raise AnnotationError(
            "does not exist",
            where=str(path),
            remedy="`openworld data prepare` says what belongs where; or name the folder in data.benchmark",
        )


def _pick(dataset: Dataset, wanted: Mapping[str, int], annotations: Path) -> Dataset:
    """The listed images of a source, called as the list calls them: by the stem of their file."""
    position_of = {Path(str(path)).stem: position for position, path in enumerate(dataset.paths)}
    absent = [image_id for image_id in wanted if image_id not in position_of]
    if absent:
        shown = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        raise AnnotationError(
            f"{len(absent)} of {len(wanted)} listed images have no annotations: {shown}",
            where=str(annotations),
            remedy="`openworld data prepare` says which archive they are in",
        )
    chosen = dataset.select([position_of[image_id] for image_id in wanted])
    return replace(chosen, image_ids=Names(wanted), listed=np.array(list(wanted.values()), dtype=np.int64))
