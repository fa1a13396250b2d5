"""Whether a run that goes on, or is scored later, has the data that it began with: data.json of its folder says.

Annotations that are not the same are refused before anything is written, since a model trained on two sets is a model
of neither. Image files are compared by their size in bytes alone (:mod:`openworld.data.identity`), and a difference is
a warning.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openworld.data.identity import identity_of
from openworld.errors import DataError
from openworld.records import Dataset

logger = logging.getLogger("openworld.run")

LISTS = "exemplar_lists"
"""Key of data.json: SHA-256 of the list of exemplars of each task."""
PARTS = {
    "images": "its images, their order, names or sizes",
    "boxes": "its boxes",
    "classes": "its class names, or which box has which",
}
"""What a changed digest says of a set."""


def recorded(folder: Path) -> dict[str, Any]:
    """Return data.json of a run, empty if there is none that can be read."""
    try:
        found = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def names_its_data(folder: Path) -> bool:
    """Return whether a run has noted the identity of all three sets."""
    found = recorded(folder)
    return all(_digest(found.get(name)) is not None for name in ("train", "held_out", "test"))


def check_same_data(folder: Path, now: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Check that the data are those that the run in a folder began with.

    A run of an older version noted no identity: it goes on with a warning.

    Args:
        folder: of a run that has begun.
        now: the content of data.json that the run would write.
        places: where each set was read, for the message.

    Raises:
        DataError: a set or a list of exemplars is another one.
    """
    before = recorded(folder)
    if not names_its_data(folder):
        logger.warning(
            "%s: it is not noted which data the run began with, so that they cannot be compared with those of now",
            folder,
        )
    for name, there in before.items():
        here, place = now.get(name), places.get(name, name)
        if name == LISTS:
            changed = [task for task in {**there, **(here or {})} if there.get(task) != (here or {}).get(task)]
            if changed:
                raise DataError(
                    f"the exemplar list of task {changed[0]} is not the one that the run began with",
                    where=place,
                    remedy=_REMEDY,
                )
        elif difference := difference_of(there, here):
            raise DataError(f"{name} is not the set that the run began with: {difference}", where=place, remedy=_REMEDY)
        elif _other_files(there, here):
            logger.warning(
                "%s: the image files of %s have %s bytes together, and had %s when the run began: if other pictures "
                "took their names, the run goes on with those",
                place,
                name,
                f"{here['image_bytes']:,}" if here else "no",
                f"{there['image_bytes']:,}",
            )


_REMEDY = "bring back the data that the run began with, or start a new run in another folder"


def difference_of(there: Any, here: Any) -> str | None:
    """Say in words how two identities of a set differ; None if they are equal or one of them is not known."""
    old, new = _digest(there), _digest(here)
    if old is None or new is None or old == new:
        return None
    parts = [words for part, words in PARTS.items() if old.get(part) != new.get(part)]
    counts = [
        f"{each['images']:,} images with {each['annotations']:,} annotations of {each['classes']:,} classes"
        for each in (there, here)
    ]
    if counts[0] == counts[1]:
        return f"{counts[0]} as then, but others: {'; '.join(parts)}"
    return f"{counts[0]} then, {counts[1]} now"


def difference_in_test_set(folder: Path, test: Dataset) -> str | None:
    """Say how the test set differs from the one that the run in a folder was trained and scored with, if it does."""
    there = recorded(folder).get("test")
    difference = None if _digest(there) is None else difference_of(there, identity_of(test))
    if difference is None:
        return None
    return f"the test set is not the one that the run was scored on: {difference}"


def _digest(found: Any) -> dict[str, Any] | None:
    value = found.get("digest") if isinstance(found, dict) else None
    return value if isinstance(value, dict) else None


def _other_files(there: Any, here: Any) -> bool:
    return (
        _digest(there) is not None and _digest(here) is not None and there.get("image_bytes") != here.get("image_bytes")
    )
