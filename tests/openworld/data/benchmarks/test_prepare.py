"""What is missing is named with its archive; downloads go on where they broke off, and end with a checksum."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torchvision.datasets.voc import DATASET_YEAR_DICT

from openworld.cli import main
from openworld.data.benchmarks import download
from openworld.data.benchmarks.archives import ARCHIVES, Archive, missing_archives
from openworld.data.benchmarks.download import download_parts, fetch
from openworld.data.benchmarks.lists import read_list
from openworld.data.benchmarks.prepare import check_parts, needed_ids, print_parts, write_lists
from openworld.errors import AnnotationError, ConfigError, DataError, EnvironmentProblem


def quiet() -> Console:
    return Console(quiet=True)


def test_the_addresses_of_voc_are_those_of_torchvision() -> None:
    for key in ("2007", "2007-test", "2012"):
        known = DATASET_YEAR_DICT[key]
        archive = ARCHIVES[known["filename"]]
        assert archive.md5 == known["md5"]
        assert archive.url.split("/pascal/VOC")[1] == known["url"].split("/pascal/VOC")[1]


def test_real_needs() -> None:
    from openworld.data.options import BenchmarkOptions

    assert len(needed_ids(BenchmarkOptions(name="m_owodb"))) == 16_551 + 98_459 + 9_119
    assert len(needed_ids(BenchmarkOptions(name="m_owodb"), 1)) == 16_551 + 9_119
    assert len(needed_ids(BenchmarkOptions(name="voc_19_1"))) == 5_011 + 4_952


def test_a_complete_benchmark(tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parts = check_parts(tiny.options())
    assert not missing_archives(parts)
    counts = {(part.source, part.what, part.archive.file): part.needed for part in parts}
    assert counts == {
        ("voc2007", "annotations", "VOCtrainval_06-Nov-2007.tar"): 2,
        ("voc2007", "annotations", "VOCtest_06-Nov-2007.tar"): 1,
        ("voc2007", "images", "VOCtrainval_06-Nov-2007.tar"): 2,
        ("voc2007", "images", "VOCtest_06-Nov-2007.tar"): 1,
        ("voc2012", "annotations", "VOCtrainval_11-May-2012.tar"): 1,
        ("voc2012", "images", "VOCtrainval_11-May-2012.tar"): 1,
        ("train2017", "annotations", "annotations_trainval2017.zip"): 3,
        ("train2017", "images", "train2017.zip"): 3,
        ("val2017", "annotations", "annotations_trainval2017.zip"): 2,
        ("val2017", "images", "val2017.zip"): 2,
    }
    main(["data", "prepare", "--benchmark", "m_owodb", "--root", str(tiny.root)])
    assert "m_owodb is complete" in capsys.readouterr().out


def test_what_is_missing_and_where_it_belongs(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.root / "coco" / "train2017" / "000000000030.jpg").unlink()
    (tiny.root / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(
            ["data", "prepare", "--benchmark", "m_owodb", "--root", str(tiny.root), "--lists", str(tmp_path / "lists")]
        )
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    out = " ".join(shown.out.split())
    assert f"1 of 3 images in {tiny.root}/coco/train2017: 000000000030" in out
    assert "get http://images.cocodataset.org/zips/train2017.zip" in out
    assert f"and unpack it in {tiny.root}/coco" in out
    assert f"1 of 1 annotations in {tiny.root}/VOCdevkit/VOC2007/Annotations: 000001" in out
    assert "val2017.zip" not in out and "2 archives are missing" in shown.err
    assert (tmp_path / "lists" / "t2_ft.txt").read_text() == "000000000009\n000002\n"


def test_nothing_is_there(tiny: Any) -> None:
    shutil.rmtree(tiny.root)
    parts = check_parts(tiny.options())
    assert all(len(part.missing) == part.needed for part in parts)
    assert len(missing_archives(parts)) == 6


def test_a_coco_file_that_cannot_be_read(tiny: Any) -> None:
    file = tiny.root / "coco" / "annotations" / "instances_val2017.json"
    for content in ("{", "[]", '{"images": [{}]}'):
        file.write_text(content)
        with pytest.raises(AnnotationError, match=r"instances_val2017\.json"):
            check_parts(tiny.options())


def test_which_benchmark(tmp_path: Path) -> None:
    for arguments in ([], ["--benchmark", "m_owodb", "--config", "x.yaml"], ["--benchmark", "m_owdb"]):
        with pytest.raises(SystemExit) as stopped:
            main(["data", "prepare", *arguments])
        assert stopped.value.code == 2


def test_lists_as_text_files(tmp_path: Path) -> None:
    files = {file.stem: file for file in write_lists("m_owodb", tmp_path)}
    assert files["all_task_test"].read_text().split() == read_list("m_owodb", "all_task_test")
    assert len(files["all_task_test_unique"].read_text().split()) == 9_119


# -- downloads ---------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves files with ranges, and breaks the first ``faults`` answers off in the middle."""

    def do_GET(self) -> None:
        server: Any = self.server
        content = server.files[self.path.strip("/")]
        wanted = self.headers.get("Range") if server.ranges else None
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        server.asked.append((self.path.strip("/"), start))
        if start >= len(content) > 0:
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if server.faults > 0:
            server.faults -= 1
            end = start + (len(content) - start) // 2
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.faults, server.ranges = {}, [], 0, True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def offered(server: Any, name: str, content: bytes) -> Archive:
    server.files[name] = content
    address = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    return Archive(name, address, hashlib.md5(content).hexdigest(), len(content))


def test_a_download_goes_on_where_it_broke_off(server: Any, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    archive = offered(server, "one.zip", content)
    server.faults = 1
    with pytest.raises(EnvironmentProblem, match=f"broke off after 640,000 of {len(content):,} bytes"):
        fetch(archive, tmp_path, quiet())
    assert (tmp_path / "one.zip.part").stat().st_size == len(content) // 2 and not (tmp_path / "one.zip").exists()
    path = fetch(archive, tmp_path, quiet())
    assert path.read_bytes() == content and not (tmp_path / "one.zip.part").exists()
    assert server.asked == [("one.zip", 0), ("one.zip", len(content) // 2)]
    fetch(archive, tmp_path, quiet())  # it is there, and right
    assert len(server.asked) == 2


def test_a_server_without_ranges_sends_all_again(server: Any, tmp_path: Path) -> None:
    content = b"abcdefgh" * 1000
    archive = offered(server, "one.zip", content)
    server.ranges = False
    (tmp_path / "one.zip.part").write_bytes(b"something")
    assert fetch(archive, tmp_path, quiet()).read_bytes() == content


def test_a_part_that_is_whole_already(server: Any, tmp_path: Path) -> None:
    content = b"abcdefgh" * 1000
    archive = offered(server, "one.zip", content)
    (tmp_path / "one.zip.part").write_bytes(content)
    assert fetch(archive, tmp_path, quiet()).read_bytes() == content


def test_another_checksum(server: Any, tmp_path: Path) -> None:
    archive = offered(server, "one.zip", b"right")
    server.files["one.zip"] = b"wrong"
    with pytest.raises(DataError, match="not " + archive.md5):
        fetch(archive, tmp_path, quiet())
    assert not list(tmp_path.iterdir())


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="broke off after 0 of 5 bytes"):
        fetch(Archive("one.zip", (tmp_path / "absent").as_uri(), "0" * 32, 5), tmp_path, quiet())


def test_from_nothing_to_a_complete_benchmark(
    tiny: Any, server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    contents = {
        "VOCtrainval_06-Nov-2007.tar": ["VOCdevkit/VOC2007/*/00000[23].*"],
        "VOCtest_06-Nov-2007.tar": ["VOCdevkit/VOC2007/*/000001.*"],
        "VOCtrainval_11-May-2012.tar": ["VOCdevkit/VOC2012/*/*"],
        "train2017.zip": ["coco/train2017/*"],
        "val2017.zip": ["coco/val2017/*"],
        "annotations_trainval2017.zip": ["coco/annotations/*"],
    }
    for name, patterns in contents.items():
        files = [file for pattern in patterns for file in tiny.root.glob(pattern)]
        assert files
        if name.endswith(".tar"):
            with tarfile.open(made / name, "w") as tar:
                for file in files:
                    tar.add(file, str(file.relative_to(tiny.root)))
        else:
            with zipfile.ZipFile(made / name, "w") as archive:
                for file in files:
                    archive.write(file, str(file.relative_to(tiny.root / "coco")))
        monkeypatch.setitem(ARCHIVES, name, offered(server, name, (made / name).read_bytes()))
    shutil.rmtree(tiny.root)
    arguments = ["data", "prepare", "--benchmark", "m_owodb", "--root", str(tiny.root), "--download"]
    server.faults = 1
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert (
        stopped.value.code == EnvironmentProblem.exit_code and "give the same command again" in capsys.readouterr().err
    )
    main(arguments)
    assert "m_owodb is complete" in capsys.readouterr().out
    asked = len(server.asked)
    main(arguments)
    assert len(server.asked) == asked == 7
    # one image is lost: its archive is unpacked again, and not fetched again
    (tiny.root / "coco" / "val2017" / "000000000139.jpg").unlink()
    main(arguments)
    assert len(server.asked) == asked and (tiny.root / "coco" / "val2017" / "000000000139.jpg").is_file()


def test_no_room_and_folders_of_another_name(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny.root / "VOCdevkit" / "VOC2007" / "Annotations" / "000001.xml").unlink()
    parts = check_parts(tiny.options())
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10, 10))
    with pytest.raises(EnvironmentProblem, match="need about 1 GB"):
        download_parts(tiny.options(), parts, quiet())
    moved = tmp_path / "pascal"
    shutil.move(tiny.root / "VOCdevkit" / "VOC2007", moved)
    options = tiny.options(voc2007=str(moved))
    with pytest.raises(ConfigError, match="does not unpack to"):
        download_parts(options, check_parts(options), quiet())
    console = Console(record=True, width=200)
    print_parts(options, check_parts(options), console)
    assert f"move the content of its VOCdevkit/VOC2007 to {moved}" in " ".join(console.export_text().split())
