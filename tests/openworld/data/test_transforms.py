"""Sizes, boxes and pixels move together."""

from __future__ import annotations

import pytest
import torch

from openworld.data.options import LoaderOptions
from openworld.data.transforms import augment, box_scale, flip, prepare, resize, resized_size
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


def test_box_follows_its_pixels() -> None:
    """A white rectangle stays where its box says, through resizing and flipping."""
    options = LoaderOptions(min_size=60, max_size=90, scale_jitter=[0.8, 1.2], flip=0.5)
    for seed in range(12):
        image = torch.zeros(3, 100, 140, dtype=torch.uint8)
        image[:, 20:60, 30:110] = 255
        boxes = torch.tensor([[30.0, 20.0, 110.0, 60.0]])
        pixels, moved = augment(image, boxes, options, torch.Generator().manual_seed(seed))
        rows, columns = torch.nonzero(pixels[0] > 0.5, as_tuple=True)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert torch.allclose(moved[0], torch.stack(extent).float(), atol=1.0)
        assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() <= 1


def test_augment_without_boxes_and_without_augmentation() -> None:
    options = LoaderOptions(min_size=32, max_size=32, scale_jitter=[1.0, 1.0], flip=0.0)
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    pixels, boxes = augment(image, torch.zeros(0, 4), options, torch.Generator())
    assert torch.equal(pixels, image / 255) and boxes.shape == (0, 4)


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
    ],
)
def test_options_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoaderOptions(**wrong)  # type: ignore[arg-type]
