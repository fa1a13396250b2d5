"""The projector of a pretraining, which the probe of h against g(h) needs and a backbone file does not hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from openworld.errors import CheckpointError
from openworld.runtime.files import sha256_of, write_atomic
from ssl_backbones.handover.layouts import flat_tensors
from ssl_backbones.handover.read import read_tree

PROJECTOR_FILE = "projector.safetensors"
"""File of the head of a pretraining of this project, beside ``backbone.safetensors``."""

# Prefix of the projector's keys in official checkpoints, of the network that is evaluated.
_PREFIXES = (
    "module.encoder_q.fc.",  # MoCo v1 and v2, PCL
    "module.base_encoder.fc.",  # MoCo v3
    "module.encoder.fc.",  # SimSiam
    "module.projection_head.",  # SwAV, DeepCluster-v2
    "module.projector.",  # Barlow Twins
    "module.head.",  # SupCon
    "projection_head.layers.",  # lightly
    "projector.",  # this project, solo-learn
    "projection_head.",
    "head.",
    "module.fc.",  # InstDisc
)


def write_projector(path: Path, head: nn.Module, *, backbone_sha256: str) -> None:
    """Write a head of linear layers, norms and ReLUs; the file records which backbone it belongs to.

    The same head gives the same bytes: safetensors writes several entries of metadata in any order, so there is one.
    """
    tensors = {f"projector.{key}": value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    write_atomic(path, safetensors.torch.save(tensors, {"backbone_sha256": backbone_sha256}))


def projector_file(backbone: Path) -> Path:
    """Find the file with the head of a backbone: beside it, otherwise its own file.

    Args:
        backbone: the file, or a folder that holds ``backbone.safetensors``.

    Raises:
        CheckpointError: the card says that the pretraining had no such head, or the head beside it is damaged or
            belongs to another backbone.
    """
    path = backbone / "backbone.safetensors" if backbone.is_dir() else backbone
    beside, card = path.with_name(PROJECTOR_FILE), path.with_name("card.json")
    if beside.is_file():
        try:
            with safetensors.safe_open(beside, "pt") as file:
                owner = (file.metadata() or {}).get("backbone_sha256")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot be read ({error})", where=str(beside), remedy="pretrain again, or fetch the file again"
            ) from error
        if owner not in (None, sha256_of(path)):
            raise CheckpointError(
                f"is the projector of another backbone than {path.name}",
                where=str(beside),
                remedy="put it back beside its own, or name the right one with --projector",
            )
        return beside
    found = json.loads(card.read_text()) if path.name == "backbone.safetensors" and card.is_file() else {}
    if "projector" in found and found["projector"] is None:
        raise CheckpointError(
            f"was pretrained with {found['method']}, which leaves no projector of linear layers",
            where=str(path),
            remedy="take h alone, or name a head for it with --projector",
        )
    return path


def load_projector(path: Path, dim: int) -> nn.Sequential:
    """Rebuild the head g after the backbone from its tensors, in evaluation mode.

    The layers of an ``nn.Sequential`` are numbered; numbers without tensors are ReLUs.

    Args:
        path: a checkpoint that includes its head, or a file with the head alone.
        dim: width of the backbone's features.

    Raises:
        CheckpointError: the file has no head for features of this width.
    """
    for flat in flat_tensors(read_tree(path), str(path)):
        for prefix in _PREFIXES:
            own = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
            if (head := _head(own)) is not None and head[0].in_features == dim:
                return head.eval()
    raise CheckpointError(
        f"has no projector of linear layers and norms for features of {dim} dimensions",
        where=str(path),
        remedy="give a checkpoint of the pretraining with its head (--projector); files of a backbone alone have none",
    )


def _head(tensors: Mapping[str, Tensor]) -> nn.Sequential | None:
    """Build linear layers, norms and ReLUs from ``0.weight``, ``1.running_mean``, …; or from a single ``weight``."""
    if "weight" in tensors:
        tensors = {f"0.{name}": value for name, value in tensors.items()}
    numbers = {key.split(".")[0] for key in tensors}
    if not numbers or not all(number.isdigit() for number in numbers):
        return None
    head = nn.Sequential()
    for number in range(max(map(int, numbers)) + 1):
        weight, bias = tensors.get(f"{number}.weight"), tensors.get(f"{number}.bias")
        mean = tensors.get(f"{number}.running_mean")
        if mean is not None:
            head.append(nn.BatchNorm1d(len(mean), affine=weight is not None))
        elif weight is not None and weight.ndim == 2:
            head.append(nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None))
        elif weight is not None and weight.ndim == 1:
            head.append(nn.LayerNorm(len(weight)))
        elif weight is not None:
            return None
        else:
            head.append(nn.ReLU())
    own = head.state_dict()
    given = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    if any(key not in given and not key.endswith(("num_batches_tracked", ".bias")) for key in own):
        return None
    head.load_state_dict({key: given.get(key, value) for key, value in own.items()})
    return head if isinstance(head[0], nn.Linear) else None
