"""Image files: the one place that finds and decodes them.

EXIF orientation: whether the tag is applied depends on what the picture is for.

==============================================  =====================================================================
photographs without annotations (``predict``,   applied: the picture is as every viewer shows it
pretraining)
annotations of YOLO                             applied, as Ultralytics does: its loader (``cv2.imread``) applies the
                                                tag, and its check of labels exchanges the sides (``exif_size``)
annotations of COCO and VOC, which say the      applied where the annotated width and height are those of the turned
size of each image                              picture and not those of the stored one
the same, where the size cannot tell: a turn    not applied; `data check` and `run` say so
by 180 degrees, a mirror image, a square image
``orientation: upright`` or ``stored``          applied, or not, to all images of the set
==============================================  =====================================================================
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openworld.errors import DataError
from openworld.runtime.folders import visible_files
from openworld.runtime.image_headers import REMEDY, TURNS, Size, Upright, header_of, open_image, read_header

log = logging.getLogger("openworld.data")

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"),
    *(".jfif", ".jpe", ".mpo", ".avif", ".apng", ".pbm", ".pnm", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
)
"""Suffixes of image files, in lower case; files in upper case count as well. The likely ones come first."""

_TEXTS = (".txt", ".json", ".xml", ".csv", ".yaml", ".yml", ".md", ".html", ".log", ".ini", ".db")
"""Suffixes of files that lie beside images and that nobody takes for one."""
WHITE_LEVEL = 65535
"""The brightest value of 16 bits."""
_BITS_PER_SAMPLE = 258
"""Tag of a TIFF file. Pillow reads 8, 12 and 16 bits of grey, and leaves 12 bits as they are."""


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
        kinds = _other_kinds(place)
        raise DataError(
            "holds no images" + (f" of a kind that can be read; there are {kinds}" if kinds else ""),
            where=str(place),
            remedy=f"put images there ({', '.join(SUFFIXES)}), converted if they are of another kind",
        )
    return found


def warn_of_other_files(place: Path) -> None:
    """Log a warning where a folder holds files beside its images that may be images of kinds that cannot be read."""
    kinds = _other_kinds(place)
    if kinds:
        log.warning("left out of %s, because they are of other kinds: %s", place, kinds)


def _other_kinds(place: Path) -> str:
    """Number of files of each suffix below a folder that are neither images nor texts; empty where there are none."""
    counts = Counter(
        file.suffix.lower() or "no suffix"
        for file in visible_files(place)
        if file.suffix.lower() not in (*SUFFIXES, *_TEXTS) and file.is_file()
    )
    return ", ".join(f"{number:,} x {kind}" for kind, number in sorted(counts.items()))


def image_size(path: Path, *, upright: bool = False) -> Size:
    """Return (width, height) in pixels from the header of the file, as stored or as a viewer shows the picture.

    Raises:
        DataError: as :func:`openworld.runtime.image_headers.read_header`.
    """
    header = read_header(path)
    return header.upright if upright else header.stored


def load_image(path: Path, upright: Upright = False, *, white_level: int = WHITE_LEVEL) -> Tensor:
    """Decode an image to (3, H, W) uint8 RGB. See :func:`read_rgb`."""
    image = read_rgb(path, upright, white_level=white_level)
    shape = (image.height, image.width)
    planes = [torch.frombuffer(bytearray(band.tobytes()), dtype=torch.uint8).view(shape) for band in image.split()]
    return torch.stack(planes)  # whole planes: nothing needs to be transposed


def read_rgb(
    path: Path, upright: Upright = False, *, white_level: int = WHITE_LEVEL, shorter_side: int | None = None
) -> Image.Image:
    """Decode an image to 8-bit RGB.

    Grey, palette, CMYK and 16-bit images are converted (of 16 bits the upper 8 are kept), an alpha channel is dropped,
    of an animation the first frame is taken. The content decides about the format, not the suffix.

    Args:
        path: the file.
        upright: whether the EXIF tag is applied, see :data:`openworld.runtime.image_headers.Upright`.
        white_level: the value of a 16-bit grey image that becomes 255; so do brighter ones.
        shorter_side: pixels that are enough for the caller. A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as
            long as both sides keep that many, which is faster.

    Raises:
        DataError: the file is missing, empty, truncated, not an image, of a pixel type without a defined range of
            brightness (32-bit), or larger than ``MAX_PIXELS``; or it has 16-bit colours and ``white_level`` is given.
    """
    with open_image(path) as image:
        try:
            header = header_of(image)
            if white_level != WHITE_LEVEL and header.deep and not _is_grey(image):
                raise DataError(
                    f"image has 16-bit colours (mode {image.mode}), and white_level={white_level} is for grey images",
                    where=str(path),
                    remedy="convert the image to 8 bits",
                )
            if shorter_side is not None:
                image.draft("RGB", (shorter_side, shorter_side))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image.load()
                pixels = _rgb(image, path, white_level)
            return pixels.transpose(TURNS[header.orientation]) if header.applies(upright) else pixels
        except DataError:
            raise
        except Exception as error:  # a decoder meets damaged data with almost any exception
            problem = f"image is damaged ({type(error).__name__}: {error})"
            raise DataError(problem, where=str(path), remedy=REMEDY) from None


def brightest_value(path: Path) -> int | None:
    """Return the largest of the 16-bit values of an image; None for an image of 8 bits.

    Of 16-bit colours Pillow gives the upper 8 bits only; the lower ones count as set.

    Raises:
        DataError: as :func:`read_rgb`.
    """
    if not read_header(path).deep:
        return None
    with open_image(path) as image:
        if _is_grey(image):
            return int(_values(image, path).max(initial=0))
    return int(np.asarray(read_rgb(path)).max(initial=0)) * 256 + 255


def _is_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode == "I"


def _values(image: Image.Image, path: Path) -> NDArray[np.uint32]:
    """(H, W) the values of a 16-bit grey image, over the whole range of 16 bits if the file says that it has fewer."""
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > WHITE_LEVEL):
        raise _pixel_type(image, path)
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    return values.astype(np.uint32) * np.uint32(16 if bits == (12,) else 1)


def _rgb(image: Image.Image, path: Path, white_level: int) -> Image.Image:
    if image.mode == "RGB":
        return image
    if _is_grey(image):
        values = np.minimum(_values(image, path), white_level)
        image = Image.fromarray((values * 256 // (white_level + 1)).astype(np.uint8))  # of 65535: the upper 8 bits
    if image.mode == "F":
        raise _pixel_type(image, path)
    return image.convert("RGB")


def _pixel_type(image: Image.Image, path: Path) -> DataError:
    return DataError(
        f"image has 32-bit pixels (mode {image.mode})", where=str(path), remedy="convert the image to 8 or 16 bits"
    )
