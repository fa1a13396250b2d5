"""Outputs are tried before any work: what cannot be written is an error, and the check changes nothing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from openworld.errors import ConfigError, file_problem
from openworld.runtime import outputs
from openworld.runtime.outputs import output_file, output_folder


def content(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["", "new", "new/below/that", "there", "link"])
def test_a_folder_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    before = content(tmp_path)
    assert output_folder(f"{tmp_path}/{name}") == tmp_path / name
    if name:
        assert output_folder(name) == Path(name)
    assert content(tmp_path) == before


def test_a_folder_without_a_name_is_not_the_current_one() -> None:
    """As in --output $FOLDER, where the variable is not set."""
    with pytest.raises(ConfigError, match="no folder is named"):
        output_folder("")


@pytest.mark.parametrize(
    ("name", "named", "number"),
    [
        ("file", "file", errno.ENOTDIR),
        ("file/below/that", "file", errno.ENOTDIR),
        ("lost", "lost", errno.ENOENT),
        ("lost/below", "lost", errno.ENOENT),
        ("circle/below", "circle/below", errno.ELOOP),
        ("x" * 300, "x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_what_is_in_the_way_of_a_folder_is_named(tmp_path: Path, name: str, named: str, number: int) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OSError) as error:
        output_folder(str(tmp_path / name))
    assert (error.value.errno, error.value.filename) == (number, str(tmp_path / named))
    said = str(file_problem(error.value)).splitlines()
    assert len(said) == 2 and said[0].startswith(f"{tmp_path / named}: ") and said[1].startswith("What to do: ")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Root may write anywhere, so the refusal is made up; a full disk lets files be made, and refuses their content."""

    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number), "/tmp/of/another/name")

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    for check, path in ((output_folder, tmp_path / "new"), (output_file, tmp_path / "new" / "x.json")):
        with pytest.raises(OSError) as error:
            check(str(path))
        assert error.value.errno == number and error.value.filename in (str(path), str(path.parent))


def test_a_file_that_can_be_written_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")
    (tmp_path / "link").symlink_to("later.json")
    for name in ("old.json", "new.json", "new/below.json", "link", "name\nof two lines"):
        assert output_file(str(tmp_path / name)) == tmp_path / name
    assert (tmp_path / "old.json").read_text() == "old"
    assert content(tmp_path) == ["link", "old.json"]
    assert output_file("/dev/null") == Path("/dev/null")


def test_a_pipe_is_an_output_and_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert output_file(str(tmp_path / "pipe")) == tmp_path / "pipe"  # would wait for a reader


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "'' is not a file"),
        ("-", "'-' is not a file"),
        ("folder", "folder of this name"),
        ("x.json/", "of a folder"),
    ],
)
def test_what_is_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=problem):
        output_file(name)
    assert content(tmp_path) == ["folder"]


def test_a_whole_disk_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").write_text("")
    monkeypatch.setattr(stat, "S_ISREG", lambda _: False)
    with pytest.raises(OSError, match="neither a file nor a pipe"):
        output_file(str(tmp_path / "disk"))
