"""Tables on the terminal: every cell is there, numbers end at one place, nothing is wider than eighty characters."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from openworld.runtime.console import narrow_table


def shown(width: int, *arguments: object, **named: object) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(narrow_table(*arguments, **named))  # type: ignore[arg-type]
    return [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]


def test_words_stand_left_and_numbers_right() -> None:
    title, heads, rule, first, second = shown(
        80, ("Set", "Images", "mAP"), [("train", "5", "12.5"), ("a", "12345", "–")], "Two sets", words=["Set"]
    )
    assert title.strip() == "Two sets"
    assert heads.index("Set") == first.index("train") == second.index("a")
    ends = [line.index(text) + len(text) for line, text in ((heads, "Images"), (first, "5"), (second, "12345"))]
    assert len(set(ends)) == 1
    assert len({len(heads), len(first), len(second)}) == 1  # the last column ends at one place too
    assert set(rule.strip()) == {"─"}


@pytest.mark.parametrize("columns", [3, 9, 10, 14])
def test_numbers_are_never_cut_or_wrapped(columns: int) -> None:
    """Fourteen columns of five characters take eighty characters only without gaps."""
    heads = ["Class"] + [f"m{number:03d}" for number in range(columns - 1)]
    row = ["ball"] + [f"{number:02d}.5" for number in range(columns - 1)]
    lines = shown(80, heads, [row], words=["Class"])
    assert max(map(len, lines)) <= 80
    (found,) = [line for line in lines if "ball" in line]
    assert all(cell in found for cell in row)


def test_long_words_wrap_and_leave_the_numbers_whole() -> None:
    name = "a very long name of a protocol that nobody can shorten"
    lines = shown(40, ("Protocol", "wi", "a_ose"), [(name, "0.0512", "12345")], words=["Protocol"])
    assert max(map(len, lines)) <= 40
    body = lines[2:]
    assert len(body) > 1 and "0.0512" in body[0] and "12345" in body[0]
    assert " ".join(" ".join(body).replace("0.0512", "").replace("12345", "").split()) == name
