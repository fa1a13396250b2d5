"""The forms in which results are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openworld.errors import ConfigError
from openworld.report import plots
from openworld.report.evaluation import write_results
from openworld.report.tables import as_csv, as_latex, as_markdown

Results = list[dict[str, Any]]
PLOTS = {"precision_recall.png", "unknown_recall.png", "wilderness_impact.png"}
TEXTS = {"metrics.json", "results.csv", "results.md", "results.tex"}


def test_one_file_by_suffix(results: Results, tmp_path: Path) -> None:
    assert write_results(results[:1], tmp_path / "new" / "one.json") == [tmp_path / "new" / "one.json"]
    assert json.loads((tmp_path / "new" / "one.json").read_text()) == results[0]
    write_results(results, tmp_path / "all.JSON")
    assert json.loads((tmp_path / "all.JSON").read_text()) == {"results": results}
    for suffix, text in ((".csv", as_csv), (".md", as_markdown), (".tex", as_latex)):
        write_results(results, tmp_path / f"table{suffix}")
        assert (tmp_path / f"table{suffix}").read_text(encoding="utf-8") == text(results)
    assert not list(tmp_path.rglob(".*"))  # no temporary file is left


def test_a_folder_of_everything(results: Results, tmp_path: Path) -> None:
    written = write_results(results[:2], tmp_path / "v1.2" / "scores")
    assert {path.name for path in written} == TEXTS | PLOTS == {path.name for path in written[0].parent.iterdir()}
    for name in PLOTS:
        assert (tmp_path / "v1.2" / "scores" / name).read_bytes().startswith(b"\x89PNG")
    assert json.loads(written[0].read_text())["results"] == results[:2]


def test_an_older_plot_does_not_stay(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png", lambda *_: b"png")
    write_results(results[:1], tmp_path)
    assert (tmp_path / "unknown_recall.png").exists()
    written = write_results(results[2:], tmp_path)
    assert {path.name for path in written} == TEXTS | {"precision_recall.png"}
    assert not (tmp_path / "unknown_recall.png").exists()
    assert {path.name for path in write_results([], tmp_path)} == TEXTS


def test_what_is_in_the_way(results: Results, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"(?s)notes\.txt.*\.json, \.csv, \.md, \.tex"):
        write_results(results, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(ConfigError, match="folder of this name"):
        write_results(results, tmp_path / "x.csv")
    with pytest.raises(ValueError, match="JSON"):
        write_results([{**results[0], "wi": float("nan")}], tmp_path / "nan.json")
    assert not (tmp_path / "nan.json").exists()
