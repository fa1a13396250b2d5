"""Image files: one place that opens them, for the readers and for the loader.

EXIF orientation: COCO and VOC boxes are drawn on the pixels as they are stored, and so the tag is not applied. Some
tools for annotation do apply it. Where the annotated width and height are those of the turned image and not those of
the stored one, that is what happened, and the tag is applied. A turn by 180 degrees, a mirror image and a square image
leave no such trace: there the stored pixels count.
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

_ORIENTATION = 0x0112
_TURNS = (5, 6, 7, 8)
"""Values of the tag that exchange width and height."""
_REMEDY = "replace the file or remove it from the annotations"


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels from the file's header.

    Raises:
        DataError: as :func:`load_image`.
    """
    with _open(path) as image:
        return image.size


def is_turned(path: Path, annotated: tuple[int, int]) -> bool:
    """Whether :func:`load_image` turns an image by its EXIF tag, because it was annotated so. Reads the header only.

    Args:
        path: the file.
        annotated: (width, height) in pixels that the annotations say.

    Raises:
        DataError: as :func:`load_image`.
    """
    with _open(path) as image:
        exchanged = image.size != annotated and image.size == annotated[::-1]
        return exchanged and image.getexif().get(_ORIENTATION, 1) in _TURNS


def load_image(path: Path, annotated: tuple[int, int] | None = None) -> Tensor:
    """Decode one image to (3, H, W) uint8 RGB.

    Grey, palette, CMYK and 16-bit images are converted (16 bits keep their upper 8), an alpha channel is dropped, of
    an animation the first frame is taken. What a file holds decides, not its suffix.

    Args:
        path: the file.
        annotated: (width, height) in pixels that the annotations say. None: stored orientation.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, of a pixel type without a defined brightness
            range (32-bit), or larger than ``MAX_PIXELS``.
    """
    with _open(path) as image:
        try:
            image.load()
            pixels = _rgb(image, path)
            if annotated is not None and image.size != annotated and image.size == annotated[::-1]:
                pixels = _turn(pixels, image.getexif().get(_ORIENTATION, 1))
        except DataError:
            raise
        except Exception as error:  # a decoder meets damaged data with almost any exception
            problem = f"image is damaged ({type(error).__name__}: {error})"
            raise DataError(problem, where=str(path), remedy=_REMEDY) from None
    return pixels


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


def _rgb(image: Image.Image, path: Path) -> Tensor:
    """(3, H, W) uint8."""
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise _pixel_type(image, path)
        grey = torch.from_numpy((values.astype(np.int64) >> 8).astype(np.uint8))
        return grey.expand(3, -1, -1).contiguous()
    if image.mode == "F":
        raise _pixel_type(image, path)
    bands = (image if image.mode == "RGB" else image.convert("RGB")).split()  # planes at once: no transposing
    shape = (image.height, image.width)
    return torch.stack([torch.frombuffer(bytearray(band.tobytes()), dtype=torch.uint8).view(shape) for band in bands])


def _turn(pixels: Tensor, orientation: object) -> Tensor:
    """(3, H, W) -> (3, W, H) as EXIF orientations 5 to 8 say (JEITA CP-3451, tag 0112); others change nothing."""
    across = pixels.transpose(1, 2)
    turned = {5: across, 6: across.flip(2), 7: across.flip(1, 2), 8: across.flip(1)}
    found = turned.get(orientation) if isinstance(orientation, int) else None
    return pixels if found is None else found.contiguous()


def _pixel_type(image: Image.Image, path: Path) -> DataError:
    return DataError(
        f"image has 32-bit pixels (mode {image.mode})", where=str(path), remedy="convert the image to 8 or 16 bits"
    )
