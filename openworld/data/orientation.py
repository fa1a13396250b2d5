"""In which orientation photographs were annotated, where their EXIF tags and annotated sizes leave it open."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from openworld.columns import ImageId
from openworld.errors import DataError
from openworld.records import Dataset, FloatArray
from openworld.runtime.image_depth import SAMPLE, spread
from openworld.runtime.image_headers import Header, read_header

log = logging.getLogger("openworld.data")


@dataclass
class OrientationDoubt:
    """Images of a set that were annotated upright or as stored, and nobody can tell which.

    Args:
        looked_at: number of images whose headers were read.
        undecided: ids of those whose annotated size is that of both pictures.
        turned: ids of those whose annotated size is that of the turned picture: the annotator saw them upright.
    """

    looked_at: int = 0
    undecided: list[ImageId] = field(default_factory=list)
    turned: list[ImageId] = field(default_factory=list)

    def words(self, name: str) -> tuple[str, str]:
        """What is in doubt, and what to do, each in sentences. ``name``: of the set."""
        number = len(self.undecided)
        of_all = f"{number:,} of {self.looked_at:,} images of {name}"
        finding = (
            f"{of_all} {'has' if number == 1 else 'have'} an EXIF tag that viewers apply (a half turn, a mirror image, "
            f"or a square photograph), and the annotated size does not tell whether the boxes are of the turned "
            f"picture (e.g. {self.undecided[0]}): read as stored."
        )
        if self.turned:
            others = "another image has" if len(self.turned) == 1 else f"{len(self.turned):,} others have"
            finding += f" {others} the size of the turned picture (e.g. {self.turned[0]}), so it probably is that one."
        return (
            finding,
            f"Set `orientation: upright` for {name} if its boxes were drawn on pictures as viewers show them, "
            "or `orientation: stored` if they were drawn on the stored pixels.",
        )


def orientation_doubt(dataset: Dataset, headers: Mapping[Path, Header]) -> OrientationDoubt | None:
    """Find the images of a set whose orientation is in doubt; None where there are none.

    Args:
        dataset: as read.
        headers: of its image files; images without one are passed over.
    """
    if dataset.upright is not None:
        return None
    found = OrientationDoubt()
    for place, (width, height) in enumerate(dataset.sizes.tolist()):
        header = headers.get(Path(str(dataset.paths[place])))
        if header is None:
            continue
        found.looked_at += 1
        if header.leaves_open((width, height)):
            found.undecided.append(dataset.image_ids[place])
        elif header.applies((width, height)):
            found.turned.append(dataset.image_ids[place])
    return found if found.undecided else None


def headers_of(paths: Iterable[Path]) -> dict[Path, Header]:
    """Headers of image files; those that cannot be read are left out."""
    found = {}
    for path in paths:
        with suppress(DataError):
            found[path] = read_header(path)
    return found


def warn_of_orientation(dataset: Dataset, name: str) -> None:
    """Log a warning where the orientation of images is in doubt; a sample of the set is looked at.

    Args:
        dataset: as read.
        name: of the set, for the message.
    """
    if dataset.upright is None:
        sample = spread([Path(str(path)) for path in dataset.paths], SAMPLE)
        doubt = orientation_doubt(dataset, headers_of(sample))
        if doubt is not None:
            log.warning("%s %s", *doubt.words(name))


def as_upright(dataset: Dataset) -> Dataset:
    """Turn the annotations to the upright pictures, for a loader that always applies EXIF tags. Reads all headers.

    Images that cannot be read stay as they are.
    """
    if dataset.upright:
        return dataset
    boxes, sizes = dataset.boxes.copy(), dataset.sizes.copy()
    headers = headers_of(Path(str(path)) for path in dataset.paths)
    for place, record in enumerate(dataset):
        header = headers.get(record.path)
        if header is None or header.orientation == 1 or header.applies(record.turned_to):
            continue
        own = slice(int(dataset.offsets[place]), int(dataset.offsets[place + 1]))
        boxes[own] = turned_boxes(record.boxes, header.orientation, (record.width, record.height))
        if header.orientation >= 5:
            sizes[place] = record.height, record.width
    return replace(dataset, boxes=boxes, sizes=sizes, upright=True)


def turned_boxes(boxes: FloatArray, orientation: int, stored: tuple[int, int]) -> FloatArray:
    """Boxes (N, 4) of a stored picture -> those of the upright one.

    Args:
        boxes: x1 y1 x2 y2 in pixels.
        orientation: the EXIF tag, 1 to 8.
        stored: width and height of the stored picture in pixels.
    """
    width, height = stored
    x1, y1, x2, y2 = boxes.T
    if orientation in (2, 3, 7, 8):  # the right edge of the stored picture is the left or upper one
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = height - y2, height - y1
    columns = (y1, x1, y2, x2) if orientation >= 5 else (x1, y1, x2, y2)
    return np.stack(columns, axis=1).astype(np.float32)
