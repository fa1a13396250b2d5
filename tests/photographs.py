"""Photographs with an EXIF orientation tag, and where their object is. The tag is undone here by its definition alone.

JEITA CP-3451, tag 0112, says at which visual side of the picture the 0th row and the 0th column of the pixels lie.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,  # row 0 top, column 0 left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],  # right, top
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}
"""The upright picture (H, W, 3) to the pixels as stored with a tag."""

BOX = (4, 10, 20, 26)
"""Where the object of :func:`upright_picture` is: x1 y1 x2 y2."""


def upright_picture(width: int = 48, height: int = 64) -> Pixels:
    """A grey picture with a red object in :data:`BOX`, off the middle in both directions."""
    pixels = np.full((height, width, 3), 90, dtype=np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (230, 20, 20)
    return pixels


def write_photograph(path: Path, tag: int, upright: Pixels | None = None, **options: Any) -> Path:
    """Save a picture as a camera with this orientation does; the suffix says the format."""
    exif = Image.Exif()
    exif[0x0112] = tag
    pixels = STORED.get(tag, STORED[1])(upright_picture() if upright is None else upright)
    if path.suffix == ".mpo":
        options = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))], **options}
    if path.suffix == ".jpg":
        options = {"quality": 95, "subsampling": 0, **options}
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **options)
    return path


def object_in(pixels: Any) -> tuple[int, int, int, int]:
    """The box x1 y1 x2 y2 around what is red in an image (3, H, W)."""
    values = np.asarray(pixels).astype(np.int64)
    rows, columns = np.nonzero((values[0] > 160) & (values[1] < 55))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
