"""The last layer of a classifier, stored in a checkpoint beside a backbone or in a separate file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from openworld.errors import CheckpointError
from ssl_backbones.handover.read import read_tree


def read_classifier(path: Path, dim: int) -> nn.Linear:
    """Read the last layer of a classifier of ``dim`` features: the one matrix (C, dim) named weight, fc.weight, ….

    Raises:
        CheckpointError: the file is missing or damaged, or does not hold exactly one such matrix.
    """
    tensors = dict(_tensors(read_tree(path)))
    fitting = [
        key
        for key, value in tensors.items()
        if value.ndim == 2 and value.shape[1] == dim and key.split(".")[-1] == "weight" and key.count(".") <= 2
    ]
    if len(fitting) != 1:
        raise CheckpointError(
            f"holds {len(fitting)} classifiers of {dim} features{': ' + ', '.join(fitting) if fitting else ''}",
            where=str(path),
            remedy="name a file with weight (classes, features) and bias in distillation.classifier, "
            "or set distillation.targets to similarities",
        )
    weight, bias = tensors[fitting[0]], tensors.get(fitting[0].removesuffix("weight") + "bias")
    classifier = nn.Linear(dim, len(weight), bias=bias is not None)
    classifier.load_state_dict({"weight": weight, **({} if bias is None else {"bias": bias})})
    return classifier


def _tensors(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of nested dictionaries, by their own key, without the keys of outer dictionaries."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if isinstance(value, Tensor):
                yield str(key), value
            else:
                yield from _tensors(value)
