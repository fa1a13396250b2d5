"""YAML as people write it: repeated keys, encodings, blanks, and names that YAML takes for something else."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from openworld.errors import ConfigError
from openworld.runtime.files import read_yaml
from openworld.runtime.yaml_text import Plain, YamlFault, parse

PLAIN = "train: {steps: 6}\nnames: [red, 'no']\n"
TREE = {"train": {"steps": 6}, "names": ["red", "no"]}


def fault(text: bytes | str, *, as_written: bool = False) -> YamlFault:
    with pytest.raises(YamlFault) as caught:
        parse(text, as_written=as_written)
    return caught.value


@pytest.mark.parametrize("as_written", [False, True])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: 1\nseed: 2\ntrain: 3", "line 3: the key 'train' is in line 1 already"),
        ("seed: 2\nseed: 2", "line 2: the key 'seed' is in line 1 already"),
        ("\"train\": 1\n'train': 2", "line 2: the key 'train' is in line 1 already"),
        ("train: 1\n'train': 2", "line 2: the key 'train' is in line 1 already"),
        ("a:\n  b:\n    c: 1\n    d: 2\n    c: 3", "line 5: the key 'c' is in line 3 already"),
        ("a:\n  - b: 1\n  - {c: 1, d: 2, c: 3}", "line 3: the key 'c' is in line 3 already"),
        ("0: cat\n'0': dog", "line 2: the key '0' is in line 1 already"),
        ("~: cat\n~: dog", "line 2: the key '~' is in line 1 already"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  d: 1\n  d: 2", "line 5: the key 'd' is in line 4 already"),
        ("a: 1\r\nb: 2\r\na: 3\r\n", "line 3: the key 'a' is in line 1 already"),
    ],
)
def test_a_key_twice_is_refused_with_both_lines(text: str, message: str, as_written: bool) -> None:
    assert fault(text, as_written=as_written).problem == message
    assert fault(text.encode(), as_written=as_written).problem == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yes: 1\ntrue: 2", "line 2: the key 'true' is in line 1 already as 'yes'"),
        ("16: 1\n0x10: 2", "line 2: the key '0x10' is in line 1 already as '16'"),
    ],
)
def test_two_spellings_of_one_value_are_one_key_where_values_count(text: str, message: str) -> None:
    assert fault(text).problem == message
    assert len(parse(text, as_written=True)) == 2


def test_anchors_and_merged_keys_stay() -> None:
    text = "base: &base {lr: 1, steps: 2}\nother: &other {lr: 5}\nmine:\n  <<: [*base, *other]\n  lr: 3\nagain: *base\n"
    content = parse(text)
    assert content["mine"] == {"lr": 3, "steps": 2} and content["again"] == {"lr": 1, "steps": 2}
    assert parse("a: {b: 1}\nc: {b: 1}") == {"a": {"b": 1}, "c": {"b": 1}}  # the same key in two mappings
    assert "inside of its own anchor" in fault("a: &a [1, *a]").problem
    assert parse("a: =\nb: [<<]") == {"a": "=", "b": ["<<"]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_encodings_with_a_mark(encoding: str, ending: str) -> None:
    text = "name: für 車 🚗\nseed: 1\n".replace("\n", ending)
    assert parse(text.encode(encoding)) == {"name": "für 車 🚗", "seed": 1}


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_of_both_orders(order: str) -> None:
    assert parse("\ufeffname: ü".encode(f"utf-16-{order}")) == {"name": "ü"}
    assert "looks like UTF-16 without a byte order mark" in fault(f"name: {order}".encode(f"utf-16-{order}")).problem


def test_other_encodings_name_the_line() -> None:
    wrong = fault("seed: 1\r\nname: für\r\n".encode("latin-1"))
    assert (wrong.problem, wrong.remedy) == ("line 2 is not UTF-8 (byte 0xfc)", "save the file as UTF-8")
    assert fault("name: 車".encode("shift-jis")).problem.startswith("line 1 is not UTF-8")
    assert fault("a: 1\nb: é".encode("utf-16")[:-1]).problem.startswith("line 2 is not UTF-16")


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("a:\n\tb: 1", "line 2 is indented with a tab", "indent with blanks"),
        ("a:\n  b: 1\n \tc: 2", "line 3 is indented with a tab", "indent with blanks"),
        ("a: 1\n---\nb: 2", "line 2 (---) starts another document", "keep one"),
        ("seed:3", "line 1 (seed:3) has no blank after the colon", "write `seed: …`"),
        ("# head\nseed:\u00a03", "line 2 has the blank U+00A0", "ordinary"),
        ("seed:1\nname: x", "line 1 (seed:1) has no blank after the colon", "write `seed: …`"),
        ("name: x\nseed:1", "line 2 (seed:1) has no blank after the colon", "write `seed: …`"),
        ("seed:\u00a01\nname: x", "line 1 has the blank U+00A0", "ordinary"),
        ("train:\n  lr: 1\n\u00a0\u00a0steps: 2", "line 3", "ordinary"),
        ("name: \u00a0red", "line 1: '\\xa0red' starts or ends with a blank", "quotes"),
        ("\u200bname: red", "line 1: '\\u200bname' starts or ends with a blank", "quotes"),
        ("names: [red\u3000, blue]", "line 1: 'red\\u3000' starts or ends with a blank", "quotes"),
        ('path: "C:\\sets"', "line 1: found unknown escape character 's'", "use single quotes"),
        ("a: 1\nb: \x07", "line 2 has the control character '\\x07'", "remove it"),
        ("a: 1\n? [b]\n: 2", "line 2: a key is a list or a mapping", "texts"),
        ("a: [1, 2\nb: 3", "line 2 (b: 3) cannot be read as YAML: while parsing a flow sequence: ", None),
        ("a: !thing 1", "line 1 (a: !thing 1) cannot be read as YAML: could not determine a constructor", None),
        ("a: 2020-13-45", "line 1 (a: 2020-13-45) cannot be read as YAML: '2020-13-45': month", None),
    ],
)
def test_texts_that_cannot_be_read(text: str, problem: str, remedy: str | None) -> None:
    found = fault(text)
    assert found.problem.startswith(problem) and "\n" not in found.problem
    assert found.remedy is None if remedy is None else remedy in str(found.remedy)


def test_nested_too_deep() -> None:
    assert fault("[" * 1000).problem == "is nested too deep"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", False),
        ("On", True),
        ("7", 7),
        ("007", 7),
        ("010", 8),
        ("0x10", 16),
        ("1_000", 1000),
        ("1.50", 1.5),
        ("1:30", 90),
        ("2020-01-01", datetime.date(2020, 1, 1)),
        ("123456789012345678901234567890", 123456789012345678901234567890),
    ],
)
def test_as_written_keeps_text_and_value(text: str, value: Any) -> None:
    content = parse(f"a: [{text}, '{text}']\n{text}: 1", as_written=True)
    plain, quoted = content["a"]
    assert isinstance(plain, Plain) and plain == text and plain.value == value and repr(plain) == text
    assert type(quoted) is str and quoted == text and text in content
    assert parse(f"[{text}]") == [value]


def test_as_written_leaves_texts_nothing_and_collections_alone() -> None:
    content = parse("a: red\nb: null\nc: ~\nd:\ne: []\nf: 1e3\ng: 2020-13-45", as_written=True)
    assert content == {"a": "red", "b": None, "c": None, "d": None, "e": [], "f": "1e3", "g": "2020-13-45"}
    assert [type(value) for value in content.values() if isinstance(value, str)] == [str, str, str]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(PLAIN)
    assert read_yaml(path, remedy="help") == TREE
    path.write_text("\ufeff# nothing\n")
    assert read_yaml(path, remedy="help") == {}

    def failed(file: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            read_yaml(file, remedy="help")
        return str(caught.value)

    path.write_text("- a")
    assert failed(path) == f"{path}: holds a list, not a mapping\nWhat to do: help"
    path.write_text("a: [")
    assert failed(path).startswith(f"{path}: line 1 (a: [) cannot") and failed(path).endswith("\nWhat to do: help")
    path.write_text("a: 1\na: 2")
    assert failed(path) == f"{path}: line 2: the key 'a' is in line 1 already\nWhat to do: keep one of the two"
    assert failed(tmp_path) == f"{tmp_path}: is a folder\nWhat to do: give a file in it; help"
    assert failed(tmp_path / "b.yaml").endswith("b.yaml: there is no such file\nWhat to do: help")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert failed(path) == f"{path}: cannot be read (Permission denied)\nWhat to do: make the file readable"
