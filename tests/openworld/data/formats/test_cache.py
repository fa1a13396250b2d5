"""Parsed annotations on the disk: the same records, never those of a file that has changed, and no harm from damage."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openworld.data.formats import cache as module
from openworld.data.formats import coco as coco_module
from openworld.data.formats import voc as voc_module
from openworld.data.formats.cache import AnnotationCache, cache_folder, digest_of_files
from openworld.data.formats.coco import read_coco
from openworld.data.formats.voc import read_voc
from openworld.data.options import SourceOptions
from openworld.data.records import Dataset, read_dataset
from openworld.errors import AnnotationError, DataError

OBJECT = (
    "<annotation><size><width>{}</width><height>30</height></size><object><name>{}</name><difficult>1</difficult>"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox></object></annotation>"
)


@pytest.fixture(autouse=True)
def small_sets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_RECORDS", 1)
    monkeypatch.setattr(module, "SETTLED_S", -1.0)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry each time that annotations are parsed."""
    calls: list[str] = []
    for reader, name in ((coco_module, "coco"), (voc_module, "voc")):
        original = reader._parse

        def spy(*arguments: Any, original: Any = original, name: str = name) -> Any:
            calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(reader, "_parse", spy)
    return calls


def coco(folder: Path, width: float = 10, name: str = "cat") -> Path:
    content = {
        "images": [
            {"id": 10**30, "file_name": "a.png", "width": 40, "height": 30},
            {"id": "b", "file_name": "sub/ü.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 0, "name": name}, {"id": 1, "name": "dog"}],
        "annotations": [
            {"id": 5, "image_id": "b", "category_id": 1, "bbox": [1, 2, width, 20.25], "iscrowd": 1},
            {"id": "x", "image_id": 10**30, "category_id": 0, "bbox": [-5, 3, 16, 7]},
            {"image_id": "b", "category_id": 0, "bbox": [3, 3, 6, 7], "ignore": 1},
            {"image_id": "b", "category_id": 0, "bbox": [3, 3, float("nan"), 7]},
        ],
    }
    path = folder / "set.json"
    path.write_text(json.dumps(content))
    return path


def voc(folder: Path, count: int = 3) -> Path:
    (folder / "Annotations").mkdir(parents=True)
    for number in range(count):
        text = OBJECT.format(40, "dog" if number % 2 else "cat", 50 if number == 2 else 30)
        (folder / f"Annotations/{number}.xml").write_text(text)
    (folder / "list.txt").write_text("2\n0\n2\n1\n")
    return folder


def content(dataset: Dataset) -> list[Any]:
    rows: list[Any] = [dataset.categories, dataset.as_json()]
    for record in dataset.records:
        arrays = [record.boxes, record.categories, record.ignore, record.crowd]
        rows.append([None if array is None else (array.dtype.str, array.tolist()) for array in arrays])
        rows.append([record.image_id, record.path, record.width, record.height, record.annotation_ids, record.listed])
    return rows


def test_from_cache_as_parsed(tmp_path: Path, parsed: list[str]) -> None:
    cache = AnnotationCache(tmp_path / "cache")
    path, folder = coco(tmp_path), voc(tmp_path / "voc")
    plain = read_coco(path, need_images=False)
    listed = str(folder / "list.txt")
    for _ in range(3):
        assert content(read_coco(path, need_images=False, cache=cache)) == content(plain)
    assert parsed == ["coco"] * 2
    plain = read_voc(folder, image_set=listed, need_images=False)
    for _ in range(3):
        assert content(read_voc(folder, image_set=listed, need_images=False, cache=cache)) == content(plain)
    assert parsed == ["coco"] * 2 + ["voc"] * 2
    assert plain.repairs.counts == {"image listed again": 1, "clipped to the image": 1}
    assert sorted(file.name[:4] for file in (tmp_path / "cache").iterdir()) == ["coco", "voc-"]


def test_changed_coco_file_is_parsed_again(tmp_path: Path, parsed: list[str]) -> None:
    cache = AnnotationCache(tmp_path / "cache")
    path = coco(tmp_path)
    state = path.stat()
    read_coco(path, need_images=False, cache=cache)
    coco(tmp_path, width=11)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a copy that keeps times would leave it
    changed = read_coco(path, need_images=False, cache=cache)
    assert path.stat().st_size == state.st_size and changed.records[1].boxes[0].tolist() == [1, 2, 12, 22.25]
    assert len(parsed) == 2 and len(list((tmp_path / "cache").iterdir())) == 1


def test_changed_voc_file_list_or_order_is_parsed_again(tmp_path: Path, parsed: list[str]) -> None:
    cache = AnnotationCache(tmp_path / "cache")
    folder = voc(tmp_path / "voc")
    listed = folder / "list.txt"

    def read() -> Dataset:
        return read_voc(folder, image_set=str(listed), need_images=False, cache=cache)

    read()
    file = folder / "Annotations/0.xml"
    state = file.stat()
    file.write_text(OBJECT.format(40, "cat", 31))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # the change time still tells
    assert read().records[1].boxes.tolist() == [[0, 1, 31, 20]] and len(parsed) == 2
    listed.write_text("0\n2\n2\n1\n")
    assert [record.image_id for record in read().records] == ["0", "2", "1"] and len(parsed) == 3
    listed.write_text("0\n2\n1\n")
    assert [record.listed for record in read().records] == [1, 1, 1] and len(parsed) == 4
    read()
    assert len(parsed) == 4
    (folder / "Annotations/1.xml").unlink()
    with pytest.raises(AnnotationError, match=r"1\.xml"):
        read()


def test_what_else_it_depends_on(tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = AnnotationCache(tmp_path / "cache")
    path = coco(tmp_path)
    read_coco(path, need_images=False, cache=cache)
    assert read_coco(path, rename={"cat": "dog"}, need_images=False, cache=cache).categories == ("dog",)
    assert read_coco(path, need_images=False, cache=cache).categories == ("cat", "dog") and len(parsed) == 2
    elsewhere = read_coco(path, tmp_path / "elsewhere", need_images=False, cache=cache)
    assert elsewhere.records[0].path == tmp_path / "elsewhere/a.png" and len(parsed) == 2
    with pytest.raises(DataError, match="2 of 2 images do not exist"):
        read_coco(path, cache=cache)
    monkeypatch.setattr(module, "_readers", lambda: "another version")
    read_coco(path, need_images=False, cache=cache)
    assert len(parsed) == 3
    monkeypatch.setattr(module, "_readers", lambda: None)
    read_coco(path, need_images=False, cache=cache)
    assert len(parsed) == 4


def test_version_is_the_code_of_the_readers() -> None:
    folder = Path(module.__file__).parent
    assert set(module._READERS) == {"cache.py", "coco.py", "voc.py", "../records.py"}
    assert all((folder / name).is_file() for name in module._READERS) and len(module._readers() or "") == 64


def test_size_that_comes_from_elsewhere_is_not_kept(tmp_path: Path, parsed: list[str]) -> None:
    cache = AnnotationCache(tmp_path / "cache")
    folder = voc(tmp_path / "voc")
    (folder / "Annotations/0.xml").write_text(OBJECT.format(0, "cat", 30))
    for _ in range(2):
        assert read_voc(folder, need_images=False, cache=cache).records[0].width == 30
    assert len(parsed) == 2 and not (tmp_path / "cache").exists()


def test_damage_is_ignored_and_replaced(tmp_path: Path, parsed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    cache = AnnotationCache(tmp_path / "cache")
    path = coco(tmp_path)
    plain = content(read_coco(path, need_images=False, cache=cache))
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", whole[:30], whole[:-1], whole + b"x", b"PK" + whole]
    for place in rng.integers(0, len(whole), 25).tolist():
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
    for number, data in enumerate(damaged, start=2):
        file.write_bytes(data)
        with caplog.at_level(logging.INFO, logger="openworld.data"):
            assert content(read_coco(path, need_images=False, cache=cache)) == plain
        assert len(parsed) == number and file.read_bytes() == whole and "is damaged" in caplog.text
        caplog.clear()


def test_folder_that_cannot_be_written(tmp_path: Path, parsed: list[str]) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    cache = AnnotationCache(tmp_path / "cache" / "below")
    for _ in range(2):
        assert len(read_coco(coco(tmp_path), need_images=False, cache=cache).records) == 2
    assert len(parsed) == 2


def test_file_in_flux_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = voc(tmp_path / "voc")
    files = [str(file) for file in sorted((folder / "Annotations").iterdir())]
    first = digest_of_files(files, ["a"])
    assert first is not None and first == digest_of_files(files, ["a"]) != digest_of_files(files, ["b"])
    assert digest_of_files(files[::-1], ["a"]) != first
    assert digest_of_files([*files, "missing"], ["a"]) is None
    monkeypatch.setattr(module, "SETTLED_S", 2.0)
    assert digest_of_files(files, ["a"]) is None
    cache = AnnotationCache(tmp_path / "cache")
    read_voc(folder, need_images=False, cache=cache)
    assert not (tmp_path / "cache").exists()


def test_change_while_parsing_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = voc(tmp_path / "voc"), AnnotationCache(tmp_path / "cache")
    original = voc_module._parse

    def parse_and_change(*arguments: Any) -> Any:
        table = original(*arguments)
        (folder / "Annotations/0.xml").write_text(OBJECT.format(40, "cat", 39))
        return table

    monkeypatch.setattr(voc_module, "_parse", parse_and_change)
    read_voc(folder, need_images=False, cache=cache)
    assert not (tmp_path / "cache").exists()


def test_readers_at_the_same_time(tmp_path: Path) -> None:
    cache, path = AnnotationCache(tmp_path / "cache"), coco(tmp_path)
    plain = content(read_coco(path, need_images=False))
    wrong: list[Any] = []

    def read() -> None:
        for _ in range(10):
            found = content(read_coco(path, need_images=False, cache=cache))
            wrong.extend([found] if found != plain else [])
            for file in (tmp_path / "cache").glob("*.bin"):
                file.unlink(missing_ok=True)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_where_it_lies_and_how_it_is_switched_off(
    tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = coco(tmp_path)
    monkeypatch.delenv("OPENWORLD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/openworld/annotations"
    for _ in range(2):
        read_dataset(SourceOptions(annotations=str(path)), need_images=False)
    assert len(parsed) == 1 and len(list((tmp_path / "xdg/openworld/annotations").iterdir())) == 1
    read_dataset(SourceOptions(annotations=str(path), cache=False), need_images=False)
    assert len(parsed) == 2
    monkeypatch.setenv("OPENWORLD_CACHE", "off")
    assert cache_folder() is None and AnnotationCache.of_user() is None
    read_dataset(SourceOptions(annotations=str(path)), need_images=False)
    assert len(parsed) == 3
    monkeypatch.setenv("OPENWORLD_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("OPENWORLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: ignore what is not absolute
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/openworld/annotations"


def test_small_sets_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_RECORDS", 3)
    read_coco(coco(tmp_path), need_images=False, cache=AnnotationCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_records_share_the_arrays_of_the_table(tmp_path: Path) -> None:
    cache, path = AnnotationCache(tmp_path / "cache"), coco(tmp_path)
    for _ in range(2):
        first, second = read_coco(path, need_images=False, cache=cache).records
        assert first.boxes.base is not None and first.boxes.base is second.boxes.base
