"""Exemplars for replay: chosen from a data set, with or without a detector, or given as a list.

N annotated boxes, R regions per batch, D feature dimension, K head rows (known…, unknown, background).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from openworld.columns import ImageId
from openworld.data.exemplars import ImageRows, Instances, exemplar_record, listed_record
from openworld.data.loader import eval_batches, eval_target, local_batches
from openworld.data.options import ExemplarOptions, LoaderOptions
from openworld.data.splits import View, replay_view, training_view
from openworld.detector import Detector
from openworld.errors import DataError
from openworld.labels import LabelSpace
from openworld.records import Dataset
from openworld.runtime import distributed
from openworld.runtime.runlog import progress_bar
from openworld.structures import Regions, Target

log = logging.getLogger("openworld.run.replay")

BATCH = 8


def chosen_exemplars(
    train: Dataset,
    space: LabelSpace,
    options: ExemplarOptions,
    seed: int,
    *,
    detector: Detector | None,
    loader: LoaderOptions,
) -> dict[str, Any]:
    """Choose the exemplars of a task by ``options.strategy``; return their record.

    Args:
        train: training set, of which only what the task may see is used.
        space: of the task.
        options: their number, and how they are chosen.
        seed: of the choice.
        detector: in evaluation mode, with the head of the task; for ``herding`` and ``by_score``.
        loader: how images enter the detector.
    """
    view = training_view(train, space)
    instances = None
    if detector is not None:
        herding = options.strategy == "herding"
        title = f"task {space.task} exemplars"
        instances = annotated_instances(detector, view, loader, keep_features=herding, title=title)
    images = _of_all_tasks(train, space) if options.strategy == "greedy" else _rows(view)
    return exemplar_record(images, space, options, seed, instances)


def listed_exemplars(train: Dataset, held_out: Dataset, space: LabelSpace, pattern: str) -> dict[str, Any]:
    """Read the exemplars of a task from its list; return their record. Task 1 replays nothing and needs no list.

    Args:
        train, held_out: the sets of the run. Listed images that are held out are left out and named in the record.
        space: of the task.
        pattern: path of the lists, in which ``{task}`` stands for the number of the task.

    Raises:
        DataError: the list is missing or unreadable, or some image is in neither set.
    """
    path = list_path(pattern, space.task)
    images = _rows(replay_view(train, space, train.image_ids))
    if space.task == 1 and not path.exists():
        return {
            "task": 1,
            "per_class": None,
            "strategy": "list",
            "covers": "known",
            "seed": None,
            "images": [],
            "instances": dict.fromkeys(space.known, 0),
            "list": None,
            "repeats": 0,
            "held_out": [],
        }
    return listed_record(path, images, space, image_names(train), set(image_names(held_out)))


def check_lists(train: Dataset, held_out: Dataset, space: LabelSpace, pattern: str, last_task: int) -> None:
    """Read the lists of all tasks that replay, so that a mistake in one is found before the first task is trained.

    Raises:
        DataError: as :func:`listed_exemplars`; or a list names no training image.
    """
    names, kept_out = image_names(train), set(image_names(held_out))
    for task in range(2, last_task + 1):
        path = list_path(pattern, task)
        if not listed_record(path, [], space.at(task), names, kept_out)["images"]:
            raise DataError(
                f"names no image that task {task} can replay",
                where=str(path),
                remedy="give a list with at least one training image, or set exemplars.enabled to false",
            )


def list_path(pattern: str, task: int) -> Path:
    """Return the path of a task's list."""
    return Path(pattern.replace("{task}", str(task)))


def image_names(dataset: Dataset) -> dict[str, ImageId]:
    """Return the image ids by the names that a list may use: the id as written, or the stem of its file if unique.

    An id takes precedence over a stem.
    """
    stems = [Path(str(path)).stem for path in dataset.paths]
    times = Counter(stems)
    names = {stem: image_id for stem, image_id in zip(stems, dataset.image_ids, strict=True) if times[stem] == 1}
    names.update({str(image_id): image_id for image_id in dataset.image_ids})
    return names


def replayed_images(records: Sequence[dict[str, Any]]) -> list[ImageId]:
    """Return the images that a task replays, each once, in the order of the tasks.

    Args:
        records: the exemplars of the tasks up to this one. A record that covers all known classes makes the earlier
            ones superfluous; one without the field covers its own classes.
    """
    first = max((place for place, record in enumerate(records) if record.get("covers") == "known"), default=0)
    return list(dict.fromkeys(image_id for record in records[first:] for image_id in record["images"]))


def annotated_instances(
    detector: Detector, view: View, options: LoaderOptions, *, keep_features: bool, title: str
) -> Instances:
    """Compute feature and score of every annotated box of a view, as in evaluation. See :func:`best_regions`.

    Cost: one forward pass per image, without augmentation; memory 4 bytes times D times N with ``keep_features``. An
    image that cannot be read has no instances, as in training. Several processes share the images, and each gets the
    instances of all.

    Args:
        detector: in evaluation mode.
        view: images with the boxes that the task may see.
        options: how images enter the detector.
        keep_features: False returns features with D = 0.
        title: of the progress bar.
    """

    def warn(problem: str) -> None:
        log.warning("image left out of the exemplars: %s", problem)

    ids: list[ImageId] = []
    width = detector.engine.feature_dim if keep_features else 0
    parts = [(torch.zeros(0, dtype=torch.int64), torch.zeros(0, width), torch.zeros(0), torch.zeros(0).bool())]
    own = local_batches(len(view), BATCH)
    with progress_bar(title, len(own)) as bar:
        for images, positions, scales in eval_batches(view.images, BATCH, options, numbers=own, broken=warn):
            bar.advance()
            targets = [eval_target(view[position], scale) for position, scale in zip(positions, scales, strict=True)]
            if images:
                regions, _ = detector.matched_regions(images, targets)
                features_ND, scores_N, found_N = (part.cpu() for part in best_regions(regions, targets))
                if not keep_features:
                    features_ND = features_ND[:, :0]
                parts.append((torch.cat([target.labels for target in targets]), features_ND, scores_N, found_N))
                ids += [target.image_id for target in targets for _ in range(len(target))]
    rows, features, scores, found = (
        distributed.gather_rows(torch.cat(column)).numpy() for column in zip(*parts, strict=True)
    )
    return Instances(tuple(chain(*distributed.gather_objects(ids))), rows, features, scores, found)


def best_regions(regions: Regions, targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
    """Represent each annotated box by the proposal that overlaps it most.

    The score is the probability of an object times the probability of the annotated class: sigmoid of the objectness
    logit times softmax of the class logits. PROB (Zohar et al., CVPR 2023, models/prob_deformable_detr.py,
    ExemplarSelection) has the same product at the query that its one-to-one matching gives the box; here two boxes may
    share a proposal.

    Args:
        regions: proposals of a batch with features and logits.
        targets: annotated boxes of each image of the batch.

    Returns:
        features (N, D) float32, scores (N,) float32 and found (N,) bool, the boxes image after image. A box that no
        proposal overlaps is not found; its features are 0 and its score is 0.
    """
    assert regions.features is not None and regions.logits is not None
    features, scores, found = [regions.features[:0]], [regions.objectness[:0]], [regions.image_index[:0].bool()]
    for index, target in enumerate(targets):
        here = torch.where(regions.image_index == index)[0]
        if not len(here):
            features.append(regions.features.new_zeros(len(target), regions.features.shape[1]))
            scores.append(regions.objectness.new_zeros(len(target)))
            found.append(torch.zeros(len(target), dtype=torch.bool, device=here.device))
            continue
        iou, best = box_iou(target.boxes.to(here.device), regions.boxes[here]).max(dim=1)
        chosen, overlaps = here[best], iou > 0
        classes = regions.logits[chosen].softmax(dim=1).gather(1, target.labels.to(here.device)[:, None])[:, 0]
        features.append(regions.features[chosen] * overlaps[:, None])
        scores.append(regions.objectness[chosen].sigmoid() * classes * overlaps)
        found.append(overlaps)
    return torch.cat(features), torch.cat(scores), torch.cat(found)


def _rows(view: View) -> list[ImageRows]:
    return [(image_id, view.labels_of(place).tolist()) for place, image_id in enumerate(view.images.image_ids)]


def _of_all_tasks(train: Dataset, space: LabelSpace) -> list[ImageRows]:
    """Images of all tasks so far with all known classes, an image once for each task that trains on it."""
    rows = dict(_rows(replay_view(train, space, train.image_ids)))
    views = (training_view(train, space.at(task)) for task in range(1, space.task + 1))
    return [(image_id, rows[image_id]) for view in views for image_id in view.images.image_ids]
