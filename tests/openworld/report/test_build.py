"""report.html of a complete run, of runs with anything missing, and of runs with hostile names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from openworld.errors import ConfigError, DataError
from openworld.report import build_report, plots
from openworld.report.run_folder import read_run

SECTIONS = ("results", "pictures", "forgetting", "classes", "energy", "backbone", "losses", "run", "reproduce")
VOID = {"meta", "img", "input", "br", "link"}


class _Page(HTMLParser):
    """Checks that tags close in order, and collects attributes and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            assert not name.startswith("on")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, where a test is about the page; test_plots.py is about the figures."""
    monkeypatch.setattr(plots, "svg", lambda *_: "<svg></svg>")


def _check(path: Path) -> str:
    """What holds for every page: well formed, nothing from outside, no script, every section there."""
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert not page.open and "script" not in page.tags and "link" not in page.tags
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", text)
    assert all(text.count(f'<section id="{name}"') == 1 for name in SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    return text


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_complete_run(fake_run: tuple[Path, Any]) -> None:
    run, test = fake_run
    path = build_report(run, test)
    assert path == run / "report.html"
    text = _check(path)
    metrics = json.loads((run / "task3" / "metrics.json").read_text())
    assert f"<b>{100 * metrics['known_ap50']:.1f}" in text and f"<b>{100 * metrics['previous_ap50']:.1f}" in text
    assert "protocol <b>unique</b>" in text
    assert "clipped box: 7" in text and "only 12 unknown regions" in text
    assert text.count("data:image/jpeg;base64,") == 4 * 3 * 2
    assert text.count("<svg") == 11  # results, three curves, forgetting, classes, three energies, kNN, losses
    assert f"<td>{metrics['unknown_hits']['known']}</td>" in text
    assert "<td>29.3</td>" in text and "<td>321</td>" in text  # U-F1, and A-OSE one-to-one
    assert "an earlier version wrote it" not in text
    assert "What this page could not show" not in text


@pytest.mark.usefixtures("quick_figures")
def test_the_page_does_not_change_from_build_to_build(fake_run: tuple[Path, Any]) -> None:
    run, test = fake_run
    first = build_report(run, test, images=1).read_bytes()
    assert build_report(run, test, images=1).read_bytes() == first


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    "name",
    [
        "env.json",
        "data.json",
        "metrics.jsonl",
        "backbone/card.json",
        "task1/metrics.json",
        "task3/metrics.json",
        "task2/energy.json",
        "task2/exemplars.json",
        "task2/predictions.json",
    ],
)
def test_a_missing_or_broken_artefact_is_said(fake_run: tuple[Path, Any], name: str) -> None:
    run, _ = fake_run
    (run / name).unlink()
    assert f"{name} is missing" in _check(build_report(run, images=1))
    for damage in ("{", "[1, 2]", "\x00", b"\xff\xfe"):
        (run / name).write_bytes(damage.encode() if isinstance(damage, str) else damage)
        notes = read_run(run).notes
        assert len(notes) == (name != "metrics.jsonl" or isinstance(damage, bytes)), notes  # lines of a log may break
        assert all(name in note and "cannot be read" in note for note in notes)
    build_report(run, images=0)


def test_only_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    text = _check(build_report(tmp_path))
    assert "nothing has been evaluated" in text and "There is no task folder" in text


def test_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--output"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        build_report(tmp_path)
    (tmp_path / "config.yaml").write_text("- a list")
    with pytest.raises(ConfigError, match="mapping"):
        build_report(tmp_path)


def test_hostile_names(make_run: Callable[..., tuple[Path, Any]]) -> None:
    nasty = [
        "<script>alert(1)</script>",
        "</svg><img src=x onerror=alert(1)>",
        '" onload="x',
        "$\\frac{1}{0}$ & 猫",
        "{{ 7*7 }}",
    ]
    run, test = make_run("nasty", [nasty[:3], nasty[3:]], images=3)
    _change(
        run / "data.json", lambda content: content["train"]["examples"].append("<img src=http://example.org/x.png>")
    )
    _change(run / "task1" / "calibration.json", lambda content: content.update(status="fallback", reason="<b>no</b>"))
    text = _check(build_report(run, test, images=2))
    assert "&lt;script&gt;" in text and "<script" not in text and "{{ 7*7 }}" in text and "<b>no</b>" not in text


@pytest.mark.usefixtures("quick_figures")
def test_nulls_and_no_detections(fake_run: tuple[Path, Any]) -> None:
    run, test = fake_run
    for task in (1, 2, 3):
        folder = run / f"task{task}"
        _change(
            folder / "metrics.json",
            lambda content: content.update({key: None for key in content if key not in ("task", "protocol")}),
        )
        _change(
            folder / "predictions.json", lambda content: [image.update(detections=[]) for image in content["images"]]
        )
        _change(
            folder / "calibration.json",
            lambda content: content.update(known=None, unknown=None, samples=None, boundary=None),
        )
    text = _check(build_report(run, test, images=1))
    assert "its metrics are all empty" in text and "0 known, 0 unknown" in text


@pytest.mark.usefixtures("quick_figures")
def test_a_detector_that_learnt_nothing(fake_run: tuple[Path, Any]) -> None:
    run, test = fake_run
    for task in (1, 2, 3):
        _change(run / f"task{task}" / "metrics.json", _zero)
        _change(
            run / f"task{task}" / "predictions.json",
            lambda content: [x.update(detections=[]) for x in content["images"]],
        )
    text = _check(build_report(run, test, images=1))
    assert "these are simply the first ones" in text and "when taught" not in text.split("<nav")[0]
    assert "−0.0" not in text and "+0.0" not in text


def _zero(metrics: dict[str, Any]) -> None:
    metrics.update(known_ap50=0.0, previous_ap50=0.0, current_ap50=1e-5, unknown_recall50=0.0)
    for number, values in enumerate(metrics["classes"].values()):
        values["ap50"] = 1e-5 * (number % 2)


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"fit_on": "auto_labelled", "decision": "density", "rejected": {"known": 0.041, "unknown": 0.8}},
            ("no label of an unknown object was used", "boundary 6.53", "4.1\u00a0% of the known regions and 80.0"),
        ),
        (
            {"fit_on": "annotated_unknown", "decision": "window", "uses_unknown_labels": True, "boundary": None},
            ("Labels of unknown objects were used", "holds more of a window"),
        ),
        (
            {"fit_on": "known_only", "decision": "threshold", "known_rejection_rate": 0.05, "test_temperature": 2.0},
            ("known objects alone", "calibrated to call 5\u00a0% of known regions", "2.00 at prediction"),
        ),
    ],
)
def test_energy_says_its_rule_and_its_labels(
    fake_run: tuple[Path, Any], changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    run, _ = fake_run
    _change(run / "task1" / "calibration.json", lambda content: content.update(**changes, notes=["a <poor> fit"]))
    told = bool(changes.get("uses_unknown_labels"))
    _change(run / "task1" / "metrics.json", lambda content: content.update(uses_unknown_labels=told))
    text = _check(build_report(run, images=0))
    assert all(word in text for word in words) and "a &lt;poor&gt; fit" in text and "−812.4" in text
    for word in ("The results of task 1 use labels of unknown objects", "These results use labels of unknown objects"):
        assert (word in text) == told


@pytest.mark.usefixtures("quick_figures")
def test_one_task(make_run: Callable[..., tuple[Path, Any]]) -> None:
    run, test = make_run("one", [["a", "b"], ["c"]], images=2, taught=1)
    text = _check(build_report(run, test, images=1))
    assert "no class is old yet" in text and "Forgetting shows after a second evaluated task" in text


@pytest.mark.usefixtures("quick_figures")
def test_records_without_boxes(fake_run: tuple[Path, Any]) -> None:
    run, test = fake_run
    for record in test.records:
        record.boxes, record.categories, record.ignore = [], [], []
    _check(build_report(run, test, images=2))


@pytest.mark.usefixtures("quick_figures")
def test_a_moved_run_folder_keeps_its_pictures(fake_run: tuple[Path, Any], tmp_path: Path) -> None:
    run, _ = fake_run
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    assert "data:image/jpeg" in _check(build_report(moved, images=1))


def test_forgetting_is_measured_under_one_protocol(fake_run: tuple[Path, Any], quick_figures: None) -> None:
    run, _ = fake_run

    def known(task: int, ap: dict[str, float]) -> None:
        classes = {name: {"ap50": value} for name, value in ap.items()}
        _change(run / f"task{task}" / "metrics.json", lambda content: content.update(classes=classes))

    known(1, {"disc": 0.5, "ring": 0.75})
    known(2, {"disc": 0.625, "ring": 0.25, "star": 0.5})
    known(3, {"disc": 0.375, "ring": 0.5, "star": 0.5})
    text = _check(build_report(run, images=0))
    cells = re.findall(r'<th class="small">forgetting</th>(.*)<td></td></tr>', text)
    assert cells == ["<td>–</td><td>18.8</td><td>16.7</td>"]  # (-.125 + .5) / 2 and (.25 + .25 + 0) / 3
    assert '<th class="small">kept, %</th><td>–</td><td>70.0</td><td>78.6</td>' in text  # .875 / 1.25 and 1.375 / 1.75
    _change(run / "task3" / "metrics.json", lambda content: content.update(protocol="ore"))
    text = _check(build_report(run, images=0))
    assert '<th class="small">forgetting</th>' not in text and "protocols <b>ore, unique</b>" in text


def test_classes_that_never_reach_the_recall_of_wi(fake_run: tuple[Path, Any], quick_figures: None) -> None:
    run, _ = fake_run
    below = {"0.8": [f"<{number}>" for number in range(14)]}
    _change(run / "task1" / "metrics.json", lambda content: content.update(wi_classes_below_recall=below))
    text = _check(build_report(run, images=0))
    assert "after task 1 by &lt;0&gt;, " in text and "&lt;11&gt; and 2 more." in text and "&lt;12&gt;" not in text


def test_metrics_of_an_earlier_version(fake_run: tuple[Path, Any], quick_figures: None) -> None:
    run, _ = fake_run
    for task in (1, 3):
        _change(
            run / f"task{task}" / "metrics.json",
            lambda content: [content.pop(name) for name in ("curves", "a_ose_one_to_one", "previous_classes")],
        )
    text = _check(build_report(run, images=0))
    assert "metrics.json of tasks 1 and 3 has no a_ose_one_to_one and curves: an earlier version wrote it" in text
    assert "openworld evaluate" in text
