"""Repeat factors against the definition as a loop, and what an epoch then shows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from openworld.data.repeat_factors import epoch_length, epoch_order, repeat_factors


def packed(images: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array([label for image in images for label in image], dtype=np.int64)
    return labels, np.cumsum([0, *map(len, images)])


def slow(images: list[list[int]], threshold: float) -> list[float]:
    share = {label: sum(label in image for image in images) / len(images) for image in images for label in image}
    return [max([1.0, *(math.sqrt(threshold / share[label]) for label in image)]) for image in images]


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
def test_factors_against_the_definition(threshold: float) -> None:
    random = np.random.default_rng(3)
    images = [random.choice(9, size=random.integers(0, 5), p=np.arange(1, 10) / 45).tolist() for _ in range(60)]
    np.testing.assert_allclose(repeat_factors(*packed(images), threshold), slow(images, threshold), rtol=1e-12)


def test_by_hand_and_empty() -> None:
    # class 0 on every image, class 1 on one of four: at threshold 1 the last asks for sqrt(1 / 0.25) = 2
    np.testing.assert_array_equal(repeat_factors(*packed([[0], [0, 0], [0], [0, 1, 1]]), 1.0), [1, 1, 1, 2])
    np.testing.assert_array_equal(repeat_factors(*packed([[], []]), 1.0), [1, 1])


def test_an_epoch_shows_each_image_as_often_as_its_factor() -> None:
    factors = np.array([1.0, 2.5, 1.0, 3.0, 1.3])
    counts = np.zeros(5)
    for epoch in range(2000):
        order = epoch_order(5, factors, torch.Generator().manual_seed(epoch))
        assert len(order) == epoch_length(5, factors) == 9
        times = np.bincount(order, minlength=5)
        assert (times >= np.floor(factors)).all() and (times <= np.ceil(factors) + 1).all()
        counts += times
    np.testing.assert_allclose(counts[:4] / 2000, factors[:4], atol=0.05)
    assert counts[4] / 2000 == pytest.approx(1.3 + 0.2, abs=0.05)  # what rounding the length up adds


def test_without_factors_it_is_a_permutation() -> None:
    order = epoch_order(7, None, torch.Generator().manual_seed(1))
    assert order.tolist() == torch.randperm(7, generator=torch.Generator().manual_seed(1)).tolist()
