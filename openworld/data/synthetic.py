"""The embedded open world: procedural images of twelve kinds of objects, made in seconds, without a download.

What an object is lies in its shape. Colour, surface pattern, pose, size, light and background are drawn independently
of it. All categories appear everywhere, so earlier tasks' images hold unlabelled objects of later tasks, as real
images do. Marks that are no objects (lines, speckles, smudges, strokes) lie on the background and are never annotated.

H, W image height and width in pixels; h, w those of the patch around one object. Unit coordinates of a shape lie
within [-1, 1], x to the right and y downwards.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import distance_transform_edt

from openworld.data.formats.coco_writer import write_coco
from openworld.data.options import SourceOptions, SyntheticOptions, default_tasks
from openworld.records import Dataset, Record
from openworld.runtime.files import write_json
from openworld.runtime.runlog import StepBar, progress_bar
from openworld.runtime.seeding import numpy_generator

Array = NDArray[np.float64]
Points = Sequence[tuple[float, float]]

DEFAULT_TASKS: tuple[tuple[str, ...], ...] = tuple(tuple(names) for names in default_tasks())
SPLITS = ("train", "val", "test")
SUPERSAMPLING = 4
MIN_VISIBLE = 0.7
"""An object is placed only where at least this fraction of every object stays visible."""
JPEG_QUALITY = 93
WORLD_FORMAT = "openworld-world/1"


# --- shapes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What makes a category recognisable.

    Args:
        fill: closed outlines in unit coordinates.
        holes: outlines cut out of ``fill``.
        tones: (outline, brightness in [0, 1]) of faces that are darker than the rest.
        accent: outlines that take the object's second colour.
        height: surface above the image plane as a function of unit coordinates; None gives a bevelled plate.
        bevel: width of that plate's bevel as a fraction of the radius; 0 is flat.
        turn: the pose is rotated by up to this many degrees either way.
    """

    fill: tuple[Points, ...]
    holes: tuple[Points, ...] = ()
    tones: tuple[tuple[Points, float], ...] = ()
    accent: tuple[Points, ...] = ()
    height: Callable[[Array, Array], Array] | None = None
    bevel: float = 0.22
    turn: float = 60.0


def _arc(radius: float, start: float = 0.0, stop: float = 360.0, x: float = 0.0, y: float = 0.0) -> Points:
    """Points on a circle, degrees from the x axis towards the y axis."""
    angles = np.radians(np.linspace(start, stop, 61))
    return [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]


def _star(points: int, inner: float) -> Points:
    angles = np.pi * np.arange(2 * points) / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return [(radius * np.cos(angle), radius * np.sin(angle)) for angle, radius in zip(angles, radii, strict=True)]


def _gear(teeth: int) -> Points:
    outline = []
    for tooth in range(teeth):
        for share, radius in ((0.0, 0.74), (0.22, 0.74), (0.3, 1.0), (0.62, 1.0), (0.7, 0.74)):
            angle = 2 * np.pi * (tooth + share) / teeth
            outline.append((radius * np.cos(angle), radius * np.sin(angle)))
    return outline


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    x = np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16.5
    return list(zip(x.tolist(), (y - 0.08).tolist(), strict=True))


def _crescent() -> Points:
    outer = _arc(1.0, 48, 312, x=0.15)
    inner = _arc(0.78, 291, 69, x=0.54)
    return [*outer, *inner]


def _root(value: Array) -> Array:
    return np.sqrt(np.maximum(value, 0.0))


def _cube() -> Shape:
    hexagon = [(np.cos(a), np.sin(a)) for a in np.radians([-90, -30, 30, 90, 150, 210])]
    _, right_up, right_down, bottom, left_down, left_up = hexagon
    middle = (0.0, 0.0)
    return Shape(
        fill=(hexagon,),
        tones=(([right_up, right_down, bottom, middle], 0.42), ([left_up, middle, bottom, left_down], 0.7)),
        bevel=0.0,
        turn=35.0,
    )


def _capsule_height(x: Array, y: Array) -> Array:
    along = np.clip(x, -0.58, 0.58)
    return _root(0.42**2 - (x - along) ** 2 - y**2)


def _cone_height(x: Array, y: Array) -> Array:
    half_width = np.maximum(0.86 * (y + 1.0) / 1.7, 1e-3)
    return _root(half_width**2 - x**2)


SHAPES: dict[str, Shape] = {
    "ball": Shape(fill=(_arc(0.92),), height=lambda x, y: _root(0.92**2 - x**2 - y**2)),
    "cube": _cube(),
    "star": Shape(fill=(_star(5, 0.44),), bevel=0.34),
    "ring": Shape(
        fill=(_arc(0.98),), holes=(_arc(0.46),), height=lambda x, y: _root(0.26**2 - (np.hypot(x, y) - 0.72) ** 2)
    ),
    "cone": Shape(
        fill=([(0.0, -1.0), *((x, 0.7 + 0.28 * y) for x, y in _arc(0.86, 0, 180))],), height=_cone_height, turn=40.0
    ),
    "heart": Shape(fill=(_heart(),), bevel=0.4),
    "cross": Shape(
        fill=([(-0.32, -1), (0.32, -1), (0.32, 1), (-0.32, 1)], [(-1, -0.32), (1, -0.32), (1, 0.32), (-1, 0.32)]),
    ),
    "crescent": Shape(fill=(_crescent(),), bevel=0.3),
    "gear": Shape(fill=(_gear(8),), holes=(_arc(0.3),), bevel=0.14),
    "arrow": Shape(
        fill=([(-1, -0.24), (0.08, -0.24), (0.08, -0.7), (1, 0), (0.08, 0.7), (0.08, 0.24), (-1, 0.24)],), bevel=0.18
    ),
    "hourglass": Shape(
        fill=(
            [(-0.66, -0.86), (0.66, -0.86), (0.1, 0.0), (0.66, 0.86), (-0.66, 0.86), (-0.1, 0.0)],
            [(-0.8, -1.0), (0.8, -1.0), (0.8, -0.78), (-0.8, -0.78)],
            [(-0.8, 0.78), (0.8, 0.78), (0.8, 1.0), (-0.8, 1.0)],
        ),
        accent=(
            [(-0.8, -1.0), (0.8, -1.0), (0.8, -0.78), (-0.8, -0.78)],
            [(-0.8, 0.78), (0.8, 0.78), (0.8, 1.0), (-0.8, 1.0)],
        ),
        bevel=0.2,
    ),
    "capsule": Shape(
        fill=([*_arc(0.42, -90, 90, x=0.58), *_arc(0.42, 90, 270, x=-0.58)],),
        accent=([(0.0, -0.5), (1.1, -0.5), (1.1, 0.5), (0.0, 0.5)],),
        height=_capsule_height,
    ),
}
CATEGORIES: tuple[str, ...] = tuple(SHAPES)
TYPICAL_COLOUR = 0.8
"""Share of the objects that have a colour typical of their category."""


# --- one object -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Look:
    """How one object looks, whatever its shape. Only the colour has to do with the category, see :func:`_look`.

    Args:
        color: (3,) RGB in [0, 1].
        accent: (3,) RGB of the second colour.
        pattern: ``plain``, ``stripes``, ``dots`` or ``mottled``.
        pattern_angle: radians.
        gloss: strength of the highlight in [0, 1].
        light: (3,) unit vector from the surface to the light; x right, y down, z to the viewer. One for an image.
    """

    color: Array
    accent: Array
    pattern: str
    pattern_angle: float
    gloss: float
    light: Array


def draw_object(name: str, affine: Array, look: Look, rng: np.random.Generator) -> tuple[Array, Array]:
    """Render one object on a square patch with the object's origin in its centre.

    Args:
        name: one of ``CATEGORIES``.
        affine: (2, 2) unit coordinates to pixels.
        look: colours and light.
        rng: for a mottled surface.

    Returns:
        color (h, w, 3) in [0, 1] and coverage (h, w) in [0, 1], antialiased.
    """
    shape = SHAPES[name]
    corners = np.array([point for outline in shape.fill for point in outline]) @ affine.T
    half = int(np.ceil(np.abs(corners).max())) + 2
    coverage = _rasterise(shape.fill, affine, half) * (1 - _rasterise(shape.holes, affine, half))
    radius = float(np.sqrt(abs(np.linalg.det(affine))))
    offsets = np.arange(-half, half) + 0.5
    pixels = np.stack(np.meshgrid(offsets, offsets), axis=-1)
    unit = pixels @ np.linalg.inv(affine).T

    accent = _rasterise(shape.accent, affine, half)[..., None]
    color = look.color * (1 - accent) + look.accent * accent
    color = color * _pattern(look, unit, rng)[..., None]
    for outline, brightness in shape.tones:
        color = color * (1 - (1 - brightness) * _rasterise((outline,), affine, half)[..., None])

    if shape.height is not None:
        height = shape.height(unit[..., 0], unit[..., 1]) * radius
    else:
        height = _plate(coverage, shape.bevel * radius)
    slope_y, slope_x = np.gradient(height)
    normal = np.stack([-np.clip(slope_x, -3, 3), -np.clip(slope_y, -3, 3), np.ones_like(height)], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    diffuse = np.clip(normal @ look.light, 0, 1)
    halfway = look.light + np.array([0.0, 0.0, 1.0])
    specular = np.clip(normal @ (halfway / np.linalg.norm(halfway)), 0, 1) ** 28
    color = color * (0.42 + 0.72 * diffuse)[..., None] + (0.75 * look.gloss * specular)[..., None]
    return np.clip(color, 0, 1), coverage


def _rasterise(outlines: Sequence[Points], affine: Array, half: int) -> Array:
    """Coverage (2 half, 2 half) of filled outlines, antialiased by supersampling."""
    if not outlines:
        return np.zeros((2 * half, 2 * half))
    canvas = Image.new("L", (2 * half * SUPERSAMPLING, 2 * half * SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for outline in outlines:
        corners = (np.asarray(outline) @ affine.T + half) * SUPERSAMPLING - 0.5
        draw.polygon([tuple(corner) for corner in corners.tolist()], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float64) / 255


def _plate(coverage: Array, bevel: float) -> Array:
    """Height in pixels of a plate whose edge is rounded over ``bevel`` pixels."""
    if bevel <= 0:
        return np.zeros_like(coverage)
    depth = np.minimum(distance_transform_edt(coverage >= 0.5) / bevel, 1)
    return bevel * _blur(np.sqrt(1 - (1 - depth) ** 2), 0.16 * bevel + 0.3)


def _pattern(look: Look, unit: Array, rng: np.random.Generator) -> Array:
    """Brightness factor (h, w) of the surface, fixed to the object."""
    x, y = unit[..., 0], unit[..., 1]
    factor: Array = np.ones_like(x)
    u = x * np.cos(look.pattern_angle) + y * np.sin(look.pattern_angle)
    v = y * np.cos(look.pattern_angle) - x * np.sin(look.pattern_angle)
    if look.pattern == "stripes":
        factor = 0.86 + 0.14 * np.tanh(4 * np.sin(9 * u))
    elif look.pattern == "dots":
        distance = np.hypot(np.mod(2.6 * u, 1) - 0.5, np.mod(2.6 * v, 1) - 0.5)
        factor = 1.0 - 0.26 / (1 + np.exp(14 * (distance - 0.28)))
    elif look.pattern == "mottled":
        factor = 0.92 + 0.16 * (_noise(rng, unit.shape[0], unit.shape[1], 5) - 0.5) * 2
    return factor


# --- backgrounds ----------------------------------------------------------------------------------------------------


def draw_background(rng: np.random.Generator, size: int) -> Array:
    """A muted textured background (H, W, 3) in [0, 1] with marks that are no objects."""
    hue = rng.uniform()
    first = _hsv(hue, rng.uniform(0.08, 0.4), rng.uniform(0.35, 0.85))
    second = _hsv(
        hue + rng.normal(0, 0.12), rng.uniform(0.08, 0.4), np.clip(first.max() + rng.choice([-1, 1]) * 0.2, 0.2, 0.95)
    )
    kind = rng.choice(["noise", "gradient", "stripes", "tiles", "blobs", "grain"])
    ys, xs = np.mgrid[0:size, 0:size] / size
    angle = rng.uniform(0, np.pi)
    along = xs * np.cos(angle) + ys * np.sin(angle)
    across = ys * np.cos(angle) - xs * np.sin(angle)
    if kind == "noise":
        mix = _octaves(rng, size, first_cells=int(rng.integers(2, 5)))
    elif kind == "gradient":
        mix = (along - along.min()) / np.ptp(along)
    elif kind == "stripes":
        waves = np.sin(2 * np.pi * rng.uniform(3, 9) * along + 1.2 * _noise(rng, size, size, 3))
        mix = 0.5 + 0.5 * np.tanh(rng.uniform(0.8, 4) * waves)
    elif kind == "tiles":
        count = rng.uniform(3, 7)
        row = np.floor(count * across)
        column = np.floor(count * along + 0.5 * (row % 2) * rng.integers(0, 2))
        shade = rng.uniform(0.0, 1.0, (64, 64))[row.astype(int) % 64, column.astype(int) % 64]
        gap = np.minimum(np.mod(count * across, 1), np.mod(count * along + 0.5 * (row % 2), 1)) < 0.06
        mix = np.where(gap, 1.0, 0.55 * shade)
    elif kind == "blobs":
        mix = 1 / (1 + np.exp(-rng.uniform(8, 20) * (_octaves(rng, size, first_cells=4) - 0.5)))
    else:
        mix = 0.5 + 0.35 * (_noise(rng, size, size, size // 3) - 0.5) * (1 + np.sin(30 * along))
    picture = first + (second - first) * np.clip(mix, 0, 1)[..., None]
    picture = picture * (0.93 + 0.14 * _octaves(rng, size, first_cells=3))[..., None]
    picture = _clutter(rng, picture)
    glow = 1.06 - 0.26 * ((xs - rng.uniform(0.2, 0.8)) ** 2 + (ys - rng.uniform(0.2, 0.8)) ** 2)
    lit: Array = np.clip(picture * glow[..., None], 0, 1)
    return lit


def _clutter(rng: np.random.Generator, picture: Array) -> Array:
    """Lines, speckles, soft smudges and low-contrast strokes."""
    size = picture.shape[0]
    for _ in range(rng.integers(2, 6)):
        canvas = Image.new("L", (2 * size, 2 * size))
        draw = ImageDraw.Draw(canvas)
        kind = rng.choice(["lines", "speckles", "smudge", "stroke"])
        unit = 2 * size / 128
        strength = 0.3
        if kind == "lines":
            for _ in range(rng.integers(1, 4)):
                ends = rng.uniform(0, 2 * size, 4).tolist()
                draw.line(ends, fill=255, width=max(1, round(rng.uniform(0.6, 1.6) * unit)))
        elif kind == "speckles":
            for x, y in rng.uniform(0, 2 * size, (rng.integers(15, 60), 2)).tolist():
                radius = rng.uniform(0.3, 1.1) * unit
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
        elif kind == "smudge":
            x, y = rng.uniform(0, 2 * size, 2).tolist()
            a, b = (rng.uniform(6, 18, 2) * unit).tolist()
            draw.ellipse([x - a, y - b, x + a, y + b], fill=255)
            canvas = canvas.filter(ImageFilter.GaussianBlur(5 * unit))
            strength = 0.22
        else:
            points = np.cumsum(rng.normal(0, 9 * unit, (rng.integers(3, 6), 2)), axis=0) + rng.uniform(0, 2 * size, 2)
            draw.line([tuple(point) for point in points.tolist()], fill=255, width=max(1, round(1.8 * unit)))
            strength = 0.14
        amount = strength * rng.uniform(0.5, 1.0) * np.asarray(canvas.reduce(2), dtype=np.float64)[..., None] / 255
        target = picture.mean(axis=(0, 1)) * (0.35 if rng.uniform() < 0.6 else 1.5)
        picture = picture * (1 - amount) + np.clip(target, 0, 1) * amount
    return picture


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> Array:
    """Smooth noise (height, width) in [0, 1] with about ``cells`` grains a side."""
    grid = rng.uniform(0, 255, (cells + 1, cells + 1)).astype(np.float32)
    image = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image, dtype=np.float64) / 255, 0, 1)


def _octaves(rng: np.random.Generator, size: int, first_cells: int) -> Array:
    """Noise of four octaves, (size, size) in [0, 1]."""
    layers = [0.5**octave * _noise(rng, size, size, first_cells * 2**octave) for octave in range(4)]
    mixed: Array = np.sum(layers, axis=0) / 1.875
    return mixed


def _blur(values: Array, radius: float) -> Array:
    """Gaussian blur of values in [0, 1]."""
    image = Image.fromarray(np.round(values * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image, dtype=np.float64) / 255


def _hsv(hue: float, saturation: float, value: float) -> Array:
    """Hue in turns (any real number), saturation and value in [0, 1] -> (3,) RGB in [0, 1]."""
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return value * (1 - saturation * np.clip(np.minimum(sector, 4 - sector), 0, 1))


# --- scenes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Scene:
    """One image of the world and what is on it.

    Args:
        image: (H, W, 3) uint8.
        categories: (N,) int64 positions in ``CATEGORIES``.
        boxes: (N, 4) float32 x1 y1 x2 y2, pixels, extents of ``visible >= 0.5``.
        visible: (N, H, W) float32 share of each pixel that shows the object.
    """

    image: NDArray[np.uint8]
    categories: NDArray[np.int64]
    boxes: NDArray[np.float32]
    visible: NDArray[np.float32]


def draw_scene(rng: np.random.Generator, size: int, *, close_up: bool = False) -> Scene:
    """Two to five objects on a background, or one that fills most of the picture."""
    picture = draw_background(rng, size)
    azimuth = rng.uniform(0, 2 * np.pi)
    light = np.array([0.62 * np.cos(azimuth), 0.62 * np.sin(azimuth), 0.79])
    visible: list[Array] = []
    full: list[float] = []
    categories: list[int] = []
    wanted = 1 if close_up else int(rng.integers(2, 6))
    for _ in range(wanted):
        category = int(rng.integers(len(CATEGORIES)))
        for attempt in range(10):
            largest = (64.0 if wanted <= 3 else 52.0) * 0.93**attempt
            side = (rng.uniform(70.0, 105.0) if close_up else rng.uniform(26.0, max(28.0, largest))) * size / 128
            affine = _pose(SHAPES[CATEGORIES[category]], side, rng)
            margin = min(0.36 * side, 0.45 * size)
            center = np.round(rng.uniform(margin, size - margin, 2)).astype(int)
            look = _look(category, rng, light, picture, center, side)
            color, coverage = draw_object(CATEGORIES[category], affine, look, rng)
            placed = _paste(coverage, center, size)
            hidden = [layer * (1 - placed) for layer in visible]
            enough = [layer.sum() >= MIN_VISIBLE * area for layer, area in zip(hidden, full, strict=True)]
            if not all(enough) or placed.sum() < MIN_VISIBLE * coverage.sum():
                continue
            picture = _shadow(picture, placed, light, side)
            picture = picture * (1 - placed[..., None]) + _paste(color * coverage[..., None], center, size)
            visible, full = [*hidden, placed], [*full, float(coverage.sum())]
            categories.append(category)
            break
    picture = picture + rng.normal(0, 0.012, picture.shape)
    layers = np.array(visible, dtype=np.float32).reshape(-1, size, size)
    return Scene(
        image=np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8),
        categories=np.array(categories, dtype=np.int64),
        boxes=np.array([_extent(layer) for layer in layers], dtype=np.float32).reshape(-1, 4),
        visible=layers,
    )


def _pose(shape: Shape, side: float, rng: np.random.Generator) -> Array:
    """(2, 2) unit coordinates to pixels, such that the longer side of the box is ``side``."""
    angle = np.radians(rng.uniform(-shape.turn, shape.turn))
    stretch = np.exp(rng.normal(0, 0.07))
    shear = rng.uniform(-0.14, 0.14)
    mirror = rng.choice([-1.0, 1.0])
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine = rotation @ np.array([[mirror * stretch, shear], [0.0, 1 / stretch]])
    corners = np.array([point for outline in shape.fill for point in outline]) @ affine.T
    scaled: Array = affine * side / np.ptp(corners, axis=0).max()
    return scaled


def _hue(category: int, rng: np.random.Generator) -> float:
    """Position on the colour circle: the category's own, spread over its neighbours', or now and then any."""
    if rng.uniform() >= TYPICAL_COLOUR:
        return float(rng.uniform())
    return float((category * 5 / len(CATEGORIES) + rng.normal(0, 0.06)) % 1.0)


def _look(
    category: int, rng: np.random.Generator, light: Array, picture: Array, center: NDArray[Any], side: float
) -> Look:
    """Colours that stand out against what lies behind.

    As in the world, a category has a colour that it often has, not always, and that its neighbours on the colour circle
    share: colour helps, and only shape decides.
    """
    half = max(2, int(side / 2))
    x, y = (int(value) for value in center)
    behind = picture[max(0, y - half) : y + half, max(0, x - half) : x + half].mean(axis=(0, 1))
    color = _hsv(_hue(category, rng), rng.uniform(0.45, 0.95), rng.uniform(0.65, 1.0))
    for _ in range(6):
        if np.abs(color - behind).sum() >= 0.65:
            break
        color = _hsv(_hue(category, rng), rng.uniform(0.45, 0.95), rng.uniform(0.65, 1.0))
    accent = color * 0.55 if rng.uniform() < 0.5 else 0.35 * color + 0.62
    pattern = str(rng.choice(["plain", "plain", "plain", "stripes", "dots", "mottled"]))
    return Look(color, accent, pattern, rng.uniform(0, np.pi), rng.uniform(0.2, 1.0), light)


def _paste(patch: Array, center: NDArray[Any], size: int) -> Array:
    """Put a patch (h, w[, C]) into zeros (size, size[, C]), cut at the border."""
    half = patch.shape[0] // 2
    left, top = (int(value) - half for value in center)
    x1, y1 = max(0, left), max(0, top)
    x2, y2 = min(size, left + 2 * half), min(size, top + 2 * half)
    result = np.zeros((size, size, *patch.shape[2:]))
    result[y1:y2, x1:x2] = patch[y1 - top : y2 - top, x1 - left : x2 - left]
    return result


def _shadow(picture: Array, placed: Array, light: Array, side: float) -> Array:
    """Darken the picture where an object keeps the light away."""
    shift = np.round(-0.2 * side * light[:2]).astype(int)
    soft = _blur(np.roll(placed, (shift[1], shift[0]), axis=(0, 1)), 0.07 * side + 0.5)
    soft = _cut_rolled(soft, shift)
    return picture * (1 - 0.5 * soft)[..., None]


def _cut_rolled(values: Array, shift: NDArray[Any]) -> Array:
    """Clear the borders over which ``np.roll`` wrapped."""
    x, y = (int(value) for value in shift)
    if y:
        values[slice(None, y) if y > 0 else slice(y, None)] = 0
    if x:
        values[:, slice(None, x) if x > 0 else slice(x, None)] = 0
    return values


def _extent(layer: NDArray[np.float32]) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((layer >= 0.5).any(axis=1))[0], np.nonzero((layer >= 0.5).any(axis=0))[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


# --- the world on disk ----------------------------------------------------------------------------------------------


def make_world(folder: Path, options: SyntheticOptions) -> None:
    """Write the world: ``{train,val,test}.json`` in COCO form and ``images/{train,val,test[,pretrain]}/*.jpg``.

    Does nothing if ``world.json`` says that the same world is complete. Each image depends on the seed, its split, its
    number and the size alone, so a larger world begins with the images of a smaller one.
    """
    folder = Path(folder)
    marker = folder / "world.json"
    content = {"format": WORLD_FORMAT, "options": asdict(options), "categories": list(CATEGORIES)}
    if marker.is_file() and _read_marker(marker) == content:
        return
    marker.unlink(missing_ok=True)
    images = folder / "images"
    first_id = 1
    counts = {split: getattr(options, f"{split}_images") for split in SPLITS}
    with progress_bar("draw the world", sum(counts.values()) + options.pretrain_images) as bar:
        for split, count in counts.items():
            records = _write_split(images / split, split, count, first_id, options, bar)
            write_coco(folder / f"{split}.json", Dataset.from_records(CATEGORIES, records), images)
            first_id += count
        _write_split(images / "pretrain", "pretrain", options.pretrain_images, first_id, options, bar)
    write_json(marker, content)


def world_sources(folder: Path) -> tuple[SourceOptions, SourceOptions, SourceOptions]:
    """Train, val and test of a world that :func:`make_world` wrote."""
    train, val, test = (
        SourceOptions(annotations=str(Path(folder) / f"{split}.json"), images=str(Path(folder) / "images"))
        for split in SPLITS
    )
    return train, val, test


def pretrain_folder(folder: Path, options: SyntheticOptions) -> Path:
    """Folder of the images for self-supervised pretraining."""
    return Path(folder) / "images" / ("pretrain" if options.pretrain_images else "train")


def _read_marker(marker: Path) -> Any:
    try:
        return json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _write_split(
    folder: Path, split: str, count: int, first_id: int, options: SyntheticOptions, bar: StepBar
) -> list[Record]:
    if folder.is_dir():
        for stale in folder.iterdir():
            if re.fullmatch(r"\d{6}\.jpg", stale.name):
                stale.unlink()
    elif count:
        folder.mkdir(parents=True)
    records = []
    for number in range(count):
        random = numpy_generator("synthetic world", options.seed, split, number, options.size)
        scene = draw_scene(random, options.size, close_up=split == "pretrain")
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(buffer.getvalue())
        bar.advance()
        image_id = first_id + number
        records.append(
            Record(
                image_id=image_id,
                path=path,
                width=options.size,
                height=options.size,
                boxes=scene.boxes,
                categories=scene.categories,
                ignore=np.zeros(len(scene.boxes), dtype=np.bool_),
                annotation_ids=tuple(100 * image_id + position for position in range(len(scene.boxes))),
            )
        )
    return records
