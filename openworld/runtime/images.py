"""Image files: the one place that finds, opens and decodes them.

Files may come from anywhere, so only decoders that stay inside this process are used, and the size is checked before
anything is decoded.

EXIF orientation: COCO and VOC boxes are drawn on the pixels as they are stored, and so the tag is not applied. Some
annotation tools do apply it. Where the annotated width and height are those of the turned image and not those of the
stored one, that is what happened, and the tag is applied. A turn by 180 degrees, a mirror image and a square image
leave no such trace: there the stored pixels count. Without annotations the stored pixels count as well.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from openworld.errors import DataError
from openworld.runtime.files import visible_files

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
"""Decoders that stay inside this process; Pillow would hand an EPS file to an interpreter."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2")
"""Suffixes of image files, in lower case; files in upper case count as well. The likely ones come first."""

_ORIENTATION = 0x0112
_TURNS = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Values of the tag that exchange width and height (JEITA CP-3451, tag 0112), and what undoes them."""
_REMEDY = "replace the file or remove it from the data set"


def find_images(place: Path) -> list[Path]:
    """Return an image file, or all image files below a folder that are not hidden, sorted by path.

    Raises:
        DataError: ``place`` does not exist, or is a folder without images.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError("does not exist", where=str(place), remedy="give an image, or the folder that holds the images")
    found = sorted(file for file in visible_files(place, SUFFIXES) if file.is_file())
    if not found:
        raise DataError("holds no images", where=str(place), remedy=f"put images there ({', '.join(SUFFIXES)})")
    return found


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) in pixels from the header of the file.

    Raises:
        DataError: as :func:`load_image`.
    """
    with _open(path) as image:
        return image.size


def is_turned(path: Path, annotated: tuple[int, int]) -> bool:
    """Tell whether :func:`load_image` turns an image by its EXIF tag. Reads the header only.

    Args:
        path: the file.
        annotated: (width, height) in pixels according to the annotations.

    Raises:
        DataError: as :func:`load_image`.
    """
    with _open(path) as image:
        return _turn(image, annotated) is not None


def load_image(path: Path, annotated: tuple[int, int] | None = None) -> Tensor:
    """Decode an image to (3, H, W) uint8 RGB. See :func:`read_rgb`."""
    image = read_rgb(path, annotated)
    shape = (image.height, image.width)
    planes = [torch.frombuffer(bytearray(band.tobytes()), dtype=torch.uint8).view(shape) for band in image.split()]
    return torch.stack(planes)  # whole planes: nothing needs to be transposed


def read_rgb(path: Path, annotated: tuple[int, int] | None = None, *, shorter_side: int | None = None) -> Image.Image:
    """Decode an image to 8-bit RGB.

    Grey, palette, CMYK and 16-bit images are converted (of 16 bits the upper 8 are kept), an alpha channel is dropped,
    of an animation the first frame is taken. The content decides about the format, not the suffix.

    Args:
        path: the file.
        annotated: (width, height) in pixels according to the annotations. None: the stored orientation.
        shorter_side: pixels that are enough for the caller. A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as
            long as both sides keep that many, which is faster.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, of a pixel type without a defined range of
            brightness (32-bit), or larger than ``MAX_PIXELS``.
    """
    with _open(path) as image:
        try:
            turn = None if annotated is None else _turn(image, annotated)
            if shorter_side is not None:
                image.draft("RGB", (shorter_side, shorter_side))
            image.load()
            pixels = _rgb(image, path)
            return pixels if turn is None else pixels.transpose(turn)
        except DataError:
            raise
        except Exception as error:  # a decoder meets damaged data with almost any exception
            problem = f"image is damaged ({type(error).__name__}: {error})"
            raise DataError(problem, where=str(path), remedy=_REMEDY) from None


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


def _turn(image: Image.Image, annotated: tuple[int, int]) -> Image.Transpose | None:
    """What brings an image into the orientation in which it was annotated; None: it is stored so."""
    if image.size == annotated or image.size != annotated[::-1]:
        return None
    return _TURNS.get(image.getexif().get(_ORIENTATION, 1))


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise _pixel_type(image, path)
        image = Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise _pixel_type(image, path)
    return image.convert("RGB")


def _pixel_type(image: Image.Image, path: Path) -> DataError:
    return DataError(
        f"image has 32-bit pixels (mode {image.mode})", where=str(path), remedy="convert the image to 8 or 16 bits"
    )
