"""Files that are whole or absent, and that keep what stands at their path: links, devices, pipes, modes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from openworld.runtime import files
from openworld.runtime.files import sync_folder, write_atomic, write_json


@pytest.fixture
def umask() -> Iterator[None]:
    """Restores the umask."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: None, mask: int, expected: int) -> None:
    os.umask(mask)
    write_atomic(tmp_path / "new" / "file.txt", "text")
    assert mode(tmp_path / "new" / "file.txt") == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.txt"]


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o755, 0o444])
def test_a_file_keeps_its_mode(tmp_path: Path, kept: int) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(kept)
    write_atomic(tmp_path / "file", b"new")
    assert (mode(tmp_path / "file"), (tmp_path / "file").read_bytes()) == (kept, b"new")


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root gives files away")
def test_a_file_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    os.chown(tmp_path / "file", 1234, 5678)
    write_atomic(tmp_path / "file", "new")
    there = (tmp_path / "file").stat()
    assert (there.st_uid, there.st_gid) == (1234, 5678)


def test_a_folder_hands_its_group_on(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)  # setgid
    os.chown(tmp_path, -1, 5678) if os.getuid() == 0 else None
    write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_gid == tmp_path.stat().st_gid


def test_the_file_behind_links_gets_the_content(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    behind = tmp_path / "far" / "shared.yaml"
    behind.write_text("old")
    (tmp_path / "near").symlink_to("far/shared.yaml")
    (tmp_path / "link").symlink_to("near")
    (tmp_path / "folder").symlink_to("far")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "near").is_symlink()
    assert behind.read_text() == "new"
    write_atomic(tmp_path / "folder" / "shared.yaml", "newer")
    assert (tmp_path / "folder").is_symlink() and behind.read_text() == "newer"


def test_a_link_to_nothing_yet_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("later.txt")
    write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "later.txt").read_text() == "new"
    (tmp_path / "lost").symlink_to("no folder/later.txt")
    with pytest.raises(FileNotFoundError) as error:
        write_atomic(tmp_path / "lost", "new")
    assert error.value.filename == str(tmp_path / "lost") and (tmp_path / "lost").is_symlink()


def test_links_in_a_circle_are_an_error_and_stay(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links") as error:
        write_atomic(tmp_path / "a", "new")
    assert error.value.errno == errno.ELOOP and (tmp_path / "a").is_symlink() and (tmp_path / "b").is_symlink()


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="device nodes are made by root")
def test_a_device_stays_a_device(tmp_path: Path) -> None:
    """A private node of the numbers of /dev/null; what is written vanishes."""
    try:
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        with open(tmp_path / "null", "wb"):
            pass
    except OSError:
        pytest.skip("this system makes no device nodes")
    (tmp_path / "link").symlink_to("null")
    write_atomic(tmp_path / "null", "gone")
    write_json(tmp_path / "link", {"gone": True})
    there = (tmp_path / "null").lstat()
    assert stat.S_ISCHR(there.st_mode) and there.st_rdev == os.makedev(1, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"null", "link"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomic(tmp_path / "pipe", b"through")
    reader.join(10)
    assert got == [b"through"] and stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


@pytest.mark.parametrize("piped", [True, False])
@pytest.mark.skipif(not Path("/proc/self/fd/1").exists(), reason="no /proc")
def test_standard_output_is_written_behind_what_was_printed(tmp_path: Path, piped: bool) -> None:
    """A private link like /dev/stdout, for a fault would replace the real one."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    code = (
        "from pathlib import Path; from openworld.runtime.files import write_atomic; print('before'); "
        f"write_atomic(Path({str(tmp_path / 'stdout')!r}), 'content\\n'); print('after')"
    )
    with open(tmp_path / "out.txt", "wb") as out:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE if piped else out, check=True)
    written = done.stdout if piped else (tmp_path / "out.txt").read_bytes()
    assert written.split() == [b"before", b"content", b"after"]
    assert (tmp_path / "stdout").readlink() == Path("/proc/self/fd/1")


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_atomic(tmp_path / "folder", "new")
    assert error.value.filename == str(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EACCES, errno.EROFS, errno.EXDEV])
def test_a_file_that_can_be_written_and_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As a single file that is mounted into a container: rename says EBUSY."""
    (tmp_path / "file").write_text("the old content is longer")
    inode = (tmp_path / "file").stat().st_ino

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new" and (tmp_path / "file").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(OSError):
        write_atomic(tmp_path / "other", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("number", "lost"),
    [
        *((number, False) for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EPERM)),
        *((number, True) for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT)),
    ],
)
@pytest.mark.parametrize("of_folders", [True, False])
def test_flushing_is_left_out_where_it_cannot_be_and_lost_data_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, lost: bool, of_folders: bool
) -> None:
    """fsync of folders fails on shared folders, that of files on some network file systems."""

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if lost:
        with pytest.raises(OSError, match="file") as error:
            write_atomic(tmp_path / "file", "new")
        assert (error.value.errno, error.value.filename) == (number, str(tmp_path / "file"))
    else:
        write_atomic(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "new"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_cannot_be_opened_is_not_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every folder on Windows."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    sync_folder(tmp_path)


def test_the_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "below.json", tmp_path / ("x" * 300)):
        with pytest.raises(OSError) as error:
            write_atomic(path, "new")
        assert error.value.filename == str(path) and error.value.filename2 is None


def test_the_longest_names_are_written(tmp_path: Path) -> None:
    """255 bytes, so that no temporary name can hold the name."""
    for name in ("x" * 255, "好" * 85, "line\nbreak", "[bold] {{ x }} $1", " "):
        write_atomic(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"


def test_what_is_not_unicode_in_a_text_is_escaped(tmp_path: Path) -> None:
    """A lone surrogate, as in the name of a file whose bytes are no UTF-8."""
    write_atomic(tmp_path / "page.html", "é \udcff")
    assert (tmp_path / "page.html").read_bytes() == "é \\udcff".encode()


def test_a_killed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_flush", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
