"""Text files that people and their tools write: in UTF-8, or in the encoding that a byte order mark names.

Editors of Windows save UTF-16 with a mark, and put a mark in front of UTF-8. Another encoding is refused, and not
guessed: a wrong guess is a wrong name.
"""

from __future__ import annotations

import codecs
from pathlib import Path

MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks, and the encodings that they name."""


class NotText(ValueError):
    """Why bytes are not text, as a phrase that follows the name of the file."""


def read_text(path: Path) -> str:
    """Read a text file, without its byte order mark and with ``\\n`` at the end of each line.

    Raises:
        OSError: the file cannot be read.
        NotText: it is in another encoding.
    """
    return decoded(path.read_bytes())


def decoded(data: bytes) -> str:
    """Decode the content of a text file as :func:`read_text` does.

    Raises:
        NotText: it is in another encoding; the message names the first line that shows it.
    """
    mark, encoding = next(((mark, name) for mark, name in MARKS if data.startswith(mark)), (b"", "utf-8"))
    if not mark and b"\0" in data[:4]:
        raise NotText("is not UTF-8 (it looks like UTF-16 without a byte order mark)")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding)
        line, byte = _plain_ends(before).count("\n") + 1, error.object[error.start]
        name = encoding[:-3] if mark and encoding != "utf-8" else "utf-8"
        raise NotText(f"line {line} is not {name.upper()} (byte 0x{byte:02x})") from None
    return _plain_ends(text)


def _plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
