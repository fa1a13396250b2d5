"""The archives in which VOC and COCO come, and what of a benchmark is in which.

Their md5 are those of torchvision (``torchvision.datasets.voc``) for VOC and the widely used ones for COCO, whose site
gives none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from openworld.data.benchmarks.reader import Folders
from openworld.data.options import BenchmarkOptions


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


def archive_file(source: str, what: str, in_trainval: bool) -> str:
    """Return the name of the archive that holds the annotations or images of a source."""
    if source == "voc2007":
        return "VOCtrainval_06-Nov-2007.tar" if in_trainval else "VOCtest_06-Nov-2007.tar"
    if source == "voc2012":
        return "VOCtrainval_11-May-2012.tar"
    return "annotations_trainval2017.zip" if what == "annotations" else f"{source}.zip"


@dataclass(frozen=True)
class Part:
    """Annotations or images of one source, or of one archive of it.

    Args:
        what: ``annotations`` or ``images``.
        source: one of :data:`openworld.data.benchmarks.reader.SOURCES`.
        place: the folder or file that holds them.
        archive: what they come in.
        needed: number of images that the lists name.
        missing: ids of those that are not there, in the order of the lists.
    """

    what: str
    source: str
    place: Path
    archive: Archive
    needed: int
    missing: tuple[str, ...]


def missing_archives(parts: Iterable[Part]) -> list[Archive]:
    """Return the archives whose content is missing, each once."""
    return list(dict.fromkeys(part.archive for part in parts if part.missing))


def unpack_folder(options: BenchmarkOptions, part: Part) -> Path | None:
    """Return where an archive has to be unpacked so that its content lies where it is looked for.

    None: a folder of VOC that is not called VOCdevkit/VOC2007 or VOCdevkit/VOC2012, as the archives have it.
    """
    folders = Folders.of(options)
    if part.source in ("train2017", "val2017"):
        return folders.coco
    folder = folders.voc(part.source)
    return folder.parent.parent if (folder.parent.name, folder.name) == ("VOCdevkit", part.source.upper()) else None
