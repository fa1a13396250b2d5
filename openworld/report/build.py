"""One HTML page of a run, from the files in its folder alone.

The page is self-contained: styles, figures (inline SVG) and pictures (JPEG data) are in the file. It has no scripts,
and opens from a disk without a network. In place of a missing artefact, the page says what it would have shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openworld.records import Dataset
from openworld.report import plots
from openworld.report.draw import NOT_TAUGHT_COLOUR, UNKNOWN_COLOUR, css_colour
from openworld.report.methods import METHOD_PAGES
from openworld.report.methods.record import record_page
from openworld.report.page import markup, render
from openworld.report.pictures import pictures
from openworld.report.run_folder import RunArtefacts, read_run
from openworld.report.sections.backbone import backbone
from openworld.report.sections.forgetting import forgotten
from openworld.report.sections.headline import headline, warnings
from openworld.report.sections.pictures import picture_facts, pictures_note
from openworld.report.sections.results import classes, results
from openworld.report.sections.settings import commands, what_was_run
from openworld.report.validation import validation_curves
from openworld.runtime.files import write_atomic


def build_report(
    run: Path,
    test: Dataset | None = None,
    *,
    gone: str | None = None,
    changed: str | None = None,
    known_threshold: float = 0.3,
    unknowns_per_image: int = 4,
    num_images: int = 6,
) -> Path:
    """Write ``report.html`` into the folder of a run.

    Args:
        run: the folder; only config.yaml must be there.
        test: the annotated test images, for the pictures; without them the pictures show detections only.
        gone: reason why the test images cannot be opened, for the page; None if ``test`` is given or not wanted.
        changed: how ``test`` differs from what the run was scored on, for the page; None if it does not.
        known_threshold: smallest score of a known detection to draw.
        unknowns_per_image: draw at most this many unknown detections per image, best first.
        num_images: maximum number of test images on the page.

    Returns:
        Path of report.html.

    Raises:
        DataError: the folder does not exist.
        ConfigError: its config.yaml is missing or is not a mapping.
    """
    artefacts = read_run(run)
    shown, unopened = pictures(
        artefacts, test, num_images=num_images, known_threshold=known_threshold, unknowns=unknowns_per_image
    )
    method = _method(artefacts)
    page = render(
        "template.html",
        title=str(artefacts.config.get("name") or artefacts.path.resolve().name),
        folder=artefacts.path.resolve().name,
        swatches={"unknown": css_colour(UNKNOWN_COLOUR), "not_taught": css_colour(NOT_TAUGHT_COLOUR)},
        headline=headline(artefacts),
        warnings=[*warnings(artefacts), *method["warnings"]],
        classes=classes(artefacts),
        results=results(artefacts),
        pictures=[picture_facts(picture) for picture in shown],
        pictures_note=pictures_note(
            artefacts, shown, test, gone=gone, known_threshold=known_threshold, unknowns=unknowns_per_image
        ),
        unopened=unopened if gone is None else [],
        forgetting=forgotten(artefacts),
        method=method,
        backbone=backbone(artefacts.card),
        losses=markup(plots.loss_curves(artefacts.log)),
        validations=markup(validation_curves(artefacts.log)),
        run=what_was_run(artefacts),
        commands=commands(artefacts),
        notes=(*artefacts.notes, *([f"{changed[0].upper()}{changed[1:]}."] if changed else [])),
    )
    target = artefacts.path / "report.html"
    write_atomic(target, page)
    return target


def _method(run: RunArtefacts) -> dict[str, Any]:
    """Return the section of the run's open-world method."""
    page = METHOD_PAGES.get(run.method) or record_page(run.method)
    return {
        "link": page.link,
        "title": page.title,
        "lead": page.lead,
        "panels": [markup(panel) for panel in page.panels(run.tasks)],
        "warnings": page.warnings(run.tasks),
    }
