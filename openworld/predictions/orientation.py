"""Whether predictions and annotations are of the same picture, where photographs have an EXIF orientation tag."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from openworld.columns import ImageId
from openworld.errors import DataError
from openworld.predictions.file import Predictions
from openworld.records import Dataset
from openworld.runtime.image_headers import read_header


def check_orientation(predictions: Predictions, dataset: Dataset) -> None:
    """Refuse predictions whose boxes are of turned pictures where the annotations are of stored ones, or the reverse.

    Where the sizes do not tell, and the two were made by different rules, the headers of the image files are read, as
    far as these exist.

    Raises:
        DataError: there is such an image; the message names the first.
    """
    places = np.array([dataset.position_of.get(name, -1) for name in predictions.image_ids], dtype=np.int64)
    found = np.flatnonzero(places >= 0)
    predicted = np.stack([predictions.widths, predictions.heights], axis=1)[found]
    annotated = dataset.sizes[places[found]]
    exchanged = (predicted == annotated[:, ::-1]).all(axis=1) & (predicted != annotated).any(axis=1)
    if exchanged.any():
        row = int(np.argmax(exchanged))
        width, height = predicted[row].tolist()
        raise _mismatch(
            predictions.image_ids[found[row]],
            f"the predicted picture is {width}x{height}, annotated is {height}x{width}",
        )
    if predictions.upright is None or predictions.upright == dataset.upright:
        return
    words = ("upright", "as stored") if predictions.upright else ("as stored", "upright")
    for place in places[found].tolist():
        record, header = dataset[place], None
        with suppress(DataError):
            header = read_header(record.path)
        if header is not None and header.applies(predictions.upright) != header.applies(record.turned_to):
            tag = f"its EXIF tag is {header.orientation}, and it was predicted {words[0]} and annotated {words[1]}"
            raise _mismatch(record.image_id, tag)


def _mismatch(image_id: ImageId, problem: str) -> DataError:
    return DataError(
        f"predictions and annotations of image {image_id!r} are of different orientation: {problem}",
        remedy="predict again with the other --orientation, or score with the --orientation (auto, stored, upright) of "
        "the predictions if the annotations were drawn on such pictures",
    )
