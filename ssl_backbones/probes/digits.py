"""Digits drawn with a font, for experiments that need many labelled pictures and no download.

Shapes: N pictures, S pixels per side.
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

CLASSES = 10


def draw_digits(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """White digits on black, turned up to 20 degrees, sheared, scaled and moved a little, each differently.

    Args:
        labels: (N,) int64 from 0 to 9.
        size: S, at least 8.

    Returns:
        (N, 1, S, S) float32 in [0, 1].
    """
    pictures = [_draw(label, size, generator) for label in labels.tolist()]
    return torch.stack(pictures) if pictures else torch.empty(0, 1, size, size)


def _draw(label: int, size: int, generator: torch.Generator) -> Tensor:
    turn, shear, stretch, x, y, weight = (2 * torch.rand(6, generator=generator) - 1).tolist()
    large = 4 * size  # drawn large and reduced: smooth edges
    picture = Image.new("L", (large, large))
    font = ImageFont.load_default(size=large * 0.8)
    stroke = round(large / 40 * (1 + weight))
    centre = large / 2
    ImageDraw.Draw(picture).text((centre, centre), str(label), fill=255, font=font, anchor="mm", stroke_width=stroke)
    angle, scale = math.radians(20 * turn), 1.15 + 0.15 * stretch
    cosine, sine = math.cos(angle) * scale, math.sin(angle) * scale
    a, b, d, e = cosine, sine + 0.2 * shear, -sine, cosine
    moved_x, moved_y = centre + 0.06 * large * x, centre + 0.06 * large * y
    around = (a, b, centre - a * moved_x - b * moved_y, d, e, centre - d * moved_x - e * moved_y)
    picture = picture.transform((large, large), Image.Transform.AFFINE, around, Image.Resampling.BILINEAR)
    pixels: Tensor = pil_to_tensor(picture.resize((size, size), Image.Resampling.BOX))
    return pixels.float() / 255


def draw_many(numbers: Tensor, canvas: int, size: int, generator: torch.Generator) -> Tensor:
    """Pictures with several digits, each in a cell of its own that is chosen at random.

    Args:
        numbers: (N, M) int64 from 0 to 9: M digits in each picture.
        canvas: S, side of the picture; it has room for (S // size) ** 2 digits.
        size: side of a digit.

    Returns:
        (N, 1, S, S) float32 in [0, 1].
    """
    cells = canvas // size
    pictures = torch.zeros(len(numbers), 1, canvas, canvas)
    for picture, digits in zip(pictures, numbers, strict=True):
        drawn = draw_digits(digits, size, generator)
        places = torch.randperm(cells * cells, generator=generator)[: len(digits)]
        for digit, place in zip(drawn, places.tolist(), strict=True):
            top, left = place // cells * size, place % cells * size
            picture[:, top : top + size, left : left + size] = digit
    return pictures
