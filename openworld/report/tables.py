"""Results as tables of text, and as text for other programs: CSV at full precision, Markdown, LaTeX.

Tables show the headline metrics of :data:`openworld.metrics.table.METRICS`; CSV holds every scalar metric.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from openworld.metrics.table import headline_metrics, metric_value
from openworld.report.run_folder import flatten
from openworld.report.text import ABSENT, metric_text, value_text

USES_UNKNOWN_LABELS = "Uses labels of unknown objects to tell known from unknown"
"""Note on results whose predictions record this."""

NOT_SCALAR = ("rules", "classes", "curves", "wi_classes_below_recall")
"""Entries of a result that are settings, or whose length depends on the task; JSON holds them."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def result_table(results: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heads and rows of text, one row per result; with several protocols a second column names them."""
    metrics = headline_metrics()
    several = len(protocols_of(results)) > 1
    heads = ("Task", *(("Protocol",) if several else ()), *(metric.label for metric in metrics.values()))
    rows = [
        (
            value_text(result.get("task")),
            *((str(result["protocol"]),) if several else ()),
            *(metric_text(metric, metric_value(result, name)) for name, metric in metrics.items()),
        )
        for result in results
    ]
    return heads, rows


def protocols_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the protocols that results were scored under, in the order of the results."""
    return list(dict.fromkeys(str(result["protocol"]) for result in results))


def uses_unknown_labels(results: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether labels of unknown objects were used for some result."""
    return any(result.get("uses_unknown_labels") for result in results)


def scalars(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalar metrics of one result by dotted name (``wi_at_recall.0.8``), in the order of the result."""
    kept = {name: value for name, value in result.items() if name not in NOT_SCALAR}
    return {name: value for name, value in flatten(kept) if not isinstance(value, Mapping | list | tuple)}


def as_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """Format every scalar metric as CSV, one line per result (task and protocol): fractions, not percent.

    Numbers read back to the same value. An absent value, or one that only other results have, is an empty cell.
    """
    rows = [scalars(result) for result in results]
    names = dict.fromkeys(("task", "protocol", *(name for row in rows for name in row)))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def as_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Format the headline metrics as Markdown, one row per result."""
    heads, rows = result_table(results)
    protocols = protocols_of(results)
    lines = [f"Protocol: {markdown_text(protocols[0])}", ""] if len(protocols) == 1 else []
    lines += ["| " + " | ".join(heads) + " |"]
    lines += ["|" + "|".join(":---" if head == "Protocol" else "---:" for head in heads) + "|"]
    lines += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
    if uses_unknown_labels(results):
        lines += ["", f"{USES_UNKNOWN_LABELS}."]
    return "\n".join(lines) + "\n"


def as_latex(results: Sequence[Mapping[str, Any]]) -> str:
    """Format the headline metrics as a ``tabular`` in the style of booktabs, one row per result.

    It is a whole ``tabular``, because the content of an ``\\input`` inside a table may not start with a rule.
    """
    heads, rows = result_table(results)
    protocols = protocols_of(results)
    alignment = "".join("l" if head in ("Task", "Protocol") else "r" for head in heads)
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    if len(protocols) == 1:
        lines += [rf"\multicolumn{{{len(heads)}}}{{l}}{{Protocol: {_latex(protocols[0])}}} \\", r"\midrule"]
    lines += [" & ".join(map(_latex, heads)) + r" \\", r"\midrule"]
    for task, *cells in rows:
        lines += [" & ".join((f"Task {_latex(task)}", *map(_latex, cells))) + r" \\"]
    if uses_unknown_labels(results):
        lines += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{l}}{{{_latex(USES_UNKNOWN_LABELS)}}} \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def markdown_text(text: str) -> str:
    """Return text in one line that stands for itself in a cell of Markdown."""
    return re.sub(r"([\\|`*_<\[\]])", r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    if text == ABSENT:
        return "--"
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
