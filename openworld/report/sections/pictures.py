"""The same test images after every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openworld.records import Dataset
from openworld.report.pictures import Panel, Picture, data_uri
from openworld.report.run_folder import RunArtefacts
from openworld.report.text import listed


def picture_facts(picture: Picture) -> dict[str, Any]:
    """Return one image for the page: its panels, with drawings as ``data:`` addresses."""
    story = f"{listed(picture.story)}: first found as unknown, named once taught" if picture.story else None
    return {
        "id": picture.image_id,
        "name": picture.name,
        "story": story,
        "panels": [_panel(panel, picture.name) for panel in picture.panels],
    }


def pictures_note(
    run: RunArtefacts,
    shown: Sequence[Picture],
    test: Dataset | None,
    *,
    gone: str | None,
    known_threshold: float,
    unknowns: int,
) -> str:
    """Describe how the images were chosen and which detections are drawn, or why the page lacks pictures."""
    if all(task.predictions is None for task in run.tasks):
        return "No task has a predictions.json, so there are no pictures."
    if gone is not None and not shown:
        return f"The test set cannot be opened any more, so there are no pictures ({gone})."
    if gone is not None:
        choice = f"The test set cannot be opened any more ({gone}), so the pictures show detections only."
    elif test is None:
        choice = "The report was made without annotations, so the pictures show detections only, right or wrong."
    elif not any(picture.telling for picture in shown):
        choice = "No detection that would be drawn is right on any image, so these are simply the first ones."
    else:
        choice = (
            "Images are chosen for what they show, not at random: right detections of many classes, unknown objects "
            "found, and objects that turn from unknown into a name. They look better than the average."
        )
    from_where = ", from the score on that agrees best with the annotations (F1)" if test is not None else ""
    return (
        f"{choice} The drawings show known detections from score {known_threshold:g} on, and at most {unknowns} "
        f"unknown ones per image, best first{from_where}; not those that overlap a better known one by half."
    )


def _panel(panel: Panel, name: str) -> dict[str, Any]:
    caption = None
    if panel.shown is not None:
        num_unknown = sum(panel.shown.is_unknown)
        caption = f"{len(panel.shown.names) - num_unknown} known, {num_unknown} unknown"
    return {
        "task": panel.task,
        "truth": None if panel.truth is None else data_uri(panel.truth),
        "found": None if panel.found is None else data_uri(panel.found),
        "caption": caption,
        "alt": f"Detections on {name} after task {panel.task}: {caption or 'none'}",
    }
