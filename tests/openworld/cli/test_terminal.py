"""What the command line prints: any text, as it is written, in any encoding; and errors of the system in two lines."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from openworld.cli import PrintableFormatter, main
from openworld.cli import runs as runs_verbs
from openworld.runtime import outputs

ODD = (
    "valve [open]",
    "valve [shut]",
    "[/open]",
    "[bold]x",
    ":smile:",
    "$x_1$",
    "a_b^c",
    "<b>x</b>",
    "{{ x }}",
    "&amp;",
    "\\textbf{x}",
    "|x|",
    "_x",
    "#ffffff",
    'id="x"',
)
"""Names that some reader of markup takes for something else: rich, emoji codes, TeX, HTML, jinja, Markdown, SVG."""

FOREIGN = ("消防车", "🚒 – …", "Übergröße", "клапан", "\x1b[31mred")
"""Names that an encoding lacks; the last one would colour the terminal."""

ENCODINGS = ("cp1252", "latin-1", "ascii", "cp437", "cp850", "cp932", "cp1251", "gbk", "koi8-r", "cp037", "utf-16")


def coco(folder: Path, names: tuple[str, ...]) -> Path:
    """Write one image and one object per class, in a grid."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, _ in enumerate(names, start=1):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"images/{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        box = {"bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": number, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "data.json").write_text(json.dumps(content))
    return folder / "data.json"


def printed(monkeypatch: pytest.MonkeyPatch, encoding: str, *words: object) -> tuple[int, str, str]:
    """Call the command line with streams of an encoding; return its exit code and what both streams hold."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    assert [stream.errors for stream in streams] == ["strict", "strict"]  # as they were
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))  # type: ignore[attr-defined]
    return code, texts[0], texts[1]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco(tmp_path_factory.mktemp("foreign"), FOREIGN)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco(tmp_path_factory.mktemp("odd"), ODD)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_verb_on_data_prints_in_every_encoding(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = printed(monkeypatch, encoding, "data", "check", "--train", foreign, "--samples", 0)
    assert code == 0 and "Objects by class" in out
    row = next(line for line in out.splitlines() if "bergr" in line)  # its bar is as long as a bar can be
    assert row.split()[-1] in ("█" * 12, "#" * 12)
    for name in FOREIGN[:4]:
        shown = name.translate({ord("–"): "-", ord("…"): "..."}) if encoding == "ascii" else name
        try:
            name.encode(encoding)
        except UnicodeEncodeError:
            shown = None
        assert shown is None or shown in out
    assert r"\x1b[31mred" in out and "\x1b" not in out
    schedule = tmp_path / "tasks \udcff.yaml"  # a name whose bytes are no UTF-8
    code, out, _ = printed(
        monkeypatch, encoding, "data", "tasks", "--train", foreign, "--tasks", 2, "--output", schedule
    )
    assert code == 0 and rf"written: {tmp_path}/tasks \udcff.yaml" in out
    split = ("--train", foreign, "--test", foreign, "--schedule", schedule)
    assert printed(monkeypatch, encoding, "data", "audit", *split)[0] == 0


def test_ascii_stands_for_our_own_characters(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the rule and the bars in ASCII, data as escapes, columns still one below the other."""
    _, out, _ = printed(monkeypatch, "ascii", "data", "check", "--train", foreign, "--samples", 0)
    rule, *rows = out[out.index("Objects by class") :].splitlines()[3:9]
    assert set(rule.split()[0]) == {"-"}
    assert sum(re.fullmatch(r" ?\\u6d88\\u9632\\u8f66 +1 +#{12} *", row) is not None for row in rows) == 1
    assert sum(re.fullmatch(r" ?\\U0001f692 - \.\.\. +1 +#{12} *", row) is not None for row in rows) == 1
    assert len({row.index("#") for row in rows}) == 1
    assert "Width/height" in out and "sqrt area, px" in out


@pytest.mark.parametrize("chosen", ["replace", "ignore", "xmlcharrefreplace"])
def test_a_handler_that_the_user_chose_stays(foreign: Path, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    """As by PYTHONIOENCODING=ascii:replace."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=chosen)
    monkeypatch.setattr(sys, "stdout", stream)
    main(["data", "check", "--train", str(foreign), "--samples", "0"])
    stream.flush()
    assert stream.errors == chosen and b"Objects by class" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_process_without_a_locale(foreign: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb", "NO_COLOR": "1"}
    words = [sys.executable, "-m", "openworld", "data", "check", "--train", str(foreign), "--samples", "0"]
    done = subprocess.run(words, capture_output=True, env={**os.environ, **plain}, check=False)
    assert done.returncode == 0 and b"Error" not in done.stderr and rb"\u6d88" in done.stdout and b"####" in done.stdout


def test_names_are_printed_and_written_as_they_are(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, out, _ = printed(monkeypatch, "utf-8", "data", "check", "--train", odd, "--output", tmp_path / "check")
    rows = [line.strip() for line in out[out.index("Objects by class") :].splitlines()]
    for name in ODD:
        assert sum(row.split("  ")[0] == name for row in rows) == 1, name
    assert "(#ffffff: 1, $x_1$: 1, &amp;: 1, :smile:: 1, <b>x</b>: 1, …)" in out[out.index("warning: ") :]
    assert len(list((tmp_path / "check" / "samples").glob("class_*"))) == len(ODD)

    schedule = tmp_path / "tasks [1].yaml"
    _, out, _ = printed(monkeypatch, "utf-8", "data", "tasks", "--train", odd, "--tasks", 2, "--output", schedule)
    assert f"written: {schedule}" in out
    assert {name for task in yaml.safe_load(schedule.read_text())["tasks"] for name in task} == set(ODD)
    split = ("--train", odd, "--test", odd, "--schedule", schedule, "--output", tmp_path / "[audit].json")
    code, out, _ = printed(monkeypatch, "utf-8", "data", "audit", *split)
    assert code == 0 and json.loads((tmp_path / "[audit].json").read_text())["findings"]


def test_an_error_quotes_names_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = tmp_path / "[bold]no :smile: \x1b[31m 消 data.json"
    code, _, error = printed(monkeypatch, "ascii", "data", "check", "--train", name)
    assert code == 2 and r"[bold]no :smile: \x1b[31m \u6d88 data.json" in error and "\x1b" not in error


def test_a_line_of_the_log_cannot_control_the_terminal() -> None:
    record = logging.LogRecord("openworld", logging.WARNING, "a.py", 1, "%s", ("\x1b[2J消 [x].jpg\r",), None)
    assert PrintableFormatter("%(levelname)s %(message)s").format(record) == r"WARNING \x1b[2J消 [x].jpg\x0d"


# -- files and devices ------------------------------------------------------------------------------------------------


def verbs(data: Path, output: str) -> dict[str, list[str]]:
    """Each verb that writes, with this output."""
    return {
        "run": ["run", "--output", output],
        "demo": ["demo", "--output", output],
        "pretrain": ["pretrain", "--images", str(data.parent / "images"), "--output", output],
        "predict": ["predict", str(data.parent / "images"), "--run", "no run", "--output", output],
        "convert": ["convert", "weights.pth", "--task", "1", "--output", output],
        "ablate": ["ablate", "--output", output],
        "check": ["data", "check", "--train", "no data", "--output", output],
        "tasks": ["data", "tasks", "--train", "no data", "--output", output],
        "audit": ["data", "audit", "--train", "no data", "--output", output],
        "evaluate": ["evaluate", "--predictions", "no results", "--output", output],
        "export": ["backbone", "export", "no.pth", "--to", "torchvision", "--output", output],
        "knn": ["probe", "knn", "--backbone", "no.pth", "--images", "no folder", "--output", output],
        "suppress": ["probe", "suppress", "--experiment", "rand_bits", "--output", output],
    }


@pytest.mark.parametrize("verb", list(verbs(Path("x"), "y")))
def test_an_output_in_the_way_is_said_before_any_work(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The inputs do not exist, which would be said next; and the file in the way stays as it is."""
    (tmp_path / "file").write_text("mine")
    words = verbs(odd, str(tmp_path / "file" / "below"))[verb]
    code, out, error = printed(monkeypatch, "utf-8", *words)
    lines = error.splitlines()
    assert code == 2 and out == ""
    assert lines[0] == f"error: {tmp_path / 'file'}: {os.strerror(errno.ENOTDIR)}"
    assert len(lines) == 2 and lines[1].startswith("What to do: ")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("verb", ["run", "check", "evaluate", "pretrain"])
def test_a_full_disk_is_said_before_any_work(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", full)
    words = verbs(odd, str(tmp_path / "new"))[verb]
    code, out, error = printed(monkeypatch, "utf-8", *words)
    assert (code, out) == (2, "") and error.splitlines()[0] == f"error: {tmp_path / 'new'}: No space left on device"
    assert "free some space" in error and not (tmp_path / "new").exists()


def test_images_that_may_not_be_read(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so the refusal is made up."""

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setenv("COLUMNS", "400")
    code, out, error = printed(monkeypatch, "utf-8", "data", "check", "--train", odd, "--samples", 0)
    first = f"{odd.parent / 'images/1.png'}: cannot be read (Permission denied)"
    assert code == 0 and f"{len(ODD)} images of train cannot be read (e.g. {first})" in out and "Trace" not in error


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(runs_verbs, "_report_of_run", broken)
    with pytest.raises(ValueError, match="a fault of ours"):
        printed(monkeypatch, "utf-8", "report", "no run")


def test_an_error_of_the_system_has_its_traceback_with_debug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError):
        printed(monkeypatch, "utf-8", "run", "--output", tmp_path / "file", "--debug")


@pytest.mark.parametrize("device", ["mps", "tpu", "-1", "cuda:99", "toaster"])
@pytest.mark.parametrize("verb", ["run", "pretrain", "knn", "ablate"])
def test_a_device_that_is_not_here_is_said_before_any_work(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, device: str
) -> None:
    option = "--model.device" if verb in ("run", "ablate") else "--device"
    words = [*verbs(odd, str(tmp_path / "new"))[verb], f"{option}={device}"]
    code, out, error = printed(monkeypatch, "utf-8", *words)
    assert code in (2, 4) and out == "" and not (tmp_path / "new").exists()
    assert len(error.splitlines()) == 2 and f"device '{device}'" in error and "what is here: cpu" in error


def test_a_reader_that_goes_away_is_no_fault(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind `| head`."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", open(writing, "w", encoding="utf-8"))  # noqa: SIM115 - closed below
    with pytest.raises(SystemExit) as end:
        main(["data", "check", "--train", str(foreign), "--samples", "0"])
    sys.stdout.close()  # what is left goes nowhere
    assert end.value.code == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full_for_what_is_printed(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 - closed below
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(SystemExit) as end:
        main(["data", "check", "--train", str(foreign), "--samples", "0"])
    with contextlib.suppress(OSError):
        full.close()
    assert end.value.code == 2
    assert "error: No space left on device\nWhat to do: free some space" in capsys.readouterr().err
