"""The protocols ore and owdetr against what the evaluators of ORE and PROB produced.

The reference sorts equal scores unstably. Independent of that order, and compared to 1e-9 in every case, are: A-OSE,
the number of objects, recall and precision after the last detection, and all curves at the last detection of each
group of equal scores. AP, and WI or the precision of unknowns at a recall, are compared where no order of the ties
changes them; elsewhere AP must lie between what the worst and the best order give. AP and WI as functions are also fed
the reference's own curves, and then agree in every case.
"""

from __future__ import annotations

import dataclasses
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openworld.metrics.average_precision import average_precision
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.metrics.owod import RECALL_LEVELS, evaluate, wilderness_impact
from openworld.metrics.protocols import ORE, OWDETR
from openworld.metrics.scoring import Scoring, score_detections

pytestmark = pytest.mark.oracle

FOLDER = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[2] / "oracles")) / "evaluator"
CASES = sorted(path for path in FOLDER.glob("*.npz") if path.with_suffix(".owod.json").exists())
UNKNOWN = 80
EXACT = 1e-9


@dataclasses.dataclass
class Case:
    arrays: dict[str, np.ndarray]
    owod: dict[str, Any]
    prob: dict[str, Any] | None
    previous: int
    known: int
    scoring: Scoring
    metrics: dict[str, Any]
    owdetr: dict[str, Any]
    tie_ends: list[np.ndarray]

    @property
    def fails(self) -> bool:
        return self.owod.get("raises") is not None

    def reference(self, name: str, row: int) -> np.ndarray:
        """A curve of the reference for a row of ours."""
        column = row if row < self.known else UNKNOWN
        low, high = self.arrays["cls_offset"][column : column + 2]
        return self.arrays[name][low:high]


@cache
def load(path: Path) -> Case:
    arrays = dict(np.load(path))
    previous, known = int(arrays["prev"]), int(arrays["prev"]) + int(arrays["cur"])
    truth = GroundTruth.from_arrays(
        arrays["image_ids"].tolist(),
        arrays["gt_image"],
        arrays["gt_boxes"].reshape(-1, 4) - np.array([1, 1, 0, 0]),  # as a VOC loader does
        arrays["gt_class"],
        known,
        arrays["gt_difficult"],
    )
    label = arrays["det_class"]
    ours = (label < known) | (label == UNKNOWN)  # a class that is not yet known has no row
    detections = ScoredBoxes.from_arrays(
        arrays["det_image"][ours],
        arrays["det_boxes"].reshape(-1, 4)[ours],
        np.minimum(label[ours], known),
        arrays["det_score"][ours],
    )
    rounded = np.round(detections.scores, 3)
    ends = []
    for row in range(known + 1):
        scores = np.sort(rounded[detections.labels == row])[::-1]
        ends.append(np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if scores.size else np.zeros(0, int))
    prob = path.with_suffix(".prob.json")
    return Case(
        arrays=arrays,
        owod=json.loads(path.with_suffix(".owod.json").read_text()),
        prob=json.loads(prob.read_text()) if prob.exists() else None,
        previous=previous,
        known=known,
        scoring=score_detections(truth, detections, known, ORE),
        metrics=evaluate(truth, detections, previous, known, ORE),
        owdetr=evaluate(truth, detections, previous, known, OWDETR),
        tie_ends=ends,
    )


def extreme_aps(case: Case, row: int, style: Any) -> tuple[float, float]:
    """AP of the worst and of the best order of equal scores: false detections first, or true ones."""
    curve, ends = case.scoring.curves[row], case.tie_ends[row]
    true = np.diff(np.round(curve.recall[ends] * curve.num_objects), prepend=0).astype(int)
    false = np.diff(curve.counted[ends], prepend=0).astype(int) - true
    extremes = []
    for true_first in (False, True):
        flags: list[bool] = []
        for hits, misses in zip(true, false):
            flags += [True] * hits + [False] * misses if true_first else [False] * misses + [True] * hits
        found = np.cumsum(flags, dtype=float)
        precision = found / np.arange(1, len(flags) + 1)
        extremes.append(average_precision(found / curve.num_objects, precision, style))
    return extremes[0], extremes[1]


def settled(case: Case, row: int) -> bool:
    """No order of equal scores changes this class's curves."""
    ends = case.tie_ends[row]
    sizes = np.diff(ends, prepend=-1)
    curve = case.scoring.curves[row]
    totals = [curve.counted, curve.open_errors] + ([curve.recall * curve.num_objects] if curve.num_objects else [])
    steps = [np.round(np.diff(total[ends], prepend=0)) for total in totals]
    return all(bool(((step == 0) | (step == sizes)).all()) for step in steps)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request: pytest.FixtureRequest) -> Case:
    loaded = load(request.param)
    if loaded.fails or "rec" not in loaded.arrays:
        json.dumps(loaded.metrics, allow_nan=False)
        pytest.skip("the reference fails on this input; ours gives finite numbers or null")
    return loaded


def test_there_are_cases() -> None:
    assert CASES, f"no oracle in {FOLDER}"


def test_counts_and_open_set_errors(case: Case) -> None:
    errors = case.arrays["unk_det_as_known"][: case.known]
    ours = [curve.open_errors[-1] if curve.open_errors.size else 0 for curve in case.scoring.curves[: case.known]]
    assert ours == errors.tolist()
    if not (np.isin(case.arrays["det_class"], range(case.known, UNKNOWN))).any():
        assert int(case.scoring.open_error.sum()) == case.owod["A_OSE"]
    assert case.scoring.curves[-1].num_objects == case.owod["n_unknown_gt"] == case.arrays["n_unk"][0]
    assert case.metrics["a_ose"] == (int(errors.sum()) if case.scoring.mistakable else None)


def test_curves_where_ties_end(case: Case) -> None:
    for row, curve in enumerate(case.scoring.curves):
        ends = case.tie_ends[row]
        assert len(curve.counted) == len(case.reference("rec", row))
        if curve.num_objects:
            np.testing.assert_allclose(curve.recall[ends], case.reference("rec", row)[ends], rtol=0, atol=EXACT)
            np.testing.assert_allclose(curve.precision[ends], case.reference("prec", row)[ends], rtol=0, atol=EXACT)
        else:
            assert np.isnan(case.reference("rec", row)).all()
        if row < case.known:
            np.testing.assert_array_equal(curve.counted[ends], case.reference("tp_plus_fp_cs", row)[ends])
            np.testing.assert_array_equal(curve.open_errors[ends], case.reference("fp_os", row)[ends])


def test_average_precision_of_each_class(case: Case) -> None:
    expected = {"area": case.arrays["ap"]}
    if case.prob is not None:
        expected["11point"] = np.array(case.prob["use_07_metric"]["ap_per_class"], dtype=float)
    for style, values in expected.items():
        for row, curve in enumerate(case.scoring.curves):
            summary = curve.summary(dataclasses.replace(ORE, ap_style=style))
            if not curve.num_objects:
                assert summary["ap50"] is None
                continue
            reference = values[row if row < case.known else UNKNOWN]
            worst, best = extreme_aps(case, row, style)
            assert worst - EXACT <= reference <= best + EXACT
            assert worst - EXACT <= summary["ap50"] <= best + EXACT
            if best - worst < 1e-12:
                assert summary["ap50"] == pytest.approx(reference, abs=EXACT)
            rebuilt = average_precision(case.reference("rec", row), case.reference("prec", row), style)
            if style == "area":  # the second evaluator sorted its own copy, so only this one's curves are at hand
                assert rebuilt == pytest.approx(reference, abs=EXACT)


def test_means_and_unknown_metrics(case: Case) -> None:
    metrics, owod = case.metrics, case.owod
    curves = case.scoring.curves
    if all(curve.num_objects for curve in curves[: case.known]):
        assert metrics["known_recall50"] * 100 == pytest.approx(owod["known_R50"], abs=1e-7)
        assert metrics["known_precision50"] * 100 == pytest.approx(owod["known_P50"], abs=1e-7)
        if all(settled(case, row) for row in range(case.known)):
            assert metrics["known_ap50"] * 100 == pytest.approx(owod["known_AP50"], abs=1e-7)
            assert metrics["current_ap50"] * 100 == pytest.approx(owod["current_AP50"], abs=1e-7)
            if case.previous:
                assert metrics["previous_ap50"] * 100 == pytest.approx(owod["prev_AP50"], abs=1e-7)
    if not case.previous:
        assert metrics["previous_ap50"] is None
    if not curves[-1].num_objects:
        assert metrics["unknown_recall50"] is None and metrics["unknown_ap50"] is None
        return
    assert metrics["unknown_recall50"] * 100 == pytest.approx(owod["unknown_R50"], abs=1e-7)
    assert metrics["unknown_precision50"] * 100 == pytest.approx(owod["unknown_P50"], abs=1e-7)
    if settled(case, case.known):
        assert metrics["unknown_ap50"] * 100 == pytest.approx(owod["unknown_AP50"], abs=1e-7)
        for level, values in owod["avg_prec_unk"].items():
            assert metrics["unknown_precision50_at_recall"][level] == pytest.approx(values["50"], abs=EXACT)


def test_wilderness_impact(case: Case) -> None:
    reference_curves = [
        tuple(case.reference(name, row) for name in ("rec", "tp_plus_fp_cs", "fp_os")) for row in range(case.known)
    ]
    curves = case.scoring.curves[: case.known]
    same = all(
        settled(case, row) or all(map(np.array_equal, (curve.recall, curve.counted, curve.open_errors), reference))
        for row, (curve, reference) in enumerate(zip(curves, reference_curves))
    )
    for level in RECALL_LEVELS:
        expected = case.owod["WI"][f"{level:.1f}"]["50"]
        assert wilderness_impact(reference_curves, level) == pytest.approx(expected, abs=EXACT)
        ours = case.metrics["wi_at_recall"][f"{level:.1f}"]
        if not case.scoring.mistakable:
            assert ours is None and expected == 0
        elif same:
            assert ours == pytest.approx(expected, abs=EXACT)


def test_owdetr_is_prob(case: Case) -> None:
    """Everything that PROB's result dictionary holds, in its default 11-point form."""
    if case.prob is None:
        pytest.skip("no result of PROB's evaluator for this case")
    expected = case.prob["use_07_metric"]
    result, metrics = expected["result"], case.owdetr
    aps = np.array(expected["ap_per_class"], dtype=float)
    every = all(settled(case, row) for row in range(case.known))
    if any(curve.num_objects for curve in case.scoring.curves[: case.known]):
        extremes = [
            extreme_aps(case, row, "11point") if curve.num_objects else (0.0, 0.0)
            for row, curve in enumerate(case.scoring.curves[: case.known])
        ]
        worst, best = np.array(extremes).T
        spans = {"K": slice(0, case.known), "CK": slice(case.previous, case.known), "PK": slice(0, case.previous)}
        for name, span in spans.items():
            ours = metrics[{"K": "known_ap50", "CK": "current_ap50", "PK": "previous_ap50"}[name]]
            if aps[span].size and ours is not None:
                assert worst[span].mean() - EXACT <= ours <= best[span].mean() + EXACT
                if every:
                    assert ours == pytest.approx(aps[span].mean(), abs=EXACT)
                    assert ours * 100 == pytest.approx(result[f"{name}_AP50"], rel=1e-6)  # float32 there
    if case.scoring.mistakable and not np.isin(case.arrays["det_class"], range(case.known, UNKNOWN)).any():
        assert metrics["a_ose"] == result["AOSA"]
    if case.scoring.curves[-1].num_objects:
        assert metrics["unknown_recall50"] * 100 == pytest.approx(result["U_R50"], abs=1e-7)
        assert metrics["unknown_precision50"] * 100 == pytest.approx(result["U_P50"], abs=1e-7)
        if settled(case, case.known):
            assert metrics["unknown_ap50"] == pytest.approx(aps[UNKNOWN], abs=EXACT)
    if case.scoring.mistakable and every:
        for level, values in expected["WI"].items():
            assert metrics["wi_at_recall"][level] == pytest.approx(values["50"], abs=EXACT)
