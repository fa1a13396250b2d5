"""Rules, thresholds, contradictions of the energy decision: the reference code's arrays, slow sums, cases by hand."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from openworld.labels import LabelSpace
from openworld.methods.ore.energy_model import EnergyModel, rejection_threshold, window_probability
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import EnergyOptions
from openworld.methods.ore.weibull import WeibullFit
from openworld.structures import Regions
from tests.regions import candidates_of

ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[3] / "oracles")) / "energy"
FILES = [pytest.param(path, id=path.stem) for path in sorted(ORACLES.glob("*.npz"))]

SPACE = LabelSpace.of([["cat", "dog"], ["cow"]], task=1)  # cat 0, dog 1, unknown 2, background 3
REFERENCE: dict[str, Any] = {
    "temperature": 1.5,
    "test_temperature": 1.0,
    "fit_on": "annotated_and_auto",
    "decision": "window",
    "window_sum": "riemann",
    "unknown_contradiction": "drop",
    "nms_after_decision": False,
}
RULES: list[dict[str, Any]] = [
    {"decision": "density"},
    {"decision": "window"},
    {"decision": "window", "window_sum": "riemann"},
    {"decision": "threshold"},
    {"decision": "threshold", "threshold_from": "weibull"},
    {"decision": "threshold", "fit_on": "known_only"},
    {"decision": "density", "parameters": 2},
]


def named(rules: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(rule, id="-".join(str(value) for value in rule.values())) for rule in rules]


def weibull(shape: float, location: float, scale: float) -> WeibullFit:
    return WeibullFit(shape, location, scale, 100, 0.0, 0.0)


def drawn(shape: float, location: float, scale: float, count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(stats.weibull_min.rvs(shape, location, scale, count, random_state=seed)).float()


KNOWN, UNKNOWN = drawn(2, 6, 3, 2000, 1), drawn(2, 3, 2, 300, 2)


def of_reference(numbers: np.ndarray[Any, Any]) -> WeibullFit:
    scale, shape, shift = numbers.tolist()
    return weibull(shape, shift, scale)


# -- the reference code -----------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("path", FILES)
def test_reference_probabilities(path: Path) -> None:
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    for kind, fitted in (("prob_unk", "weibull_unk"), ("prob_known", "weibull_known")):
        got = window_probability(arrays["prob_x"], of_reference(arrays[fitted]), "riemann")
        np.testing.assert_array_equal(np.isnan(got), np.isnan(arrays[kind]))
        np.testing.assert_allclose(got, arrays[kind], rtol=2e-4, atol=1e-7)


@pytest.mark.oracle
@pytest.mark.parametrize("path", FILES)
def test_reference_decisions(path: Path) -> None:
    """The options of the reference through the public decision; its 80 is our unknown, its -100 a dropped one."""
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    seen, logits = int(arrays["num_seen"]), torch.from_numpy(arrays["det_logits"])
    count = min(len(logits), len(arrays["det_classes_in"]))
    space = LabelSpace.of([[f"class {number}" for number in range(seen)]], 1)
    ore = Ore(space, 4, energy=EnergyOptions(**{**REFERENCE, "temperature": float(arrays["temperature"])}))
    fits = of_reference(arrays["weibull_known"]), of_reference(arrays["weibull_unk"])
    assert ore.energy_model.take(*fits) is None
    before = torch.from_numpy(arrays["det_classes_in"][:count])
    predicted = torch.where(before == 80, space.unknown, before)
    ours = torch.cat([logits[:count, :seen], logits[:count, -1:], torch.zeros(count, 1)], dim=1)
    scores = torch.rand(count)
    decision = ore.decide(candidates_of(ours, space, predicted, scores))
    after = torch.where(decision.labels == space.unknown, 80, decision.labels).masked_fill(~decision.kept, -100)
    assert after.tolist() == arrays["det_classes_out"][:count].tolist()
    assert torch.equal(decision.scores, scores)
    torch.testing.assert_close(-decision.extras["energy"], torch.logsumexp(logits[:count, :seen], 1))


def test_window_probability_by_integration_and_by_a_slow_sum() -> None:
    fit = weibull(2.5, 3.0, 2.0)
    twin = stats.weibull_min(2.5, 3.0, 2.0)
    values = np.array([-5.0, 2.6, 3.4, 4.0, 5.5, 9.0, 60.0])
    exact = [integrate.quad(twin.pdf, x - 0.5, x + 0.5, points=[3.0])[0] if x < 20 else 0.0 for x in values]
    np.testing.assert_allclose(window_probability(values, fit), exact, rtol=1e-6, atol=1e-12)
    for x, got in zip(values, window_probability(values, fit, "riemann"), strict=True):
        if x - 0.5 < 3.0:
            assert math.isnan(got)
            continue
        total = sum(twin.pdf(x - 0.5 + step / 99) for step in range(100)) * 0.01
        assert got == pytest.approx(total, rel=1e-9, abs=1e-300)
    assert np.isnan(window_probability([np.nan], fit)).all() and len(window_probability([], fit, "riemann")) == 0


# -- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", named(RULES))
def test_every_rule_is_recorded_and_survives_its_state(options: dict[str, Any]) -> None:
    model = EnergyModel(EnergyOptions(**options))
    record = model.fit(KNOWN, UNKNOWN)
    assert record["status"] == "fitted" and record["reason"] is None
    json.dumps(record, allow_nan=False)
    for kind in ("known", "unknown"):
        if options.get("fit_on") == "known_only" and kind == "unknown":
            assert record[kind] is None and record["samples"][kind] == [] and record["rejected"][kind] is None
            continue
        assert math.isfinite(record[kind]["log_likelihood"]) and record[kind]["count"] > 0
    assert record["decision"] == options["decision"] and record["uses_unknown_labels"] is False
    assert (record["boundary"] is None) == (options["decision"] == "window")
    assert record["rejected"]["known"] < 0.2
    assert set(model.state_dict()) == {"state", "known", "unknown", "boundary"}

    values = torch.cat([torch.linspace(0, 20, 501), torch.tensor([torch.nan, torch.inf, -torch.inf])])
    twin = EnergyModel(EnergyOptions(**options))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.verdict(values), model.verdict(values))
    assert torch.equal(twin.confidence(values), model.confidence(values))
    assert model.verdict(torch.tensor([torch.nan])).item() == 0

    # The recorded intervals say what the model does.
    step = 0.02 if options["decision"] == "window" else 0.0
    for value, said in zip(values[:501].tolist(), model.is_unknown(values[:501]).tolist(), strict=True):
        ends = [(low or -math.inf, high if high is not None else math.inf) for low, high in record["intervals"]]
        if min((abs(value - end) for pair in ends for end in pair), default=1.0) > step:
            assert said == any(low < value < high for low, high in ends), value
    sure = model.confidence(values)
    assert ((sure >= 0) & (sure <= 1)).all()


@pytest.mark.parametrize("options", [rule for rule in named(RULES) if "window" not in str(rule.id)])
@settings(max_examples=15, deadline=None)
@given(
    shapes=st.tuples(st.floats(0.6, 8), st.floats(0.6, 8)),
    gap=st.floats(-1, 6),
    scales=st.tuples(st.floats(0.3, 5), st.floats(0.3, 5)),
)
def test_boundary_rules_are_monotone(
    options: dict[str, Any], shapes: tuple[float, float], gap: float, scales: tuple[float, float]
) -> None:
    model = EnergyModel(EnergyOptions(**options))
    model.fit(drawn(shapes[0], 3 + gap, scales[0], 60, 1), drawn(shapes[1], 3, scales[1], 60, 2))
    verdict = model.verdict(torch.linspace(-50, 80, 1301))
    assert (verdict.diff() <= 0).all()


def test_no_opinion_without_probability() -> None:
    """Far from both supports a window holds nothing; the sum of the reference is NaN there, or 0 of both above."""
    exact = EnergyModel(EnergyOptions(decision="window"))
    riemann = EnergyModel(EnergyOptions(decision="window", window_sum="riemann"))
    for model in (exact, riemann):
        assert model.take(weibull(2, 6, 3), weibull(2, 3, 2)) is None
    values = torch.tensor([0.0, 3.2, 5.0, 9.0, 1e3], dtype=torch.float64)
    assert exact.verdict(values).tolist() == [0, 1, 1, -1, 0]
    assert riemann.verdict(values).tolist() == [0, 0, 0, -1, -1]  # known's support starts at 6, so 5.0 is NaN


# -- the threshold ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5])
def test_threshold_is_an_order_statistic(rate: float) -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1.0, 200.0))  # 199 samples: k = 200 rate
    assert rejection_threshold(samples, rate) == 200 * rate
    assert rejection_threshold(samples[: math.ceil(1 / rate) - 2], rate) is None
    assert rejection_threshold(samples[: math.ceil(1 / rate) - 1], rate) == samples[: math.ceil(1 / rate) - 1].min()
    assert rejection_threshold([], rate) is None


@pytest.mark.parametrize("threshold_from", ["empirical", "weibull"])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_rejection_rate_holds_on_other_samples(threshold_from: Any, rate: float) -> None:
    """The number of rejected among new samples of the same kind lies within its distribution.

    Given the threshold of rank k of n, the rate of new samples is Beta(k, n + 1 - k) and their number beta-binomial.
    """
    options = EnergyOptions(
        decision="threshold", fit_on="known_only", known_rejection_rate=rate, threshold_from=threshold_from
    )
    calibration, new, repeats = 400, 400, 20
    rank = math.floor(rate * (calibration + 1) * (1 + 1e-12))
    wanted = stats.betabinom(new, rank, calibration + 1 - rank)
    rejected = []
    for seed in range(repeats):
        model = EnergyModel(options)
        record = model.fit(drawn(2.2, 4, 3, calibration, 2 * seed), torch.zeros(0))
        assert record["status"] == "fitted" and record["known_rejection_rate"] == rate
        rejected.append(int(model.is_unknown(drawn(2.2, 4, 3, new, 2 * seed + 1)).sum()))
    low, high = wanted.ppf(1e-5), wanted.ppf(1 - 1e-5)
    assert all(low <= number <= high for number in rejected)
    spread = 4 * wanted.std() / math.sqrt(repeats)
    assert np.mean(rejected) == pytest.approx(rate * new, abs=spread + rate)


def test_equal_samples_reject_less_never_more() -> None:
    samples = torch.tensor([1.0] * 50 + [2.0, 3.0, 4.0, 5.0] * 20)
    model = EnergyModel(EnergyOptions(decision="threshold", fit_on="known_only", known_rejection_rate=0.1))
    record = model.fit(samples, torch.zeros(0))
    assert record["boundary"] == 1.0 and record["rejected"]["known"] == 0.0


# -- fallbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", named(RULES))
@pytest.mark.parametrize(
    "known",
    [torch.zeros(0), torch.ones(50), torch.full((50,), torch.nan), torch.full((50,), torch.inf), KNOWN[:10]],
    ids=["none", "constant", "nan", "infinite", "few"],
)
def test_degenerate_known_samples_fall_back(options: dict[str, Any], known: torch.Tensor) -> None:
    model = EnergyModel(EnergyOptions(**options))
    record = model.fit(known, UNKNOWN)
    assert record["status"] == "fallback" and record["reason"].startswith("known: ") and record["intervals"] == []
    json.dumps(record, allow_nan=False)
    assert not model.verdict(torch.linspace(-100, 100, 50)).any()


@pytest.mark.parametrize("options", named(RULES))
def test_degenerate_unknown_samples_fall_back_unless_they_are_not_needed(options: dict[str, Any]) -> None:
    model = EnergyModel(EnergyOptions(**options))
    record = model.fit(KNOWN, torch.ones(50))
    if options["decision"] == "threshold":
        assert record["status"] == "fitted"
        assert bool(record["notes"]) == (options.get("fit_on") != "known_only")
        return
    assert record["status"] == "fallback" and record["reason"].startswith("unknown: ")
    assert not model.verdict(torch.linspace(-100, 100, 50)).any()


def test_reasons_of_single_rules() -> None:
    below_zero = EnergyModel(EnergyOptions(parameters=2)).fit(KNOWN - 20, UNKNOWN)
    assert "at or below the location 0" in below_zero["reason"]
    few = EnergyModel(EnergyOptions(decision="threshold", known_rejection_rate=0.001)).fit(KNOWN[:300], UNKNOWN)
    assert few["status"] == "fallback" and "which needs 999" in few["reason"]
    guarded = EnergyOptions(decision="window", min_separation=0.9)
    assert "separate by" in EnergyModel(guarded).fit(KNOWN, KNOWN - 0.5)["reason"]
    model = EnergyModel(EnergyOptions(decision="window"))
    assert model.take(weibull(2, 6, 3), None) is not None and not model.fitted


def test_what_a_fit_should_not_be_trusted_for_is_noted() -> None:
    spike = torch.cat([torch.full((900,), 5.0), drawn(2, 5, 2, 100, 1)])
    notes = EnergyModel(EnergyOptions()).fit(spike, UNKNOWN)["notes"]
    assert len(notes) == 2 and "below 1" in notes[0] and "badly" in notes[1]
    assert EnergyModel(EnergyOptions()).fit(KNOWN, UNKNOWN)["notes"] == []


# -- contradictions ---------------------------------------------------------------------------------------------------

# Detections by hand: the best known class is sure (energy high), or nothing is (energy low).
LOGITS = torch.tensor([[9.0, 1, 0, 0], [1.0, 0, 0, 0], [9.0, 0, 5, 0], [1.0, 0, 3, 0]])
PREDICTED = torch.tensor([0, 0, 2, 2])  # known and sure, known but low, unknown but sure, unknown and low
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])


def by_hand(**options: Any) -> Any:
    ore = Ore(SPACE, 4, energy=EnergyOptions(**options))
    samples = {"known": drawn(2, 6, 3, 500, 1), "unknown": drawn(2, 0.5, 2, 500, 2)}
    assert ore.calibrate(samples)["status"] == "fitted"
    return ore, ore.decide(candidates_of(LOGITS, SPACE, PREDICTED, SCORES))


@pytest.mark.parametrize("options", named([rule for rule in RULES if rule.get("window_sum") != "riemann"]))
@pytest.mark.parametrize("contradiction", ["relabel", "drop", "rescore"])
@pytest.mark.parametrize("unknown_contradiction", ["keep", "drop"])
def test_contradictions_by_hand(options: dict[str, Any], contradiction: str, unknown_contradiction: str) -> None:
    ore, found = by_hand(**options, contradiction=contradiction, unknown_contradiction=unknown_contradiction)
    assert found.kept.tolist() == [True, contradiction != "drop", unknown_contradiction != "drop", True]
    assert found.labels.tolist() == [0, 0 if contradiction == "drop" else 2, 2, 2]
    assert torch.equal(found.scores[[0, 2, 3]], SCORES[[0, 2, 3]])
    if contradiction != "rescore":
        assert found.scores[1] == SCORES[1]
        return
    value = -found.extras["energy"][1].double().item()
    model = ore.energy_model
    known, unknown = (WeibullFit(*numbers.tolist()) for numbers in (model.known, model.unknown))
    if options["decision"] == "density":
        dense = [np.exp(fit.log_density(value)) for fit in (unknown, known)]
        factor = max(dense[0] / (dense[0] + dense[1]), 0.5)
    elif options["decision"] == "window":
        holds = [fit.cumulative(value + 0.5) - fit.cumulative(value - 0.5) for fit in (unknown, known)]
        factor = max(holds[0] / (holds[0] + holds[1]), 0.5)
    else:
        factor = 1 - known.cumulative(value)
    assert found.scores[1].item() == pytest.approx(0.8 * factor, rel=1e-5)


def test_confidence_where_the_monotone_boundary_overrules_the_densities() -> None:
    """Below the unknown support the known density is the higher one, and the decision is unknown all the same."""
    model = EnergyModel(EnergyOptions())
    known, unknown = weibull(20.0, -10.0, 18.0), weibull(2.0, 2.0, 2.0)
    assert model.take(known, unknown) is None
    values = torch.tensor([-30.0, -1.0, 1.9, 3.0], dtype=torch.float64)
    assert known.log_density(1.9) > unknown.log_density(1.9) and model.is_unknown(values).all()
    dense = [float(np.exp(fit.log_density(3.0))) for fit in (unknown, known)]
    wanted = [1.0, 0.5, 0.5, dense[0] / sum(dense)]  # nothing speaks against unknown below both supports
    torch.testing.assert_close(model.confidence(values), torch.tensor(wanted, dtype=torch.float64))
    assert EnergyModel(EnergyOptions()).confidence(values).tolist() == [1.0] * 4


def test_temperature_of_the_test() -> None:
    ore = Ore(SPACE, 4, energy=EnergyOptions(temperature=1.5, test_temperature=1.0))
    candidates = candidates_of(LOGITS, SPACE)
    torch.testing.assert_close(-ore.decide(candidates).extras["energy"], torch.logsumexp(LOGITS[:, :2], 1))
    same = Ore(SPACE, 4, energy=EnergyOptions(temperature=1.5))
    wanted = 1.5 * torch.logsumexp(LOGITS[:, :2] / 1.5, 1)
    torch.testing.assert_close(-same.decide(candidates).extras["energy"], wanted)


# -- the samples ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fit_on", "unknowns"),
    [("auto_labelled", [3]), ("annotated_unknown", [2]), ("annotated_and_auto", [2, 3]), ("known_only", [])],
)
def test_which_regions_are_samples(fit_on: Any, unknowns: list[int]) -> None:
    """Region 2 matches an annotated unknown object where that is shown; region 3 is the most object-like background."""
    decision: Any = "threshold" if fit_on == "known_only" else "density"
    options = EnergyOptions(fit_on=fit_on, decision=decision)
    ore = Ore(SPACE, 4, energy=options)
    shown = options.uses_unknown_labels
    regions = Regions(
        boxes=torch.tensor([[0.0, 0, 9, 9]]).repeat(5, 1),
        image_index=torch.zeros(5, dtype=torch.int64),
        objectness=torch.tensor([8.0, 7.0, -3.0, 5.0, 1.0]),
        iou=torch.tensor([0.9, 0.8, 0.7 if shown else 0.0, 0.1, 0.2]),
        labels=torch.tensor([0, 1, 2 if shown else 3, 3, 3]),
        logits=torch.arange(20.0).view(5, 4),
    )
    known, unknown = (ore.collect(regions, torch.full((1, 2), 64))[name] for name in ore.samples)
    assert regions.logits is not None
    energies = torch.logsumexp(regions.logits[:, :2], 1)
    assert torch.equal(known, energies[:2]) and torch.equal(unknown, energies[unknowns])
