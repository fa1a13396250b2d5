"""Locks: one holder at a time, and a warning where there are none."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from openworld.errors import ConfigError
from openworld.run.folder import locked
from openworld.runtime import lock
from openworld.runtime.lock import take_lock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "a+") as first, open(tmp_path / "lock", "a+") as second:
        assert take_lock(first)
        assert not take_lock(second)
    taken = pytest.raises(ConfigError, match=f"process {os.getpid()} works in this folder")
    with locked(tmp_path / "run"), taken, locked(tmp_path / "run"):
        pytest.fail("the folder was locked twice")
    with locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Lustre, NFS and EFS without locks."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        (message,) = caplog.messages
    assert os.strerror(number) in message and "no two runs" in message and str(tmp_path) in message


def test_a_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Windows has no module fcntl."""
    monkeypatch.setattr(lock, "fcntl", None)
    with locked(tmp_path):
        assert "this system has no file locks" in caplog.text


def test_a_disk_that_fails_is_not_a_missing_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="put/output error"), locked(tmp_path):
        pytest.fail("the folder counts as locked")
