"""Boxes and labels follow their pixels through every augmentation, which is a function of the generator alone."""

from __future__ import annotations

import random
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from openworld.data import augmentation
from openworld.data.augmentation import MIN_VISIBLE, augment
from openworld.data.options import LoaderOptions
from openworld.runtime.seeding import generator
from openworld.structures import Target
from ssl_backbones.options import IMAGENET_MEAN

Level = Literal["none", "light", "strong"]
LEVELS = get_args(Level)
Resize = Literal["float", "uint8"]
BOXES: dict[int, tuple[float, ...]]
BOXES = {7: (15, 10, 60, 45), 3: (70, 12, 104, 40), 9: (20, 52, 40, 78), 1: (62, 58, 100, 80)}
"""Label: its box, in an image of 120 by 90 pixels."""


def options(level: Level, resize: Resize = "float", **changes: Any) -> LoaderOptions:
    given = {"min_size": 72, "max_size": 90, "scale_jitter": [0.8, 1.2], **changes}
    return LoaderOptions(augment=level, resize=resize, **given)


def target(boxes: dict[int, tuple[float, ...]], factor: float = 1.0) -> Target:
    corners = torch.tensor(list(boxes.values()), dtype=torch.float32).reshape(-1, 4) * factor
    return Target(corners, torch.tensor(list(boxes), dtype=torch.int64), "name")


def noise(height: int, width: int) -> Tensor:
    random_bytes = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0))
    return random_bytes.to(torch.uint8)


def whole_pixels(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.to(torch.float32) / 255


def test_box_follows_its_pixels() -> None:
    """A white rectangle stays where its box says, through resizing and flipping."""
    plain = LoaderOptions(min_size=60, max_size=90, scale_jitter=[0.8, 1.2], flip=0.5)
    for seed in range(12):
        image = torch.zeros(3, 100, 140, dtype=torch.uint8)
        image[:, 20:60, 30:110] = 255
        boxes = target({1: (30, 20, 110, 60)})
        pixels, moved = augment(image, boxes, plain, torch.Generator().manual_seed(seed))
        rows, columns = torch.nonzero(pixels[0] > 0.5, as_tuple=True)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert torch.allclose(moved.boxes[0], torch.stack(extent).float(), atol=1.0)
        assert pixels.dtype == torch.float32 and pixels.min() >= 0 and pixels.max() <= 1


def test_without_boxes_and_without_augmentation() -> None:
    plain = LoaderOptions(min_size=32, max_size=32, scale_jitter=[1.0, 1.0], flip=0.0)
    image = noise(32, 32)
    pixels, left = augment(image, target({}), plain, torch.Generator())
    assert torch.equal(pixels, image / 255) and left.boxes.shape == (0, 4)


@pytest.mark.parametrize("factor", [1, 3])
@pytest.mark.parametrize("resize", ["float", "uint8"])
@pytest.mark.parametrize("level", LEVELS)
def test_each_pixel_tells_where_it_came_from(
    level: Level, resize: Resize, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images hold their own coordinates: red is x, green is y, and blue is zero where nothing was filled.

    A box is then the extent of the pixels that came from its inside, and what a crop shows of a box can be counted.
    With a factor of 3, the image is first reduced.
    """
    enters = (90, 120) if factor == 1 else (135, 180)  # twice 90, the limit of the longer side
    height, width = 90 * factor, 120 * factor

    def no_colours(image: Tensor) -> Tensor:
        assert image.shape == (3, *enters)
        return image

    monkeypatch.setattr(augmentation, "PHOTOMETRIC", no_colours)
    across, down = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    image = torch.stack([255 * (across + 0.5) / width, 255 * (down + 0.5) / height, 0 * across]).round().to(torch.uint8)
    seen = dict.fromkeys(("cut", "dropped", "filled"), 0)
    for seed in range(24):
        drawn = torch.Generator().manual_seed(seed)
        pixels, left = augment(image, target(BOXES, factor), options(level, resize), drawn)
        assert pixels.dtype == (torch.float32 if resize == "float" else torch.uint8)
        red, green, blue = whole_pixels(pixels)
        from_image = blue < 0.02
        seen["filled"] += not bool(from_image.all())
        x, y = 120 * red, 90 * green
        labels = left.labels.tolist()
        assert labels == [label for label in BOXES if label in labels] and left.image_id == "name"
        for label, (x1, y1, x2, y2) in BOXES.items():
            inside = from_image & (x > x1) & (x < x2) & (y > y1) & (y < y2)
            shown = _extent(x[inside]) * _extent(y[inside]) / ((x2 - x1) * (y2 - y1))
            if label not in labels:
                seen["dropped"] += 1
                assert shown < MIN_VISIBLE + 0.03
                continue
            seen["cut"] += shown < 0.7
            assert shown > MIN_VISIBLE**2 - 0.03  # two crops may each leave a tenth
            rows, columns = torch.nonzero(inside, as_tuple=True)
            extent = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            blur = 1.5 if level == "strong" else 1.0
            assert torch.allclose(left.boxes[labels.index(label)], extent.float(), atol=blur)
    expected = {"none": set(), "light": {"cut", "dropped"}, "strong": {"cut", "dropped", "filled"}}
    assert {name for name, count in seen.items() if count} == expected[level]


def test_a_crop_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 120 by 90 pixels, x from 30 to 90 and y from 20 to 70 are seen, at the same scale."""
    monkeypatch.setitem(augmentation.CROPS, "light", v2.CenterCrop([50, 60]))
    boxes = {
        1: (0, 20, 33, 60),  # 3 of 33 columns are seen
        2: (0, 20, 34, 60),  # 4 of 34, though the centre is not
        3: (89.5, 30, 91, 40),  # a third of it, half a pixel
        4: (89.0, 30, 91, 40),
        5: (95, 30, 110, 40),
        6: (40, 0, 50, 90),
    }
    plain = LoaderOptions(min_size=50, max_size=60, scale_jitter=[1.0, 1.0], flip=0.0, augment="light")
    pixels, left = augment(noise(90, 120), target(boxes), plain, torch.Generator())
    assert pixels.shape == (3, 50, 60) and left.labels.tolist() == [2, 4, 6]
    assert left.boxes.tolist() == [[0, 0, 4, 40], [59, 10, 60, 20], [10, 0, 20, 50]]


def _extent(values: Tensor) -> float:
    return float(values.max() - values.min()) if len(values) else 0.0


@pytest.mark.parametrize("level", ["light", "strong"])
def test_only_the_generator_counts(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    """No global generator is drawn from or left changed, and none of a GPU is seeded."""

    def refused(*_: object) -> None:
        raise AssertionError("this seeds the generators of GPUs as well")

    image, boxes, results = noise(90, 120), target(BOXES), []
    before = image.clone(), boxes.boxes.clone()
    for seed in range(2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "manual_seed", refused)
            states = random.getstate(), np.random.get_state(), torch.get_rng_state()
            results.append([augment(image, boxes, options(level), generator(number)) for number in range(8)])
            assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
            assert str(np.random.get_state()) == str(states[1])
    for (pixels, left), (same_pixels, same_left) in zip(*results, strict=True):
        assert torch.equal(pixels, same_pixels) and torch.equal(left.boxes, same_left.boxes)
        assert type(pixels) is Tensor and type(left.boxes) is Tensor and type(left.labels) is Tensor
        assert left.boxes.dtype == torch.float32 and left.labels.dtype == torch.int64
    assert len({pixels.shape for pixels, _ in results[0]}) > 4
    assert torch.equal(image, before[0]) and torch.equal(boxes.boxes, before[1])


@pytest.mark.parametrize("size", [(40, 60), (1, 300), (300, 1)])
@pytest.mark.parametrize("level", ["light", "strong"])
def test_images_without_boxes_or_of_a_pixel_keep_their_frame(level: Level, size: tuple[int, int]) -> None:
    """Nothing is cropped around a box; large-scale jitter moves what is in the frame. Zoom-out has whole pixels."""
    boxes = [target({})] if min(size) > 2 else [target({}), target({8: (0, 0, size[1], size[0])})]
    for annotated in boxes:
        for seed in range(8):
            plain, _ = augment(noise(*size), annotated, options("none"), torch.Generator().manual_seed(seed))
            pixels, left = augment(noise(*size), annotated, options(level), torch.Generator().manual_seed(seed))
            assert np.abs(np.subtract(pixels.shape, plain.shape)).max() <= (level == "strong")
            assert left.boxes.shape == (len(annotated), 4) and left.labels.shape == (len(annotated),)


@pytest.mark.parametrize("level", LEVELS)
def test_a_crop_that_leaves_no_box_is_refused(level: Level) -> None:
    """Of a small box in a corner, large-scale jitter alone would lose half; a box below a pixel, every transform."""
    for corner, seeds in (((1, 1, 7, 7), 20), ((30, 30, 30.3, 60), 5)):
        boxes = Target(torch.tensor([corner]), torch.tensor([5]))
        for seed in range(seeds):
            pixels, left = augment(noise(90, 120), boxes, options(level), torch.Generator().manual_seed(seed))
            assert left.labels.tolist() == [5]
            (x1, y1, x2, y2), (height, width) = left.boxes[0].tolist(), pixels.shape[-2:]
            assert 0 <= x1 < x2 <= width + 1e-3 and 0 <= y1 < y2 <= height + 1e-3


@pytest.mark.parametrize("height", [260, 273])
def test_box_as_large_as_the_image_stays(height: int) -> None:
    """Reduced to twice the training size, it ends 0.00002 px beyond the border, which sanitizing takes for a fault."""
    boxes = target({4: (0, 0, height + 30, height), 2: (50, 50, 60, 60)})
    for seed in range(3):
        left = augment(noise(height, height + 30), boxes, options("light"), torch.Generator().manual_seed(seed))[1]
        assert 4 in left.labels.tolist()


@pytest.mark.parametrize("resize", ["float", "uint8"])
def test_what_is_filled_is_zero_for_the_network(resize: Resize) -> None:
    """Brightness, contrast, saturation and hue of black are black, so that only the fill has a colour."""
    mean = torch.tensor(IMAGENET_MEAN)
    filled = 0
    for seed in range(10):
        black = torch.zeros(3, 90, 120, dtype=torch.uint8)
        pixels, _ = augment(black, target(BOXES), options("strong", resize), torch.Generator().manual_seed(seed))
        corners = whole_pixels(pixels)[:, [0, 0, -1, -1], [0, -1, 0, -1]].T
        for colour in corners:
            if colour.sum() > 0:
                filled += 1
                assert torch.allclose(colour, mean, atol=1e-6 if resize == "float" else 0.5 / 255)
    assert filled > 3


def test_colours_change_and_channels_keep_their_places() -> None:
    """What v2's transform does with the same parameters, but for the permutation of the channels."""
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[0], image[1], image[2] = 200, 100, 30
    factors = LoaderOptions(min_size=16, max_size=16, scale_jitter=[1.0, 1.0], flip=0.0, augment="light")
    colours = [
        augment(image, target({}), factors, torch.Generator().manual_seed(seed))[0].mean(dim=(1, 2))
        for seed in range(24)
    ]
    assert all(red > green > blue for red, green, blue in colours)
    assert len({round(float(colour[0]), 3) for colour in colours}) > 12
    drawn = augmentation.PHOTOMETRIC.make_params([image])
    assert drawn.keys() == v2.RandomPhotometricDistort().make_params([image]).keys()
    assert drawn["channel_permutation"] is None
