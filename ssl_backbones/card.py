"""What a pretraining leaves: ``backbone.safetensors`` and the card that vouches for it."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from openworld.runtime.files import sha256_of, write_atomic, write_json
from ssl_backbones.checkpoints import identity, must_agree
from ssl_backbones.methods import METHODS
from ssl_backbones.nets import ResNet
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainResult:
    """``path`` of backbone.safetensors and the content of its card."""

    path: Path
    card: dict[str, Any]


def write_backbone(
    output: Path, options: PretrainOptions, seed: int, images: int, network: ResNet, measured: dict[str, Any]
) -> PretrainResult:
    """Weights first (torchvision's key names, no head), then the card.

    Args:
        images: how many it was trained on.
        measured: what the probes and meters found, entries of the card.
    """
    path = output / "backbone.safetensors"
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    write_atomic(path, safetensors.torch.save(tensors, {"format": "pt"}))
    card = {
        "method": options.method,
        "arch": dataclasses.asdict(options.arch),
        "data": {
            "images": images,
            "source": options.images or "the training images",
            "labels": "names of folders" if METHODS[options.method].needs_labels else None,
        },
        "steps": options.steps,
        "seed": seed,
        "preprocess": RECIPES[options.views][0].preprocess(),
        "sha256": sha256_of(path),
        **measured,
        "options": dataclasses.asdict(options),
    }
    write_json(output / "card.json", card)
    return PretrainResult(path, card)


def finished(output: Path, options: PretrainOptions, seed: int, *, resume: bool) -> PretrainResult | None:
    """The backbone that is already there, whole and made as asked for; None where there is none.

    Raises:
        CheckpointError: it was made with other options, and a pretraining is to be resumed.
    """
    path = output / "backbone.safetensors"
    try:
        card = json.loads((output / "card.json").read_text())
        if card["sha256"] != sha256_of(path):
            return None
        there = {**identity(PretrainOptions()), **card["options"], "seed": card["seed"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    wanted = {**identity(options), "seed": seed}
    if not resume and any(there.get(key) != value for key, value in wanted.items()):
        return None
    must_agree(there, wanted, path)
    logger.info("%s is finished already", path)
    return PretrainResult(path, card)
