"""What a benchmark needs, what of it is missing, and where it belongs. The archives unpack to the standard folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openworld.data.benchmarks.archives import ARCHIVES, Part, archive_file, missing_archives, unpack_folder
from openworld.data.benchmarks.lists import benchmark_named, read_list
from openworld.data.benchmarks.reader import SOURCES, Folders, source_of, test_list, training_lists, validation_list
from openworld.data.options import BenchmarkOptions
from openworld.errors import AnnotationError
from openworld.runtime.console import as_text, narrow_table
from openworld.runtime.files import write_atomic
from openworld.runtime.images import SUFFIXES

if TYPE_CHECKING:
    from rich.console import Console


def needed_ids(options: BenchmarkOptions, last_task: int = 0) -> list[str]:
    """Return the id of every image that training, energy fitting and test of the tasks up to ``last_task`` name, once.

    Args:
        options: the benchmark.
        last_task: 0: all tasks.

    Raises:
        ConfigError: a list that the benchmark does not have.
        DataError: a packed list whose md5 is wrong.
    """
    lists = training_lists(options, last_task or len(benchmark_named(options.name).train))
    return list(dict.fromkeys(one for ids in (*lists, validation_list(options), test_list(options)) for one in ids))


def check_parts(options: BenchmarkOptions, last_task: int = 0) -> list[Part]:
    """Return what a benchmark needs and what of it is missing.

    Raises:
        AnnotationError: a COCO file that cannot be read.
        ConfigError: a list that the benchmark does not have.
    """
    folders, parts = Folders.of(options), []
    trainval = frozenset(read_list("voc_10_10", "trainval"))
    by_source: dict[str, list[str]] = {source: [] for source in SOURCES}
    for image_id in needed_ids(options, last_task):
        by_source[source_of(image_id)].append(image_id)
    for source, ids in by_source.items():
        if not ids:
            continue
        for what in ("annotations", "images"):
            place = folders.annotations(source) if what == "annotations" else folders.images(source)
            there = _present(place)
            groups: dict[str, list[str]] = {}
            for image_id in ids:
                groups.setdefault(archive_file(source, what, image_id in trainval), []).append(image_id)
            parts += [
                Part(what, source, place, ARCHIVES[file], len(group), tuple(one for one in group if one not in there))
                for file, group in groups.items()
            ]
    return parts


def print_parts(options: BenchmarkOptions, parts: Sequence[Part], console: Console) -> None:
    """Print a table of what is there and, for each archive that is missing, what to do."""
    benchmark = benchmark_named(options.name)
    for name in benchmark.lists:
        read_list(benchmark.name, name)
    console.print(f"{len(benchmark.lists)} image lists of {benchmark.name}: checksums are right")
    rows = [
        [part.source, part.what, f"{part.needed:,}", f"{part.needed - len(part.missing):,}", str(part.place)]
        for part in parts
    ]
    console.print(narrow_table(["source", "what", "needed", "there", "where"], rows, words=["source", "what", "where"]))
    for archive in missing_archives(parts):
        short = [part for part in parts if part.archive == archive and part.missing]
        missing = as_text(f"\n{archive.file}", console, "bold")
        console.print(missing.append(f" is missing, or a part of it ({archive.size / 1e9:.2f} GB):", "not bold"))
        for part in short:
            what = f"  {len(part.missing):,} of {part.needed:,} {part.what} in {part.place}: {_some(part.missing)}"
            console.print(as_text(what, console), soft_wrap=True)
        console.print(as_text(f"  get {archive.url}", console), soft_wrap=True)
        target = unpack_folder(options, short[0])
        folder = Folders.of(options).voc(short[0].source)
        content = f"move the content of its VOCdevkit/{short[0].source.upper()} to {folder}"
        console.print(as_text(f"  and {f'unpack it in {target}' if target else content}", console), soft_wrap=True)


def write_lists(name: str, folder: Path) -> list[Path]:
    """Write the lists of a benchmark as text files, one id per line, and the test list with each image once.

    Args:
        name: of the benchmark.
        folder: gets ``LIST.txt`` for each list, as the authors' code reads them, and ``TEST_unique.txt``.
    """
    benchmark = benchmark_named(name)
    lists = {listed: read_list(name, listed) for listed in benchmark.lists}
    lists[f"{benchmark.test}_unique"] = list(dict.fromkeys(lists[benchmark.test]))
    for listed, ids in lists.items():
        write_atomic(folder / f"{listed}.txt", "\n".join(ids) + "\n")
    return [folder / f"{listed}.txt" for listed in lists]


def _present(place: Path) -> frozenset[str]:
    """Ids of the images that a folder has files of, or that a COCO file lists."""
    if place.suffix == ".json":
        return frozenset(_coco_stems(place)) if place.is_file() else frozenset()
    if not place.is_dir():
        return frozenset()
    with os.scandir(place) as entries:
        found = [Path(entry.name) for entry in entries]
    return frozenset(file.stem for file in found if file.suffix.lower() in (".xml", *SUFFIXES))


def _coco_stems(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as stream:
            return [Path(entry["file_name"]).stem for entry in json.load(stream)["images"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AnnotationError(
            f"is not a COCO detection file ({error!r})",
            where=str(path),
            remedy="remove it and take it out of annotations_trainval2017.zip again",
        ) from None


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
