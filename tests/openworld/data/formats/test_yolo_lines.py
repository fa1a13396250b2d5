"""What a line of YOLO labels is: boxes, polygons, keypoints, predictions and tracks, each right or refused."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openworld.data.formats.yolo_evidence import Evidence, Keypoints
from openworld.data.formats.yolo_lines import read_lines
from openworld.errors import DataError

Box = tuple[float, float, float, float]

POLYGONS = Keypoints(0, 2)
"""What ``kpt_shape: null`` says."""


def text(values: Sequence[float], category: int = 0) -> str:
    return f"{category} " + " ".join(f"{value:g}" if value == int(value) else f"{value:.6f}" for value in values)


def read(lines: Sequence[str], keypoints: Keypoints | None = None) -> list[list[float]]:
    """Corners of each object in fractions of the image."""
    evidence = Evidence()
    found = read_lines(Path("a.txt"), "\n".join(lines), evidence)
    rows: list[list[float]] = (found.boxes if evidence.are_boxes(keypoints) else found.extents).tolist()
    return rows


def corners(box: Box) -> list[float]:
    x, y, width, height = box
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def right_or_refused(lines: Sequence[str], expected: Sequence[Sequence[float]], keypoints: Keypoints | None) -> bool:
    """Whether the lines were read; if so, they were read right."""
    try:
        found = read(lines, keypoints)
    except DataError as error:
        assert error.remedy and "a.txt, line" in str(error)
        return False
    np.testing.assert_allclose(found, expected, atol=1e-5)
    return True


# -- random shapes -----------------------------------------------------------------------------------------------------

fractions = st.integers(0, 1000).map(lambda value: value / 1000)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    width, height = (draw(st.integers(10, 1000)) / 1000 for _ in range(2))
    return (
        width / 2 + draw(fractions) * (1 - width),
        height / 2 + draw(fractions) * (1 - height),
        width,
        height,
    )


@st.composite
def pose_sets(draw: st.DrawFn) -> tuple[list[Box], list[list[float]], Keypoints]:
    """Boxes, the values after them, and the shape of the keypoints; half of a box's labelled ones or more are in it."""
    shape = Keypoints(draw(st.integers(1, 6)), draw(st.sampled_from((2, 3))))
    found, rest = draw(st.lists(boxes(), min_size=1, max_size=5)), []
    for x, y, width, height in found:
        values: list[float] = []
        inside = 0
        for _ in range(shape.count):
            kind = draw(st.sampled_from(("inside", "inside", "absent", "anywhere")))
            kind = "inside" if kind == "anywhere" and inside < 1 else kind
            inside += {"inside": 1, "anywhere": -1, "absent": 0}[kind]
            if kind == "anywhere":
                point = [draw(fractions), draw(fractions)]
            elif kind == "absent":
                point = [0.0, 0.0]
            else:
                point = [x + (draw(fractions) - 0.5) * width, y + (draw(fractions) - 0.5) * height]
            visibility = (
                [] if shape.dimension == 2 else [0.0 if kind == "absent" else draw(st.sampled_from((1.0, 2.0)))]
            )
            values += point + visibility
        rest.append(values)
    return found, rest, shape


@st.composite
def polygons(draw: st.DrawFn, count: int) -> list[float]:
    """Points around a centre, some on the edges of the image."""
    x, y, size = draw(fractions), draw(fractions), draw(st.integers(10, 700)) / 1000
    points: list[float] = []
    for number in range(count):
        radius = size * (0.3 + 0.7 * draw(fractions))
        angle = 2 * math.pi * number / count
        points += [min(max(x + radius * math.cos(angle), 0), 1), min(max(y + radius * math.sin(angle), 0), 1)]
    return points


@st.composite
def polygon_sets(draw: st.DrawFn) -> list[list[float]]:
    """Polygons of one length or of many."""
    lengths = draw(st.one_of(st.just((draw(st.integers(3, 9)),)), st.just(tuple(range(3, 10)))))
    return [draw(polygons(draw(st.sampled_from(lengths)))) for _ in range(draw(st.integers(1, 6)))]


def around(values: Sequence[float]) -> list[float]:
    return [min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])]


@settings(max_examples=80, deadline=None)
@given(pose_sets())
def test_a_pose_label_gives_its_box_or_is_refused(labels: tuple[list[Box], list[list[float]], Keypoints]) -> None:
    found, rest, shape = labels
    lines = [text([*box, *values]) for box, values in zip(found, rest, strict=True)]
    expected = [corners(box) for box in found]
    assert right_or_refused(lines, expected, shape)
    read_anyway = right_or_refused(lines, expected, None)
    certain = shape.dimension == 3 and shape.count >= 2 and any(2 in values[2:-1:3] for values in rest)
    assert read_anyway == certain


@settings(max_examples=80, deadline=None)
@given(polygon_sets())
def test_a_polygon_gives_the_box_around_it_or_is_refused(shapes: list[list[float]]) -> None:
    lines = [text(values) for values in shapes]
    expected = [around(values) for values in shapes]
    assert right_or_refused(lines, expected, POLYGONS)
    right_or_refused(lines, expected, None)


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        st.lists(boxes().map(list), min_size=1, max_size=5),
        st.integers(3, 8).flatmap(lambda count: st.lists(polygons(count), min_size=1, max_size=5)),
    ),
    st.lists(st.tuples(st.integers(1, 999), st.integers(1, 3)), min_size=5, max_size=5),
    st.sampled_from(("score", "id", "score id")),
)
def test_predictions_and_tracks_are_refused(shapes: list[list[float]], ends: list[tuple[int, int]], kind: str) -> None:
    inside = [[min(max(value, 0.001), 0.999) for value in shape] for shape in shapes]  # no object on an edge
    lines = []
    for values, (score, identity) in zip(inside, ends, strict=False):
        extra = [*([score / 1000] if "score" in kind else []), *([float(identity)] if "id" in kind else [])]
        lines.append(text([*values, *extra]))
    assert not right_or_refused(lines, [], None)


def test_sets_of_oriented_boxes_and_of_polygons_are_read_without_being_asked_for() -> None:
    """Twenty objects anywhere, as an export has them, are hardly ever refused."""
    generator = random.Random(0)
    read_sets = {"oriented": 0, "polygons of five": 0, "polygons": 0}
    for _ in range(50):
        oriented: list[list[float]] = []
        five: list[list[float]] = []
        many: list[list[float]] = []
        for _ in range(20):
            x, y = generator.uniform(0.1, 0.9), generator.uniform(0.1, 0.9)
            a, b, angle = generator.uniform(0.01, 0.1), generator.uniform(0.01, 0.1), generator.uniform(0, math.pi)
            cos, sin = math.cos(angle), math.sin(angle)
            oriented.append(
                [
                    value
                    for u, v in ((a, b), (-a, b), (-a, -b), (a, -b))
                    for value in (x + u * cos - v * sin, y + u * sin + v * cos)
                ]
            )
            for count, shapes in ((5, five), (generator.randint(3, 30), many)):
                turns = [2 * math.pi * number / count for number in range(count)]
                shapes.append([value for t in turns for value in (x + a * math.cos(t), y + b * math.sin(t))])
        for name, shapes in (("oriented", oriented), ("polygons of five", five), ("polygons", many)):
            lines = [text(shape) for shape in shapes]
            read_sets[name] += right_or_refused(lines, [around(shape) for shape in shapes], None)
    assert read_sets == {"oriented": 50, "polygons of five": 50, "polygons": 50}


# -- by hand -----------------------------------------------------------------------------------------------------------

POSE = "0 0.5 0.5 0.2 0.4 0.45 0.35 {} 0.55 0.35 {} 0.5 0.6 {}"
BOX = [[0.4, 0.3, 0.6, 0.7]]


@pytest.mark.parametrize(
    ("lines", "keypoints", "expected"),
    [
        ([POSE.format(2, 2, 1)], None, BOX),  # nothing but a visibility is 2
        ([POSE.format(1, 1, 1)], Keypoints(3, 3), BOX),
        ([POSE.format(0.91, 0.2, 0.7)], Keypoints(3, 3), BOX),  # confidences of a model for visibilities
        ([POSE.format("", "", "")], Keypoints(3, 2), BOX),
        ([POSE.format("", "", ""), "0 0.5 0.5 0.2 0.4"], Keypoints(3, 2), BOX * 2),  # an object without keypoints
        (["0 0.5 0.5 0.2 0.4 0.5 0.5 2"], Keypoints(1, 3), BOX),
        (["0 0.5 0.5 0.2 0.4 0.5 0.5"], Keypoints(1, 2), BOX),
        (["0 0.5 0.5 0.2 0.4 0.5 0.5"], POLYGONS, [[0.2, 0.4, 0.5, 0.5]]),
        # A triangle whose first two points are no box inside the image, and a cut by the lower edge of the image.
        (["0 0.1 0.2 0.5 0.8 0.3 0.1"], None, [[0.1, 0.1, 0.5, 0.8]]),
        (["0 0.1 0.5 0.9 0.5 0.9 1 0.1 1"], None, [[0.1, 0.5, 0.9, 1]]),
        # Two small oriented boxes, which would do as boxes with two keypoints, too.
        (
            ["0 0.4 0.4 0.5 0.4 0.5 0.5 0.4 0.5", "0 0.3 0.4 0.4 0.4 0.4 0.5 0.3 0.5"],
            None,
            [[0.4, 0.4, 0.5, 0.5], [0.3, 0.4, 0.4, 0.5]],
        ),
        # The first triangle alone would be refused; beside other polygons it is one.
        (
            ["0 0.6 0.6 0.8 0.6 0.7 0.9", "0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4"],
            None,
            [[0.6, 0.6, 0.8, 0.9], [0.1, 0.1, 0.3, 0.4]],
        ),
        (["0 0.5 0.5 0.2 0.4 nan 0.5 0.6 0.5"], None, [[math.nan] * 4]),
    ],
)
def test_lines_by_hand(lines: list[str], keypoints: Keypoints | None, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(read(lines, keypoints), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("lines", "keypoints", "problem", "remedy"),
    [
        ([POSE.format(1, 1, 1)], None, "has 14 fields", r"kpt_shape: \[3, 3\]"),
        ([POSE.format("", "", "")], None, "a polygon, or a box with keypoints", r"kpt_shape: \[3, 2\] or \[2, 3\]"),
        ([POSE.format(2, 2, 1)], POLYGONS, "holds 2, which is a visibility", r"kpt_shape: \[3, 3\]"),
        ([POSE.format(2, 2, 1)], Keypoints(17, 3), r"has 14 fields; kpt_shape \[17, 3\] means 56", "correct kpt_shape"),
        ([POSE.format(2, 2, 1) + " 0.9"], Keypoints(3, 3), "has 15 fields", "predictions"),
        ([POSE.format(2, 2, 1) + " 0.9 4"], Keypoints(3, 3), "has 16 fields", "delete the score and the track id"),
        (["0 0.5 0.5 0.25 0.25 0.91"], None, "has 6 fields", "a score or a track id"),
        (["0 0.5 0.5 0.25 0.25 17"], None, "has 6 fields", "a score or a track id"),
        (["0 0.5 0.5 0.25 0.25 0.91 1"], None, "a box with a score and a track id", "kpt_shape: null"),
        (["0 0.5 0.5 0.25 0.25 1 0.91"], None, "a box with a score and a track id", "kpt_shape: null"),
        (["0 0.5 0.5 0.25 0.25 0.91 17"], None, "ends in 17, which is a track id", "delete"),
        (["0 0.5 0.5 0.25 0.25 0.91 17"], POLYGONS, "ends in 17, which is a track id", "delete"),
        (["0 0.2 0.2 0.3 0.2 0.3 0.3 0.2 0.3 0.91 1"], None, "a polygon with a score and a track id", "delete"),
        (["0 0.2 0.2 0.3 0.2 0.3 0.3 0.91"], None, "has 8 fields", "without a partner is a score"),
        (["0 0.2 0.2 0.3 0.2 30 20"], None, "holds 30, which is not a fraction", "divide"),
        # Tracks among polygons of other lengths.
        (
            [
                "0 0.5 0.5 0.25 0.25 0.9 1",
                "0 0.4 0.5 0.25 0.25 0.8 1",
                "0 0.1 0.1 0.3 0.1 0.3 0.4 0.1 0.4",
                "0 0.1 0.1 0.3 0.1 0.3 0.4 0.2 0.5 0.1 0.4",
            ],
            None,
            "a box with a score and a track id",
            "delete",
        ),
    ],
)
def test_lines_that_could_be_something_else(
    lines: list[str], keypoints: Keypoints | None, problem: str, remedy: str
) -> None:
    with pytest.raises(DataError, match=f"a.txt, line 1: .*{problem}") as caught:
        read(lines, keypoints)
    assert caught.match(remedy)


def test_one_bad_label_does_not_make_polygons_of_a_pose_set() -> None:
    good = "0 0.5 0.5 0.2 0.4 0.45 0.35 0.55 0.35 0.5 0.6"
    bad = "0 0.5 0.5 0.2 0.4 0.9 0.9 0.8 0.9 0.9 0.8"  # its keypoints are elsewhere
    with pytest.raises(DataError, match="a box with keypoints"):
        read([good] * 4 + [bad])


def test_polygons_are_no_keypoints_though_their_number_fits() -> None:
    """A kpt_shape that another export left behind; corners of rectangles have eight values, as two keypoints have."""
    rectangle = "0 0.7 0.1 0.9 0.1 0.9 0.4 0.7 0.4"
    pose = "0 0.3 0.3 0.2 0.2 0.3 0.3 0.25 0.35"
    with pytest.raises(
        DataError, match=r"kpt_shape \[2, 2\] says, and the first four of 2 of 6 .* are no box"
    ) as caught:
        read([pose] * 4 + [rectangle] * 2, Keypoints(2, 2))
    assert "write `kpt_shape: null` for polygons" in str(caught.value)
    assert len(read([pose] * 4 + [rectangle], Keypoints(2, 2))) == 5


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ("class x y width height\n0 0.5 0.5 0.2 0.2", "remove the line if it is a heading"),
        ("0, 0.5, 0.5, 0.2, 0.2", "put blanks between the numbers"),
        ("0 0,5 0,5 0,2 0,2", "a point before decimals"),
        ("red 0.5 0.5 0.2 0.2", "begin the line with the number of the class"),
    ],
)
def test_remedies_of_fields_that_are_not_numbers(content: str, remedy: str) -> None:
    with pytest.raises(DataError, match=r"a\.txt, line 1: .*is not a number") as caught:
        read(content.splitlines())
    assert caught.match(remedy)


def test_tabs_crlf_blanks_and_scientific_notation() -> None:
    found = read(["0\t0.5\t0.5\t0.2\t0.4\r", "  1.0 5e-1 5.0E-01 2e-001 4e-1 \t", "\r", "-1 0.5 0.5 0.2 0.4"])
    np.testing.assert_allclose(found, BOX * 3)
