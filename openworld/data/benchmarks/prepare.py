"""Is everything there that a benchmark needs? What is missing, where does it belong, and, on request, the download.

The archives unpack to the standard folders, and nothing is converted. Their md5 are those of torchvision
(``torchvision.datasets.voc``) for VOC and the widely used ones for COCO, whose site gives none.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openworld.data.benchmarks.lists import benchmark_named, read_list
from openworld.data.benchmarks.reader import SOURCES, Folders, source_of, test_list, training_lists, validation_list
from openworld.data.options import BenchmarkOptions
from openworld.errors import AnnotationError, ConfigError, DataError, EnvironmentProblem
from openworld.runtime.console import narrow_table
from openworld.runtime.files import write_atomic
from openworld.runtime.images import SUFFIXES
from openworld.runtime.runlog import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

CHUNK = 1 << 20
TIMEOUT_S = 60


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Args:
        file: its name.
        url: where it is.
        md5: of its content.
        size: bytes.
    """

    file: str
    url: str
    md5: str
    size: int


_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_COCO = "http://images.cocodataset.org"
ARCHIVES = {
    archive.file: archive
    for archive in (
        Archive(
            "VOCtrainval_06-Nov-2007.tar",
            f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
            "c52e279531787c972589f7e41ab4ae64",
            460_032_000,
        ),
        Archive(
            "VOCtest_06-Nov-2007.tar",
            f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
            "b6e924de25625d8de591ea690078ad9f",
            451_020_800,
        ),
        Archive(
            "VOCtrainval_11-May-2012.tar",
            f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
            "6cd6e144f989b92b3379bac3b3de84fd",
            1_999_639_040,
        ),
        Archive("train2017.zip", f"{_COCO}/zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 19_336_861_798),
        Archive("val2017.zip", f"{_COCO}/zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 815_585_330),
        Archive(
            "annotations_trainval2017.zip",
            f"{_COCO}/annotations/annotations_trainval2017.zip",
            "f4bbac642086de4f52a3fdda2de5fa2c",
            252_907_541,
        ),
    )
}
"""The archives by file name."""


@dataclass(frozen=True)
class Part:
    """Annotations or images of one source, or of one archive of it.

    Args:
        what: ``annotations`` or ``images``.
        source: one of :data:`openworld.data.benchmarks.reader.SOURCES`.
        place: the folder or file that holds them.
        archive: what they come in.
        needed: how many images the lists name.
        missing: ids of those that are not there, in the order of the lists.
    """

    what: str
    source: str
    place: Path
    archive: Archive
    needed: int
    missing: tuple[str, ...]


def needed_ids(options: BenchmarkOptions, last_task: int = 0) -> list[str]:
    """Every image that training, energy fitting and test of the tasks up to ``last_task`` (0: all) name, once.

    Raises:
        ConfigError: a list that the benchmark does not have.
        DataError: a packed list whose md5 is wrong.
    """
    lists = training_lists(options, last_task or len(benchmark_named(options.name).train))
    return list(dict.fromkeys(one for ids in (*lists, validation_list(options), test_list(options)) for one in ids))


def check_parts(options: BenchmarkOptions, last_task: int = 0) -> list[Part]:
    """What a benchmark needs and what of it is missing.

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
                groups.setdefault(_archive_file(source, what, image_id in trainval), []).append(image_id)
            parts += [
                Part(what, source, place, ARCHIVES[file], len(group), tuple(one for one in group if one not in there))
                for file, group in groups.items()
            ]
    return parts


def print_parts(options: BenchmarkOptions, parts: Sequence[Part], console: Console) -> None:
    """A table of what is there, and for each archive that is missing what to do."""
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
        console.print(f"\n[bold]{archive.file}[/bold] is missing, or a part of it ({archive.size / 1e9:.2f} GB):")
        for part in short:
            console.print(
                f"  {len(part.missing):,} of {part.needed:,} {part.what} in {part.place}: {_some(part.missing)}",
                soft_wrap=True,
            )
        console.print(f"  get {archive.url}", soft_wrap=True)
        target = _unpack_folder(options, short[0])
        folder = Folders.of(options).voc(short[0].source)
        console.print(
            f"  and unpack it in {target}"
            if target
            else f"  and move the content of its VOCdevkit/{short[0].source.upper()} to {folder}",
            soft_wrap=True,
        )


def missing_archives(parts: Iterable[Part]) -> list[Archive]:
    """The archives whose content is missing, each once."""
    return list(dict.fromkeys(part.archive for part in parts if part.missing))


def download_parts(options: BenchmarkOptions, parts: Sequence[Part], console: Console) -> None:
    """Fetch and unpack the archives whose content is missing. They stay in ``ROOT/archives``.

    A download that breaks off goes on where it stopped when the same command is given again.

    Raises:
        ConfigError: a folder that the archives do not unpack to.
        EnvironmentProblem: too little space, or the network fails.
        DataError: a file with another checksum than the published one.
    """
    from torchvision.datasets.utils import extract_archive

    wanted = missing_archives(parts)
    targets: dict[str, Path] = {}
    for part in parts:
        target = _unpack_folder(options, part)
        if part.missing and target is None:
            raise ConfigError(
                f"{part.archive.file} does not unpack to {part.place.parent}",
                remedy=f"complete that folder by hand, or let it end in VOCdevkit/{part.source.upper()}",
            )
        if part.missing and target is not None:
            targets[part.archive.file] = target
    store = Path(options.root) / "archives"
    store.mkdir(parents=True, exist_ok=True)
    _check_space(store, wanted)
    for archive in wanted:
        path = fetch(archive, store, console)
        console.print(f"unpacking {path} in {targets[archive.file]}", soft_wrap=True)
        targets[archive.file].mkdir(parents=True, exist_ok=True)
        extract_archive(str(path), str(targets[archive.file]))
    if wanted:
        console.print(f"the archives in {store} are not needed any more", soft_wrap=True)


def fetch(archive: Archive, folder: Path, console: Console) -> Path:
    """Download an archive, going on with what an interrupted download left in ``FILE.part``, and check its md5.

    A complete file of the right md5 is taken as it is, whoever put it there.

    Raises:
        EnvironmentProblem: the network fails; what has come is kept.
        DataError: another md5; the file is removed.
    """
    path, partial = folder / archive.file, folder / f"{archive.file}.part"
    if path.is_file():
        if md5_of_file(path) == archive.md5:
            return path
        path.replace(partial)
    try:
        _receive(archive, partial, console)
    except (OSError, http.client.HTTPException) as error:
        have = partial.stat().st_size if partial.exists() else 0
        raise EnvironmentProblem(
            f"the download broke off after {have:,} of {archive.size:,} bytes ({error})",
            where=archive.url,
            remedy=f"give the same command again, it goes on from there; or put the file into {folder} yourself",
        ) from None
    found = md5_of_file(partial)
    if found != archive.md5:
        partial.unlink()
        raise DataError(
            f"what came has the md5 {found}, not {archive.md5}; it is removed",
            where=archive.url,
            remedy=f"give the same command again, or put the right file into {folder}",
        )
    partial.replace(path)
    return path


def md5_of_file(path: Path) -> str:
    """Hexadecimal md5 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def write_lists(name: str, folder: Path) -> list[Path]:
    """The lists of a benchmark as text files, one id a line, and the test list with each image once.

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


def _receive(archive: Archive, partial: Path, console: Console) -> None:
    """Append to the partial file what it lacks, or write it anew where the server sends all."""
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return  # nothing is left to send: the checksum decides
        raise
    with answer:
        goes_on = start > 0 and answer.status == http.HTTPStatus.PARTIAL_CONTENT
        announced = answer.headers.get("Content-Length")
        expected = (start if goes_on else 0) + int(announced) if announced else None
        done = start // CHUNK if goes_on else 0
        with (
            open(partial, "ab" if goes_on else "wb") as stream,
            progress_bar(f"{archive.file} MiB", archive.size // CHUNK, done=done, console=console) as bar,
        ):
            while block := answer.read(CHUNK):
                stream.write(block)
                bar.advance()
    if expected is not None and partial.stat().st_size < expected:
        raise OSError("the connection closed early")


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
            f"is no COCO detection file ({error!r})",
            where=str(path),
            remedy="remove it and take it out of annotations_trainval2017.zip again",
        ) from None


def _archive_file(source: str, what: str, in_trainval: bool) -> str:
    """Name of the archive that holds the annotations or images of a source."""
    if source == "voc2007":
        return "VOCtrainval_06-Nov-2007.tar" if in_trainval else "VOCtest_06-Nov-2007.tar"
    if source == "voc2012":
        return "VOCtrainval_11-May-2012.tar"
    return "annotations_trainval2017.zip" if what == "annotations" else f"{source}.zip"


def _unpack_folder(options: BenchmarkOptions, part: Part) -> Path | None:
    """Where an archive has to be unpacked so that its content lies where it is looked for.

    None: a folder of VOC that is not called VOCdevkit/VOC2007 or VOCdevkit/VOC2012, as the archives have it.
    """
    folders = Folders.of(options)
    if part.source in ("train2017", "val2017"):
        return folders.coco
    folder = folders.voc(part.source)
    return folder.parent.parent if (folder.parent.name, folder.name) == ("VOCdevkit", part.source.upper()) else None


def _check_space(folder: Path, archives: Sequence[Archive]) -> None:
    """Raise EnvironmentProblem if the archives and what they unpack to do not fit on the disk."""
    needed = sum(archive.size * (1 if (folder / archive.file).exists() else 2) for archive in archives)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EnvironmentProblem(
            f"the downloads need about {needed / 1e9:.0f} GB while they are unpacked, {free / 1e9:.0f} GB are free",
            where=str(folder),
            remedy="make room, or give a --root on another disk",
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")
