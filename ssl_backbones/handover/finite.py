"""Weights whose numbers are not finite are refused when they are read, and not blamed on the preprocessing later."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from openworld.errors import CheckpointError


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Check that no feature will be NaN for the numbers of the file alone.

    Args:
        tensors: by name, floats as float32, so that what float32 cannot hold counts as infinite.
        where: names the file in errors.

    Raises:
        CheckpointError: a tensor holds NaN or infinite numbers, or a variance below 0; the message names the first one
            and counts them.
    """
    bad = {key: int(value.numel() - value.isfinite().sum()) for key, value in tensors.items()}
    bad = {key: count for key, count in bad.items() if count}
    negative = [key for key, value in tensors.items() if key.endswith("running_var") and bool((value < 0).any())]
    if bad:
        first = next(iter(bad))
        nans = int(tensors[first].isnan().sum())
        raise CheckpointError(
            f"{first} holds {nans} NaN and {bad[first] - nans} infinite numbers of {tensors[first].numel()}; "
            f"{len(bad)} of {len(tensors)} tensors hold such numbers, {sum(bad.values())} in all",
            where=where,
            remedy="the training diverged or the file is damaged: give an earlier checkpoint, or fetch it again",
        )
    if negative:
        raise CheckpointError(
            f"{negative[0]} holds a variance below 0 ({float(tensors[negative[0]].min()):.3g})",
            where=where,
            remedy="the file is damaged, or is a difference of two networks: fetch it again",
        )
