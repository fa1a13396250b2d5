"""CSV reads back to the same numbers; Markdown and LaTeX against tables written by hand."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from openworld.metrics.table import headline_metrics
from openworld.report.tables import USES_UNKNOWN_LABELS, as_csv, as_latex, as_markdown, scalars

Results = list[dict[str, Any]]


def _read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_csv_holds_every_scalar_at_full_precision(results: Results) -> None:
    rows = _read(as_csv(results))
    assert len(rows) == 3 and list(rows[0])[:2] == ["task", "protocol"]
    assert float(rows[0]["known_ap50"]) == 1 / 3
    assert rows[0]["previous_ap50"] == "" and rows[1]["previous_ap50"] == "0.4"
    assert float(rows[0]["wi_at_recall.0.3"]) == 0.05 * 0.3 and rows[0]["a_ose_at.10"] == "900"
    assert rows[0]["a_ose"] == "1234" and rows[2]["a_ose"] == "" and rows[0]["unknown_hits.known"] == "12"
    assert not [name for name in rows[0] if name.startswith(("curves", "classes", "rules", "wi_classes", "previous_c"))]


def test_csv_of_results_with_different_entries(results: Results) -> None:
    results[1]["coco"] = {"ap": 0.25}
    del results[0]["wi"]
    rows = _read(as_csv(results))
    assert rows[0]["wi"] == "" and rows[0]["coco.ap"] == "" and rows[1]["coco.ap"] == "0.25"
    odd = 'a, "quoted"\nname'
    assert _read(as_csv([{**results[0], "protocol": odd}]))[0]["protocol"] == odd


def test_scalars_are_the_leaves() -> None:
    assert scalars({"a": 1, "b": {"c": None, "d": {}}, "e": [1], "curves": {"x": 1}}) == {"a": 1, "b.c": None}


def test_markdown(results: Results) -> None:
    lines = as_markdown(results).splitlines()
    assert lines[0] == "Protocol: unique"
    assert lines[2] == "| Task | Known mAP@50 | Prev mAP@50 | Curr mAP@50 | U-Recall | U-AP | U-Prec | WI | A-OSE |"
    assert lines[3] == "|" + "---:|" * (1 + len(headline_metrics()))
    assert lines[4] == "| 1 | 33.3 | – | 25.0 | 55.0 | 10.0 | 20.0 | 0.0400 | 1234 |"
    assert lines[6] == "| 3 | 33.3 | 40.0 | 25.0 | – | – | – | – | – |"


def test_latex(results: Results) -> None:
    lines = as_latex(results).splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrrrrrr}" and lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert r"\multicolumn{9}{l}{Protocol: unique} \\" in lines
    assert r"Task 1 & 33.3 & -- & 25.0 & 55.0 & 10.0 & 20.0 & 0.0400 & 1234 \\" in lines
    assert r"Task 3 & 33.3 & 40.0 & 25.0 & -- & -- & -- & -- & -- \\" in lines
    assert "–" not in as_latex(results)


def test_several_protocols_are_named_in_each_row(results: Results) -> None:
    results[1]["protocol"] = r"ore (iou_threshold=0.6) 100% \x{} a|b <c> $&#~^"
    markdown = as_markdown(results)
    assert "Protocol |" in markdown and "| 1 | unique | 33.3 |" in markdown
    assert r"ore (iou\_threshold=0.6)" in markdown and r"a\|b \<c>" in markdown
    latex = as_latex(results)
    escaped = (
        r"ore (iou\_threshold=0.6) 100\% \textbackslash{}x\{\} a\textbar{}b \textless{}c\textgreater{} "
        r"\$\&\#\textasciitilde{}\textasciicircum{}"
    )
    assert f"Task 2 & {escaped} & 33.3" in latex and r"\begin{tabular}{llrrrrrrrr}" in latex
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {9}


def test_what_used_labels_of_unknown_objects_says_so(results: Results) -> None:
    assert USES_UNKNOWN_LABELS not in as_markdown(results) + as_latex(results)
    results[0]["uses_unknown_labels"] = True
    assert USES_UNKNOWN_LABELS in as_markdown(results) and USES_UNKNOWN_LABELS in as_latex(results)


def test_no_results() -> None:
    assert as_csv([]) == "task,protocol\n"
    assert as_markdown([]).splitlines()[0].startswith("| Task |") and r"\bottomrule" in as_latex([])
