"""Tables on the terminal: every cell is there, numbers end at one place, nothing is wider than eighty characters."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

import openworld
import ssl_backbones
from openworld.runtime.console import ASCII, as_text, narrow_table, open_console, printable, printable_streams
from openworld.runtime.runlog import progress_bar


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


NAMES = ("[bold]x", "[/x]", ":smile:", "\\[x]", "消防车", "a – b …")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp932", "latin-1"])
def test_a_console_of_any_kind_prints_names_as_they_are(encoding: str) -> None:
    """A console of the caller's reads markup, and its file raises what it cannot encode."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    console = Console(file=file, width=80)
    console.print(narrow_table(("[b]The name",), [(name,) for name in NAMES], "[b]:fire:", words=["[b]The name"]))
    for name in NAMES:
        console.print(as_text(name, console, "bold"))
    file.flush()
    out = file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    title, head, *lines = [line.strip() for line in out.splitlines() if line.strip()]
    assert (title, head) == ("[b]:fire:", "[b]The name") and set(lines.pop(0)) in ({"─"}, {"-"})
    expected = [printable(name, encoding) for name in NAMES]
    assert lines == expected * 2
    assert expected[:4] == list(NAMES[:4])
    assert (
        expected[4:]
        == {
            "utf-8": ["消防车", "a – b …"],
            "ascii": [r"\u6d88\u9632\u8f66", "a - b ..."],
            "cp932": ["消防車".replace("車", r"\u8f66"), "a - b …"],
            "latin-1": [r"\u6d88\u9632\u8f66", "a - b ..."],
        }[encoding]
    )


def test_our_console_reads_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        open_console().print(name)
    assert capsys.readouterr().out.splitlines() == list(NAMES)


def test_a_progress_bar_reads_no_markup() -> None:
    stream = io.StringIO()
    with progress_bar("[/x] :smile:", 1, console=Console(file=stream, width=80)) as bar:
        bar.advance(**{"[bold]loss": 1.0})
    assert "[/x] :smile:" in stream.getvalue() and "[bold]loss 1.000" in stream.getvalue()


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[31m\x07\rb\x9b\tc\nd", "utf-8") == r"a\x1b[31m\x07\x0db\x9b" + "\tc\nd"


def test_every_character_that_we_print_has_one_of_ascii() -> None:
    """In the strings of all modules, without docstrings."""
    found = set()
    for package in (openworld, ssl_backbones):
        for path in Path(package.__path__[0]).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
            strings = [node.value for node in constants if isinstance(node.value, str)]
            found |= {each for text in strings for each in text if not each.isascii()}
    tokenizer = set("¡¬®ÿ")  # letters that stand for bytes
    looked_for = set("\ufeff\ufffd\u200b\u200c\u200d\u2060\u2010\u2011\u2012\u2015")  # in what users write
    assert found - set(ASCII) - tokenizer - looked_for == set()
    assert all(text.isascii() for text in ASCII.values())


def test_streams_are_the_callers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is changed by an import, and nothing stays after the command, even if the stream is closed by then."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors) for errors in ("strict", "ignore"))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with pytest.raises(UnicodeEncodeError):
        print("–", flush=True)
    with printable_streams():
        print("– 消", flush=True)
        print("– 消", file=sys.stderr, flush=True)
    assert (out.errors, err.errors) == ("strict", "ignore")
    assert out.buffer.getvalue() == b"- \\u6d88\n" and err.buffer.getvalue() == b" \n"  # type: ignore[attr-defined]
    with printable_streams():
        out.close()
    monkeypatch.setattr(sys, "stdout", None)  # a program without a terminal
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with printable_streams():
        open_console().print("–")
