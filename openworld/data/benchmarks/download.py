"""Download and unpack the archives of a benchmark. An interrupted download goes on where it stopped."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openworld.data.benchmarks.archives import Archive, Part, missing_archives, unpack_folder
from openworld.data.options import BenchmarkOptions
from openworld.errors import ConfigError, DataError, EnvironmentProblem
from openworld.runtime.console import as_text
from openworld.runtime.runlog import progress_bar

if TYPE_CHECKING:
    from rich.console import Console

CHUNK = 1 << 20
"""Bytes that are read at once."""
TIMEOUT_S = 60


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
        target = unpack_folder(options, part)
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
        console.print(as_text(f"unpacking {path} in {targets[archive.file]}", console), soft_wrap=True)
        targets[archive.file].mkdir(parents=True, exist_ok=True)
        extract_archive(str(path), str(targets[archive.file]))
    if wanted:
        console.print(as_text(f"the archives in {store} are not needed any more", console), soft_wrap=True)


def fetch(archive: Archive, folder: Path, console: Console) -> Path:
    """Download an archive and check its md5; what an interrupted download left in ``FILE.part`` is completed.

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
