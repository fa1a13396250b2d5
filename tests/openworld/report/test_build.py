"""report.html of a complete run, of runs with anything missing, and of runs with hostile names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from openworld.errors import ConfigError, DataError
from openworld.metrics.table import METRICS
from openworld.report.build import build_report
from openworld.report.run_folder import read_run

SECTIONS = ["results", "pictures", "forgetting", "classes", "method", "backbone", "losses", "run", "reproduce"]
Change = Callable[[dict[str, Any]], object]


def change(path: Path, how: Change) -> None:
    content = json.loads(path.read_text())
    how(content)
    path.write_text(json.dumps(content))


def cells(page: Any, row: str) -> list[str]:
    return page[row].texts("td")


def metric_cells(page: Any, task: int) -> dict[str, str]:
    row = page[f"results-task{task}"]
    return {cell.attributes["data-metric"]: cell.text for cell in row.all("td")}


def test_complete_run(fake_run: tuple[Path, Any], open_page: Any) -> None:
    run, test = fake_run
    path = build_report(run, test)
    assert path == run / "report.html"
    page = open_page(path)
    assert [section.attributes["id"] for section in page.root.all("section")] == SECTIONS
    assert [link.attributes["href"] for link in page.root.all("a")] == [f"#{name}" for name in SECTIONS]
    metrics = json.loads((run / "task3" / "metrics.json").read_text())
    for kind, name in (("known", "known_ap50"), ("previous", "previous_ap50")):
        assert page[f"headline-{kind}"].texts("b") == [f"{100 * metrics[name]:.1f}%"]
    shown = metric_cells(page, 1)
    assert list(shown) == list(METRICS)
    assert shown["unknown_f1_50"] == "29.3" and shown["a_ose_one_to_one"] == "321"
    assert shown["coco.ap"] == shown["previous_ap50"] == "–"
    assert cells(page, "hits-task1")[:3] == ["31", "12", "27"]
    assert page["picture-1"].attributes["class"] == "card picture" and page.pictures == 4 * 3 * 2
    curves = ["results", "precision-recall", "unknown-recall", "wilderness-impact"]
    assert page.figures == [*curves, "forgetting", "classes", "energy1", "energy2", "energy3", "knn", "losses"]
    assert cells(page, "data-1") == ["600", "1,904", "clipped box: 7 · empty box dropped: 2 · duplicate image: 1"]
    assert "not-shown" not in page


@pytest.mark.usefixtures("quick_figures")
def test_the_page_does_not_change_from_build_to_build(fake_run: tuple[Path, Any]) -> None:
    run, test = fake_run
    first = build_report(run, test, num_images=1).read_bytes()
    assert build_report(run, test, num_images=1).read_bytes() == first


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
        "task2/calibration.json",
        "task2/exemplars.json",
        "task2/predictions.json",
    ],
)
def test_a_missing_or_broken_artefact_is_named(fake_run: tuple[Path, Any], open_page: Any, name: str) -> None:
    run, _ = fake_run
    (run / name).unlink()
    page = open_page(build_report(run, num_images=1))
    (note,) = page["not-shown"].texts("li")
    assert note.startswith(f"{name} is missing")
    for damage in ("{", "[1, 2]", "\x00", b"\xff\xfe"):
        (run / name).write_bytes(damage.encode() if isinstance(damage, str) else damage)
        notes = read_run(run).notes
        assert len(notes) == (name != "metrics.jsonl" or isinstance(damage, bytes)), notes  # lines of a log may break
        assert all(name in note and "cannot be read" in note for note in notes)
    build_report(run, num_images=0)


@pytest.mark.usefixtures("quick_figures")
def test_a_task_without_metrics_keeps_its_row(fake_run: tuple[Path, Any], open_page: Any) -> None:
    run, _ = fake_run
    (run / "task2" / "metrics.json").unlink()
    page = open_page(build_report(run, num_images=0))
    (cell,) = page["results-task2"].all("td")
    assert int(cell.attributes["colspan"]) == len(metric_cells(page, 1)) == len(METRICS)


def test_only_the_configuration(tmp_path: Path, open_page: Any) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    page = open_page(build_report(tmp_path))
    assert "headline-known" not in page and not page["results"].all("table") and not page.figures
    assert len(page["not-shown"].texts("li")) == 5


def test_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--output"):
        build_report(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        build_report(tmp_path)
    (tmp_path / "config.yaml").write_text("- a list")
    with pytest.raises(ConfigError, match="mapping"):
        build_report(tmp_path)


def test_hostile_names(make_run: Callable[..., tuple[Path, Any]], open_page: Any) -> None:
    nasty = [
        "<script>alert(1)</script>",
        "</svg><img src=x onerror=alert(1)>",
        '" onload="x',
        "$\\frac{1}{0}$ & 猫",
        "{{ 7*7 }}",
    ]
    run, test = make_run("nasty", [nasty[:3], nasty[3:]], images=3)
    image = "<img src=http://example.org/x.png>"
    change(run / "data.json", lambda content: content["train"]["examples"].append(image))
    change(run / "task1" / "calibration.json", lambda content: content.update(status="fallback", reason="<b>no</b>"))
    page = open_page(build_report(run, test, num_images=2))
    for name in (*nasty, image, "<b>no</b>"):
        assert name in page.root.text


@pytest.mark.usefixtures("quick_figures")
def test_nulls_and_no_detections(fake_run: tuple[Path, Any], open_page: Any) -> None:
    run, test = fake_run
    for task in (1, 2, 3):
        folder = run / f"task{task}"
        change(
            folder / "metrics.json",
            lambda content: content.update({key: None for key in content if key not in ("task", "protocol")}),
        )
        change(
            folder / "predictions.json", lambda content: [image.update(detections=[]) for image in content["images"]]
        )
        change(
            folder / "calibration.json",
            lambda content: content.update(known=None, unknown=None, samples=None, boundary=None, intervals=None),
        )
    page = open_page(build_report(run, test, num_images=1))
    assert page["headline-known"].texts("b") == page["headline-unknown"].texts("b") == ["–"]
    assert set(metric_cells(page, 1).values()) == {"–"}
    assert page["picture-1"].texts("h4") == [f"After task {task}0 known, 0 unknown" for task in (1, 2, 3)]


@pytest.mark.usefixtures("quick_figures")
def test_a_detector_that_learnt_nothing(fake_run: tuple[Path, Any], open_page: Any) -> None:
    run, test = fake_run
    for task in (1, 2, 3):
        change(run / f"task{task}" / "metrics.json", _zero)
        change(
            run / f"task{task}" / "predictions.json",
            lambda content: [image.update(detections=[]) for image in content["images"]],
        )
    page = open_page(build_report(run, test, num_images=1))
    assert page["headline-previous"].texts("b") == ["0.0%"]
    assert "%" not in page["headline-previous"].texts("span")[0]  # no share of nothing
    assert "picture-1" in page
    assert page["forgetting-task1"].texts("td")[-1] == "0.0"  # and neither −0.0 nor +0.0


def _zero(metrics: dict[str, Any]) -> None:
    metrics.update(known_ap50=0.0, previous_ap50=0.0, current_ap50=1e-5, unknown_recall50=0.0)
    for number, values in enumerate(metrics["classes"].values()):
        values["ap50"] = 1e-5 * (number % 2)


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("used", [True, False])
def test_results_that_use_labels_of_unknown_objects_say_so(
    fake_run: tuple[Path, Any], open_page: Any, used: bool
) -> None:
    run, _ = fake_run
    (run / "task3" / "calibration.json").unlink()  # its fallback is a warning, too
    change(run / "task1" / "metrics.json", lambda content: content.update(uses_unknown_labels=used))
    page = open_page(build_report(run, num_images=0))
    warnings = [element.text for element in page.root.all("p", role="note")]
    assert len(warnings) == used and all("task 1 use labels of unknown objects" in text for text in warnings)


@pytest.mark.usefixtures("quick_figures")
def test_the_method_of_the_run_has_its_section(fake_run: tuple[Path, Any], open_page: Any) -> None:
    run, _ = fake_run
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "method": {"name": "another"}}))
    page = open_page(build_report(run, num_images=0))
    assert "The open-world method: another" in page.source and "energy1" not in page.figures
    (warning,) = page.root.all("p", role="note")
    assert "could not be calibrated in task 3" in " ".join(warning.pieces)


@pytest.mark.usefixtures("quick_figures")
def test_one_task(make_run: Callable[..., tuple[Path, Any]], open_page: Any) -> None:
    run, test = make_run("one", [["a", "b"], ["c"]], images=2, taught=1)
    page = open_page(build_report(run, test, num_images=1))
    assert page["headline-previous"].texts("b") == ["–"] and "forgetting-task1" not in page


@pytest.mark.usefixtures("quick_figures")
def test_records_without_boxes(fake_run: tuple[Path, Any], open_page: Any) -> None:
    run, test = fake_run
    without = test.select(range(len(test)), np.zeros(test.num_annotations, dtype=np.bool_))
    assert open_page(build_report(run, without, num_images=2)).pictures == 2 * 3 * 2


@pytest.mark.usefixtures("quick_figures")
def test_a_moved_run_folder_keeps_its_pictures(fake_run: tuple[Path, Any], tmp_path: Path, open_page: Any) -> None:
    run, _ = fake_run
    moved = tmp_path / "elsewhere"
    shutil.move(run, moved)
    assert open_page(build_report(moved, num_images=1)).pictures == 3


@pytest.mark.usefixtures("quick_figures")
@pytest.mark.parametrize("images_there", [True, False])
def test_the_page_says_why_the_test_set_cannot_be_opened(
    fake_run: tuple[Path, Any], open_page: Any, images_there: bool
) -> None:
    run, _ = fake_run
    if not images_there:
        shutil.rmtree(run / "world")
    page = open_page(build_report(run, gone="<test.json>: no such file", num_images=1))
    assert "<test.json>: no such file" in page["pictures-note"].text
    assert page.pictures == (3 if images_there else 0)


def test_forgetting_is_measured_under_one_protocol(
    fake_run: tuple[Path, Any], quick_figures: None, open_page: Any
) -> None:
    run, _ = fake_run

    def known(task: int, ap: dict[str, float]) -> None:
        classes = {name: {"ap50": value} for name, value in ap.items()}
        change(run / f"task{task}" / "metrics.json", lambda content: content.update(classes=classes))

    known(1, {"disc": 0.5, "ring": 0.75})
    known(2, {"disc": 0.625, "ring": 0.25, "star": 0.5})
    known(3, {"disc": 0.375, "ring": 0.5, "star": 0.5})
    page = open_page(build_report(run, num_images=0))
    measured = cells(page, "measured-forgetting")
    assert measured == ["–", "18.8", "16.7", ""]  # (-.125 + .5) / 2 and (.25 + .25 + 0) / 3
    assert cells(page, "measured-kept") == ["–", "70.0", "78.6", ""]  # .875 / 1.25 and 1.375 / 1.75
    assert cells(page, "forgetting-task1") == ["62.5", "43.8", "43.8", "−18.8"]
    assert cells(page, "forgetting-task2") == ["", "50.0", "50.0", "0.0"]
    change(run / "task3" / "metrics.json", lambda content: content.update(protocol="ore"))
    page = open_page(build_report(run, num_images=0))
    assert "measured-forgetting" not in page
    assert {element.text for element in page["forgetting"].all("b")} >= {"ore, unique"}


def test_classes_that_never_reach_the_recall_of_wi(
    fake_run: tuple[Path, Any], quick_figures: None, open_page: Any
) -> None:
    run, _ = fake_run
    below = {"0.8": [f"<{number}>" for number in range(14)]}
    change(run / "task1" / "metrics.json", lambda content: content.update(wi_classes_below_recall=below))
    named = open_page(build_report(run, num_images=0))["below-task1"].text
    assert all(f"<{number}>" in named for number in range(12)) and "<12>" not in named and "2 more" in named


def test_metrics_that_lack_entries(fake_run: tuple[Path, Any], quick_figures: None, open_page: Any) -> None:
    """A metrics.json need not have what only figures need."""
    run, _ = fake_run
    for task in (1, 3):
        change(
            run / f"task{task}" / "metrics.json",
            lambda content: [content.pop(name) for name in ("curves", "a_ose_one_to_one", "previous_classes")],
        )
    page = open_page(build_report(run, num_images=0))
    assert metric_cells(page, 1)["a_ose_one_to_one"] == "–" and metric_cells(page, 2)["a_ose_one_to_one"] == "321"
