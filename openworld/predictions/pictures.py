"""Whether predictions and annotations are of the same pictures: of one size, and turned alike by their EXIF tags."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openworld.columns import ImageId, IntArray
from openworld.data.formats.sizes import FROM_BOXES
from openworld.errors import DataError
from openworld.predictions.arrays import Predictions
from openworld.records import BoolArray, Dataset
from openworld.runtime.image_headers import read_header


class _Sizes(NamedTuple):
    """The M images that are predicted and annotated; sizes are width and height in pixels.

    Args:
        places: (M,) int64, their positions in the data set.
        predicted: (M, 2) int64.
        annotated: (M, 2) int64.
        exchanged: (M,) bool, one size is the other with its sides exchanged.
    """

    places: IntArray
    predicted: IntArray
    annotated: IntArray
    exchanged: BoolArray


def check_sizes(predictions: Predictions, dataset: Dataset, where: Path) -> None:
    """Refuse predictions whose boxes are pixels of copies in another size than the annotated one.

    Exchanged sides are left to :func:`check_orientation`, and sizes that the reader took from boxes to nobody.

    Args:
        predictions: with the image ids of the data set.
        dataset: the ground truth.
        where: file of the predictions, for the message.

    Raises:
        DataError: there is such an image; the message names the first.
    """
    if FROM_BOXES in dataset.repairs.counts:
        return
    sizes = _sizes(predictions, dataset)
    wrong = np.flatnonzero((sizes.annotated != sizes.predicted).any(axis=1) & ~sizes.exchanged)
    if not wrong.size:
        return
    record, (width, height) = dataset[int(sizes.places[wrong[0]])], sizes.predicted[wrong[0]].tolist()
    raise DataError(
        f"{wrong.size} of {len(sizes.places)} images were predicted in another size than they are annotated in: "
        f"{record.image_id!r} ({record.path}) at {width}x{height}, annotated at {record.width}x{record.height}",
        where=str(where),
        remedy="score with the annotations of the files that were predicted, not of copies in another size",
    )


def check_orientation(predictions: Predictions, dataset: Dataset) -> None:
    """Refuse predictions whose boxes are of turned pictures where the annotations are of stored ones, or the reverse.

    Where the sizes do not tell, and the two were made by different rules, the headers of the image files are read, as
    far as these exist.

    Raises:
        DataError: there is such an image; the message names the first.
    """
    sizes = _sizes(predictions, dataset)
    if sizes.exchanged.any():
        row = int(np.argmax(sizes.exchanged))
        width, height = sizes.predicted[row].tolist()
        raise _mismatch(
            dataset.image_ids[int(sizes.places[row])],
            f"the predicted picture is {width}x{height}, annotated is {height}x{width}",
        )
    if predictions.upright is None or predictions.upright == dataset.upright:
        return
    words = ("upright", "as stored") if predictions.upright else ("as stored", "upright")
    for place in sizes.places.tolist():
        record, header = dataset[place], None
        with suppress(DataError):
            header = read_header(record.path)
        if header is not None and header.applies(predictions.upright) != header.applies(record.turned_to):
            tag = f"its EXIF tag is {header.orientation}, and it was predicted {words[0]} and annotated {words[1]}"
            raise _mismatch(record.image_id, tag)


def _sizes(predictions: Predictions, dataset: Dataset) -> _Sizes:
    places = np.array([dataset.position_of.get(name, -1) for name in predictions.image_ids], dtype=np.int64)
    found = np.flatnonzero(places >= 0)
    predicted = np.stack([predictions.widths, predictions.heights], axis=1)[found]
    annotated = dataset.sizes[places[found]]
    exchanged = (predicted == annotated[:, ::-1]).all(axis=1) & (predicted != annotated).any(axis=1)
    return _Sizes(places[found], predicted, annotated, exchanged)


def _mismatch(image_id: ImageId, problem: str) -> DataError:
    return DataError(
        f"predictions and annotations of image {image_id!r} are of different orientation: {problem}",
        remedy="predict again with the other --orientation, or score with the --orientation (auto, stored, upright) of "
        "the predictions if the annotations were drawn on such pictures",
    )
