"""The published image lists, as they were published: same ids, same order, same repeats.

Lists of ids are facts. They were taken from

==========  ==========================================================================================  ==============
m_owodb     JosephKJ/OWOD (ORE, CVPR 2021): ``datasets/OWOD_imagesets``; ``t2_test`` … ``t4_test`` from    Apache-2.0
            ``datasets/coco17_voc_style/ImageSets/Main``. ``wr1_prob``: orrzohar/PROB,                     (both)
            ``VOC2007/test_wr1.txt``. The lists of PROB's ``TOWOD`` folder are the same
s_owodb     orrzohar/PROB (CVPR 2023), ``data/OWOD/ImageSets/OWDETR``: the split of OW-DETR (CVPR 2022)    Apache-2.0
voc_*       ``ImageSets/Main/trainval.txt`` and ``test.txt`` of VOC 2007                                   none stated
voc_coco    csuhan/opendet2 (OpenDet, CVPR 2022), ``datasets/voc_coco_ann/ImageSets/Main``, without        none stated
            ``voc_coco_15000_test``, which names no image of COCO; ``train``: the lists ``train`` of VOC
            2007 and ``trainval`` of VOC 2012, one after the other, as its configurations do
==========  ==========================================================================================  ==============

The md5 of a list is that of its sorted ids, each once, joined by line feeds, without one at the end.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from openworld.data.benchmarks.packing import number_id, unpack
from openworld.errors import ConfigError, DataError

PACKED = Path(__file__).parent / "lists.xz"


@dataclass(frozen=True)
class ImageList:
    """What is known about one list.

    Args:
        name: as its file is called where it was published, without suffix.
        stored: its name in ``lists.xz``; lists that are equal are stored once.
        lines: ids, repeats counted.
        unique: different ids.
        md5: of the sorted different ids.
    """

    name: str
    stored: str
    lines: int
    unique: int
    md5: str


@dataclass(frozen=True)
class Benchmark:
    """A published benchmark: its classes, and the lists of its images.

    Args:
        name: also that of its classes in :data:`openworld.data.schedules.SCHEDULES`.
        train: names of the lists that the tasks train on, one a task.
        test: name of the list that every task is tested on, as published.
        validation: name of the list for energy fitting, or None.
        replay: names of the lists that tasks replay, one a task; "" where there is none.
        lists: all of them, by name.
    """

    name: str
    train: tuple[str, ...]
    test: str
    validation: str | None
    replay: tuple[str, ...]
    lists: Mapping[str, ImageList]


def _table(folder: str, *rows: tuple[str, int, int, str]) -> dict[str, ImageList]:
    return {name: ImageList(name, f"{folder}/{name}", lines, unique, md5) for name, lines, unique, md5 in rows}


_M = _table(
    "m_owodb",
    ("t1_train", 16_551, 16_551, "21abc3c5ea86009070609e9fc1f2b583"),
    ("t2_train", 45_520, 45_520, "7876f12dadc3f899f011af2ecdc38542"),
    ("t3_train", 39_402, 39_402, "c491d7ab2c08f877c96779031b7fc87f"),
    ("t4_train", 40_260, 40_260, "6def39e1ec1f06ecce49dfd4ef10fd89"),
    ("t2_ft", 1_743, 1_743, "c1d49f678d5f0a94d6568b42af8b88cd"),
    ("t3_ft", 2_361, 2_361, "2d561bb3c88ef9157415053c9155eb99"),
    ("t4_ft", 2_749, 2_749, "1f7b528929fcef0bee42ab0999e1e157"),
    ("all_task_test", 10_246, 9_119, "288337ea1faa14d23432d49c3bd84e22"),
    ("all_task_val", 4_000, 3_978, "03ebc96e0a501d26027056a7f091ae56"),
    ("t1_known_test", 4_952, 4_952, "36633db6dcced83bc7dd9d1437554456"),
    ("t2_test", 1_914, 1_914, "93bd1c4b9dc28c0726fad88d976bd929"),
    ("t3_test", 1_642, 1_642, "d7ff88dca2383cfc7d74d9783ff80a82"),
    ("t4_test", 1_738, 1_738, "0eeab7f67f29aa5530df6314dcdd5b7a"),
    ("t1_train_with_unk", 18_051, 18_049, "f4f901426f0604d5ef37773da3ddf1e7"),
    ("t2_train_with_unk", 47_520, 47_063, "4a1427c6c89fc4ac5037cac268c95aab"),
    ("t3_train_with_unk", 41_402, 40_901, "a10934dc149a9731100fba0f189be9ad"),
    ("wr1", 9_903, 9_903, "d9c13d7a3b082b3a5a0a2ada83310705"),
    ("wr1_prob", 9_668, 9_668, "c5db6986fabcfa278b260722e1d2e395"),
)
_S = _table(
    "s_owodb",
    ("t1_train", 89_490, 89_490, "50b1efdbbdc4be55fd0612904e83ca43"),
    ("t2_train", 55_870, 55_870, "1a85424c297f6968f106e3b9a12364f2"),
    ("t4_train", 38_903, 38_903, "f11147a8c1ad156162f40f5d1687757c"),
    ("t2_ft", 1_679, 1_679, "6cfa20cd4a09baa9b1b2e20b3cdf2f27"),
    ("t3_ft", 2_345, 2_345, "a48c69a413fff7a1d754a3751e00f552"),
    ("t4_ft", 2_664, 2_664, "e67966fb0eec32ba00be9008c0da24fc"),
    ("test", 4_952, 4_952, "a5165d7cba6d43f15886a5f9fb4fbc47"),
)
_S["t3_train"] = _M["t3_train"]
_VOC = {
    "trainval": ImageList("trainval", "voc/trainval", 5011, 5011, "6bbc13b89b81841ff01d338d7aaceeda"),
    "test": ImageList("test", "m_owodb/t1_known_test", 4952, 4952, "36633db6dcced83bc7dd9d1437554456"),
}
_VOC_COCO = _table(
    "voc_coco",
    ("train", 14_041, 14_041, "c3eee016341dbcb8882e81539206ba6f"),
    ("voc_coco_20_40_test", 9_952, 9_952, "cd9c1be7b088e1141189d16f235f04f0"),
    ("voc_coco_20_60_test", 14_284, 14_284, "6d0e7e7d8e953e2527f6e25b2e048ba4"),
    ("voc_coco_20_80_test", 19_952, 19_952, "cd5c5e81ff6eccbfd00baab73b464676"),
    ("voc_coco_2500_test", 7_452, 7_452, "6489cd3c887062532b8dc74c01372cbc"),
    ("voc_coco_5000_test", 9_952, 9_952, "62dca5892e955e225c4006c516564320"),
    ("voc_coco_10000_test", 14_952, 14_952, "03d86a374c58f3556be599abf5dc34df"),
    ("voc_coco_20000_test", 24_952, 24_952, "b9a12db78f7315a91bceb1793b219d05"),
    ("voc_coco_val", 7_462, 7_462, "baa27933a2253b2bc6834a412eac8fc9"),
)

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "m_owodb",
            ("t1_train", "t2_train", "t3_train", "t4_train"),
            "all_task_test",
            "all_task_val",
            ("", "t2_ft", "t3_ft", "t4_ft"),
            _M,
        ),
        Benchmark(
            "s_owodb",
            ("t1_train", "t2_train", "t3_train", "t4_train"),
            "test",
            None,
            ("", "t2_ft", "t3_ft", "t4_ft"),
            _S,
        ),
        *(
            Benchmark(f"voc_{first}_{20 - first}", ("trainval", "trainval"), "test", None, ("", ""), _VOC)
            for first in (10, 15, 19)
        ),
        Benchmark("voc_coco", ("train",), "voc_coco_20_40_test", "voc_coco_val", ("",), _VOC_COCO),
    )
}
"""The benchmarks by name. ``voc_coco`` is open-set detection: one task of 20 classes, and unknown objects of COCO's
second 20 classes in its test list; ``voc_coco_20_60_test`` and ``voc_coco_20_80_test`` have those of 40 and 60 classes,
``voc_coco_2500_test`` … ``voc_coco_20000_test`` more and more images of COCO."""


def benchmark_named(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        ConfigError: there is none, with the nearest name.
    """
    if name not in BENCHMARKS:
        raise ConfigError(
            f"there is no benchmark {name!r}{_hint(name, BENCHMARKS)}", remedy=f"name one of: {', '.join(BENCHMARKS)}"
        )
    return BENCHMARKS[name]


def read_list(benchmark: str, name: str) -> list[str]:
    """The ids of a list in the published order, repeats and all.

    Args:
        benchmark: a name in :data:`BENCHMARKS`.
        name: of one of its lists.

    Raises:
        ConfigError: there is no such benchmark or list, with the nearest name.
        DataError: the package's file is damaged.
    """
    lists = benchmark_named(benchmark).lists
    if name not in lists:
        raise ConfigError(
            f"benchmark {benchmark!r} has no list {name!r}{_hint(name, lists)}",
            remedy=f"name one of: {', '.join(lists)}",
        )
    known = lists[name]
    ids = [number_id(number) for number in _stored()[known.stored].tolist()]
    if len(ids) != known.lines or md5_of_ids(ids) != known.md5:
        raise DataError(
            f"list {known.stored!r} differs from the published one", where=str(PACKED), remedy="install openworld again"
        )
    return ids


def md5_of_ids(ids: Iterable[str]) -> str:
    """The md5 by which lists of ids are told apart; see the top of this file."""
    return hashlib.md5("\n".join(sorted(set(ids))).encode()).hexdigest()


@cache
def _stored() -> dict[str, NDArray[Any]]:
    try:
        return unpack(PACKED.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=str(PACKED), remedy="install openworld again") from None


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
