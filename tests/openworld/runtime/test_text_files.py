"""Text files with and without byte order marks: read alike by everything that reads lists and tables."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from openworld.runtime.text_files import NotText, decoded, read_text

ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("encoding", "mark"), ENCODINGS.items())
def test_what_editors_save_is_read(tmp_path: Path, encoding: str, mark: bytes, end: str) -> None:
    (tmp_path / "list.txt").write_bytes(mark + f"café{end}消防车{end}".encode(encoding))
    assert read_text(tmp_path / "list.txt") == "café\n消防车\n"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("a\r\nb\r\ncafé".encode("latin-1"), r"line 3 is not UTF-8 \(byte 0xe9\)"),
        (b"\xef\xbb\xbfa\n\x81", r"line 2 is not UTF-8 \(byte 0x81\)"),
        (b"\xff\xfea\0\n\0b", r"line 2 is not UTF-16 \(byte 0x62\)"),
        ("ab".encode("utf-16-le"), "looks like UTF-16 without a byte order mark"),
    ],
)
def test_other_encodings_are_not_guessed(data: bytes, problem: str) -> None:
    with pytest.raises(NotText, match=problem):
        decoded(data)
