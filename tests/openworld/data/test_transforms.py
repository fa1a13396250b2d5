"""Sizes, boxes and pixels move together."""

from __future__ import annotations

import pytest
import torch

from openworld.data.options import LoaderOptions
from openworld.data.transforms import box_scale, flip, prepare, resize, resized_size
from openworld.errors import ConfigError


def test_short_side_unless_the_long_side_passes_its_limit() -> None:
    assert resized_size(480, 640, 800, 1333) == (800, 1067)
    assert resized_size(500, 2000, 800, 1333) == (333, 1333)
    assert resized_size(640, 480, 240, 1000, factor=0.5) == (160, 120)
    assert resized_size(1, 5000, 128, 128) == (1, 128)


def test_flip_by_hand_and_twice() -> None:
    image = torch.arange(12.0).reshape(1, 2, 6).expand(3, 2, 6)
    boxes = torch.tensor([[1.0, 0.0, 3.0, 2.0]])
    flipped, moved = flip(image, boxes)
    assert moved.tolist() == [[3.0, 0.0, 5.0, 2.0]]
    assert torch.equal(flipped[0, 0], torch.tensor([5.0, 4, 3, 2, 1, 0]))
    again, back = flip(flipped, moved)
    assert torch.equal(again, image) and torch.equal(back, boxes)


def test_prepare_scale_maps_back() -> None:
    image, scale = prepare(torch.zeros(3, 50, 100, dtype=torch.uint8), LoaderOptions(min_size=16, max_size=64))
    assert image.shape == (3, 16, 32)
    assert torch.allclose(scale, torch.tensor([0.32, 0.32, 0.32, 0.32]))
    assert torch.equal(box_scale((10, 20), (30, 80)), torch.tensor([4.0, 3.0, 4.0, 3.0]))


def test_resize_keeps_a_constant() -> None:
    assert torch.allclose(resize(torch.full((3, 37, 23), 0.3), (11, 50)), torch.tensor(0.3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_size": 4},
        {"max_size": 64},
        {"flip": 1.5},
        {"scale_jitter": [1.0]},
        {"scale_jitter": [1.0, 0.5]},
        {"workers": -1},
        {"augment": "medium"},
    ],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoaderOptions(**wrong)  # type: ignore[arg-type]
