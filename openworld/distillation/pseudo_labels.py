"""Pseudo-labels: detections of earlier classes that join the annotations of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from openworld.columns import Names, ends_of
from openworld.data.splits import Sample, View
from openworld.labels import LabelSpace
from openworld.records import renamed
from openworld.structures import Detections


def chosen_labels(sample: Sample, found: Detections, space: LabelSpace, *, score: float, iou: float) -> dict[str, Any]:
    """Choose the detections of one image that become annotations.

    Args:
        sample: the image, with what the task sees of it.
        found: detections of the teacher, in pixels of the image.
        space: label space of the teacher. Detections of unknown are left out.
        score: lowest score.
        iou: largest overlap with an annotated box of the task.

    Returns:
        the image's entry in pseudo_labels.json.
    """
    kept = space.is_known(found.labels) & (found.scores >= score)
    if len(sample.record):
        overlap = box_iou(found.boxes, torch.from_numpy(sample.record.boxes))
        kept &= overlap.amax(dim=1) <= iou
    chosen = found[kept]
    return {
        "image": sample.record.image_id,
        "boxes": chosen.boxes.tolist(),
        "classes": [space.name(row) for row in chosen.labels.tolist()],
        "scores": chosen.scores.tolist(),
    }


def with_pseudo_labels(view: View, entries: Iterable[dict[str, Any]], space: LabelSpace) -> View:
    """Add pseudo-labels to a view, behind the annotations of each image.

    Args:
        view: what a task may see.
        entries: of :func:`chosen_labels`; images that the view does not have are left out.
        space: label space of the task.
    """
    images = view.images
    place = images.position_of
    added = [entry for entry in entries if entry["image"] in place]
    names = tuple(dict.fromkeys([*images.categories, *(name for entry in added for name in entry["classes"])]))
    images = renamed(images, {}, names)
    owners = np.array([place[entry["image"]] for entry in added for _ in entry["classes"]], dtype=np.int64)
    classes: Sequence[str] = [name for entry in added for name in entry["classes"]]
    boxes = np.array([box for entry in added for box in entry["boxes"]], dtype=np.float32).reshape(-1, 4)
    order = np.argsort(np.concatenate([images.image_index, owners]), kind="stable")

    def joined(old: Any, new: Any) -> Any:
        return np.concatenate([old, np.asarray(new, dtype=old.dtype).reshape(-1, *old.shape[1:])])[order]

    nothing = np.zeros(len(owners), dtype=np.bool_)
    ids = Names([*images.annotation_ids, *(f"pseudo-{number}" for number in range(len(owners)))])
    joint = replace(
        images,
        offsets=ends_of(np.diff(images.offsets) + np.bincount(owners, minlength=len(images))),
        boxes=joined(images.boxes, boxes),
        box_categories=joined(images.box_categories, [names.index(name) for name in classes]),
        ignore=joined(images.ignore, nothing),
        crowd=joined(images.crowd, nothing),
        annotation_ids=ids.take(order),
    )
    return View(joint, joined(view.labels, [space.row(name) for name in classes]))
