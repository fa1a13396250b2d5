"""The projector of a checkpoint: what a backbone file leaves out, and the probe of h against g(h) needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from openworld.errors import CheckpointError
from ssl_backbones.handover.layouts import flat_tensors
from ssl_backbones.handover.read import read_tree

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


def load_projector(path: Path, dim: int) -> nn.Sequential:
    """The head g after the backbone, rebuilt from its tensors, in evaluation mode.

    The layers of an ``nn.Sequential`` are numbered; a number without tensors is a ReLU.

    Args:
        path: a checkpoint that still has its head, or a file with the head alone.
        dim: width of the backbone's features.

    Raises:
        CheckpointError: no head for features of this width.
    """
    for flat in flat_tensors(read_tree(path)):
        for prefix in _PREFIXES:
            own = {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
            if (head := _head(own)) is not None and head[0].in_features == dim:
                return head.eval()
    raise CheckpointError(
        f"has no projector of linear layers and batch norms for features of {dim} dimensions",
        where=str(path),
        remedy="give a checkpoint of the pretraining with its head; files of a backbone alone have none",
    )


def _head(tensors: Mapping[str, Tensor]) -> nn.Sequential | None:
    """Linear layers, batch norms and ReLUs out of ``0.weight``, ``1.running_mean``, …; or of a single ``weight``."""
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
