"""The dictionaries of tensors inside a file, and their keys without the wrappers of training code.

``torch.compile``, FSDP, activation checkpointing and data parallelism each put a word of their own into the keys, in
any order and at any depth. They say nothing about the network and are left out here: ``_orig_mod.module.layer1`` is
``module.layer1``. Weights that are stored in two parts (weight norm, pruning) are put together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_backbones.handover.pickles import Husk

# torch.compile; FSDP; activation checkpointing; Lightning's Fabric and DeepSpeed; Opacus
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_module"}
_OPTIMIZERS = re.compile(r"optim|opt_state|sched|lr_|scaler|amp$|callbacks$|loops$|rng", re.IGNORECASE)
"""Names of entries that hold the state of the training and no network."""
_DEEPEST = 8

# Stored parts of one weight, and the key of the whole: torch.nn.utils.parametrizations.weight_norm, the older
# torch.nn.utils.weight_norm (magnitude, direction), torch.nn.utils.prune (numbers, mask).
_PARTS = (
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
    (".weight_g", ".weight_v"),
    (".weight_mask", ".weight_orig"),
)


class Entry(NamedTuple):
    """One dictionary of a file."""

    place: str
    """Path of the dictionary in the file, each name followed by a dot: ``state_dict.``; empty for the outermost."""
    content: Mapping[Any, Any]
    tensors: dict[str, Tensor]
    """Its own tensors, by key without wrappers."""
    stored: dict[str, str]
    """From these keys to those in the file."""


def entries(tree: Any) -> Iterator[Entry]:
    """Yield the dictionaries of a file that may hold a network, the outermost first; states of optimisers are none.

    Args:
        tree: nested dictionaries, lists and tuples of tensors or arrays; a module that was pickled whole counts as its
            state_dict.
    """
    for place, content in _dictionaries(tree, "", 0):
        yield Entry(place, content, *_unwrapped(_own_tensors(content)))


def _dictionaries(tree: Any, place: str, depth: int) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    if isinstance(tree, Husk):
        tree = _module_tensors(tree) or vars(tree)
    if depth > _DEEPEST or (isinstance(tree, Mapping) and "param_groups" in tree):
        return
    if isinstance(tree, Mapping):
        yield place, tree
        inner: Any = tree.items()
    elif isinstance(tree, (list, tuple)) and any(isinstance(value, (Mapping, Husk)) for value in tree):
        inner = enumerate(tree)
    else:
        return
    for name, value in inner:
        if not _OPTIMIZERS.match(str(name)):
            yield from _dictionaries(value, f"{place}{name}.", depth + 1)


def _module_tensors(module: Husk, prefix: str = "") -> dict[str, Tensor]:
    """Return the state_dict of a module that was pickled whole."""
    tensors: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        own = getattr(module, kind, {})
        tensors |= {f"{prefix}{name}": value for name, value in own.items() if isinstance(value, Tensor)}
    for name, child in getattr(module, "_modules", {}).items():
        if isinstance(child, Husk):
            tensors |= _module_tensors(child, f"{prefix}{name}.")
    return tensors


def _own_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(key, str) and isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            tensors[key] = tensor_of(value)
    return tensors


def tensor_of(value: Any) -> Tensor:
    """Convert an array of any byte order; the tensor shares no memory with it."""
    array = np.ascontiguousarray(value)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True)).reshape(np.shape(value))


def unwrapped(key: str) -> str:
    """Return a key without the words of wrappers; of ``module`` one is left in front, as published layouts have it."""
    words = [word for word in key.split(".") if word not in _WRAPPERS]
    inner = [word for word in words if word != "module"]
    return ".".join(["module", *inner] if words[0] == "module" and len(words) > 1 else inner or words)


def _unwrapped(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors by unwrapped key, and the key in the file of each; keys stay as they are where two would meet."""
    stored = {unwrapped(key): key for key in tensors}
    if len(stored) < len(tensors):
        stored = {key: key for key in tensors}
    by_key = {name: tensors[key] for name, key in stored.items()}
    for scale, numbers in _PARTS:
        for name in [name for name in by_key if name.endswith(numbers) and by_key[name].ndim == 4]:
            module = name.removesuffix(numbers)
            if (other := by_key.pop(f"{module}{scale}", None)) is not None:
                value, other = by_key.pop(name).float(), other.float()
                by_key[f"{module}.weight"] = value * other if scale == ".weight_mask" else _weight_norm(other, value)
                stored[f"{module}.weight"] = stored[name]
    return by_key, stored


def _weight_norm(magnitude: Tensor, direction: Tensor) -> Tensor:
    """Return magnitude * direction / |direction|; the norm runs over the axes that the magnitude does not have."""
    axes = [axis for axis in range(direction.ndim) if magnitude.ndim == 0 or magnitude.shape[axis] == 1]
    length: Tensor = torch.linalg.vector_norm(direction, dim=axes, keepdim=True)
    return magnitude * direction / length
