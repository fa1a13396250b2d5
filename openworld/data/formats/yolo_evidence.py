"""What the long lines of YOLO label files are: the numbers after the class.

===========================================  ===========================================================================
``class cx cy width height``                 a box
``class x1 y1 x2 y2 x3 y3 …``                a polygon, or the four corners of an oriented box
``class cx cy width height x y x y …``       pose: a box and K keypoints
``class cx cy width height x y v x y v …``   pose: a box and K keypoints with their visibility (0, 1 or 2)
``… score``, ``… id``, ``… score id``        what Ultralytics writes of its predictions (``save_txt``) and tracks
===========================================  ===========================================================================

Nothing on a long line says which of these it is, and a wrong guess is a wrong box. ``kpt_shape`` of a data.yaml says
it: ``[K, 2]`` and ``[K, 3]`` are pose, null is polygons; pose whose first four values are no box inside the image on
more than one line of five is refused. Without it the lines of the whole set are looked at together:

==================================================  ====================================================================
all have 4 + 3 K values (K >= 2), every third is    pose: a coordinate of 2 lies an image's width outside the image
0, 1 or 2, and some visibility before the last is
2; the first four are a box around most points
an odd number of values, a value of 2 or more       refused: a score, an id, or keypoints
6 values, and the first four are a box inside the   refused: a triangle, or a box with score and id
image
4 + 2 K or 4 + 3 K values (8 or more), and the      refused: a polygon, or a box with keypoints. If all are
first four are a box around most of the others      parallelograms, they are oriented boxes
8 values or more that end in a fraction and a       refused: a polygon with score and id. Where another point lies on
whole number                                        the same edge of the image, the object is cut by the edge
all others                                          polygons
==================================================  ====================================================================

What is said of values holds for the set if it holds on at least four lines of five. Pose labels and boxes with score
and id have the same number of values on each line: the refusals of 6 values and of keypoints are for the number of
values that more than half of the long lines have, and (6 values only) for two lines or more that end like a score and
an id. Polygons of many lengths are polygons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from openworld.errors import DataError

MAX_FRACTION = 2.0
"""Coordinates beyond this are pixels or damage, not fractions of the image."""
KEYPOINT_DIMENSIONS = (2, 3)
"""x y, or x y visibility."""
_SHARE = (4, 5)
"""What holds on this share of the lines holds for the set; single lines may be wrong."""
_OUTSIDE = 0.05
"""Fraction of the image by which a box may leave the image, and still be one."""
_MARGIN = 0.1
"""Fraction of a box's side by which a keypoint may leave its box."""
_CLOSED = 1e-2
"""Fraction of its diagonal by which the fourth corner of an oriented box may miss its place."""
_ROUNDED = 1e-3
"""The same as a fraction of the image: what three decimals leave."""
DIVIDE = "divide x and width by the width of the image, y and height by its height"
"""What to do about pixels."""
_POLYGONS = "`kpt_shape: null` for polygons"


@dataclass(frozen=True)
class Keypoints:
    """What ``kpt_shape`` says: K keypoints of 2 or 3 values, or, with none, that long lines are polygons."""

    count: int
    dimension: int

    @property
    def values(self) -> int:
        """Values after the class."""
        return 4 + self.count * self.dimension


@dataclass
class _Length:
    """What was seen on the lines that have the same number of values, more than four."""

    where: str
    text: str
    lines: int = 0
    boxes: int = 0
    """The first four values are a box inside the image."""
    poses: dict[int, int] = field(default_factory=lambda: dict.fromkeys(KEYPOINT_DIMENSIONS, 0))
    """They are a box around most of the keypoints, for each dimension."""
    flags: bool = True
    """With three values for each keypoint, all visibilities are 0, 1 or 2."""
    visible: bool = False
    """A visibility before the last is 2."""
    ends: int = 0
    """The last two values are like a score and an id."""
    skew: bool = False
    """A line of eight values is not a parallelogram."""
    parallelograms: set[tuple[float, ...]] = field(default_factory=set)
    """The first two different ones."""


class Evidence:
    """What the lines of a set say about what they are. The reader of the lines adds to it."""

    def __init__(self) -> None:
        self._lengths: dict[int, _Length] = {}
        self._large: tuple[str, str, list[float]] | None = None

    def add(self, values: list[float], where: str, text: str) -> None:
        """Look at one line with more than four values after the class."""
        count = len(values)
        seen = self._lengths.setdefault(count, _Length(where, text))
        if self._large is None and largest_of(values[4:]) >= MAX_FRACTION:
            self._large = (where, text, values)
        if not all(map(math.isfinite, values)):
            return
        seen.lines += 1
        seen.boxes += _is_box(values)
        for dimension in KEYPOINT_DIMENSIONS:
            if (count - 4) % dimension == 0:
                seen.poses[dimension] += _holds_points(values, dimension)
        if (count - 4) % 3 == 0:
            seen.flags &= all(flag in (0, 1, 2) for flag in values[6::3])
            seen.visible |= 2 in values[6:-1:3]
        seen.ends += _ends_like_track(values)
        if count == 8:
            if not _is_parallelogram(values):
                seen.skew = True
            elif len(seen.parallelograms) < 2:
                seen.parallelograms.add(tuple(values))

    def are_boxes(self, keypoints: Keypoints | None) -> bool:
        """Whether the first four values of the long lines are their boxes; otherwise all values are points.

        Args:
            keypoints: what ``kpt_shape`` says, None where nothing is said.

        Raises:
            DataError: neither is certain.
        """
        if keypoints is not None and keypoints.count:
            self._check_declared(keypoints)
            return True
        if keypoints is None and self._are_certain_poses():
            return True
        self._check_points()
        if keypoints is None:
            self._check_polygons()
        return False

    def _check_declared(self, keypoints: Keypoints) -> None:
        for count, seen in self._lengths.items():
            extra = count - keypoints.values
            if extra:
                _refuse(
                    seen,
                    f"has {count + 1} fields; kpt_shape [{keypoints.count}, {keypoints.dimension}] means "
                    f"{keypoints.values + 1}",
                    _EXTRA.get(extra, f"correct kpt_shape in data.yaml, or write {_POLYGONS}"),
                )
            if not _mostly(seen.boxes, seen.lines):
                _refuse(
                    seen,
                    f"has as many values as kpt_shape [{keypoints.count}, {keypoints.dimension}] says, and the first "
                    f"four of {seen.lines - seen.boxes} of {seen.lines} such lines are no box inside the image",
                    f"write {_POLYGONS} into data.yaml if these are polygons; otherwise correct the boxes",
                )

    def _are_certain_poses(self) -> bool:
        """x y v with a v that can be nothing else."""
        if len(self._lengths) != 1:
            return False
        ((count, seen),) = self._lengths.items()
        fits = (count - 4) % 3 == 0 and count >= 10 and seen.lines > 0
        return fits and seen.flags and seen.visible and _mostly(seen.poses[3], seen.lines)

    def _check_points(self) -> None:
        """Refuse what cannot be points, whatever is said."""
        if self._large is not None and 5 not in self._lengths:
            self._refuse_large(*self._large)
        for count, seen in self._lengths.items():
            if count % 2:
                _refuse(seen, f"has {count + 1} fields", _odd_remedy(count, seen))

    def _refuse_large(self, where: str, text: str, values: list[float]) -> NoReturn:
        """A value of 2 or more after the fourth."""
        largest, last = largest_of(values[4:]), values[-1]
        if last == largest > MAX_FRACTION and last.is_integer() and largest_of(values[:-1]) < MAX_FRACTION:
            problem, remedy = f"ends in {last:g}, which is a track id and not a fraction of the image", _EXTRA[1]
        elif largest == MAX_FRACTION:
            count = str((len(values) - 4) // 3) if (len(values) - 4) % 3 == 0 else "K"
            problem = "holds 2, which is a visibility or a track id and not a fraction of the image"
            remedy = f"for a box with keypoints write `kpt_shape: [{count}, 3]` into data.yaml; otherwise: {_EXTRA[1]}"
        else:
            problem = f"holds {largest:g}, which is not a fraction of the image"
            remedy = DIVIDE
        raise DataError(f"{text!r} {problem}", where=where, remedy=remedy)

    def _check_polygons(self) -> None:
        """Refuse what may be something else than points."""
        lengths = {count: seen for count, seen in self._lengths.items() if seen.lines}
        total = sum(seen.lines for seen in lengths.values())
        ending = [seen for count, seen in lengths.items() if count >= 8]
        if ending and _mostly(sum(seen.ends for seen in ending), sum(seen.lines for seen in ending)):
            _refuse(ending[0], "can be a polygon, or a polygon with a score and a track id", _said(_EXTRA[2]))
        for count, seen in lengths.items():
            main = 2 * seen.lines > total
            tracks = seen.lines > 1 and _mostly(seen.ends, seen.lines)
            if count == 6 and (main or tracks) and _mostly(seen.boxes, seen.lines):
                _refuse(seen, "can be a triangle, or a box with a score and a track id", _said(_EXTRA[2]))
            fitting = [dimension for dimension, lines in seen.poses.items() if _mostly(lines, seen.lines)]
            if count >= 8 and main and fitting and (seen.skew or len(seen.parallelograms) < 2):
                shapes = " or ".join(f"[{(count - 4) // dimension}, {dimension}]" for dimension in fitting)
                _refuse(
                    seen,
                    "can be a polygon, or a box with keypoints",
                    f"say in data.yaml which it is: `kpt_shape: {shapes}` for keypoints, {_POLYGONS}",
                )


_EXTRA = {
    1: "these are predictions or tracks, with a score or a track id after the object: export annotations, or delete "
    "the last field",
    2: "if these are predictions or tracks, export annotations, or delete the score and the track id",
}
"""What to do about one or two fields more than an object has."""


def _said(remedy: str) -> str:
    return f"{remedy}; write {_POLYGONS} into data.yaml if that is what they are"


def _odd_remedy(count: int, seen: _Length) -> str:
    if count == 5:
        return (
            "write `class cx cy width height`; a sixth field is a score or a track id: these are predictions or "
            "tracks, not annotations"
        )
    hint = "a last field without a partner is a score or a track id: these are predictions, not annotations"
    if (count - 4) % 3 == 0 and seen.lines and _mostly(seen.poses[3], seen.lines):
        hint = f"for a box with keypoints write `kpt_shape: [{(count - 4) // 3}, 3]` into data.yaml; {hint}"
    return f"write `class cx cy width height`, or the class and the points of a polygon; {hint}"


def _refuse(seen: _Length, problem: str, remedy: str) -> NoReturn:
    raise DataError(f"{seen.text!r} {problem}", where=seen.where, remedy=remedy)


def _mostly(lines: int, total: int) -> bool:
    return lines * _SHARE[1] >= total * _SHARE[0]


# -- one line ----------------------------------------------------------------------------------------------------------


def largest_of(values: Sequence[float]) -> float:
    """The largest absolute value that is finite, 0 without one."""
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def _is_whole(value: float) -> bool:
    return math.isfinite(value) and value.is_integer()


def _is_box(values: Sequence[float]) -> bool:
    """Whether the first four values are a box inside the image."""
    x, y, width, height = values[:4]
    return (
        width > 0
        and height > 0
        and min(x - width / 2, y - height / 2) >= -_OUTSIDE
        and max(x + width / 2, y + height / 2) <= 1 + _OUTSIDE
    )


def _holds_points(values: Sequence[float], dimension: int) -> bool:
    """Whether the first four values are a box that holds at least half of the labelled keypoints after them.

    A keypoint at 0 0, or of visibility 0, is not labelled.
    """
    if not _is_box(values):
        return False
    x, y, width, height = values[:4]
    right, down = (0.5 + _MARGIN) * width, (0.5 + _MARGIN) * height
    inside = labelled = 0
    for place in range(4, len(values), dimension):
        point_x, point_y = values[place], values[place + 1]
        if (point_x or point_y) and (dimension == 2 or values[place + 2]):
            labelled += 1
            inside += abs(point_x - x) <= right and abs(point_y - y) <= down
    return 2 * inside >= labelled


def _ends_like_track(values: Sequence[float]) -> bool:
    """Whether the last two values are like a score and an id, and not like a point on an edge that another is on."""
    score, identity = values[-2:]
    return _is_whole(identity) and 0 <= score <= 1 and identity not in values[1:-2:2]


def _is_parallelogram(values: Sequence[float]) -> bool:
    """Whether four corners are an oriented box, and not on one line."""
    x1, y1, x2, y2, x3, y3, x4, y4 = values
    diagonal = max(math.hypot(x3 - x1, y3 - y1), math.hypot(x4 - x2, y4 - y2))
    area = abs((x2 - x1) * (y4 - y1) - (y2 - y1) * (x4 - x1))
    miss = math.hypot(x1 + x3 - x2 - x4, y1 + y3 - y2 - y4)
    return miss <= min(_CLOSED * diagonal, _ROUNDED) and area > _CLOSED * diagonal**2
