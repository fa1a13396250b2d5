"""Drawings change the pixels they should, and the unknown style is told apart by form as well as by colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from openworld.report import draw
from openworld.report.draw import (
    NOT_TAUGHT_COLOUR,
    UNKNOWN_COLOUR,
    class_colour,
    contact_sheet,
    draw_detections,
    draw_ground_truth,
)

GREY = Image.new("RGB", (400, 300), (128, 128, 128))
BOX = [[100.0, 100.0, 300.0, 250.0]]


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def _has(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((_pixels(image) == colour).all(axis=2).any())


def test_a_known_box_is_outlined_in_its_class_colour_and_the_inside_stays() -> None:
    drawn = draw_detections(GREY, BOX, ["dog"], [0.9], [False])
    assert drawn.size == GREY.size
    pixels = _pixels(drawn)
    assert (pixels[250, 110:290] == class_colour("dog")).all()  # a solid line, without a gap
    assert (pixels[130:220, 130:270] == 128).all()
    assert (_pixels(GREY) == 128).all()  # the input is not written to


def test_unknown_is_dashed_also_without_colour() -> None:
    known = np.asarray(draw_detections(GREY, BOX, ["dog"], [0.9], [False]).convert("L")).astype(int)
    unknown = np.asarray(draw_detections(GREY, BOX, ["unknown"], [0.9], [True]).convert("L")).astype(int)

    def changes(row: np.ndarray) -> int:
        return int((np.abs(np.diff(row)) > 60).sum())

    middle = slice(135, 265)
    assert changes(known[250, middle]) == 0
    assert changes(unknown[249, middle]) >= 6
    corner = (slice(232, 246), slice(104, 118))
    assert (known[corner] == 128).all() and (unknown[corner] != 128).any()  # hatched


def test_unknown_colour_is_reserved() -> None:
    drawn = draw_detections(GREY, BOX, ["unknown"], [0.9], [True])
    assert _has(drawn, UNKNOWN_COLOUR)
    colours = {class_colour(f"class {number}") for number in range(300)}
    assert len(colours) > 250
    assert all(sum(abs(a - b) for a, b in zip(colour, UNKNOWN_COLOUR, strict=True)) > 60 for colour in colours)
    assert class_colour("person") == (21, 172, 40)  # recorded: a class looks the same on the pages of all runs


def test_ground_truth_that_is_not_taught_is_grey_and_dashed() -> None:
    drawn = draw_ground_truth(GREY, BOX, ["cat"], [False])
    assert _has(drawn, NOT_TAUGHT_COLOUR) and not _has(drawn, class_colour("cat"))
    assert _has(draw_ground_truth(GREY, BOX, ["cat"], [True]), class_colour("cat"))


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4)])
def test_no_boxes(boxes: object) -> None:
    assert (_pixels(draw_detections(GREY, boxes, [], [], [])) == 128).all()
    assert (_pixels(draw_ground_truth(GREY, boxes, [], [])) == 128).all()


def test_sizes() -> None:
    small = Image.new("L", (128, 64), 90)
    assert draw_detections(
        small, torch.tensor([[1.0, 2, 60, 50]]), ["a"], torch.tensor([0.5]), torch.tensor([True])
    ).size == (384, 192)
    assert draw_detections(GREY, BOX, ["a"], [0.5], [False], at_least=100, at_most=200).size == (200, 150)
    titled = draw_detections(GREY, BOX, ["a"], [0.5], [False], title="A title that is far too long for this image " * 3)
    assert titled.width == 400 and titled.height > 300


def test_awkward_boxes_and_names_are_drawn() -> None:
    boxes = [[-50, -50, 900, 900], [300, 250, 100, 100], [399, 299, 399, 299], [0, 0, 400, 300]]
    names = ["x" * 300, "", "élan 猫", "two words\nand a line"]
    drawn = draw_detections(GREY, boxes, names, [0.1, 0.2, 0.3, 0.4], [False, True, False, True])
    assert drawn.size == GREY.size


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        draw_detections(GREY, BOX, ["a", "b"], [0.5], [False])


def test_contact_sheet() -> None:
    sheet = contact_sheet([Image.new("RGB", (40, 30), (9, 9, 9))] * 3, 2, gap=5)
    assert sheet.size == (2 * 45 + 5, 2 * 35 + 5)
    assert contact_sheet([], 3).width > 0


@pytest.mark.parametrize("letters", ["ÄÖ", "éè", "łń", "ЖШ", "αβ", "₂³"])
def test_names_in_other_letters_are_drawn(letters: str) -> None:
    """A font without a letter draws one box for all that it lacks."""
    font = draw._font(20)
    lacking = bytes(font.getmask("\U0010fffd"))
    first, second = (bytes(font.getmask(letter)) for letter in letters)
    assert first != second and lacking not in (first, second)
