"""Open-world metrics: a case worked by hand, an independent slow evaluator, invariances, and what is absent."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openworld.errors import ConfigError, DataError
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import evaluate, wilderness_impact
from openworld.metrics.protocol_inputs import rank_within
from openworld.metrics.protocols import ORE, PROTOCOLS, UNIQUE, Protocol, protocol_named

BOX = {name: (50.0 * i, 0.0, 50.0 * i + 40, 40.0) for i, name in enumerate("ABCDEFGH")}


def truth(*objects: tuple[Any, ...], images: Any = ("one",), known: int = 2) -> GroundTruth:
    """Objects are (image, place, label) or (image, place, label, ignore)."""
    return GroundTruth.from_arrays(
        images,
        [thing[0] for thing in objects],
        [BOX[thing[1]] for thing in objects],
        [thing[2] for thing in objects],
        known,
        [len(thing) > 3 and thing[3] for thing in objects],
    )


def found(*detections: tuple[int, str, int, float]) -> ScoredBoxes:
    return ScoredBoxes.from_arrays(
        [d[0] for d in detections],
        [BOX[d[1]] for d in detections],
        [d[2] for d in detections],
        [d[3] for d in detections],
    )


def test_by_hand() -> None:
    """Class 0 has objects A and B, class 1 has C; unknown are D and E. Row 2 is unknown."""
    result = evaluate(
        truth((0, "A", 0), (0, "B", 0), (0, "C", 1), (0, "D", 5), (0, "E", 9)),
        found(
            (0, "A", 0, 0.9),  # true
            (0, "D", 0, 0.8),  # false, and an unknown object taken for class 0
            (0, "B", 0, 0.7),  # true
            (0, "H", 1, 0.6),  # false, on nothing
            (0, "D", 2, 0.5),  # unknown found
            (0, "C", 2, 0.4),  # unknown, but it is the known object C
            (0, "G", 2, 0.3),  # unknown, on nothing
        ),
        num_previous=1,
        num_known=2,
        class_names=["cat", "dog"],
    )
    assert result["classes"]["cat"] == {
        "ap50": pytest.approx(0.5 + 0.5 * 2 / 3),
        "recall50": 1.0,
        "precision50": pytest.approx(2 / 3),
        "ground_truth": 2,
    }
    assert result["classes"]["dog"] == {"ap50": 0.0, "recall50": 0.0, "precision50": 0.0, "ground_truth": 1}
    assert result["previous_ap50"] == pytest.approx(5 / 6)
    assert result["current_ap50"] == 0.0
    assert result["known_ap50"] == pytest.approx(5 / 12)
    assert result["unknown_recall50"] == 0.5
    assert result["unknown_precision50"] == pytest.approx(1 / 3)
    assert result["unknown_f1_50"] == pytest.approx(0.4)
    assert result["unknown_ap50"] == pytest.approx(0.5)
    assert result["unknown_hits"] == {"unknown": 1, "known": 1, "background": 1}
    assert result["a_ose"] == 1
    # Recall nearest to 0.8 is 1 for cat, after 3 detections with 1 open-set error; dog stays at its first detection.
    assert result["wi"] == pytest.approx(1 / 4)
    # Nearest to 0.5: cat after its first detection.
    assert result["wi_at_recall"]["0.5"] == 0.0
    assert result["counts"]["unknown_objects"] == 2
    assert result["protocol"] == "unique"
    json.dumps(result, allow_nan=False)


def slow_evaluate(ground_truth: GroundTruth, detections: ScoredBoxes, known: int) -> dict[str, Any]:
    """UNIQUE without its cap, for boxes on a grid of places: overlap is 1 or 0, so that hitting is being equal."""

    def place(boxes: np.ndarray, images: np.ndarray) -> list[tuple[float, ...]]:
        return [(int(image), *box) for image, box in zip(images, boxes.tolist())]

    objects = list(
        zip(
            place(ground_truth.boxes, ground_truth.image_index),
            ground_truth.labels.tolist(),
            ground_truth.ignore.tolist(),
        )
    )
    predicted = list(zip(place(detections.boxes, detections.image_index), detections.labels.tolist()))
    order = sorted(range(len(predicted)), key=lambda i: (-detections.scores[i], i))
    mistakable = [where for where, label, ignore in objects if label == known and not ignore]
    curves = {}
    for row in range(known + 1):
        positives = sum(label == row and not ignore for _, label, ignore in objects)
        taken, true, false, errors, points = set(), 0, 0, 0, []
        for index in order:
            where, label = predicted[index]
            if label != row:
                continue
            own = [(n, ignore) for n, (there, kind, ignore) in enumerate(objects) if (there, kind) == (where, row)]
            errors += where in mistakable
            if not own or (not own[0][1] and own[0][0] in taken):
                false += 1
            elif not own[0][1]:
                taken.add(own[0][0])
                true += 1
            points.append((true, false, errors))
        curves[row] = (positives, points)

    def ap(positives: int, points: list[tuple[int, int, int]]) -> float | None:
        if not positives:
            return None
        area = 0.0
        for target in range(1, positives + 1):
            area += max((t / (t + f) for t, f, _ in points if t >= target), default=0.0) / positives
        return area

    aps = [ap(*curves[row]) for row in range(known)]
    with_objects = [value for value in aps if value is not None]
    numerator = denominator = 0
    for row in range(known):
        positives, points = curves[row]
        if positives and points:
            at = min(points, key=lambda point: abs(point[0] / positives - 0.8))
            numerator, denominator = numerator + at[2], denominator + at[0] + at[1]
    positives, points = curves[known]
    some = bool(mistakable)
    return {
        "known_ap50": sum(with_objects) / len(with_objects) if with_objects else None,
        "unknown_ap50": ap(positives, points),
        "unknown_recall50": (points[-1][0] / positives if points else 0.0) if positives else None,
        "a_ose": sum(label < known and where in mistakable for where, label in predicted) if some else None,
        "wi": None if not some or not with_objects else numerator / denominator if denominator else 0.0,
    }


def random_scene(seed: int) -> tuple[GroundTruth, ScoredBoxes]:
    generator = np.random.default_rng(seed)
    objects = [
        (image, place, int(generator.integers(0, 5)), bool(generator.random() < 0.2))
        for image in range(4)
        for place in generator.choice(list(BOX), size=int(generator.integers(0, 7)), replace=False)
    ]
    detections = [
        (image, str(generator.choice(list(BOX))), int(generator.integers(0, 4)), float(generator.random()))
        for image in range(4)
        for _ in range(int(generator.integers(0, 12)))
    ]
    return truth(*objects, images=("a", "b", "c", "d"), known=3), found(*detections)


@pytest.mark.parametrize("seed", range(40))
def test_against_slow_evaluator(seed: int) -> None:
    objects, detections = random_scene(seed)
    expected = slow_evaluate(objects, detections, 3)
    result = evaluate(objects, detections, 1, 3)
    for name, value in expected.items():
        assert result[name] == (value if value is None else pytest.approx(value, abs=1e-12)), name


def comparable(result: dict[str, Any]) -> Any:
    return json.loads(json.dumps(result), parse_float=lambda text: round(float(text), 10))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_images_and_detections_does_not_matter(seed: int) -> None:
    objects, detections = random_scene(seed)
    generator = np.random.default_rng(seed)
    to = generator.permutation(4)
    ids = np.empty(4, dtype=object)
    ids[to] = objects.image_ids
    rows = generator.permutation(len(objects))
    moved = GroundTruth(
        tuple(ids),
        to[objects.image_index][rows],
        objects.boxes[rows],
        objects.labels[rows],
        objects.ignore[rows],
        objects.crowd[rows],
    )
    shuffled = detections[generator.permutation(len(detections))]
    shuffled = dataclasses.replace(shuffled, image_index=to[shuffled.image_index])
    for protocol in PROTOCOLS.values():
        protocol = dataclasses.replace(protocol, score_decimals=None)
        assert comparable(evaluate(objects, detections, 1, 3, protocol)) == comparable(
            evaluate(moved, shuffled, 1, 3, protocol)
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(0, 3))
def test_a_far_false_positive_never_raises_ap(seed: int, score: float, label: int) -> None:
    objects, detections = random_scene(seed)
    more = ScoredBoxes.from_arrays(
        np.append(detections.image_index, 0),
        np.vstack([detections.boxes, [[900, 900, 950, 950]]]),
        np.append(detections.labels, label),
        np.append(detections.scores, score),
    )
    for protocol in PROTOCOLS.values():
        before, after = (evaluate(objects, each, 1, 3, protocol) for each in (detections, more))
        for name in ("known_ap50", "unknown_ap50", "unknown_precision50"):
            assert (before[name] is None) == (after[name] is None)
            if before[name] is not None:
                assert after[name] <= before[name] + 1e-12
        assert before["unknown_recall50"] == after["unknown_recall50"]
        assert before["a_ose"] == after["a_ose"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(3)))
def test_relabelling_classes_permutes_the_result(seed: int, to: list[int]) -> None:
    objects, detections = random_scene(seed)
    row = np.array([*to, 3])
    moved = dataclasses.replace(objects, labels=row[objects.labels])
    for protocol in PROTOCOLS.values():
        before = evaluate(objects, detections, 0, 3, protocol, ["a", "b", "c"])
        names = [""] * 3
        for old, new in enumerate(to):
            names[new] = "abc"[old]
        relabelled = dataclasses.replace(detections, labels=row[detections.labels])
        after = evaluate(moved, relabelled, 0, 3, protocol, names)
        below = [
            {level: sorted(classes) for level, classes in result.pop("wi_classes_below_recall").items()}
            for result in (before, after)
        ]
        assert comparable(before) == comparable(after) and below[0] == below[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_correct_unknown_detection_never_lowers_unknown_recall(seed: int, score: float) -> None:
    """The cap of an image is not reached, so that the detection displaces none."""
    objects, detections = random_scene(seed)
    unknown = np.flatnonzero((objects.labels == 3) & ~objects.ignore)
    for at in unknown[:2].tolist():
        more = ScoredBoxes.from_arrays(
            np.append(detections.image_index, objects.image_index[at]),
            np.vstack([detections.boxes, objects.boxes[at]]),
            np.append(detections.labels, 3),
            np.append(detections.scores, score),
        )
        for protocol in PROTOCOLS.values():
            before, after = (evaluate(objects, each, 1, 3, protocol)["unknown_recall50"] for each in (detections, more))
            assert after >= before
            if protocol.score_threshold is None:
                assert after > 0


def test_open_set_errors_one_to_one_and_by_detections() -> None:
    """Unknown objects A and B; A is called class 0 by two detections and class 1 by a third, B is left alone."""
    objects = truth((0, "A", 7), (0, "B", 7), (0, "C", 0))
    errors = [(0, "A", 0, 0.9), (0, "A", 0, 0.8), (0, "A", 1, 0.7)]
    noise = [(0, "H", 0, 0.89 - i / 1000) for i in range(9)]
    result = evaluate(objects, found(*errors, *noise), 0, 2)
    assert result["a_ose"] == 3 and result["a_ose_one_to_one"] == 1
    assert result["a_ose_at"] == {"10": 1, "30": 3, "100": 3}
    both = evaluate(objects, found(*errors, (0, "B", 1, 0.1)), 0, 2)
    assert both["a_ose"] == 4 and both["a_ose_one_to_one"] == 2


def test_classes_below_a_recall_are_named_and_both_needs_both() -> None:
    objects = truth((0, "A", 0), (0, "B", 0), (0, "C", 1), (0, "D", 9))
    result = evaluate(objects, found((0, "A", 0, 0.9), (0, "C", 1, 0.8)), 1, 2, class_names=["cat", "dog"])
    assert result["wi_classes_below_recall"]["0.5"] == []
    assert result["wi_classes_below_recall"]["0.8"] == ["cat"]
    assert result["both_ap50"] == result["known_ap50"] == pytest.approx(0.75)
    assert evaluate(objects, found(), 0, 2)["both_ap50"] is None
    assert evaluate(objects, found(), 0, 2, class_names=["cat", "dog"])["wi_classes_below_recall"]["0.1"] == [
        "cat",
        "dog",
    ]


def test_curves_by_hand() -> None:
    """Of two unknown objects the second is found by the third detection; class 0 has AP 1 up to recall 0.5."""
    objects = truth((0, "A", 0), (0, "B", 0), (0, "C", 9), (0, "D", 9))
    detections = found((0, "A", 0, 0.9), (0, "C", 2, 0.8), (0, "H", 2, 0.7), (0, "D", 2, 0.6))
    curves = evaluate(objects, detections, 0, 2, class_names=["cat", "dog"])["curves"]
    assert curves["recall"] == [round(step / 100, 2) for step in range(101)]
    assert curves["precision"]["cat"] == [1.0] * 51 + [0.0] * 50 and curves["precision"]["dog"] is None
    assert curves["unknown_precision"] == [1.0] * 51 + [pytest.approx(2 / 3, abs=1e-6)] * 50
    assert curves["unknown_recall50_by_detections"] == [0.0, 0.5, 0.5] + [1.0] * 97


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_nothing_at_all(protocol: Protocol) -> None:
    result = evaluate(truth(images=()), found(), 1, 2, protocol)
    for name in ("known_ap50", "previous_ap50", "current_ap50", "unknown_recall50", "unknown_ap50", "wi", "a_ose"):
        assert result[name] is None
    assert result["unknown_hits"] == {"unknown": 0, "known": 0, "background": 0}
    json.dumps(result, allow_nan=False)


def test_objects_without_detections_are_zero_and_no_error() -> None:
    result = evaluate(truth((0, "A", 0), (0, "B", 7)), found(), 1, 2)
    assert result["classes"]["0"]["ap50"] == result["known_ap50"] == result["previous_ap50"] == 0.0
    assert result["classes"]["1"] == {"ap50": None, "recall50": None, "precision50": None, "ground_truth": 0}
    assert result["current_ap50"] is None
    assert result["unknown_recall50"] == result["unknown_ap50"] == result["unknown_f1_50"] == 0.0
    assert result["wi"] == 0.0 and result["a_ose"] == 0


def test_no_unknown_objects_means_no_open_world_number() -> None:
    result = evaluate(truth((0, "A", 0)), found((0, "A", 0, 0.9), (0, "B", 2, 0.8)), 0, 2)
    assert result["known_ap50"] == 1.0
    for name in ("unknown_recall50", "unknown_ap50", "unknown_precision50", "unknown_f1_50", "wi", "a_ose"):
        assert result[name] is None
    assert result["unknown_recall50_at"] == {"10": None, "30": None, "100": None}
    assert result["unknown_hits"] == {"unknown": 0, "known": 0, "background": 1}
    assert result["previous_ap50"] is None


def test_no_known_objects() -> None:
    result = evaluate(truth((0, "A", 4)), found((0, "A", 0, 0.9), (0, "A", 2, 0.8)), 0, 2)
    assert result["known_ap50"] is None and result["wi"] is None
    assert result["a_ose"] == 1 and result["unknown_recall50"] == 1.0
    assert evaluate(truth((0, "A", 4)), found((0, "A", 0, 0.9)), 0, 2, ORE)["wi"] == 1.0


def test_ignored_objects_under_each_policy() -> None:
    objects = truth((0, "A", 0, True), (0, "B", 0), (0, "C", 5, True), (0, "D", 5))
    detections = found(
        (0, "A", 0, 0.9), (0, "B", 0, 0.8), (0, "C", 1, 0.7), (0, "D", 1, 0.6), (0, "C", 2, 0.5), (0, "D", 2, 0.4)
    )

    def under(policy: Any) -> dict[str, Any]:
        return evaluate(objects, detections, 0, 2, dataclasses.replace(UNIQUE, ignore=policy))

    assert under("neutral")["classes"]["0"]["ground_truth"] == under("voc")["classes"]["0"]["ground_truth"] == 1
    assert under("neutral")["classes"]["0"]["precision50"] == 1.0
    assert [under(policy)["a_ose"] for policy in ("neutral", "voc", "counted")] == [1, 2, 2]
    assert [under(policy)["unknown_precision50"] for policy in ("neutral", "voc", "counted")] == [1.0, 1.0, 1.0]
    assert under("counted")["classes"]["0"]["ground_truth"] == 2
    assert under("neutral")["counts"]["unknown_detections_on_ignored_objects"] == 1
    assert under("neutral")["unknown_hits"] == {"unknown": 1, "known": 0, "background": 0}


def test_crowds_under_each_policy() -> None:
    """Row 2 is unknown. A crowd of class 0 and one of unknown objects, each with a small detection inside."""
    objects = GroundTruth.from_arrays(
        ["one"],
        [0, 0, 0],
        [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 440, 40]],
        [0, 7, 0],
        2,
        crowd=[True, True, False],
    )
    inside_known, inside_unknown = [10, 10, 30, 30], [210, 10, 230, 30]
    detections = ScoredBoxes.from_arrays(
        [0] * 5,
        [inside_known, [400, 0, 440, 40], inside_unknown, inside_known, [200, 0, 300, 100]],
        [0, 0, 2, 2, 1],
        [0.9, 0.8, 0.7, 0.6, 0.5],
    )

    def under(policy: Any) -> dict[str, Any]:
        return evaluate(objects, detections, 0, 2, dataclasses.replace(UNIQUE, ignore=policy))

    neutral = under("neutral")
    assert neutral["classes"]["0"] == {"ap50": 1.0, "recall50": 1.0, "precision50": 1.0, "ground_truth": 1}
    assert neutral["unknown_recall50"] is None and neutral["a_ose"] is None
    assert neutral["unknown_hits"] == {"unknown": 0, "known": 0, "background": 0}
    assert neutral["counts"]["unknown_detections_on_ignored_objects"] == 2
    for policy in ("voc", "counted"):
        assert under(policy)["classes"]["0"]["ground_truth"] == 2
        assert under(policy)["classes"]["0"]["precision50"] == 0.5
        assert under(policy)["unknown_recall50"] == 0.0 and under(policy)["a_ose"] == 1
        assert under(policy)["unknown_hits"] == {"unknown": 0, "known": 0, "background": 2}


def test_an_image_listed_twice() -> None:
    """A perfect detector: 1 under unique, and capped by the copies that nobody can find under counted."""
    objects = truth(
        (0, "A", 0), (0, "B", 5), (1, "A", 0), (2, "A", 0), (2, "B", 5), images=("one", "two", "one"), known=1
    )
    detections = found((0, "A", 0, 0.9), (0, "B", 1, 0.8), (1, "A", 0, 0.7), (1, "B", 0, 0.6))
    unique = evaluate(objects, detections, 0, 1)
    assert unique["classes"]["0"]["recall50"] == unique["unknown_recall50"] == unique["unknown_precision50"] == 1.0
    assert unique["counts"]["duplicated_listings"] == 1 and unique["counts"]["images"] == 2
    counted = evaluate(objects, detections, 0, 1, ORE)
    assert counted["unknown_recall50"] == counted["unknown_precision50"] == 0.5
    assert counted["classes"]["0"]["recall50"] == pytest.approx(2 / 3)
    assert counted["classes"]["0"]["precision50"] == pytest.approx(2 / 4)
    assert counted["counts"]["unknown_objects"] == 2 and counted["counts"]["scored_detections"] == 6
    # An open-set error on the repeated image is counted for each copy.
    error = found((0, "B", 0, 0.9))
    assert evaluate(objects, error, 0, 1)["a_ose"] == 1 and evaluate(objects, error, 0, 1, ORE)["a_ose"] == 2


def test_detections_belong_to_the_first_listing() -> None:
    with pytest.raises(DataError, match="'one' is listed more than once"):
        evaluate(truth((0, "A", 0), images=("one", "one")), found((1, "A", 0, 0.9)), 0, 2)


def test_caps_thresholds_and_budgets() -> None:
    objects = truth((0, "A", 9))
    many = [(0, "H", 0, 0.9 - i / 1000) for i in range(15)]
    result = evaluate(objects, found(*many, (0, "A", 2, 0.1)), 0, 2)
    assert result["unknown_recall50_at"] == {"10": 0.0, "30": 1.0, "100": 1.0}
    capped = dataclasses.replace(UNIQUE, detections_per_image=10)
    assert evaluate(objects, found(*many, (0, "A", 2, 0.1)), 0, 2, capped)["unknown_recall50"] == 0.0
    above = dataclasses.replace(UNIQUE, score_threshold=0.1)
    assert evaluate(objects, found((0, "A", 2, 0.1)), 0, 2, above)["unknown_recall50"] == 1.0
    assert evaluate(objects, found((0, "A", 2, 0.0999)), 0, 2, above)["unknown_recall50"] == 0.0


def test_rank_within() -> None:
    rank = rank_within(np.array([1, 0, 1, 1, 0]), np.array([0.2, 0.5, 0.9, 0.2, 0.6]))
    assert rank.tolist() == [1, 1, 0, 2, 0]


def test_scores_are_rounded_before_sorting() -> None:
    objects, detections = truth((0, "A", 0)), found((0, "H", 0, 0.9001), (0, "A", 0, 0.9004))
    assert evaluate(objects, detections, 0, 2)["known_ap50"] == 1.0
    assert evaluate(objects, detections, 0, 2, ORE)["known_ap50"] == 0.5


def test_wilderness_impact_by_hand() -> None:
    one = (np.array([0.5, 1.0]), np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    other = (np.array([0.0, 0.8, 0.9]), np.array([1.0, 2.0, 9.0]), np.array([1.0, 1.0, 5.0]))
    empty = (np.zeros(0), np.zeros(0), np.zeros(0))
    assert wilderness_impact([one, other, empty], 0.8) == pytest.approx((1 + 1) / (2 + 2))
    assert wilderness_impact([empty], 0.8) == 0.0
    assert wilderness_impact([], 0.8) is None
    absent = (np.array([math.nan] * 2), np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    assert wilderness_impact([absent], 0.8) == 1.0


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="labels 0 to 3"):
        evaluate(truth((0, "A", 0)), found((0, "A", 0, 0.9), (0, "A", 3, 0.9)), 0, 2)
    with pytest.raises(DataError, match="images 0 to 1 of 1"):
        evaluate(truth((0, "A", 0)), found((0, "A", 0, 0.9), (1, "A", 0, 0.9)), 0, 2)
    with pytest.raises(DataError, match="1 class names"):
        evaluate(truth(), found(), 0, 2, class_names=["cat"])


def test_protocols_are_found_by_name_and_checked() -> None:
    assert protocol_named("ore") is ORE and protocol_named("unique") is UNIQUE
    with pytest.raises(ConfigError, match="choose one of unique, ore"):
        protocol_named("voc")
    with pytest.raises(ConfigError, match="iou_threshold"):
        Protocol(name="x", iou_threshold=50)
    with pytest.raises(ConfigError, match="detections_per_image"):
        Protocol(name="x", detections_per_image=0)
