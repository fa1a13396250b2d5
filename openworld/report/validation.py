"""Figure of the validations during the training of a run, from its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openworld.report.plots import PALETTE, entries_by_phase, numbers, panel_grid, phase_name, svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def validation_curves(log: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw one panel per phase with validations: known mAP@50 on the held-out images, the best one marked.

    Args:
        log: metrics.jsonl.

    Returns:
        inline SVG; None if the run did not validate.
    """
    phases = entries_by_phase(log, "validation")
    if not phases:
        return None
    rows, columns = panel_grid(len(phases))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, ((stage, task), entries) in zip(grid.flat, phases.items(), strict=False):
            steps = numbers(entry.get("step") for entry in entries)
            scores = 100 * numbers(entry.get("ap50") for entry in entries)
            axes.plot(steps, scores, "o-", color=PALETTE["known"], markersize=3.5, markerfacecolor=PALETTE["card"])
            if best := [place for place, entry in enumerate(entries) if entry.get("best") is True]:
                axes.plot(steps[best[-1]], scores[best[-1]], "o", color=PALETTE["known"], markersize=6)
            axes.set_title(phase_name(stage, task))
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0)
        for axes in grid.flat[len(phases) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel("known mAP@50, %")

    return svg("validations", draw, 9.0, 0.45 + 2.15 * rows)
