"""What the header of an image file says: size, orientation, depth. Nothing is decoded.

Files may come from anywhere, so only decoders that stay inside this process are used, and the size is checked before
anything is decoded.

Cameras store a photograph as the sensor lay and write into the EXIF tag 0112 how to turn or mirror it. Viewers and
OpenCV's ``imread`` apply the tag, Pillow's ``Image.open`` does not. The tag of a TIFF file is different: it says where
the first row and column lie, and Pillow applies it when it decodes, so that a TIFF is always upright here.
"""

from __future__ import annotations

import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from openworld.errors import DataError

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded."""
FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
)
"""Decoders that stay inside this process; Pillow would hand an EPS file to an interpreter. Pillow reads AVIF from 11.3
on. Files of several photographs, as phones write (MPO), are JPEG files whose first photograph counts."""
REMEDY = "replace the file or remove it from the data set"

Size = tuple[int, int]
"""Width and height in pixels."""
Upright = bool | Size
"""Whether the EXIF tag is applied: True, the picture is as a viewer shows it; False, as it is stored; or the size that
tells, because annotations have it: the tag is applied where the turned picture alone has this size."""

_ORIENTATION = 0x0112
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of HEIF files (ISO/IEC 23008-12), as phones write them, also under the name .jpg."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Values of the tag, and what undoes them (JEITA CP-3451, tag 0112). From 5 on width and height are exchanged."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image file says.

    Args:
        stored: width and height as stored, in pixels.
        orientation: the EXIF tag, from 1 (upright, also where the tag is absent or invalid) to 8.
        deep: the file holds more than 8 bits per channel.
    """

    stored: Size
    orientation: int
    deep: bool

    @property
    def upright(self) -> Size:
        """Width and height as a viewer shows the picture."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored

    def applies(self, upright: Upright) -> bool:
        """Whether the tag is applied."""
        if self.orientation == 1 or isinstance(upright, bool):
            return self.orientation != 1 and upright is True
        return self.stored != upright and self.upright == upright

    def leaves_open(self, annotated: Size) -> bool:
        """Whether the annotated size is that of the stored picture and of the turned one, so that it tells nothing."""
        return self.orientation != 1 and self.stored == annotated == self.upright


def read_header(path: Path) -> Header:
    """Read the header of an image file.

    Raises:
        DataError: the file is missing, empty, not an image, or larger than ``MAX_PIXELS``.
    """
    with open_image(path) as image:
        return header_of(image)


def open_image(path: Path) -> Image.Image:
    """Open an image file without decoding it. The content decides about the format, not the suffix.

    Raises:
        DataError: as :func:`read_header`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=FORMATS)
    except FileNotFoundError:
        raise DataError("image does not exist", where=str(path), remedy=REMEDY) from None
    except Image.DecompressionBombError:
        raise _too_large(path, "more than 178 million") from None
    except Exception as error:
        raise _unreadable(path, error) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise _too_large(path, f"{image.width}x{image.height}")
    return image


def header_of(image: Image.Image) -> Header:
    """The header of an open image that is not decoded yet."""
    tile = getattr(image, "tile", None) or [()]
    deep = image.mode.startswith("I") or image.mode == "F" or ";16" in str(tile[0])
    return Header(image.size, _orientation(image), deep)


def _unreadable(path: Path, error: Exception) -> DataError:
    """What is wrong with a file that no decoder takes."""
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, IsADirectoryError):
        return DataError(f"cannot be read ({error.strerror})", where=str(path), remedy=f"make it readable; or {REMEDY}")
    start = b""
    if Path(path).is_file():
        with suppress(OSError), Path(path).open("rb") as file:
            start = file.read(12)
            if not start:
                return DataError("file is empty", where=str(path), remedy=REMEDY)
    if start[4:8] == b"ftyp" and start[8:] in _HEIF:
        return DataError("is a HEIC photograph, which is not read", where=str(path), remedy="convert it to JPEG")
    return DataError(f"is not an image that can be read ({type(error).__name__})", where=str(path), remedy=REMEDY)


def _too_large(path: Path, size: str) -> DataError:
    return DataError(
        f"image has {size} pixels, the limit is {MAX_PIXELS:,}", where=str(path), remedy="shrink or tile the image"
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF tag, 1 where there is none that is valid.

    ``Image.getexif`` would decode a PNG to look behind its pixels, and takes that of XMP where EXIF has none.
    Viewers do not, and editors that turn the pixels often leave that one behind.
    """
    if image.format == "TIFF":
        return 1
    try:
        block = image.info.get("exif")
        if block is None and image.format == "PNG":
            block = _exif_behind_pixels(Path(str(getattr(image, "filename", ""))))
        exif = Image.Exif()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif.load(block or b"")
            value = exif.get(_ORIENTATION, 1)
    except Exception:  # a damaged block: viewers show such a picture as stored
        return 1
    return value if value in TURNS else 1


def _exif_behind_pixels(path: Path) -> bytes:
    """The EXIF block of a PNG file, wherever it lies; empty without one. Pixels are passed over, not read."""
    with path.open("rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return file.read(size)
            file.seek(size + 4, 1)
    return b""
