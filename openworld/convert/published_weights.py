"""Convert detectors trained with detectron2 to this project's engine: ORE's checkpoints (Faster R-CNN, R50-C4).

The weights are those of JosephKJ/OWOD, ``configs/Base-RCNN-C4-OWOD.yaml``. The differences between the two libraries
are folded into the weights, so that the converted engine computes the same detections:

- images: detectron2 reads BGR from 0 to 255; the first convolution's channels are reversed and scaled. Its mean is
  subtracted before the convolution pads, so that zero stays zero in both;
- anchors: detectron2 orders them by size, then ratio, torchvision by ratio, then size; the RPN's channels are permuted.
  torchvision rounds anchors to whole pixels; the RPN's deltas are scaled and shifted to undo the rounding.
  (Where a delta is clamped, at 62 times the anchor, the limit moves by the same few per cent.)

Head rows need no change: known classes in the order of the schedule, unknown, background; box deltas of a row are four
neighbouring rows dx, dy, dw, dh with the factors 10, 10, 5, 5 in both.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openworld.configfile import find_config, read_options
from openworld.engines.detectron2.names import PREDICTOR, detectron2_name
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.engines.torchvision_rcnn import IMAGENET_STD, OpenWorldRCNN
from openworld.errors import CheckpointError
from openworld.labels import LabelSpace
from openworld.methods.ore.weibull import WeibullFit
from openworld.runtime.option_trees import Given, construct
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet_options import BLOCKS
from ssl_backbones.handover.finite import check_finite
from ssl_backbones.handover.pickles import read_pickle
from ssl_backbones.handover.tree import unwrapped

logger = logging.getLogger(__name__)

PIXEL_MEAN_BGR = (103.53, 116.28, 123.675)
PIXEL_STD_BGR = (1.0, 1.0, 1.0)
"""``MODEL.PIXEL_MEAN`` and ``PIXEL_STD`` (detectron2/config/defaults.py), for files that do not hold them."""

ANCHOR_SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
"""``MODEL.ANCHOR_GENERATOR``, in pixels and height over width (defaults.py)."""

DEAD_LAYERS = (f"{PREDICTOR}.ae_model.", f"{PREDICTOR}.encoder.")
"""Layers of the reference code's abandoned auto-encoder (fast_rcnn.py, ``AE``), which no forward pass uses."""

_CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
_CLASSES, _DELTAS = f"{PREDICTOR}.cls_score.weight", f"{PREDICTOR}.bbox_pred.weight"
_SHOWN = 20
_FIRST_REMEDY = "convert a Faster R-CNN R50-C4 of JosephKJ/OWOD (configs/Base-RCNN-C4-OWOD.yaml)"

# -- files ------------------------------------------------------------------------------------------------------------


def read_detectron2(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a detectron2 checkpoint, by their names there without words of wrappers, floats as float32.

    Args:
        path: a .pth with ``{"model": tensors, …}`` or a .pkl with ``{"model": arrays, …}``; the outer dictionary may be
            missing.

    Raises:
        CheckpointError: see :func:`read_pickle`; or the content is not a dictionary of tensors or arrays, or their
            numbers are not finite.
    """
    content = read_pickle(path)
    model = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(model, dict) or not model:
        raise CheckpointError(f"holds a {type(model).__name__} without weights", where=str(path), remedy=_FIRST_REMEDY)
    tensors: dict[str, Tensor] = {}
    for name, value in model.items():
        numeric = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        if not isinstance(name, str) or not (numeric or isinstance(value, Tensor)):
            raise CheckpointError(
                f"{name!r} is a {type(value).__name__}, not an array of numbers",
                where=str(path),
                remedy="save the state_dict of the model alone",
            )
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        tensors[unwrapped(name).removeprefix("module.")] = tensor.float() if tensor.is_floating_point() else tensor
    check_finite(tensors, str(path))
    return tensors


def read_energy(path: Path, num_known: int) -> tuple[WeibullFit, WeibullFit]:
    """Read the Weibull distributions of known and of unknown objects, as the reference code saves them.

    Args:
        path: its ``energy_dist_<seen classes>.pkl``: two dictionaries, with scale, shape and shift of unknown and of
            known objects (engine/train_loop.py, ``analyse_energy``).
        num_known: number of known classes of the task; a number in the file's name must be this one.

    Returns:
        known, unknown. The file does not hold their samples: count is 0, likelihood and distance are NaN.

    Raises:
        CheckpointError: see :func:`read_pickle`; or the file has other content or impossible numbers, or belongs to
            another task.
    """
    named = re.fullmatch(r"energy_dist_(\d+)\.pkl", path.name)
    if named and int(named[1]) != num_known:
        raise CheckpointError(
            f"is of {named[1]} known classes, and the task has {num_known}",
            where=str(path),
            remedy=f"give energy_dist_{num_known}.pkl, or another --task",
        )
    content = read_pickle(path)
    try:
        unknown, known = content
        fits = [_saved_weibull(known, "known"), _saved_weibull(unknown, "unk")]
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"holds no two Weibull distributions ({error!r})",
            where=str(path),
            remedy="give the energy_dist_*.pkl of the reference code",
        ) from error
    for fit, kind in zip(fits, ("known", "unknown"), strict=True):
        numbers = fit.shape, fit.scale, fit.location
        if not (all(map(math.isfinite, numbers)) and fit.shape > 0 and fit.scale > 0):
            raise CheckpointError(
                f"the distribution of {kind} objects has shape {fit.shape}, scale {fit.scale}, shift {fit.location}",
                where=str(path),
                remedy="shape and scale must be above 0, all three finite; fit it again",
            )
    return fits[0], fits[1]


def _saved_weibull(record: Mapping[str, Any], kind: str) -> WeibullFit:
    shape, location, scale = (float(record[f"{name}_{kind}"]) for name in ("shape", "shift", "scale"))
    return WeibullFit(shape, location, scale, count=0, log_likelihood=math.nan, ks_statistic=math.nan)


# -- options ----------------------------------------------------------------------------------------------------------


REFERENCE = "ore/reference.yaml"
"""The options of the reference code, among the configurations that the project ships."""


def reference_options(
    tensors: Mapping[str, Tensor], where: str, *, nms_iou: float = 0.5, detections_per_image: int = 100
) -> ModelOptions:
    """Return the options under which the engine is the reference code's detector.

    Widths and the kind of box deltas are read from the tensors. The additions of ORE's code are :data:`REFERENCE`; the
    rest is ``configs/Base-RCNN-C4-OWOD.yaml`` and detectron2/config/defaults.py.

    Args:
        tensors: by their names in detectron2.
        where: names the file in errors.
        nms_iou: ``NMS_THRESH_TEST``.
        detections_per_image: ``TEST.DETECTIONS_PER_IMAGE``.

    Raises:
        CheckpointError: the tensors are not those of an R50-C4.
    """
    first, narrow = "backbone.stem.conv1.weight", "backbone.res2.0.conv1.weight"
    missing = [name for name in (first, narrow, _CLASSES, _DELTAS) if name not in tensors]
    if missing:
        raise CheckpointError(
            f"has no {', '.join(missing)}; its names begin with {sorted(tensors)[:3]}",
            where=where,
            remedy=_FIRST_REMEDY,
        )
    blocks = tuple(
        len({name.split(".")[2] for name in tensors if name.startswith(f"{stage}.")})
        for stage in ("backbone.res2", "backbone.res3", "backbone.res4", "roi_heads.res5")
    )
    if blocks != BLOCKS["resnet50"][1]:
        raise CheckpointError(
            f"res2 to res5 have {blocks} blocks, a ResNet-50 has {BLOCKS['resnet50'][1]}",
            where=where,
            remedy=_FIRST_REMEDY,
        )
    detectron2s = ModelOptions(
        arch=ResNetOptions(
            name="resnet50",
            width=tensors[narrow].shape[0] / 64,
            stem_width=tensors[first].shape[0],
            stride_in_1x1=True,
        ),
        neck="c4",
        norm="frozen",
        freeze_stages=2,
        rpn=RpnOptions(
            anchor_sizes=list(ANCHOR_SIZES),
            anchor_ratios=list(ANCHOR_RATIOS),
            train_candidates=12000,
            train_proposals=2000,
            test_candidates=6000,
            test_proposals=1000,
        ),
        roi=RoiOptions(
            sampled_regions=512, positive_fraction=0.25, nms_iou=nms_iou, detections_per_image=detections_per_image
        ),
    )
    section = read_options(find_config(REFERENCE))["model"]
    ores = construct(ModelOptions, [Given(section, REFERENCE)], "model", detectron2s)
    agnostic = tensors[_DELTAS].shape[0] == 4
    return replace(ores, roi=replace(ores.roi, box_regression="agnostic" if agnostic else "per_class"))


# -- weights ----------------------------------------------------------------------------------------------------------


def convert_detectron2(
    tensors: Mapping[str, Tensor], space: LabelSpace, options: ModelOptions, where: str
) -> OpenWorldRCNN:
    """Build an engine with the weights of a detectron2 checkpoint; each tensor is written exactly once.

    Args:
        tensors: as :func:`read_detectron2` returns them.
        space: label space of the last task that the checkpoint was trained on, in the fixed layout.
        options: of :func:`reference_options`.
        where: names the file in errors.

    Raises:
        CheckpointError: the number of head rows is not that of the label space; the anchors differ; or tensors are
            missing, unexpected (except :data:`DEAD_LAYERS`) or of another shape: the message lists them.
    """
    _check_rows(tensors, space, options, where)
    body = (options.arch or ResNetOptions()).in_detector(options.norm).build()
    engine = OpenWorldRCNN(space, body, options)
    wanted = engine.state_dict()
    given = {
        "pixel_mean": torch.tensor(PIXEL_MEAN_BGR).view(3, 1, 1),
        "pixel_std": torch.tensor(PIXEL_STD_BGR).view(3, 1, 1),
        _CELL_ANCHORS: anchors_by_size(),
        **{name: value for name, value in tensors.items() if not name.startswith(DEAD_LAYERS)},
    }
    if any(name.startswith(DEAD_LAYERS) for name in tensors):
        logger.info("%s: layers that no forward pass uses are left out (%s)", where, ", ".join(DEAD_LAYERS))
    sources = {name: detectron2_name(name) for name in wanted}
    shapes = {source: wanted[name].shape for name, source in sources.items()}
    shapes[_CELL_ANCHORS] = torch.Size([len(ANCHOR_SIZES) * len(ANCHOR_RATIOS), 4])
    problems = [f"missing: {name}" for name in shapes if name not in given]
    problems += [f"unexpected: {name}" for name in given if name not in shapes]
    problems += [
        f"{name} is {tuple(given[name].shape)}, expected {tuple(shape)}"
        for name, shape in shapes.items()
        if name in given and given[name].shape != shape
    ]
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise CheckpointError(
            f"{len(problems)} tensors do not fit the detector:\n  " + "\n  ".join([*problems[:_SHOWN], *more]),
            where=where,
            remedy=_FIRST_REMEDY,
        )
    if not torch.allclose(given[_CELL_ANCHORS], anchors_by_size(), atol=0.01):
        raise CheckpointError(
            f"{_CELL_ANCHORS} is not of the sizes {ANCHOR_SIZES} and ratios {ANCHOR_RATIOS}",
            where=where,
            remedy=_FIRST_REMEDY,
        )
    state = {name: given[source] for name, source in sources.items()}
    _fold_pixels(state)
    _fold_anchors(state, engine)
    engine.load_state_dict(state)
    return engine


def _check_rows(tensors: Mapping[str, Tensor], space: LabelSpace, options: ModelOptions, where: str) -> None:
    """Check the number of head rows against the schedule, which only the user knows."""
    sets = space.background if options.roi.box_regression == "per_class" else 1
    classes = len(space.known) + len(space.future)
    for name, rows in ((_CLASSES, space.num_rows), (_DELTAS, 4 * sets)):
        if tensors[name].shape[0] != rows:
            raise CheckpointError(
                f"{name} is {tuple(tensors[name].shape)}; the {classes} classes of the schedule, with unknown and "
                f"background, need {rows} rows",
                where=where,
                remedy="give the schedule that the detector was trained with; m_owodb has 80 classes, voc_10_10 20",
            )


def anchors_by_size() -> Tensor:
    """Return (A, 4) float32 anchors around 0 as detectron2 stores them: for each size all ratios, x1 y1 x2 y2 in
    pixels, not rounded (modeling/anchor_generator.py)."""
    sides = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in ANCHOR_SIZES for ratio in ANCHOR_RATIOS]
    half_A2 = torch.tensor(sides) / 2
    return torch.cat([-half_A2, half_A2], dim=1)


def _fold_pixels(state: dict[str, Tensor]) -> None:
    """Change the first convolution to read RGB normalised by ImageNet's statistics instead of detectron2's input.

    With ``x`` in [0, 1], detectron2's input is ``(255 x - mean) / std = (x - mean / 255) / s * (255 s / std)`` for any
    ``s``, channel by channel.
    """
    mean, std = state["pixel_mean"].flip(0), state["pixel_std"].flip(0)
    ours = torch.tensor(IMAGENET_STD, dtype=torch.float64).view(3, 1, 1)
    weight = state["features.body.conv1.weight"].flip(1)
    state["features.body.conv1.weight"] = (weight * (255 * ours / std)).float()
    state["pixel_mean"], state["pixel_std"] = mean / 255, ours.float()


def _fold_anchors(state: dict[str, Tensor], engine: OpenWorldRCNN) -> None:
    """Permute the RPN's channels to the order of the engine's anchors, and adapt its deltas to their rounded sides.

    With sides ``a`` of detectron2's anchor and ``b`` of the engine's, the same box has ``dx_b = dx_a * a / b`` and
    ``dw_b = dw_a + log(a / b)``.
    """
    theirs_A4, ours_A4 = anchors_by_size(), engine.rpn.anchors.cell_anchors[0]
    order_A = (ours_A4[:, None] - theirs_A4).abs().sum(2).argmin(1)
    assert order_A.unique().numel() == len(theirs_A4)
    half_A2 = theirs_A4[order_A, 2:].double()
    ratio_A2 = half_A2 / ours_A4[:, 2:]
    scale_A4 = torch.cat([ratio_A2, torch.ones_like(ratio_A2)], dim=1)
    shift_A4 = torch.cat([torch.zeros_like(ratio_A2), ratio_A2.log()], dim=1)
    for part in ("weight", "bias"):
        scores, deltas = f"rpn.head.cls_logits.{part}", f"rpn.head.bbox_pred.{part}"
        state[scores] = state[scores][order_A]
        values = state[deltas].unflatten(0, (-1, 4))[order_A]
        values = values * scale_A4.reshape(*scale_A4.shape, *[1] * (values.ndim - 2))
        state[deltas] = (values + shift_A4 if part == "bias" else values).flatten(0, 1).float()
