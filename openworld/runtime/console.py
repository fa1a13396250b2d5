"""Tables on the terminal that fit into eighty characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def narrow_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None, *, words: Sequence[str] = ()
) -> Table:
    """Make a table without vertical lines.

    Args:
        heads: of the columns; a line break keeps a column narrow.
        rows: cells as text, one per head.
        title: above the table.
        words: heads of the columns that hold words. These are flush left and may wrap; columns of numbers may not.
    """
    from rich import box
    from rich.table import Table

    gap = 1 if len(heads) < 10 else 0
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False)
    for head in heads:
        is_words = head in words
        table.add_column(head, justify="left" if is_words else "right", no_wrap=not is_words, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
