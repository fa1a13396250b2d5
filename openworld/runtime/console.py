"""The terminal: text of any kind on any encoding, as it is written, and tables that fit into eighty characters.

Text from outside (names of classes and files, messages) is printed as it is: it is never read as markup, as a code of
an emoji or as a control sequence. Characters that the terminal's encoding lacks are replaced: those of this project by
the nearest ASCII (``–`` by ``-``, ``█`` by ``#``), all others by their escape (``\\u6d88``). Nothing that is printed
can end a run.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

ASCII = {
    **dict.fromkeys("─━╸╺╴╶", "-"),
    **dict.fromkeys("█▉▊▋▌", "#"),
    **dict.fromkeys("▍▎▏", "."),
    **dict.fromkeys("–−", "-"),
    "—": "--",
    "…": "...",
    "→": "->",
    "◂": "<",
    "▼": "v",
    "▲": "^",
    "·": "*",
    "×": "x",
    "±": "+-",
    "√": "sqrt ",
    "≤": "<=",
    "≥": ">=",
    "\u00a0": " ",
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
}
"""Characters that this project prints, and what stands for them where an encoding lacks them."""

ERRORS = "openworld.ascii"
"""Name of the error handler of encodings that replaces by :data:`ASCII`, and by escapes."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    escaped = (ASCII.get(each) or each.encode("ascii", "backslashreplace").decode("ascii") for each in text)
    return "".join(escaped), error.end


codecs.register_error(ERRORS, _replace)


def printable(text: str, encoding: str) -> str:
    """Return text without control characters, in characters that an encoding has. Line breaks and tabs stay."""
    plain = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return plain.encode(encoding, ERRORS).decode(encoding)


@contextmanager
def printable_streams() -> Iterator[None]:
    """Let stdout and stderr replace what their encoding lacks, in place of raising UnicodeEncodeError.

    For the command line: a program that calls the library keeps its streams as they are. An error handler that the
    user chose, such as ``PYTHONIOENCODING=ascii:replace``, stays.
    """
    with ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors in (
                "strict",
                "backslashreplace",
                "surrogateescape",
            ):
                stack.callback(_set_errors, stream, stream.errors)
                stream.reconfigure(errors=ERRORS)
        yield


def _set_errors(stream: io.TextIOWrapper, errors: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it any more, the disk is full, or it is closed
        stream.reconfigure(errors=errors)


def open_console(**settings: Any) -> Console:
    """Open a console that prints text as it is: neither markup nor emoji codes in it mean anything.

    Args:
        settings: of rich's ``Console``.
    """
    from rich.console import Console

    return Console(markup=False, emoji=False, **settings)


def as_text(text: str, console: Console, style: str = "") -> Text:
    """Make text that any console prints as it is, whether it reads markup or not, in characters that it has."""
    from rich.text import Text

    return Text(printable(text, console.encoding), style)


def narrow_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, *, words: Sequence[str] = ()
) -> NarrowTable:
    """Make a table without vertical lines.

    Args:
        heads: of the columns; a line break keeps a column narrow.
        rows: cells as text, one per head; printed as they are.
        title: above the table.
        words: heads of the columns that hold words. These are flush left and may wrap; columns of numbers may not.
    """
    return NarrowTable(tuple(heads), [tuple(row) for row in rows], title, frozenset(words))


@dataclass(frozen=True)
class NarrowTable:
    """A table, laid out when the console is known: what stands for a character may be wider."""

    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    title: str | None
    words: frozenset[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box
        from rich.table import Table

        gap = 1 if len(self.heads) < 10 else 0
        table = Table(
            title=None if self.title is None else as_text(self.title, console, "table.title"),
            title_justify="left",
            box=box.Box(printable(str(box.SIMPLE_HEAD), console.encoding), ascii=True),
            padding=(0, gap, 0, 0),
            pad_edge=False,
        )
        for head in self.heads:
            is_words = head in self.words
            justify: Literal["left", "right"] = "left" if is_words else "right"
            table.add_column(as_text(head, console), justify=justify, no_wrap=not is_words, overflow="fold")
        for row in self.rows:
            table.add_row(*(as_text(cell, console) for cell in row))
        yield table
