"""Geometry of images, and the images of evaluation. Images are (3, H, W), boxes (N, 4) ``x1 y1 x2 y2`` in pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from openworld.data.options import LoaderOptions


def resized_size(height: int, width: int, min_size: int, max_size: int, factor: float = 1.0) -> tuple[int, int]:
    """(height, width) with the shorter side at ``min_size``, unless the longer one would pass ``max_size``.

    Both are then multiplied by ``factor``. No side becomes smaller than 1.
    """
    scale = factor * min(min_size / min(height, width), max_size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, antialiased. (3, H, W) float32 in [0, 1] or uint8 -> (3, *size) of the same type."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    resized = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].clamp_(0, 1) if image.is_floating_point() else resized[0]


def resized(image: Tensor, size: tuple[int, int], options: LoaderOptions) -> Tensor:
    """(3, H, W) uint8 -> (3, *size) float32 in [0, 1], or uint8 if that is how the options resize."""
    return resize(image if options.resize == "uint8" else as_float(image), size)


def box_scale(old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(4,) float32 factors for boxes when an image goes from ``old`` to ``new`` (height, width)."""
    vertical, horizontal = new[0] / old[0], new[1] / old[1]
    return torch.tensor([horizontal, vertical, horizontal, vertical], dtype=torch.float32)


def flip(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror left and right."""
    x1, y1, x2, y2 = boxes.unbind(1)
    width = image.shape[-1]
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=1)


def as_float(image: Tensor) -> Tensor:
    """uint8 in 0…255 -> float32 in [0, 1]; what is float already stays."""
    return image if image.is_floating_point() else image.to(torch.float32).div_(255)


def prepare(image: Tensor, options: LoaderOptions) -> tuple[Tensor, Tensor]:
    """An image as evaluation feeds it, without augmentation.

    Args:
        image: (3, H, W) uint8.

    Returns:
        (3, h, w) float32 in [0, 1], or uint8 with ``options.resize == "uint8"`` (a quarter of the memory to hand from
        process to process and to a GPU; an engine takes both, see :func:`as_float`), and the (4,) float32 scale: boxes
        of the original image times the scale are boxes of the result, detections divided by it are in original pixels.
    """
    old = (image.shape[-2], image.shape[-1])
    new = resized_size(*old, options.min_size, options.max_size)
    return resized(image, new, options), box_scale(old, new)
