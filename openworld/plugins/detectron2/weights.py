"""Initial weights of a task: those of the previous task, with rows for the new classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor

from openworld.engines.detectron2.config import build_method, label_space, roi_options
from openworld.engines.detectron2.names import PREDICTOR
from openworld.engines.detectron2.output_layers import OpenWorldOutputLayers
from openworld.errors import CheckpointError
from openworld.labels import LabelSpace
from ssl_backbones.handover.pickles import read_pickle

MakePredictor = Callable[[LabelSpace, int], OpenWorldOutputLayers]
"""Builds the two last layers for a label space and a feature dimension."""


def grow_weights(cfg: CfgNode) -> str:
    """Return a file for ``MODEL.WEIGHTS``: a checkpoint of an earlier task gets the rows of the current one.

    Returns:
        the path of the new file in ``OUTPUT_DIR``, or ``MODEL.WEIGHTS`` where nothing grows.

    Raises:
        CheckpointError: the file is damaged, or is a checkpoint of a later task or of another schedule.
    """

    def make(labels: LabelSpace, dim: int) -> OpenWorldOutputLayers:
        method = build_method(cfg, labels, dim)
        shape = ShapeSpec(channels=dim)
        made: OpenWorldOutputLayers = OpenWorldOutputLayers(shape, space=labels, roi=roi_options(cfg), method=method)
        return made

    return grown_file(cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, label_space(cfg), make)


def grown_file(weights: str, folder: str, labels: LabelSpace, make: MakePredictor) -> str:
    """Return the path of a checkpoint that has the rows of a task, for any kind of configuration.

    Known classes, unknown and background keep their weights; the feature memory and the prototypes keep their content;
    the method needs a new calibration. Any file but a checkpoint of the open-world heads is left as it is.

    Args:
        weights: a checkpoint, or any other file that a training can start from.
        folder: for the new file.
        labels: of the task that begins.
        make: builds the layers of the earlier task.
    """
    given = Path(weights)
    if given.suffix != ".pth" or not given.is_file():
        return weights
    content = read_pickle(given)
    state = content.get("model", content) if isinstance(content, dict) else {}
    known = state.get(f"{PREDICTOR}.num_known")
    if known is None or int(known) == labels.num_known:
        return weights
    older = {labels.at(task).num_known: labels.at(task) for task in range(1, labels.task)}.get(int(known))
    if older is None:
        raise CheckpointError(
            f"knows {int(known)} classes; no task before {labels.task} of the schedule has as many",
            where=str(given),
            remedy="start from the model of the task before, or set OPENWORLD.TASK and OPENWORLD.SCHEDULE as in its "
            "training",
        )
    target = Path(folder) / f"start_of_task{labels.task}.pth"
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": grown_state(state, older, labels, make)}, target)
    return str(target)


def grown_state(
    state: Mapping[str, Tensor], before: LabelSpace, after: LabelSpace, make: MakePredictor
) -> dict[str, Tensor]:
    """Return the state dict with the rows of a later task. New rows are that of *unknown* plus a little noise from the
    global generator."""
    prefix = f"{PREDICTOR}."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    predictor = make(before, own["cls_score.weight"].shape[1])
    predictor.load_state_dict(own)
    predictor.grow(after)
    return {**state, **{prefix + name: value for name, value in predictor.state_dict().items()}}
