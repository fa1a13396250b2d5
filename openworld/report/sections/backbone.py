"""The backbone's card, and its nearest-neighbour accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openworld.report import plots
from openworld.report.page import markup
from openworld.report.run_folder import mapping
from openworld.report.sections.settings import settings
from openworld.report.text import number, percent


def backbone(card: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the card as text, and its ``knn`` accuracies ``trained``, ``untrained`` and ``chance`` as fractions."""
    listed = mapping(mapping(card).get("knn"))
    found = {key: value for key in ("trained", "untrained", "chance") if (value := number(listed.get(key))) is not None}
    reading = None
    if "trained" in found and "untrained" in found:
        gain = found["trained"] - found["untrained"]
        reading = (
            f"Pretraining added {percent(gain)} points over the same network with random weights."
            if gain > 0
            else f"Pretraining added nothing: the untrained network is {percent(-gain)} points ahead."
        )
    return {"card": settings(card), "figure": markup(plots.knn_bars(found)), "reading": reading}
