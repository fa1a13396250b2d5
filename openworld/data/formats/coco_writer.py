"""Write a data set as a COCO file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from openworld.records import Dataset
from openworld.runtime.files import write_json


def write_coco(path: Path, dataset: Dataset, images: Path) -> None:
    """Write a data set as a COCO file. Category ids count from 1; image and annotation ids are kept.

    Args:
        path: the .json file, replaced atomically.
        dataset: difficult boxes are written with ``ignore: 1``.
        images: folder that file names become relative to.
    """
    annotations: list[dict[str, Any]] = []
    for record in dataset:
        for number, corners in enumerate(record.boxes.astype(np.float64).tolist()):
            x1, y1, x2, y2 = corners
            entry = {
                "id": record.annotation_ids[number],
                "image_id": record.image_id,
                "category_id": int(record.categories[number]) + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(record.crowd[number]),
            }
            if record.ignore[number] and not record.crowd[number]:
                entry["ignore"] = 1
            annotations.append(entry)
    content = {
        "images": [
            {
                "id": record.image_id,
                "file_name": record.path.relative_to(images).as_posix(),
                "width": record.width,
                "height": record.height,
            }
            for record in dataset
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(dataset.categories, start=1)],
        "annotations": annotations,
    }
    write_json(path, content, indent=None)
