"""What a run says of its data before the first step: records that were dropped or repaired, classes nobody shows."""

from __future__ import annotations

import logging
import sys

from openworld.data.splits import check_training
from openworld.labels import LabelSpace
from openworld.records import Repairs
from openworld.run.sources import Sources

logger = logging.getLogger("openworld.run")


def say_repairs(sources: Sources) -> None:
    """Warn of every kind of record that was dropped, with its first cases; name harmless repairs in one line a set."""
    said: list[Repairs] = []
    for name, dataset in (("train", sources.train), ("held_out", sources.held_out), ("test", sources.test)):
        repairs = dataset.repairs
        if any(repairs is other for other in said):  # images held out of training were read with the rest
            continue
        said.append(repairs)
        for kind, count in repairs.harmful.items():
            logger.warning("%s: %s (%s), for instance %s", name, kind, f"{count:,}", _first(repairs, kind))
        harmless = [f"{kind} ({count:,})" for kind, count in repairs.counts.items() if kind not in repairs.harmful]
        if harmless:
            print(f"note: {name}: repaired while reading: {', '.join(harmless)}; see data.json", file=sys.stderr)


def say_absent_classes(sources: Sources, spaces: list[LabelSpace]) -> None:
    """Warn of each class that no training image shows.

    Raises:
        DataError: a task has no class that a training image shows.
    """
    for absent in check_training(sources.train, sources.held_out, spaces):
        logger.warning("%s", absent)


def _first(repairs: Repairs, kind: str) -> str:
    return "; ".join(repairs.cases[kind][: repairs.SHOWN])
