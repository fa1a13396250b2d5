"""Parsed annotations on the disk: the same records, never those of a file that has changed, and no harm from damage."""

from __future__ import annotations

import json
import logging
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openworld.data.formats import cache as module
from openworld.data.formats import coco as coco_module
from openworld.data.formats import voc as voc_module
from openworld.data.formats.cache import cache_folder, state_of
from openworld.data.formats.coco import read_coco
from openworld.data.formats.read import read_dataset
from openworld.data.formats.voc import read_voc
from openworld.data.options import SourceOptions
from openworld.errors import AnnotationError
from openworld.records import Dataset

OBJECT = (
    "<annotation><size><width>{}</width><height>30</height></size><object><name>{}</name><difficult>1</difficult>"
    "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>20</ymax></bndbox></object></annotation>"
)


@pytest.fixture(autouse=True)
def small_sets_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_IMAGES", 1)
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
    for record in dataset:
        arrays = [record.boxes, record.categories, record.ignore, record.crowd]
        rows.append([(array.dtype.str, array.tolist()) for array in arrays])
        rows.append([record.image_id, record.path, record.width, record.height, record.annotation_ids, record.listed])
    return rows


def test_from_cache_as_parsed(tmp_path: Path, parsed: list[str]) -> None:
    cache = tmp_path / "cache"
    path, folder = coco(tmp_path), voc(tmp_path / "voc")
    plain = read_coco(path)
    listed = str(folder / "list.txt")
    for _ in range(3):
        assert content(read_coco(path, cache=cache)) == content(plain)
    assert parsed == ["coco"] * 2
    plain = read_voc(folder, image_set=listed)
    for _ in range(3):
        assert content(read_voc(folder, image_set=listed, cache=cache)) == content(plain)
    assert parsed == ["coco"] * 2 + ["voc"] * 2
    assert plain.repairs.counts == {"image listed again": 1, "clipped to the image": 1}
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_changed_coco_file_is_parsed_again(tmp_path: Path, parsed: list[str]) -> None:
    cache = tmp_path / "cache"
    path = coco(tmp_path)
    state = path.stat()
    read_coco(path, cache=cache)
    coco(tmp_path, width=11)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a copy that keeps times would leave it
    changed = read_coco(path, cache=cache)
    assert path.stat().st_size == state.st_size and changed[1].boxes[0].tolist() == [1, 2, 12, 22.25]
    assert len(parsed) == 2 and len(list((tmp_path / "cache").iterdir())) == 1


def test_changed_voc_file_list_or_order_is_parsed_again(tmp_path: Path, parsed: list[str]) -> None:
    cache = tmp_path / "cache"
    folder = voc(tmp_path / "voc")
    listed = folder / "list.txt"

    def read() -> Dataset:
        return read_voc(folder, image_set=str(listed), cache=cache)

    read()
    file = folder / "Annotations/0.xml"
    state = file.stat()
    file.write_text(OBJECT.format(40, "cat", 31))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # the change time still tells
    assert read()[1].boxes.tolist() == [[0, 1, 31, 20]] and len(parsed) == 2
    listed.write_text("0\n2\n2\n1\n")
    assert [record.image_id for record in read()] == ["0", "2", "1"] and len(parsed) == 3
    listed.write_text("0\n2\n1\n")
    assert [record.listed for record in read()] == [1, 1, 1] and len(parsed) == 4
    read()
    assert len(parsed) == 4
    (folder / "Annotations/1.xml").unlink()
    with pytest.raises(AnnotationError, match=r"1\.xml"):
        read()


def test_what_else_it_depends_on(tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    path = coco(tmp_path)
    read_coco(path, cache=cache)
    elsewhere = read_coco(path, tmp_path / "elsewhere", cache=cache)
    assert elsewhere[0].path == tmp_path / "elsewhere/a.png" and len(parsed) == 1
    widened = read_coco(path, whole_pixels=True, cache=cache)
    assert len(widened) == 2 and len(parsed) == 2
    read_coco(path, cache=cache)
    assert len(parsed) == 2
    monkeypatch.setattr(module, "_code_state", lambda: "another version")
    read_coco(path, cache=cache)
    assert len(parsed) == 3


def test_a_changed_reader_parses_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "openworld/data/formats"
    package.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(package / "cache.py"))
    states = [module._code_state()]
    ground = [package.parent.parent / name for name in ("records.py", "columns.py", "repairs.py")]
    for file in (package / "coco.py", package.parent / "boxes.py", *ground):
        file.write_text("x = 1")
        states.append(module._code_state())
    (package / "coco.py").write_text("x = 12")
    assert len({*states, module._code_state()}) == 7


def test_size_that_comes_from_elsewhere_is_not_kept(tmp_path: Path, parsed: list[str]) -> None:
    cache = tmp_path / "cache"
    folder = voc(tmp_path / "voc")
    (folder / "Annotations/0.xml").write_text(OBJECT.format(0, "cat", 30))
    for _ in range(2):
        assert read_voc(folder, cache=cache)[0].width == 30
    assert len(parsed) == 2 and not (tmp_path / "cache").exists()


def flipped(content: bytes, place: int, bit: int = 0) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def test_damage_is_ignored_and_replaced(tmp_path: Path, parsed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    cache = tmp_path / "cache"
    path = coco(tmp_path)
    plain = content(read_coco(path, cache=cache))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        members = [whole.index(archive.read(info)) + place for info in archive.infolist() for place in (9, 100, 130)]
    damaged = [b"", whole[:30], whole[:-1], whole[: len(whole) // 2], *(flipped(whole, place) for place in members)]
    with caplog.at_level(logging.INFO, logger="openworld.data"):
        for number, data in enumerate(damaged, start=2):
            file.write_bytes(data)
            assert content(read_coco(path, cache=cache)) == plain
            assert len(parsed) == number and "is damaged" in caplog.text
            caplog.clear()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 200).tolist():  # also where nobody looks, as at the dates of an archive
        file.write_bytes(flipped(whole, place, int(rng.integers(8))))
        assert content(read_coco(path, cache=cache)) == plain


def test_folder_that_cannot_be_written(tmp_path: Path, parsed: list[str]) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    cache = tmp_path / "cache" / "below"
    for _ in range(2):
        assert len(read_coco(coco(tmp_path), cache=cache)) == 2
    assert len(parsed) == 2


def test_file_in_flux_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = voc(tmp_path / "voc")
    files = dict.fromkeys([str(file) for file in sorted((folder / "Annotations").iterdir())], 1)
    first = state_of(files)
    assert first is not None and first == state_of(files) != state_of(dict.fromkeys(files, 2))
    assert state_of(dict(reversed(files.items()))) != first
    assert state_of({**files, "missing": 1}) is None
    monkeypatch.setattr(module, "SETTLED_S", 2.0)
    assert state_of(files) is None
    cache = tmp_path / "cache"
    read_voc(folder, cache=cache)
    assert not cache.exists()


def test_change_while_parsing_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cache = voc(tmp_path / "voc"), tmp_path / "cache"
    original = voc_module._parse

    def parse_and_change(*arguments: Any) -> Any:
        table = original(*arguments)
        (folder / "Annotations/0.xml").write_text(OBJECT.format(40, "cat", 39))
        return table

    monkeypatch.setattr(voc_module, "_parse", parse_and_change)
    read_voc(folder, cache=cache)
    assert not (tmp_path / "cache").exists()


def test_readers_at_the_same_time(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", coco(tmp_path)
    plain = content(read_coco(path))
    wrong: list[Any] = []

    def read() -> None:
        for _ in range(10):
            found = content(read_coco(path, cache=cache))
            wrong.extend([found] if found != plain else [])
            for file in (tmp_path / "cache").glob("*.npz"):
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
        read_dataset(SourceOptions(annotations=str(path)))
    assert len(parsed) == 1 and len(list((tmp_path / "xdg/openworld/annotations").iterdir())) == 1
    read_dataset(SourceOptions(annotations=str(path), cache=False))
    assert len(parsed) == 2
    monkeypatch.setenv("OPENWORLD_CACHE", "off")
    assert cache_folder() is None
    read_dataset(SourceOptions(annotations=str(path)))
    assert len(parsed) == 3
    monkeypatch.setenv("OPENWORLD_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("OPENWORLD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the specification: ignore what is not absolute
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/openworld/annotations"


def test_small_sets_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_IMAGES", 3)
    read_coco(coco(tmp_path), cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_records_share_the_arrays_of_the_data_set(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", coco(tmp_path)
    for _ in range(2):
        dataset = read_coco(path, cache=cache)
        assert all(np.shares_memory(record.boxes, dataset.boxes) for record in dataset)
