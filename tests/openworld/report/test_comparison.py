"""The tables of an ablation, by hand."""

import io
from typing import Any

from openworld.metrics.comparison import compare
from openworld.report.comparison import as_markdown, terminal_tables
from openworld.runtime.console import open_console
from tests.openworld.metrics.test_comparison import TASKS, result

TIME: dict[str, Any] = {
    "variants": {
        "a": {"seconds": [60.0, 90.0], "cpu_seconds": [30.0, None]},
        "b|c": {"seconds": [], "cpu_seconds": []},
    },
    "seconds": 150.0,
    "cpu_seconds": None,
}


def summary() -> dict[str, Any]:
    runs = {
        "a": {0: [result(1, 0.5, cat=0.5)], 1: [result(1, 0.7, cat=0.7)]},
        "b|c": {0: [result(1, cat=0.4)], 1: [result(1, cat=0.7)]},
        "at once": {0: [result(1, cat=1.0, cow=0.5)], 1: [result(1, cat=0.7, cow=0.3)]},
    }
    return compare(runs, TASKS, {"at once"})


def test_markdown_by_hand() -> None:
    lines = as_markdown(summary(), [0, 1], TIME).splitlines()
    for title, rows in {
        "After task 1: mean ± standard error over 2 seeds (0, 1)": [
            "| variant | Known mAP@50 | Learned | U-Recall |",  # without previous classes all are current
            "|---|---|---|---|",
            "| a | 60.0 ± 10.0 | 75.0 ± 25.0 | 60.0 ± 10.0 |",
            "| b\\|c | 55.0 ± 15.0 | 70.0 ± 30.0 | – |",
            "| at once | 85.0 ± 15.0 | – | – |",
        ],
        "After task 1: difference from a, paired by seed: mean ± standard error": [
            "| variant | Known mAP@50 | Learned | U-Recall |",
            "|---|---|---|---|",
            "| b\\|c | −5.0 ± 5.0 | −5.0 ± 5.0 | – |",
            "| at once | +25.0 ± 25.0 | – | – |",
        ],
        "After task 2: mean ± standard error over 2 seeds (0, 1)": [
            "| variant | Known mAP@50 | Prev mAP@50 | Curr mAP@50 |",
            "|---|---|---|---|",
            "| at once | 62.5 ± 12.5 | 85.0 ± 15.0 | 40.0 ± 10.0 |",
            "",
        ],
        "Time": [
            "| variant | minutes per run | CPU minutes per run |",
            "|---|---|---|",
            "| a | 1.2 | 0.5 |",
            "| b\\|c | – | – |",
            "",
            "In all 2 min 30 s of runs; what several runs share counts once.",
        ],
    }.items():
        place = lines.index(title) + 2
        assert lines[place : place + len(rows)] == rows, title
    assert sum(line.startswith("Learned: ") for line in lines) == 1
    assert not any(line.startswith("Kept: ") for line in lines)


def test_one_seed_has_no_error() -> None:
    found = compare({"a": {3: [result(1, 0.5, cat=0.5)]}, "b": {3: [result(1, 0.5, cat=0.75)]}}, (("cat",),))
    text = as_markdown(found, [3], {**TIME, "variants": {}})
    assert "After task 1: seed 3\n" in text and "| b | 75.0 | 50.0 |" in text
    assert "difference from a\n" in text and "| b | +25.0 | 0.0 |" in text and "±" not in text


def test_a_wide_table_becomes_two_on_the_terminal() -> None:
    """Each fits into eighty characters, with the name of a variant in one piece."""
    full = {**result(2, 0.5, cat=0.5, cow=0.5), "previous_ap50": 0.5, "current_ap50": 0.5, "wi": 0.1, "a_ose": 3}
    full |= {"unknown_ap50": 0.1, "unknown_precision50": 0.1}
    first = result(1, 0.5, cat=0.5)
    runs = {name: {0: [first, full], 1: [first, full]} for name in ("a variant of some length", "b")}
    tables = terminal_tables(compare({**runs, "at once": {0: [full], 1: [full]}}, TASKS, {"at once"}), [0, 1])
    heads = [table.heads[1:] for table in tables]
    assert [len(each) for each in heads] == [3, 3, 5, 5, 5, 5]
    assert heads[2] == ("Known\nmAP@50", "Prev\nmAP@50", "Curr\nmAP@50", "Learned", "Kept")
    assert heads[3] == ("U-Recall", "U-AP", "U-Prec", "WI", "A-OSE")
    console = open_console(file=io.StringIO(), width=80)
    for table in tables:
        console.print(table)
    assert console.file.getvalue().count("a variant of some length ") == 3  # type: ignore[attr-defined]
