"""Image files: one place that opens them, for the readers and for the loader.

EXIF orientation is not applied: COCO and VOC boxes are drawn on the pixels as they are stored.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openworld.errors import DataError

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
"""Decoders that stay inside this process; Pillow would hand an EPS file to an interpreter."""

_REMEDY = "replace the file or remove it from the annotations"


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header.

    Raises:
        DataError: as :func:`load_image`.
    """
    with _open(path) as image:
        return image.size


def load_image(path: Path) -> Tensor:
    """Decode one image to (3, H, W) uint8 RGB in stored orientation.

    Grey, palette, CMYK and 16-bit images are converted (16 bits keep their upper 8), an alpha channel is dropped, of
    an animation the first frame is taken.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, of a pixel type without a defined brightness
            range (32-bit), or larger than ``MAX_PIXELS``.
    """
    with _open(path) as image:
        try:
            image.load()
            pixels = _rgb(image, path)
        except DataError:
            raise
        except Exception as error:  # a decoder meets damaged data with almost any exception
            problem = f"image is damaged ({type(error).__name__}: {error})"
            raise DataError(problem, where=str(path), remedy=_REMEDY) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise DataError("image does not exist", where=str(path), remedy=_REMEDY) from None
    except Image.DecompressionBombError:
        raise _too_large(path, "more than 178 million") from None
    except Exception as error:
        empty = Path(path).is_file() and Path(path).stat().st_size == 0
        problem = "file is empty" if empty else f"is not an image that can be read ({type(error).__name__})"
        raise DataError(problem, where=str(path), remedy=_REMEDY) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path, f"{image.width}x{image.height}")
    return image


def _too_large(path: Path, size: str) -> DataError:
    return DataError(
        f"image has {size} pixels, the limit is {MAX_PIXELS:,}", where=str(path), remedy="shrink or tile the image"
    )


def _rgb(image: Image.Image, path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise _pixel_type(image, path)
        grey = (values.astype(np.int64) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise _pixel_type(image, path)
    return np.array(image.convert("RGB"))


def _pixel_type(image: Image.Image, path: Path) -> DataError:
    return DataError(
        f"image has 32-bit pixels (mode {image.mode})", where=str(path), remedy="convert the image to 8 or 16 bits"
    )
