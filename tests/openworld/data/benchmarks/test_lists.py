"""The published lists: counts, compositions and checksums as they were published, and their packing."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openworld.data.benchmarks import BENCHMARKS, lists, read_list
from openworld.data.benchmarks.packing import id_number, number_id, pack, unpack
from openworld.data.schedules import SCHEDULES
from openworld.errors import ConfigError, DataError

# lines, unique, first digits of the md5, images of VOC 2007, VOC 2012 and COCO by lines: counted in the authors' files
PUBLISHED = {
    "m_owodb": {
        "t1_train": (16551, 16551, "21abc3c5", (5011, 11540, 0)),
        "t2_train": (45520, 45520, "7876f12d", (0, 0, 45520)),
        "t3_train": (39402, 39402, "c491d7ab", (0, 0, 39402)),
        "t4_train": (40260, 40260, "6def39e1", (0, 0, 40260)),
        "t2_ft": (1743, 1743, "c1d49f67", (123, 290, 1330)),
        "t3_ft": (2361, 2361, "2d561bb3", (104, 270, 1987)),
        "t4_ft": (2749, 2749, "1f7b5289", (75, 196, 2478)),
        "all_task_test": (10246, 9119, "288337ea", (4952, 0, 5294)),
        "all_task_val": (4000, 3978, "03ebc96e", (309, 691, 3000)),
        "t1_known_test": (4952, 4952, "36633db6", (4952, 0, 0)),
        "t2_test": (1914, 1914, "93bd1c4b", (0, 0, 1914)),
        "t3_test": (1642, 1642, "d7ff88dc", (0, 0, 1642)),
        "t4_test": (1738, 1738, "0eeab7f6", (0, 0, 1738)),
        "t1_train_with_unk": (18051, 18049, "f4f90142", (5011, 11540, 1500)),
        "t2_train_with_unk": (47520, 47063, "4a1427c6", (0, 0, 47520)),
        "t3_train_with_unk": (41402, 40901, "a10934dc", (0, 0, 41402)),
        "wr1": (9903, 9903, "d9c13d7a", (4952, 0, 4951)),
        "wr1_prob": (9668, 9668, "c5db6986", (4952, 0, 4716)),
    },
    "s_owodb": {
        "t1_train": (89490, 89490, "50b1efdb", (0, 0, 89490)),
        "t2_train": (55870, 55870, "1a85424c", (0, 0, 55870)),
        "t3_train": (39402, 39402, "c491d7ab", (0, 0, 39402)),
        "t4_train": (38903, 38903, "f11147a8", (0, 0, 38903)),
        "t2_ft": (1679, 1679, "6cfa20cd", (0, 0, 1679)),
        "t3_ft": (2345, 2345, "a48c69a4", (0, 0, 2345)),
        "t4_ft": (2664, 2664, "e67966fb", (0, 0, 2664)),
        "test": (4952, 4952, "a5165d7c", (0, 0, 4952)),
    },
    "voc_coco": {
        "train": (14041, 14041, "c3eee016", (2501, 11540, 0)),
        "voc_coco_20_40_test": (9952, 9952, "cd9c1be7", (4952, 0, 5000)),
        "voc_coco_20_60_test": (14284, 14284, "6d0e7e7d", (4952, 0, 9332)),
        "voc_coco_20_80_test": (19952, 19952, "cd5c5e81", (4952, 0, 15000)),
        "voc_coco_2500_test": (7452, 7452, "6489cd3c", (4952, 0, 2500)),
        "voc_coco_5000_test": (9952, 9952, "62dca589", (4952, 0, 5000)),
        "voc_coco_10000_test": (14952, 14952, "03d86a37", (4952, 0, 10000)),
        "voc_coco_20000_test": (24952, 24952, "b9a12db7", (4952, 0, 20000)),
        "voc_coco_val": (7462, 7462, "baa27933", (2510, 0, 4952)),
    },
    **{
        name: {"trainval": (5011, 5011, "6bbc13b8", (5011, 0, 0)), "test": (4952, 4952, "36633db6", (4952, 0, 0))}
        for name in ("voc_10_10", "voc_15_5", "voc_19_1")
    },
}


@pytest.mark.parametrize("benchmark", PUBLISHED)
def test_lists_are_the_published_ones(benchmark: str) -> None:
    assert set(BENCHMARKS[benchmark].lists) == set(PUBLISHED[benchmark])
    for name, (lines, unique, md5, composition) in PUBLISHED[benchmark].items():
        ids = read_list(benchmark, name)
        assert (len(ids), len(set(ids))) == (lines, unique), name
        assert hashlib.md5("\n".join(sorted(set(ids))).encode()).hexdigest().startswith(md5), name
        kinds = Counter("voc2012" if "_" in one else {6: "voc2007", 12: "coco"}[len(one)] for one in ids)
        assert (kinds["voc2007"], kinds["voc2012"], kinds["coco"]) == composition, name


def test_every_benchmark_has_a_schedule_and_its_lists() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert len(benchmark.train) == len(benchmark.replay) == len(SCHEDULES[name].tasks)
        named = {*benchmark.train, *benchmark.replay, benchmark.test, benchmark.validation or ""} - {""}
        assert named <= set(benchmark.lists)


def test_how_the_test_list_of_m_owodb_came_about() -> None:
    parts = [read_list("m_owodb", name) for name in ("t1_known_test", "t2_test", "t3_test", "t4_test")]
    published = read_list("m_owodb", "all_task_test")
    assert published == [one for part in parts for one in part]
    times = Counter(Counter(published).values())
    assert times == {1: 9119 - 943 - 92, 2: 943, 3: 92}
    assert set(published) - set(parts[0]) < set(read_list("s_owodb", "test"))


def test_how_training_lists_overlap() -> None:
    first, second, third, fourth = (set(read_list("m_owodb", f"t{task}_train")) for task in (1, 2, 3, 4))
    assert (len(second & third), len(second & fourth), len(third & fourth)) == (7101, 11537, 9975)
    assert not first & (second | third | fourth) and len(second | third | fourth) == 98459
    every = first | second | third | fourth
    assert set(read_list("m_owodb", "all_task_val")) < every and not set(read_list("m_owodb", "all_task_test")) & every
    for task in (2, 3, 4):
        assert set(read_list("m_owodb", f"t{task}_ft")) < every
    separate = [set(read_list("s_owodb", f"t{task}_train")) for task in (1, 2, 3, 4)]
    assert len(set.union(*separate)) == 117_266 and not set.union(*separate) & set(read_list("s_owodb", "test"))
    assert third == separate[2]


def test_the_packed_lists_are_small() -> None:
    assert lists.PACKED.stat().st_size < 700_000


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="did you mean 'm_owodb'"):
        read_list("m-owodb", "t1_train")
    with pytest.raises(ConfigError, match="did you mean 't2_train'"):
        read_list("m_owodb", "t2_trian")


def test_a_damaged_or_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = read_list("voc_10_10", "trainval")
    other = tmp_path / "lists.xz"
    monkeypatch.setattr(lists, "PACKED", other)
    for content, problem in (
        (b"no xz", "cannot be read"),
        (pack(ids, {"voc/trainval": [*ids[:-1], ids[0]]}), "differs from the published one"),
    ):
        other.write_bytes(content)
        lists._stored.cache_clear()
        with pytest.raises(DataError, match=problem) as raised:
            read_list("voc_10_10", "trainval")
        assert str(other) in str(raised.value)
    lists._stored.cache_clear()


IDS = st.one_of(
    st.integers(0, 999_999).map("{:06d}".format),
    st.integers(0, 10**9 - 1).map("{:012d}".format),
    st.tuples(st.integers(2000, 2146), st.integers(0, 999_999)).map(lambda pair: f"{pair[0]}_{pair[1]:06d}"),
)


@given(order=st.lists(IDS, unique=True, max_size=30), data=st.data())
@settings(max_examples=30, deadline=None)
def test_packing_gives_back_what_it_was_given(order: list[str], data: st.DataObject) -> None:
    assert [number_id(id_number(image_id)) for image_id in order] == order
    named = {"one": order[::-1], "none": []}
    if order:
        named["repeats"] = data.draw(st.lists(st.sampled_from(order), max_size=40))
    found = {
        name: [number_id(number) for number in numbers.tolist()] for name, numbers in unpack(pack(order, named)).items()
    }
    assert found == named


def test_what_cannot_be_packed() -> None:
    for image_id in ("12345", "2008-000001", "abcdef", "0000000000001"):
        with pytest.raises(ValueError):
            pack([image_id], {})
    with pytest.raises(ValueError, match="not in the order"):
        pack(["000001"], {"list": ["000002"]})
    with pytest.raises(ValueError, match="twice"):
        pack(["000001", "000001"], {})
