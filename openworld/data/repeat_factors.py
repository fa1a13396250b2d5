"""How often an image is drawn: repeat factor sampling (Gupta, Dollár, Girshick: LVIS, CVPR 2019, section 4.1)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray


def repeat_factors(labels: NDArray[np.int64], ends: NDArray[np.int64], threshold: float) -> NDArray[np.float64]:
    """Return how many times an epoch shows each image: as often as its rarest class asks for, and at least once.

    A class that the share f of the images shows asks for max(1, sqrt(threshold / f)).

    Args:
        labels: (L,) classes of the objects, image after image.
        ends: (N + 1,) the objects of image ``i`` are ``labels[ends[i]:ends[i + 1]]``.
        threshold: share of the images below which a class counts as rare, 0 to 1; 0 repeats nothing.

    Returns:
        (N,) factors >= 1.
    """
    num_images = len(ends) - 1
    owners = np.repeat(np.arange(num_images), np.diff(ends))
    pairs = np.unique(np.stack([owners, labels]), axis=1)  # an image shows a class once, however many objects it has
    classes, place, shown_by = np.unique(pairs[1], return_inverse=True, return_counts=True)
    asked = np.sqrt(threshold * num_images / shown_by) if len(classes) else np.zeros(0)
    factors = np.ones(num_images)
    np.maximum.at(factors, pairs[0], asked[place])
    return factors


def epoch_order(num_images: int, factors: NDArray[np.float64] | None, random: torch.Generator) -> NDArray[np.int64]:
    """Return the images in the order of one epoch.

    A factor that is not a whole number is rounded up or down at random, so that it is right on average, every epoch has
    the same length, :func:`epoch_length`, and every image occurs at least once (systematic resampling).

    Args:
        num_images: number of images.
        factors: (N,) from :func:`repeat_factors`; None: every image once.
        random: generator of this epoch.
    """
    if factors is None:
        return np.asarray(torch.randperm(num_images, generator=random))
    length = epoch_length(num_images, factors)
    edges = np.cumsum(factors)
    points = np.arange(length) + torch.rand((), generator=random, dtype=torch.float64).item()
    drawn = np.minimum(np.searchsorted(edges, points, side="right"), num_images - 1)
    return np.asarray(drawn[torch.randperm(length, generator=random).numpy()])


def epoch_length(num_images: int, factors: NDArray[np.float64] | None) -> int:
    """Return the number of images that an epoch shows, repeats included."""
    return num_images if factors is None else math.ceil(factors.sum())
