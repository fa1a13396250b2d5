"""The end of a run: results are on the disk before anything is printed, and one failure does not hide the rest."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from openworld.cli import main
from tests.e2e.conftest import openworld


@pytest.fixture
def finished(tiny_run: Path, tmp_path: Path) -> Path:
    """A run whose tasks are done and whose page is not there yet."""
    folder = tmp_path / "run [1] – 消"
    shutil.copytree(tiny_run, folder)
    (folder / "report.html").unlink()
    return folder


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp437", "cp932", "cp1252"])
@pytest.mark.usefixtures("no_reports")
def test_the_table_is_printed_in_every_encoding(
    finished: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    main(["run", "--config", str(tiny_config), "--output", str(finished), "--resume"])
    stream.flush()
    out = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "U-Recall" in out and "report: " in out and "run [1]" in out
    assert ("消" in out) == (encoding == "cp932")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_page_is_there_if_nothing_can_be_printed(
    finished: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 - cannot be flushed, so cannot be closed
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(SystemExit) as end:
        main(["run", "--config", str(tiny_config), "--output", str(finished), "--resume"])
    assert end.value.code == 2 and (finished / "report.html").is_file()
    full.detach().detach()  # type: ignore[attr-defined]


def test_a_table_is_there_if_the_page_cannot_be_written(
    finished: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(finished / "report.html"))

    monkeypatch.setattr("openworld.report.build.build_report", full)
    ended = openworld("run", "--config", tiny_config, "--output", finished, "--resume", check=False)
    assert ended.returncode == 2 and "U-Recall" in ended.stdout
    assert f"error: {finished / 'report.html'}: No space left on device\nWhat to do: " in ended.stderr
