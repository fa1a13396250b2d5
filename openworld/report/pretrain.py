"""One HTML page of a pretraining, from the files in its folder alone: card.json, metrics.jsonl, neighbours.json.

The page is self-contained like that of a run. In place of a missing file, it says what the file would have shown.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageOps

from openworld.errors import DataError
from openworld.report import plots
from openworld.report.page import markup, render
from openworld.report.pictures import data_uri
from openworld.report.plots import PALETTE
from openworld.report.run_folder import mapping, read_json, read_log, sequence
from openworld.report.sections.settings import settings
from openworld.report.text import ABSENT, decimal, number, percent, value_text
from openworld.runtime.files import write_atomic
from openworld.runtime.images import read_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THUMB_PX = 88
"""Side of a picture on the page."""

_PANELS = (
    ("step", "loss", "Loss", "ink", 1.0),
    ("step", "lr", "Learning rate", "muted", 1.0),
    ("probe", "knn", "kNN accuracy, %", "current", 100.0),
    ("step", "feature_std", "Spread of the features", "known", 1.0),
    ("step", "effective_rank", "Effective rank of the features", "previous", 1.0),
    ("step", "spread", "Spread of the method's outputs", "ochre", 1.0),
)
"""Event and entry of metrics.jsonl, the title of its panel, its colour, its scale."""


def build_pretrain_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a pretraining.

    Raises:
        DataError: the folder does not hold a card.json.
    """
    notes: list[str] = []
    card = read_json(folder / "card.json", "card.json", "what was trained is not known", notes)
    if card is None:
        raise DataError("holds no finished pretraining", where=str(folder), remedy="finish it first, with --resume")
    found = read_json(folder / "neighbours.json", "neighbours.json", "nearest neighbours are not shown", notes)
    log = read_log(folder / "metrics.jsonl", notes)
    facts = {key: value for key, value in card.items() if key not in ("options", "knn", "linear", "alignment")}
    page = render(
        "pretrain.html",
        title=folder.resolve().name,
        sentence=_sentence(card),
        collapse=_collapse(mapping(card.get("collapse"))),
        curves=markup(training_curves(log)),
        probes=probe_rows(card),
        probe_note=_probe_note(mapping(card.get("knn"))),
        neighbours=_neighbours(sequence(mapping(found).get("queries")), notes),
        facts=settings(facts),
        options=settings(mapping(card.get("options"))),
        notes=notes,
        command=f"openworld report {shlex.quote(str(folder))}",
    )
    write_atomic(folder / "report.html", page)
    return folder / "report.html"


def probe_rows(card: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the name of each probe on the card, and its values as text: trained, untrained, chance."""
    knn, linear, alignment = (mapping(card.get(name)) for name in ("knn", "linear", "alignment"))
    rows = []
    if knn:
        cells = [percent(knn.get(key)) for key in ("trained", "untrained", "chance")]
        rows.append((f"kNN, k = {value_text(knn.get('k'))}: top-1, %", cells))
    for key, name in (("top1", "linear, closed form: top-1, %"), ("top5", "linear, closed form: top-5, %")):
        if linear:
            cells = [percent(mapping(linear.get(which)).get(key)) for which in ("trained", "untrained")]
            rows.append((name, [*cells, percent(linear.get("chance")) if key == "top1" else ABSENT]))
    for key, name in (("alignment", "alignment (0 is best)"), ("uniformity", "uniformity (lower is better)")):
        if alignment:
            cells = [decimal(mapping(alignment.get(which)).get(key), 2) for which in ("trained", "untrained")]
            rows.append((name, [*cells, ABSENT]))
    return rows


def training_curves(log: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw loss, learning rate, collapse meters and the probe over the steps; None for a log without any."""
    panels = []
    for event, key, title, colour, scale in _PANELS:
        points = [entry for entry in log if entry.get("event") == event and number(entry.get(key)) is not None]
        if points:
            steps, values = (plots.numbers(entry.get(name) for entry in points) for name in ("step", key))
            panels.append((title, colour, steps, scale * values))
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (title, colour, steps, values) in zip(grid.flat, panels, strict=False):
            few = len(steps) <= 30
            axes.plot(
                *plots.binned(steps, values),
                color=PALETTE[colour],
                linewidth=1.6,
                marker="o" if few else None,
                markersize=3,
            )
            axes.set_title(title)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=min(0.0, 1.06 * float(values.min())), top=1.06 * max(float(values.max()), 1e-12))
            axes.margins(x=0.02)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)

    return plots.svg("pretraining", draw, 9.0, 0.3 + 2.1 * rows)


def _sentence(card: Mapping[str, Any]) -> str:
    arch, data, knn = mapping(card.get("arch")), mapping(card.get("data")), mapping(card.get("knn"))
    trained, untrained = number(knn.get("trained")), number(knn.get("untrained"))
    text = (
        f"{card.get('method')} trained a {arch.get('name')} of width {value_text(arch.get('width'))} for "
        f"{value_text(card.get('steps'))} steps on {value_text(data.get('images'))} images"
    )
    if trained is None or untrained is None:
        return f"{text}. No labelled images were given, so no classifier says what it learned."
    return (
        f"{text}. Its nearest neighbours name {percent(trained)}\u00a0% of labelled images right; those of the same "
        f"network before training {percent(untrained)}\u00a0%."
    )


def _collapse(collapse: Mapping[str, Any]) -> str | None:
    if collapse.get("collapsed_at") is None:
        return None
    return (
        f"The features collapsed at step {collapse['collapsed_at']}: images looked alike to the network. At the end "
        f"their spread is {decimal(collapse.get('feature_std'), 2)} and their effective rank "
        f"{decimal(collapse.get('effective_rank'), 2)}, which was {decimal(collapse.get('first_rank'), 2)} at first."
    )


def _probe_note(knn: Mapping[str, Any]) -> str:
    if not knn:
        return "No labelled images were given: only alignment and uniformity, which need no labels, are measured."
    samples, asked = value_text(knn.get("samples")), value_text(knn.get("test_samples"))
    how = f"{asked} held-out images are asked about {samples} others"
    if knn.get("leave_one_out"):
        how = f"each of {samples} images is asked about all others"
    classes, source = value_text(knn.get("classes")), value_text(knn.get("source"))
    return f"Classifiers on frozen features of {classes} classes ({source}); kNN: {how}."


def _neighbours(queries: Sequence[Any], notes: list[str]) -> list[dict[str, Any]]:
    """Return pictures of each query and of its neighbours by both networks, without queries that cannot be opened."""
    shown = []
    for query in map(mapping, queries):
        picture = _thumb(query.get("image"))
        if picture is None:
            notes.append(f"{query.get('image')} cannot be opened: it and its neighbours are not shown.")
            continue
        sides = {
            which: [
                {"picture": _thumb(found.get("image")), "similarity": decimal(found.get("similarity"), 2)}
                for found in map(mapping, sequence(query.get(which)))
            ]
            for which in ("trained", "untrained")
        }
        shown.append({"name": Path(str(query.get("image"))).name, "picture": picture, **sides})
    return shown


def _thumb(path: Any) -> str | None:
    """Encode a square picture as a ``data:`` address; None if the file cannot be read as an image."""
    try:
        return data_uri(ImageOps.fit(read_rgb(Path(str(path)), upright=True), (THUMB_PX, THUMB_PX)))
    except DataError:
        return None
