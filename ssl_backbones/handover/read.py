"""Read a pretrained ResNet: our own files, and the layouts in which the official ones are published."""

from __future__ import annotations

import argparse
import json
import logging
import pickle
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from openworld.errors import CheckpointError, ConfigError
from openworld.runtime.files import sha256_of
from ssl_backbones.nets import BLOCKS, ResNet
from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD, ArchOptions, Preprocess

logger = logging.getLogger(__name__)

# Dictionaries around the tensors, outermost first. DINO's evaluation uses the teacher.
CONTAINERS = ("classy_state_dict", "base_model", "state_dict", "teacher", "model", "model_ema", "trunk", "student")

# Prefix of the backbone's keys, the more specific ones first, and who writes it.
PREFIXES = (
    "module.encoder_q.",  # MoCo v1 and v2, PCL
    "module.base_encoder.",  # MoCo v3
    "module.backbone.",  # Barlow Twins and DINO, full checkpoints
    "module.encoder.",  # SimSiam, PyContrast
    "encoder.module.",  # SupCon on several devices
    "encoder_q.",
    "backbone.",  # solo-learn, mmselfsup, lightly, DINO
    "encoder.",  # SupCon, PyContrast's averaged model, this project's checkpoints
    "_feature_blocks.",  # VISSL
    "module.",  # InstDisc, SwAV, DeepCluster-v2
    "",  # torchvision, Barlow Twins, DINO, SimCLR converted to torchvision names
)

# lightly's examples: nn.Sequential(*list(resnet.children())[:-1])
NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}

_BACKBONE_KEY = re.compile(r"^(conv1|bn1|layer[1-4])\.")


class BackboneFile(NamedTuple):
    """A backbone as read: torchvision-named tensors without heads, fit for ``ResNet(arch)``."""

    arch: ArchOptions
    preprocess: Preprocess
    state_dict: dict[str, Tensor]


def load_backbone_file(
    path: Path, *, arch: ArchOptions | None = None, preprocess: Preprocess | None = None
) -> BackboneFile:
    """Read a backbone from ``.safetensors`` or a pickled ``.pth``/``.pt``/``.tar`` (tensors and plain containers only).

    With a ``card.json`` of this project beside it, architecture and preprocessing are the card's and the file must
    have the card's SHA-256. Otherwise the architecture is read off the tensors; what they do not tell is taken to be
    as in torchvision (stride in the 3x3, pool padded on both sides, RGB in [0, 1] with ImageNet's mean and std; SwAV's
    files get the std 0.228 that they were trained with). ``arch`` and ``preprocess`` overrule both.

    Args:
        path: the file, or a folder that holds ``backbone.safetensors``.

    Raises:
        CheckpointError: missing, damaged, unsafe, of no known layout, or not the tensors of its architecture.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "backbone.safetensors"
    tree = _read_tree(path)
    tensors, dropped = _unwrap(tree, path)
    if dropped:
        logger.info("%s: %d tensors that are not the backbone's left out, e.g. %s", path, len(dropped), dropped[0])
    card = _read_card(path)
    if card is not None:
        arch, preprocess = arch or card[0], preprocess or card[1]
    if preprocess is None:
        swav = any(key.startswith(("module.prototypes", "prototypes")) for key in dropped)
        std = (0.228, *IMAGENET_STD[1:]) if swav else IMAGENET_STD
        preprocess = {"order": "RGB", "range": 1.0, "mean": list(IMAGENET_MEAN), "std": list(std)}
    arch = arch or infer_arch(tensors, path)
    return BackboneFile(arch, preprocess, _checked(tensors, arch, path))


def infer_arch(tensors: dict[str, Tensor], path: Path) -> ArchOptions:
    """Depth, widths and stem from the shapes of torchvision-named tensors.

    Raises:
        CheckpointError: no architecture of this project has such shapes.
    """
    counts = tuple(len({key.split(".")[1] for key in tensors if key.startswith(f"layer{i}.")}) for i in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in tensors
    for name, (block, expected) in BLOCKS.items():
        if counts == expected and bottleneck == (block.expansion == 4):
            stem_width, _, kernel, _ = tensors["conv1.weight"].shape
            return ArchOptions(
                arch=name,  # type: ignore[arg-type]
                width=tensors["layer1.0.conv1.weight"].shape[0] / 64,
                stem_width=stem_width,
                stem="imagenet7x7" if kernel == 7 else "cifar3x3",
            )
    kind = "bottleneck" if bottleneck else "basic"
    raise CheckpointError(
        f"{kind} blocks {counts} are of no supported architecture",
        where=str(path),
        remedy=f"use one of {', '.join(BLOCKS)}",
    )


def _read_tree(path: Path) -> Any:
    """The file's content, tensors on the CPU."""
    if not path.is_file():
        raise CheckpointError("no such file", where=str(path), remedy="check the path of the backbone")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # MoCo v3, DINO keep their arguments so
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path), remedy="fetch the file again") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"holds more than tensors and plain containers, which could run code ({str(error).splitlines()[0]})",
            where=str(path),
            remedy="load it where you trust it, and save its state_dict alone",
        ) from error


def _unwrap(tree: Any, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Torchvision-named tensors of the backbone, and the keys left out."""
    seen: Any = tree
    while isinstance(seen, dict):
        flat = {key: value for key, value in seen.items() if isinstance(key, str) and isinstance(value, Tensor)}
        for prefix in PREFIXES:
            if f"{prefix}conv1.weight" in flat and f"{prefix}layer1.0.conv1.weight" in flat:
                named = {key.removeprefix(prefix): key for key in flat if key.startswith(prefix)}
                return _split(flat, named)
        for prefix in PREFIXES:
            if f"{prefix}0.weight" in flat and f"{prefix}4.0.conv1.weight" in flat:
                own = [key for key in flat if key.startswith(prefix)]
                return _split(flat, {_renumber(key.removeprefix(prefix)): key for key in own})
        seen = next((seen[name] for name in CONTAINERS if isinstance(seen.get(name), dict)), None)
    keys = list(tree)[:5] if isinstance(tree, dict) else [type(tree).__name__]
    raise CheckpointError(
        f"no ResNet found under any known prefix; the file starts with {keys}",
        where=str(path),
        remedy="rename its keys to torchvision's (conv1.weight, layer1.0.conv1.weight, ...)",
    )


def _renumber(key: str) -> str:
    head, _, rest = key.partition(".")
    return f"{NUMBERED.get(head, head)}.{rest}"


def _split(flat: dict[str, Tensor], named: dict[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    kept = {name: key for name, key in named.items() if _BACKBONE_KEY.match(name)}
    taken = set(kept.values())
    return {name: flat[key] for name, key in kept.items()}, [key for key in flat if key not in taken]


def _read_card(path: Path) -> tuple[ArchOptions, Preprocess] | None:
    """Architecture and preprocessing from the card beside a file; None where there is no card."""
    card_path = path.with_name("card.json")
    if path.name != "backbone.safetensors" or not card_path.is_file():
        return None
    try:
        card = json.loads(card_path.read_text())
        known = {field.name for field in fields(ArchOptions)}
        arch = ArchOptions(**{key: value for key, value in card["arch"].items() if key in known})
        preprocess: Preprocess = card["preprocess"]
        recorded = card["sha256"]
        if not {"order", "range", "mean", "std"} <= set(preprocess):
            raise ValueError(f"preprocess holds only {sorted(preprocess)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"is no card of a backbone ({error})", where=str(card_path), remedy="pretrain again, or remove the card"
        ) from error
    if recorded != sha256_of(path):
        raise CheckpointError(
            "does not match the SHA-256 of the card beside it", where=str(path), remedy="pretrain or fetch it again"
        )
    return arch, preprocess


def _checked(tensors: dict[str, Tensor], arch: ArchOptions, path: Path) -> dict[str, Tensor]:
    """The tensors in the order of ``ResNet(arch)``, floats as float32, all there and of its shapes."""
    with torch.device("meta"):
        expected = ResNet(arch).state_dict()
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
            f"does not fit {arch.arch} of width {arch.width:g}: {'; '.join(problems[:3])}{more}",
            where=str(path),
            remedy="give the architecture that the file was made with",
        )
    return {key: tensors[key].float() if tensors[key].is_floating_point() else tensors[key] for key in expected}
