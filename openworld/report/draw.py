"""Draw boxes on images: known classes solid, each in its colour; unknown dashed, with hatched corners and a "?" chip.

Both colour and form carry the meaning, so nothing is lost in greyscale or to a colour-blind reader: known is a solid
line with a filled chip, unknown is dashed on black with hatched corners and a black chip, and an object that was not
taught yet is dashed grey without hatching.

Boxes are ``x1 y1 x2 y2`` in pixels of the image that is passed in; drawings are larger than small images.
"""

from __future__ import annotations

import colorsys
import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

UNKNOWN_COLOUR: Colour = (255, 138, 0)
NOT_TAUGHT_COLOUR: Colour = (190, 195, 200)
_BLACK: Colour = (12, 12, 14)
_WHITE: Colour = (255, 255, 255)
_RESERVED_HUES = (12.0, 58.0)
"""Degrees around the orange of unknown; no class gets a hue in between."""


def class_colour(name: str) -> Colour:
    """Return the colour of a class name. It depends on the name alone, and is never near the orange of unknown."""
    digest = hashlib.sha256(name.encode()).digest()
    low, high = _RESERVED_HUES
    hue = (high + int.from_bytes(digest[:4], "big") / 2**32 * (360.0 - (high - low))) % 360.0
    lightness = (0.38, 0.52, 0.66)[digest[4] % 3]
    red, green, blue = colorsys.hls_to_rgb(hue / 360.0, lightness, 0.78)
    return round(255 * red), round(255 * green), round(255 * blue)


def css_colour(colour: Colour) -> str:
    """Return a colour in CSS notation: "#ff8a00"."""
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def draw_detections(
    image: Image.Image,
    boxes: Any,
    labels: Sequence[str],
    scores: Any,
    is_unknown: Any,
    title: str | None = None,
    *,
    at_least: int = 384,
    at_most: int | None = None,
) -> Image.Image:
    """Draw what a detector found.

    Args:
        image: any mode, W x H pixels; left as it is.
        boxes: (N, 4) array, tensor or nested list, ``x1 y1 x2 y2`` in pixels of ``image``.
        labels: N class names; the name of an unknown detection is shown as "unknown".
        scores: N numbers in [0, 1].
        is_unknown: N booleans, the model's decision.
        title: one line in a bar above the picture.
        at_least: pixels; enlarge images whose longer side is shorter.
        at_most: pixels; reduce images whose longer side is longer. None leaves large images as they are.

    Returns:
        A new RGB image. Higher scores are drawn on top.

    Raises:
        ValueError: the arguments have different lengths.
    """
    unknown = [bool(value) for value in np.asarray(is_unknown).reshape(-1)]
    confidence = [float(value) for value in np.asarray(scores, dtype=np.float64).reshape(-1)]
    marks = [
        _Mark(box, f"? unknown {score:.2f}", UNKNOWN_COLOUR, "unknown")
        if strange
        else _Mark(box, f"{name} {score:.2f}", class_colour(name), "known")
        for box, name, score, strange in zip(_boxes(boxes), labels, confidence, unknown, strict=True)
    ]
    order = sorted(range(len(marks)), key=lambda index: -confidence[index])
    return _draw(image, [marks[index] for index in order], title, at_least, at_most)


def draw_ground_truth(
    image: Image.Image,
    boxes: Any,
    labels: Sequence[str],
    is_taught: Any,
    title: str | None = None,
    *,
    at_least: int = 384,
    at_most: int | None = None,
) -> Image.Image:
    """Draw the annotations, as one task of the schedule sees them.

    Args:
        image: any mode, W x H pixels; left as it is.
        boxes: (N, 4) array, tensor or nested list, ``x1 y1 x2 y2`` in pixels of ``image``.
        labels: N class names.
        is_taught: N booleans: the class is known at this task. Others are dashed grey and marked "not taught".
        title, at_least, at_most: as in :func:`draw_detections`.

    Raises:
        ValueError: the arguments have different lengths.
    """
    taught = [bool(value) for value in np.asarray(is_taught).reshape(-1)]
    marks = [
        _Mark(box, name, class_colour(name), "known")
        if known
        else _Mark(box, f"{name} · not taught", NOT_TAUGHT_COLOUR, "not taught")
        for box, name, known in zip(_boxes(boxes), labels, taught, strict=True)
    ]
    return _draw(image, marks, title, at_least, at_most)


def contact_sheet(
    images: Sequence[Image.Image], columns: int, title: str | None = None, *, gap: int = 8
) -> Image.Image:
    """Put images row by row on one white sheet, each centred in a cell as large as the largest.

    Args:
        images: any sizes.
        columns: cells in a row, at least 1.
        title: one line in a bar above the sheet.
        gap: pixels between the cells.
    """
    columns = max(1, min(columns, len(images) or 1))
    rows = math.ceil(len(images) / columns)
    width = max((image.width for image in images), default=64)
    height = max((image.height for image in images), default=64)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), _WHITE)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left = gap + column * (width + gap) + (width - image.width) // 2
        top = gap + row * (height + gap) + (height - image.height) // 2
        sheet.paste(image, (left, top))
    return _with_title(sheet, title, _font(20)) if title else sheet


@dataclass(frozen=True)
class _Mark:
    """One box, (4,) float64, with the text of its chip."""

    box: npt.NDArray[np.float64]
    text: str
    colour: Colour
    kind: Literal["known", "unknown", "not taught"]


def _boxes(boxes: Any) -> npt.NDArray[np.float64]:
    """(N, 4) float64 with x1 <= x2 and y1 <= y2; an empty list is (0, 4)."""
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([np.minimum(array[:, :2], array[:, 2:]), np.maximum(array[:, :2], array[:, 2:])], axis=1)


@functools.cache
def _font(size: int) -> Any:
    """The font of the plots: Pillow's own lacks letters with accents, Greek and Cyrillic."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _draw(
    image: Image.Image, marks: Sequence[_Mark], title: str | None, at_least: int, at_most: int | None
) -> Image.Image:
    """Draw the marks; ``marks`` are sorted by falling importance."""
    longest = max(image.size)
    scale = max(1.0, at_least / longest)
    if at_most is not None:
        scale = min(scale, at_most / longest)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    font = _font(max(11, round(max(size) / 27)))
    line = max(2, round(max(size) / 150))
    ratio = np.array([size[0] / image.width, size[1] / image.height] * 2)
    limit = np.array([size[0] - 1, size[1] - 1] * 2, dtype=np.float64)
    places = [np.clip(mark.box * ratio, 0.0, limit) for mark in marks]
    for mark, place in reversed(list(zip(marks, places, strict=True))):
        _outline(draw, place, mark, line)
    taken: list[Rectangle] = []
    for mark, place in zip(marks, places, strict=True):
        _chip(draw, place, mark, font, size, taken)
    return _with_title(canvas, title, font) if title else canvas


def _outline(draw: ImageDraw.ImageDraw, place: npt.NDArray[np.float64], mark: _Mark, line: int) -> None:
    left, top, right, bottom = (float(value) for value in place)
    halo = (max(left - 1, 0.0), max(top - 1, 0.0), right + 1, bottom + 1)
    draw.rectangle(halo, outline=_BLACK, width=line + 2)
    if mark.kind == "known":
        draw.rectangle((left, top, right, bottom), outline=mark.colour, width=line)
        return
    if mark.kind == "unknown":
        _hatched_corners(draw, (left, top, right, bottom), mark.colour, line)
    dash = 5.0 * line if mark.kind == "unknown" else 3.0 * line
    half = line / 2
    inner = (left + half - 0.5, top + half - 0.5, right - half + 0.5, bottom - half + 0.5)
    _dashed_rectangle(draw, inner, mark.colour, line, dash)


def _dashed_rectangle(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int, dash: float) -> None:
    """Draw dashes centred on each side, starting and ending with half a dash, so that all four corners are visible."""
    left, top, right, bottom = box
    sides = (((left, top), (right, top)), ((right, top), (right, bottom)),
             ((right, bottom), (left, bottom)), ((left, bottom), (left, top)))  # fmt: skip
    for (x1, y1), (x2, y2) in sides:
        length = math.hypot(x2 - x1, y2 - y1)
        pieces = max(1, round(length / (2 * dash)))
        for piece in range(pieces + 1):
            begin = max(0.0, (piece - 0.25) / pieces)
            end = min(1.0, (piece + 0.25) / pieces)
            start = (x1 + begin * (x2 - x1), y1 + begin * (y2 - y1))
            stop = (x1 + end * (x2 - x1), y1 + end * (y2 - y1))
            draw.line((start, stop), fill=colour, width=line)


def _hatched_corners(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int) -> None:
    """Draw two diagonal strokes across each corner."""
    left, top, right, bottom = box
    reach = min(9.0 * line, 0.3 * (right - left), 0.3 * (bottom - top))
    for x, y, across, down in ((left, top, 1, 1), (right, top, -1, 1), (left, bottom, 1, -1), (right, bottom, -1, -1)):
        for part in (1.0, 0.55):
            stroke = ((x + across * part * reach, y), (x, y + down * part * reach))
            draw.line(stroke, fill=_BLACK, width=line + 2)
            draw.line(stroke, fill=colour, width=line)


def _chip(
    draw: ImageDraw.ImageDraw,
    place: npt.NDArray[np.float64],
    mark: _Mark,
    font: Any,
    size: tuple[int, int],
    taken: list[Rectangle],
) -> None:
    """Write the label of a box at the first of six places that no earlier label covers, and add it to ``taken``."""
    text = _fit(mark.text, font, size[0] - 8)
    ascent, descent = font.getmetrics()
    pad = max(3, round((ascent + descent) / 5))
    width, height = font.getlength(text) + 2 * pad, ascent + descent + pad
    left, top, right, bottom = (float(value) for value in place)
    wishes = (
        (left, top - height),
        (left, top),
        (right - width, top - height),
        (left, bottom),
        (left, bottom - height),
        (right - width, bottom),
    )
    spots = [
        (min(max(x, 0.0), max(0.0, size[0] - width)), min(max(y, 0.0), max(0.0, size[1] - height))) for x, y in wishes
    ]
    x, y = next((spot for spot in spots if not _covered(spot, width, height, taken)), spots[0])
    chip = (x, y, x + width - 1, y + height - 1)
    taken.append(chip)
    if mark.kind == "known":
        background, foreground = mark.colour, _readable_on(mark.colour)
        draw.rectangle(chip, fill=background)
    else:
        background, foreground = _BLACK, mark.colour
        draw.rectangle(chip, fill=background, outline=mark.colour, width=1)
    draw.text((x + pad, y + pad / 2), text, fill=foreground, font=font)


def _covered(spot: tuple[float, float], width: float, height: float, taken: Sequence[Rectangle]) -> bool:
    x, y = spot
    return any(x < right and left < x + width and y < bottom and top < y + height for left, top, right, bottom in taken)


def _fit(text: str, font: Any, width: float) -> str:
    """Shorten the text before its last word (the score) until it fits into ``width`` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width or " " not in text:
        head, tail = text, ""
    else:
        head, _, last = text.rpartition(" ")
        tail = f" {last}"
    if font.getlength(text) <= width:
        return text
    while head and font.getlength(f"{head}…{tail}") > width:
        head = head[:-1]
    return f"{head}…{tail}"


def _readable_on(colour: Colour) -> Colour:
    """Return black or white, whichever has the larger contrast (WCAG 2 relative luminance)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in
              (channel / 255 for channel in colour)]  # fmt: skip
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if luminance > 0.18 else _WHITE


def _with_title(image: Image.Image, title: str, font: Any) -> Image.Image:
    ascent, descent = font.getmetrics()
    height = round(1.7 * (ascent + descent))
    framed = Image.new("RGB", (image.width, image.height + height), (32, 36, 40))
    framed.paste(image, (0, height))
    text = _fit(title, font, image.width - 16)
    ImageDraw.Draw(framed).text((8, (height - ascent - descent) / 2), text, fill=_WHITE, font=font)
    return framed
