"""Read a pretrained backbone: files of this project, and the layouts in which the official ones are published."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from openworld.errors import CheckpointError, ConfigError, HandoverError
from openworld.runtime.files import sha256_of
from ssl_backbones.backbones import FAMILIES, BackboneOptions
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.handover.file_kinds import file_kind
from ssl_backbones.handover.finite import check_finite
from ssl_backbones.handover.layouts import recognise
from ssl_backbones.handover.networks import OPTION
from ssl_backbones.handover.pickles import read_pickle
from ssl_backbones.options import Preprocess

logger = logging.getLogger(__name__)

_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".npz"}


class BackboneFile(NamedTuple):
    """A backbone as read: torchvision-named tensors without heads, fit for ``arch.build()``."""

    arch: BackboneOptions
    preprocess: Preprocess
    state_dict: dict[str, Tensor]
    layout: str
    """Code that writes such files."""
    left_out: tuple[str, ...]
    """Keys of the file's tensors that are not the backbone's."""
    prefix: str = ""
    """Prefix of the backbone's keys in the file, with the dictionaries around it."""
    choice: str = ""
    """Why this network of several was taken, as a sentence; empty if the file holds one."""

    def network(self) -> Backbone:
        """The network with these weights."""
        network: Backbone = self.arch.build()
        network.load_state_dict(self.state_dict)
        return network

    def as_rgb(self) -> BackboneFile:
        """Convert to RGB images in [0, 1]: reverse the channels of the first convolution, and scale the numbers.

        Raises:
            HandoverError: the network takes L*a*b*, which no linear layer computes from RGB.
        """
        if self.preprocess["order"] == "LAB":
            raise HandoverError(
                "the backbone sees L*a*b*, which no linear layer makes of RGB",
                where="card",
                remedy="pretrain CMC with the views cmc, whose colours are linear in RGB",
            )
        order = slice(None, None, -1 if self.preprocess["order"] == "BGR" else 1)
        mean, std = ([x / self.preprocess["range"] for x in self.preprocess[name][order]] for name in ("mean", "std"))
        tensors = self.state_dict
        if self.preprocess["order"] == "BGR":
            first = f"{self.arch.first_convolution}.weight"
            tensors = {**tensors, first: tensors[first].flip(1)}
        preprocess: Preprocess = {"order": "RGB", "range": 1.0, "mean": mean, "std": std}
        return self._replace(state_dict=tensors, preprocess=preprocess)


def load_backbone_file(
    path: Path,
    *,
    arch: BackboneOptions | None = None,
    preprocess: Preprocess | None = None,
    network: str | None = None,
) -> BackboneFile:
    """Read a backbone from safetensors, ``.npz``, ``.pkl`` or a file of ``torch.save``, whatever its suffix.

    With a card of this project beside it (``card.json``, or the file's own name with ``.json``), architecture and
    preprocessing are the card's, and the file must have the card's SHA-256. Otherwise they follow from the layout
    (:mod:`ssl_backbones.handover.layouts`) as far as possible; depth and widths are read from the tensors, and the rest
    is as in torchvision: stride in the 3x3, padding on both sides, RGB in [0, 1] with ImageNet's mean and std.
    ``arch`` and ``preprocess`` override both.

    If the file holds several networks and ``network`` is not given, a warning says which one is taken and why.

    Args:
        path: the file, or a folder that holds ``backbone.safetensors``.
        network: prefix of the backbone's keys, to choose among several networks
            (:func:`~ssl_backbones.handover.networks.choose`).

    Raises:
        CheckpointError: the file is missing, damaged, unsafe or of no known layout, its tensors do not fit its
            architecture or hold numbers that are not finite, or it holds several networks that nothing tells apart.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in(path)
    found = recognise(read_tree(path), str(path), network=network)
    if found.left_out:
        logger.info(
            "%s: %s; %d tensors that are not the backbone's left out, e.g. %s",
            path,
            found.layout,
            len(found.left_out),
            found.left_out[0],
        )
    card = _read_card(path)
    if card is not None:
        arch, preprocess = arch or card[0], preprocess or card[1]
    if arch is None:
        arch = replace(infer_arch(found.tensors, path), **found.arch)
    tensors = _checked(found.tensors, arch, path)
    layout = found.layout if card is None else "this project"
    if found.choice and network is None:
        logger.warning("%s: %s. Choose another one with %s", path, found.choice, OPTION)
    return BackboneFile(
        arch, preprocess or found.preprocess, tensors, layout, tuple(found.left_out), found.prefix, found.choice
    )


def _file_in(folder: Path) -> Path:
    path = folder / "backbone.safetensors"
    if not path.is_file():
        weights = sorted(each.name for each in folder.iterdir() if each.suffix in _SUFFIXES)
        raise CheckpointError(
            f"has no backbone.safetensors{'; it has ' + ', '.join(weights[:5]) if weights else ''}",
            where=str(folder),
            remedy="name the weight file itself",
        )
    return path


def infer_arch(tensors: dict[str, Tensor], path: Path) -> BackboneOptions:
    """Read family, depth, widths and stem from the shapes of torchvision-named tensors.

    Raises:
        CheckpointError: no network of this project has such shapes.
    """
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    family = next((each for each in FAMILIES.values() if all(key in shapes for key in each.telling_keys)), None)
    if family is None:
        raise CheckpointError(
            f"has no first convolution or no first block; its keys begin with {list(shapes)[:3]}",
            where=str(path),
            remedy="fetch the file again, or give a whole backbone",
        )
    if empty := next((key for key, value in tensors.items() if value.numel() == 0), None):
        raise CheckpointError(
            f"{empty} holds no numbers, as in the checkpoint of one process of ZeRO-3",
            where=str(path),
            remedy="join the parts, with DeepSpeed's zero_to_fp32.py, and give the file that it writes",
        )
    shape = shapes[f"{family.first_convolution}.weight"]
    if len(shape) != 4 or shape[1] != 3:
        raise CheckpointError(
            f"its first convolution is {shape} and does not read 3 channels of colour",
            where=str(path),
            remedy="give an RGB backbone, not one on single channels (CMC) or stacked frames",
        )
    return family.of_shapes(shapes, str(path))


def read_tree(path: Path) -> Any:
    """Read a weight file: nested dictionaries of tensors on the CPU or of arrays; see :func:`read_pickle`.

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind
            (:func:`~ssl_backbones.handover.file_kinds.file_kind`), or cannot be read safely.
    """
    kind = file_kind(path)
    try:
        if kind == "safetensors":
            return safetensors.torch.load_file(path)
        if kind == "npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path), remedy="fetch the file again") from error
    return read_pickle(path, husks=True)


def _read_card(path: Path) -> tuple[BackboneOptions, Preprocess] | None:
    """Read architecture and preprocessing from the card beside a file; None without a card."""
    card_path = path.with_name("card.json") if path.name == "backbone.safetensors" else path.with_suffix(".json")
    if not card_path.is_file():
        return None
    try:
        card = json.loads(card_path.read_text())
        arch = BackboneOptions.of_card(card["arch"])
        preprocess: Preprocess = card["preprocess"]
        recorded = card["sha256"]
        if not {"order", "range", "mean", "std"} <= set(preprocess):
            raise ValueError(f"preprocess holds only {sorted(preprocess)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"is not the card of a backbone ({error})",
            where=str(card_path),
            remedy="pretrain again, or remove the card",
        ) from error
    if recorded != sha256_of(path):
        raise CheckpointError(
            "does not match the SHA-256 of the card beside it", where=str(path), remedy="pretrain or fetch it again"
        )
    return arch, preprocess


def _checked(tensors: dict[str, Tensor], arch: BackboneOptions, path: Path) -> dict[str, Tensor]:
    """Return the tensors in the order of ``arch.build()``, floats as float32; check that names and shapes fit."""
    with torch.device("meta"):
        expected = arch.build().state_dict()
    counter = "num_batches_tracked"
    for key in expected:
        if key.endswith(counter) and key not in tensors:
            tensors[key] = torch.zeros((), dtype=torch.long)
    tensors = {key: value for key, value in tensors.items() if key in expected or not key.endswith(counter)}
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"does not fit {arch}: {'; '.join(problems[:3])}{more}",
            where=str(path),
            remedy="give the architecture that the file was made with",
        )
    numbers = {key: _numbers(tensors[key], value, f"{path}: {key}") for key, value in expected.items()}
    check_finite(numbers, str(path))
    return numbers


def _numbers(value: Tensor, expected: Tensor, where: str) -> Tensor:
    """Return a tensor in memory, floats as float32.

    Raises:
        CheckpointError: it has no numbers, or integers in place of floats.
    """
    if value.is_meta:
        raise CheckpointError("has a shape and no numbers", where=where, remedy="save the network after its weights")
    if value.is_quantized or (expected.is_floating_point() and not value.is_floating_point()):
        raise CheckpointError(
            f"is of {value.dtype}, as in a quantised network, and not of floats",
            where=where,
            remedy="give the weights in float32, float16 or bfloat16",
        )
    value = value.detach() if value.layout == torch.strided else value.detach().to_dense()
    return value.float() if expected.is_floating_point() else value.to(expected.dtype)  # an averaged counter
