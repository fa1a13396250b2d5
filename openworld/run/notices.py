"""What a run says of its data before the first step: records that were dropped or repaired, classes nobody shows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence

from openworld.data.splits import check_training
from openworld.labels import LabelSpace
from openworld.records import Dataset
from openworld.repairs import Repairs
from openworld.run.sources import Sources

logger = logging.getLogger("openworld.run")


def say_repairs(sets: Mapping[str, Dataset]) -> None:
    """Warn of every kind of record that was dropped, with its first cases; name harmless repairs in one line a set.

    Args:
        sets: by name. One that was split off another has the repairs of the whole, which are said once.
    """
    said: list[Repairs] = []
    for name, dataset in sets.items():
        repairs = dataset.repairs
        if any(repairs is other for other in said):
            continue
        said.append(repairs)
        for kind, count in repairs.harmful.items():
            cases = "; ".join(repairs.cases[kind][: repairs.SHOWN])
            logger.warning("%s: %s (%s), for instance %s", name, kind, f"{count:,}", cases)
        harmless = [f"{kind} ({count:,})" for kind, count in repairs.counts.items() if kind not in repairs.harmful]
        if harmless:
            print(f"note: {name}: repaired while reading: {', '.join(harmless)}", file=sys.stderr)


def say_absent_classes(sources: Sources, spaces: Sequence[LabelSpace]) -> None:
    """Warn of each class that no training image shows.

    Raises:
        DataError: a task has no class that a training image shows.
    """
    for absent in check_training(sources.train, sources.held_out, spaces):
        logger.warning("%s", absent)
