"""Identity of an annotated set: what it holds, wherever its folder lies and however it was read.

A run notes the identity of its sets, and goes on only with the same ones. Hashing the columns of a set takes about
a tenth of a second per ten thousand images. The pixels are not read: that would take as long as an epoch. The sizes of
the image files stand in for them.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from openworld.records import Dataset
from openworld.runtime.identity import bytes_of_files, digest, names_digest


def identity_of(dataset: Dataset) -> dict[str, Any]:
    """Return counts and digests of a set, ready for JSON.

    Returns:
        ``images``, ``annotations`` and ``classes`` (numbers); ``digest``, one each of ``images`` (ids, file names below
        their common folder, order, annotated sizes, repetitions, lists of the tasks), ``boxes`` (with their flags) and
        ``classes`` (the names, and which box has which); ``image_bytes``, the size of all image files together.

        The ids of single annotations and the order of the categories do not count: nothing depends on them.
    """
    paths, ids = [str(path) for path in dataset.paths], dataset.image_ids
    order = sorted(range(len(dataset.categories)), key=dataset.categories.__getitem__)
    place_of = np.empty(len(order), dtype=np.int64)
    place_of[order] = np.arange(len(order))
    lists = [sorted(json.dumps(image_id) for image_id in ids) for ids in dataset.task_images]
    return {
        "images": len(dataset),
        "annotations": dataset.num_annotations,
        "classes": len(dataset.categories),
        "digest": {
            "images": digest(
                [
                    ids.text[ids.ends[0] : ids.ends[-1]].tobytes(),
                    _bytes(np.diff(ids.ends)),
                    names_digest(paths).encode(),
                    _bytes(dataset.sizes),
                    _bytes(dataset.listed),
                    json.dumps(lists).encode(),
                ]
            ),
            "boxes": digest(
                [
                    _bytes(dataset.offsets),
                    np.ascontiguousarray(dataset.boxes, dtype="<f4").tobytes(),
                    np.packbits(dataset.ignore).tobytes(),
                    np.packbits(dataset.crowd).tobytes(),
                ]
            ),
            "classes": digest(
                [
                    json.dumps(sorted(dataset.categories)).encode(),
                    _bytes(place_of[dataset.box_categories]),
                ]
            ),
        },
        "image_bytes": bytes_of_files(paths),
    }


def _bytes(values: np.ndarray[Any, Any]) -> bytes:
    """The bytes of whole numbers, the same on every machine."""
    return np.ascontiguousarray(values, dtype="<i8").tobytes()
