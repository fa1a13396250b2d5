"""profile.json as a table and on the page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from openworld.report.build import build_report
from openworld.report.profile import PARTS, print_profile, profile_phases, profile_rows

PROFILE = {
    "phases": [
        {
            "task": 1,
            "stage": "train",
            "device": "cpu",
            "threads": 1,
            "processes": 2,
            "batch_size": 4,
            "steps": 5,
            "step_seconds": {"median": 0.2, "least": 0.1, "most": 0.4},
            "parts": [
                {"name": "backward", "seconds": 0.15, "share": 0.75},
                {"name": "<own>", "seconds": 0.01, "share": 0.05},
                {"name": "data", "seconds": 0.04, "share": 0.2},
            ],
        },
        {"task": 2, "stage": "replay", "parts": "none"},
    ]
}


def test_parts_come_in_the_order_of_a_step_and_a_broken_phase_is_left_out() -> None:
    (phase,) = profile_phases(PROFILE)
    assert phase["title"] == "task 1, train" and "2 processes, times of the first" in phase["facts"]
    assert "5 steps of 4 images" in phase["facts"] and "1 thread" in phase["facts"]
    assert profile_rows([phase]) == [("data", "40.0", "20.0"), ("backward", "150.0", "75.0"), ("<own>", "10.0", "5.0")]
    assert profile_phases({}) == []


def test_every_part_of_a_step_has_a_colour_of_its_own_and_a_meaning() -> None:
    assert len({part.colour for part in PARTS.values()}) == len(PARTS)
    assert all(part.meaning for part in PARTS.values())


@pytest.mark.parametrize("content", [PROFILE, None])
def test_the_table_and_the_page(tmp_path: Path, open_page: Any, content: dict[str, Any] | None) -> None:
    (tmp_path / "config.yaml").write_text("name: x")
    if content is not None:
        (tmp_path / "profile.json").write_text(json.dumps(content))
    shown = io.StringIO()
    print_profile(tmp_path, Console(file=shown, width=80))
    page = open_page(build_report(tmp_path))
    there = content is not None
    assert ("backward" in shown.getvalue()) == there
    rows = [row.texts("th") + row.texts("td") for panel in _profiles(page) for row in panel.all("tr")]
    wanted = [
        ["data", "40.0 ms", "20.0 %", PARTS["data"].meaning],
        ["backward", "150.0 ms", "75.0 %", PARTS["backward"].meaning],
        ["<own>", "10.0 ms", "5.0 %", ""],
    ]
    assert rows == (wanted if there else [])


def _profiles(page: Any) -> list[Any]:
    return page.root.all("div", class_="card wide profile")
