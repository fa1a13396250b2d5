"""Images of more than 8 bits: whether the white level that they are read with suits them.

Microscopes, thermal and medical devices measure 10, 12 or 14 bits and write them into 16-bit files as they are. Of such
files the upper 8 bits are nearly black.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from openworld.errors import DataError
from openworld.runtime.image_headers import read_header
from openworld.runtime.images import brightest_value

log = logging.getLogger("openworld.data")

SAMPLE = 256
"""Number of images of a set whose headers are looked at before work begins."""
DECODED = 8
"""Number of 16-bit images among them that are decoded."""
UNUSED_SHARE = 4
"""A set is dark where its brightest value is below one in this many of the white level: two bits are never used."""


def depth_doubt(brightest: Sequence[int], white_level: int) -> tuple[str, str] | None:
    """What is wrong with the white level of a set, and what to do; None where nothing is.

    Args:
        brightest: the brightest 16-bit value of each image of more than 8 bits, as
            :func:`openworld.runtime.images.brightest_value` returns it.
        white_level: the value that is read as white.
    """
    largest = max(brightest, default=0)
    bits = max(8, largest.bit_length())
    fitting = 2**bits - 1
    if largest > white_level:
        return (
            f"have values up to {largest:,}, and all above the white level of {white_level:,} is read as white",
            f"Set white_level to {fitting} (data.loader and pretrain).",
        )
    if brightest and (largest + 1) * UNUSED_SHARE <= white_level + 1:
        shown = largest * 256 // (white_level + 1)
        return (
            f"have no value above {largest:,} ({bits} bits) where white is {white_level:,}: they are read nearly "
            f"black, the brightest pixel as {shown} of 255",
            f"Set white_level to {fitting} (data.loader and pretrain) if the values are grey; otherwise convert the "
            "images to 8 bits.",
        )
    return None


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Choose ``count`` paths, evenly spread over all of them."""
    if len(paths) <= count:
        return list(paths)
    return [paths[(2 * number + 1) * len(paths) // (2 * count)] for number in range(count)]


def warn_of_depth(paths: Sequence[Path], white_level: int, name: str, *, remedy: str | None = None) -> None:
    """Log a warning where the white level does not suit a set; a sample of its images is looked at.

    Args:
        paths: the images of the set; those that cannot be read are passed over.
        white_level: the value that is read as white.
        name: of the set, for the message.
        remedy: what to do, where the white level is not free any more. None: set it.
    """
    deep, brightest = [], []
    for path in spread(paths, SAMPLE):
        with suppress(DataError):
            if read_header(path).deep:
                deep.append(path)
    for path in spread(deep, DECODED):
        with suppress(DataError):
            brightest.append(brightest_value(path) or 0)
    doubt = depth_doubt(brightest, white_level)
    if doubt is not None:
        log.warning("16-bit images of %s %s. %s", name, doubt[0], remedy or doubt[1])
