"""Output of a pretraining: ``backbone.safetensors``, its head, and the card that describes both."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from openworld.errors import CheckpointError
from openworld.runtime.files import sha256_of, write_atomic, write_json
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.checkpoints import identity, must_agree
from ssl_backbones.handover.projector import PROJECTOR_FILE, write_projector
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainResult:
    """``path`` of backbone.safetensors and the content of its card."""

    path: Path
    card: dict[str, Any]


def write_backbone(
    output: Path,
    options: PretrainOptions,
    seed: int,
    images: int,
    network: Backbone,
    projector: nn.Module | None,
    measured: dict[str, Any],
) -> PretrainResult:
    """Write the weights (torchvision's key names), then the head in a second file, then the card.

    Args:
        images: number of images that it was trained on.
        projector: see :meth:`ssl_backbones.method.Method.projection`.
        measured: results of the probes and meters, as entries of the card.
    """
    path = output / "backbone.safetensors"
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    write_atomic(path, safetensors.torch.save(tensors, {"format": "pt"}))
    sha256, head = sha256_of(path), None
    if projector is not None:
        write_projector(output / PROJECTOR_FILE, projector, backbone_sha256=sha256)
        head = {"file": PROJECTOR_FILE, "sha256": sha256_of(output / PROJECTOR_FILE)}
    card = {
        "method": options.method.name,
        "arch": dataclasses.asdict(options.arch),
        "data": {
            "images": images,
            "source": options.images or "the training images",
            "labels": "names of folders" if options.method.implementation().needs_labels else None,
        },
        "steps": options.steps,
        "seed": seed,
        "preprocess": RECIPES[options.views][0].preprocess(),
        "sha256": sha256,
        "projector": head,
        **measured,
        "options": dataclasses.asdict(options),
    }
    write_json(output / "card.json", card)
    return PretrainResult(path, card)


def finished(output: Path, options: PretrainOptions, seed: int, *, resume: bool) -> PretrainResult | None:
    """Return the finished backbone in ``output`` if it has the same options; None if there is none.

    Raises:
        CheckpointError: the backbone was made with other options, and ``resume`` is set.
    """
    path = output / "backbone.safetensors"
    try:
        card = json.loads((output / "card.json").read_text())
        if card["sha256"] != sha256_of(path):
            return None
        there = {**card["options"], "seed": card["seed"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    try:
        must_agree(there, {**identity(options), "seed": seed}, path)
    except CheckpointError:
        if resume:
            raise
        return None
    logger.info("%s is finished already", path)
    return PretrainResult(path, card)
