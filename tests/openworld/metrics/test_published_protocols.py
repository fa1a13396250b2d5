"""The rules of published evaluators against a slow evaluator that is written as they are: text lines and dictionaries.

The slow evaluator shares no code with the package. Images may be listed twice, and ids may collide as numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from openworld.errors import ConfigError
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate
from openworld.metrics.protocols import ORE, ORTHOGONALDET, OWDETR, PROTOCOLS, RANDBOX, UNIQUE, Protocol, with_rules

KNOWN = 3
NAMES = ("cat", "dog", "cow")

# 000139 and 000000000139 are one number; 2008_7 is read as 20087, and so is 20087.
LISTED = ("000139", "a1", "2008_7", "000000000139", "a1", "12", "20087", "000000000139", "a1")


@dataclasses.dataclass
class Scene:
    """Objects and detections by image id; an object is (box, class, difficult), a detection (box, class, score)."""

    objects: dict[str, list[tuple[list[float], int, bool]]]
    detections: dict[str, list[tuple[list[float], int, float]]]

    def arrays(self) -> tuple[GroundTruth, ScoredBoxes]:
        of_list = [(at, *thing) for at, name in enumerate(LISTED) for thing in self.objects[name]]
        truth = GroundTruth.from_arrays(
            LISTED,
            [row[0] for row in of_list],
            [row[1] for row in of_list],
            [row[2] for row in of_list],
            KNOWN,
            [row[3] for row in of_list],
        )
        flat = [(LISTED.index(name), *thing) for name, found in self.detections.items() for thing in found]
        return truth, ScoredBoxes.from_arrays(*([row[column] for row in flat] for column in range(4)))


def scene(seed: int) -> Scene:
    """Whole-number objects, detections around them with one decimal, and scores that differ in three decimals."""
    generator = np.random.default_rng(seed)
    scores = iter(generator.permutation(1000) / 1000)

    def box() -> list[float]:
        corner = generator.integers(0, 30, 2)
        return [float(value) for value in (*corner, *(corner + generator.integers(6, 20, 2)))]

    def near(around: list[float]) -> list[float]:
        return [
            float(value) for value in np.sort((np.array(around) + generator.integers(-2, 3, 4)).reshape(2, 2), 0).flat
        ]

    objects, detections = {}, {}
    for name in dict.fromkeys(LISTED):
        objects[name] = [
            (box(), int(generator.integers(0, 5)), bool(generator.random() < 0.2))
            for _ in range(generator.integers(0, 6))
        ]
        detections[name] = [
            (
                near(around),
                int(label) if generator.random() < 0.6 else int(generator.integers(0, 4)),
                float(next(scores)),
            )
            for around, label in [(place, min(label, KNOWN)) for place, label, _ in objects[name] for _ in range(2)]
        ] + [(box(), int(generator.integers(0, 4)), float(next(scores))) for _ in range(generator.integers(0, 6))]
    return Scene(objects, detections)


def overlap(one: list[float], other: list[float]) -> float:
    """Of inclusive pixel boxes."""
    sides = [min(one[2 + axis], other[2 + axis]) - max(one[axis], other[axis]) + 1 for axis in (0, 1)]
    shared = max(sides[0], 0.0) * max(sides[1], 0.0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return shared / (sum(areas) - shared)


def slow(world: Scene, evaluator: str) -> dict[str, Any]:
    """What the evaluator of that name would print."""
    # Which file stands behind each line of the list, and under which key its detections are written.
    if evaluator in ("ore", "owdetr"):
        predicted = [(name, name) for name in LISTED]
        truth_lines, truth_of = list(LISTED), {name: name for name in LISTED}
    else:

        def number(name: str) -> Any:
            return int(name) if name.replace("_", "").isdigit() else name

        last = {number(name): name for name in LISTED}
        if evaluator == "randbox":  # one record a number in the .json file; the list of ground truth has every line
            predicted = list(last.items())
            truth_lines, truth_of = list(LISTED), dict(last)
        else:  # a record a line, of the last file with the number; ground truth of the first
            predicted = [(number(name), last[number(name)]) for name in LISTED]
            firsts: dict[Any, str] = {}
            for name in LISTED:
                firsts.setdefault(number(name), name)
            truth_lines, truth_of = list(firsts.values()), firsts
    least = 0.15 if evaluator in ("randbox", "orthogonaldet") else 0.0

    lines: dict[int, list[tuple[Any, float, list[float]]]] = {row: [] for row in range(KNOWN + 1)}
    for key, name in predicted:
        for box, label, score in world.detections[name]:
            if score >= least:
                lines[label].append((key, float(f"{score:.3f}"), [box[0] + 1, box[1] + 1, box[2], box[3]]))

    result: dict[str, Any] = {"aps": [], "recall": [], "a_ose": 0}
    errors_at, counted_at = 0.0, 0.0
    for row in range(KNOWN + 1):
        kept: dict[str, list[dict[str, Any]]] = {}
        positives = 0
        unknowns: dict[str, list[list[float]]] = {}
        for name in truth_lines:
            boxes = [([b[0] + 1, b[1] + 1, b[2], b[3]], min(c, KNOWN), d) for b, c, d in world.objects[name]]
            kept[name] = [{"box": b, "difficult": d, "found": False} for b, c, d in boxes if c == row]
            unknowns[name] = [b for b, c, _ in boxes if c == KNOWN]
            positives += sum(not thing["difficult"] for thing in kept[name])
        true, false, errors = 0, 0, 0
        curve = []
        for key, _, box in sorted(lines[row], key=lambda line: -line[1]):
            name = truth_of[key]
            rivals = [(overlap(box, thing["box"]), -at) for at, thing in enumerate(kept[name])]
            best = max(rivals, default=(0.0, 0))
            if best[0] > 0.5:
                thing = kept[name][-best[1]]
                if not thing["difficult"]:
                    true, false = (true, false + 1) if thing["found"] else (true + 1, false)
                    thing["found"] = True
            else:
                false += 1
            errors += row < KNOWN and any(overlap(box, other) > 0.5 for other in unknowns[name])
            curve.append(
                (true / positives if positives else None, true / max(true + false, 1e-300), true + false, errors)
            )
        result["a_ose"] += errors
        result["recall"].append((curve[-1][0] if curve else 0.0) if positives else None)
        result["aps"].append(slow_ap(curve, positives, eleven=evaluator == "owdetr"))
        if row < KNOWN and curve:
            at = min(range(len(curve)), key=lambda i: abs(curve[i][0] - 0.8)) if positives else 0
            errors_at, counted_at = errors_at + curve[at][3], counted_at + curve[at][2]
    result["wi"] = errors_at / counted_at if counted_at else 0.0
    return result


def slow_ap(curve: list[tuple[Any, ...]], positives: int, *, eleven: bool) -> float | None:
    if not positives:
        return None
    if eleven:
        levels = [float(level) for level in np.arange(0.0, 1.1, 0.1)]
        return sum(max((p for r, p, *_ in curve if r >= level), default=0.0) for level in levels) / 11
    area, before = 0.0, 0.0
    for at, (recall, *_) in enumerate(curve):
        area += (recall - before) * max(point[1] for point in curve[at:])
        before = recall
    return area


@pytest.mark.parametrize("protocol", [ORE, OWDETR, RANDBOX, ORTHOGONALDET], ids=lambda protocol: protocol.name)
@pytest.mark.parametrize("seed", range(15))
def test_against_a_slow_evaluator(protocol: Protocol, seed: int) -> None:
    world = scene(seed)
    expected = slow(world, protocol.name)
    result = evaluate(*world.arrays(), 1, KNOWN, protocol, NAMES)
    ours = [result["classes"][name]["ap50"] for name in NAMES] + [result["unknown_ap50"]]
    assert ours == [value if value is None else pytest.approx(value, abs=1e-12) for value in expected["aps"]]
    recalls = [result["classes"][name]["recall50"] for name in NAMES] + [result["unknown_recall50"]]
    assert recalls == [value if value is None else pytest.approx(value, abs=1e-12) for value in expected["recall"]]
    if result["a_ose"] is not None:
        assert result["a_ose"] == expected["a_ose"]
        assert result["wi"] == pytest.approx(expected["wi"], abs=1e-12)


def test_the_evaluators_disagree() -> None:
    """The scenes tell the protocols apart: no two give the same numbers."""
    results = {
        name: [evaluate(*scene(seed).arrays(), 1, KNOWN, protocol)["known_ap50"] for seed in range(5)]
        for name, protocol in PROTOCOLS.items()
    }
    assert len({tuple(values) for values in results.values()}) == len(PROTOCOLS)


def test_colliding_ids_by_hand() -> None:
    """Image 7 has a cat, image 007 a dog at the same place; each is found by its own detection."""
    place = [0.0, 0.0, 20.0, 20.0]
    truth = GroundTruth.from_arrays(["007", "7"], [0, 1], [place, place], [0, 1], 2)
    perfect = ScoredBoxes.from_arrays([0, 1], [place, place], [0, 1], [0.9, 0.9])

    def recalls(ids: str) -> list[float | None]:
        result = evaluate(truth, perfect, 0, 2, with_rules(UNIQUE, {"image_ids": ids}))
        return [result["classes"][name]["recall50"] for name in ("0", "1")]

    assert recalls("exact") == [1.0, 1.0]
    assert recalls("number_last") == [0.0, 1.0]  # the cat cannot be found
    assert recalls("number_first") == [0.0, None]  # the dog's detection meets the cat


def test_changed_rules() -> None:
    changed = with_rules(ORE, {"iou_threshold": 0.6, "ap_style": "area"})
    assert changed.name == "ore (iou_threshold=0.6)" and changed.iou_threshold == 0.6
    assert with_rules(ORE, {}) is ORE and with_rules(ORE, {"ap_style": "area"}) is ORE
    assert with_rules(UNIQUE, {"iou_threshold": 1}).iou_threshold == 1
    with pytest.raises(ConfigError, match=r"rules\.iou_treshold is not an option\n.*did you mean rules\.iou_threshold"):
        with_rules(ORE, {"iou_treshold": 0.6})
    with pytest.raises(ConfigError, match=r"^rules\.ap_style is '12point'"):
        with_rules(ORE, {"ap_style": "12point"})
    with pytest.raises(
        ConfigError, match=r"^rules\.detections_per_image is 'many'\n.*an integer of at least 1 or null"
    ):
        with_rules(ORE, {"detections_per_image": "many"})
    with pytest.raises(ConfigError, match=r"^rules\.name is not a rule"):
        with_rules(ORE, {"name": "mine"})
    with pytest.raises(ConfigError, match=r"^rules\.iou_threshold is 1\.5"):
        with_rules(ORE, {"iou_threshold": 1.5})
    with pytest.raises(ConfigError, match=r"^Protocol\.score_decimals is -1"):
        Protocol(name="mine", score_decimals=-1)


def test_absent_classes_enter_the_mean_of_owdetr_as_zero() -> None:
    place = [0.0, 0.0, 20.0, 20.0]
    truth = GroundTruth.from_arrays(["x"], [0], [place], [0], 2)
    found = ScoredBoxes.from_arrays([0], [place], [0], [0.9])
    assert evaluate(truth, found, 0, 2, ORE)["known_ap50"] == 1.0
    result = evaluate(truth, found, 0, 2, OWDETR)
    assert result["known_ap50"] == pytest.approx(0.5) and result["classes"]["1"]["ap50"] is None
