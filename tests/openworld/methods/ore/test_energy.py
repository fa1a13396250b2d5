"""Energies, Weibull fits and the boundary, against formulas, scipy and the arrays of the reference code."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from openworld.errors import DataError
from openworld.methods.ore.energy import free_energy, negative_energy
from openworld.methods.ore.energy_model import EnergyModel, density_boundary
from openworld.methods.ore.options import EnergyOptions
from openworld.methods.ore.weibull import WeibullFit, WeibullFitRefused, fit_weibull

ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[3] / "oracles")) / "energy"
FILES = [pytest.param(path, id=path.stem) for path in sorted(ORACLES.glob("*.npz"))]


def weibull(shape: float, location: float, scale: float) -> WeibullFit:
    return WeibullFit(shape, location, scale, 100, 0.0, 0.0)


def test_energy_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 50.0, 60.0], [0.0, 0.0, 0.0, 0.0]])
    wanted = [1.5 * np.log(np.exp(1 / 1.5) + np.exp(2 / 1.5)), 1.5 * np.log(2)]
    np.testing.assert_allclose(negative_energy(logits, 2, 1.5).numpy(), wanted, rtol=1e-6)
    assert torch.equal(free_energy(logits, 2, 1.5), -negative_energy(logits, 2, 1.5))


def test_energy_of_large_logits_and_of_nothing() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, -1e4], [1e4, 1e4]])
    for temperature in (0.1, 1.0, 10.0):
        assert torch.isfinite(negative_energy(logits, 2, temperature)).all()
    assert negative_energy(logits.bfloat16(), 2).dtype == torch.float32
    assert free_energy(torch.zeros(0, 5), 3).shape == (0,)


@pytest.mark.parametrize("shape", [0.6, 1.0, 1.5, 3.0, 8.0])
@pytest.mark.parametrize("location", [-40.0, 0.0, 5.0, 1e4])
def test_fit_is_not_worse_than_the_truth_nor_than_scipy(shape: float, location: float) -> None:
    samples = stats.weibull_min.rvs(shape, location, 3.0, 800, random_state=3)
    fit = fit_weibull(samples)
    own = stats.weibull_min.logpdf(samples, fit.shape, fit.location, fit.scale).sum()
    assert own == pytest.approx(fit.log_likelihood, rel=1e-6)
    assert own >= stats.weibull_min.logpdf(samples, shape, location, 3.0).sum()
    if shape > 1:
        by_scipy = stats.weibull_min.fit(samples)
        assert own >= stats.weibull_min.logpdf(samples, *by_scipy).sum() - 1e-6
    by_kstest = stats.kstest(samples, stats.weibull_min(fit.shape, fit.location, fit.scale).cdf).statistic
    assert fit.ks_statistic == pytest.approx(by_kstest, abs=1e-8) and fit.ks_statistic < 0.06


def test_density_cumulative_and_quantile_equal_scipy() -> None:
    for shape in (0.7, 1.0, 2.5):
        fit, twin = weibull(shape, 1.0, 2.0), stats.weibull_min(shape, 1.0, 2.0)
        values = np.array([-3.0, 0.5, 1.01, 2.0, 5.0, 1e4])
        np.testing.assert_allclose(fit.log_density(values), twin.logpdf(values), rtol=1e-12)
        np.testing.assert_allclose(fit.cumulative(values), twin.cdf(values), rtol=1e-12)
        np.testing.assert_allclose(fit.quantile([0.0, 0.3, 0.999]), twin.ppf([0.0, 0.3, 0.999]), rtol=1e-12)
        assert fit.log_density(1.0) == -np.inf


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([], "0 samples are too few"),
        (np.arange(19.0), "19 samples are too few"),
        (np.full(50, 3.0), "constant"),
        (3.0 + 1e-9 * np.arange(50), "constant"),
        (np.repeat([1.0, 2.0], 30), "2 distinct"),
        (np.r_[np.arange(30.0), np.nan], "not finite"),
        (np.r_[np.arange(30.0), np.inf], "not finite"),
        (np.r_[np.arange(30.0), 1e308, -1e308], "span"),
    ],
)
def test_refusals_name_the_reason(samples: Any, reason: str) -> None:
    with pytest.raises(WeibullFitRefused, match=reason):
        fit_weibull(samples)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=3, max_size=40),
    shift=st.sampled_from([0.0, 1e3, -1e5]),
    unit=st.sampled_from([1.0, 1e-8, 1e5]),
)
def test_any_samples_are_fitted_or_refused(samples: list[float], shift: float, unit: float) -> None:
    values = np.array(samples) * unit + shift
    try:
        fit = fit_weibull(values, min_samples=3)
    except WeibullFitRefused:
        return
    numbers = [fit.shape, fit.location, fit.scale, fit.log_likelihood, fit.ks_statistic]
    assert np.isfinite(numbers).all()
    assert fit.shape > 0 and fit.scale > 0 and fit.location < values.min() and 0 <= fit.ks_statistic <= 1
    assert WeibullFit.from_json(json.loads(json.dumps(fit.to_json()))) == fit


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-100, 100), unit=st.floats(1e-6, 1e6))
def test_fit_moves_with_shift_and_unit(shift: float, unit: float) -> None:
    samples = stats.weibull_min.rvs(2.0, 0.0, 1.0, 200, random_state=5)
    plain, moved = fit_weibull(samples), fit_weibull(samples * unit + shift * unit)
    assert moved.shape == pytest.approx(plain.shape, rel=1e-3)
    assert moved.scale == pytest.approx(plain.scale * unit, rel=1e-3)


@pytest.mark.parametrize("samples", ["cauchy", "pareto", "left-skewed", "ties at the minimum"])
def test_awkward_samples(samples: str) -> None:
    rng = np.random.default_rng(0)
    values = {
        "cauchy": rng.standard_cauchy(1000),
        "pareto": rng.pareto(0.5, 1000),
        "left-skewed": -rng.exponential(1, 1000),
        "ties at the minimum": np.r_[np.zeros(500), rng.normal(0, 1, 500) ** 2],
    }[samples]
    fit = fit_weibull(values)
    assert np.isfinite(fit.log_likelihood) and np.isfinite(fit.log_density(values)).all()


def test_hundred_thousand_samples() -> None:
    """What grows with the square of their number would not end within the timeout."""
    samples = stats.weibull_min.rvs(2.0, 5.0, 3.0, 100_000, random_state=1)
    fit = fit_weibull(samples)
    assert (fit.shape, fit.location, fit.scale) == pytest.approx((2.0, 5.0, 3.0), rel=0.02)


def test_record_of_another_kind_is_refused() -> None:
    with pytest.raises(DataError, match="scale"):
        WeibullFit.from_json({"shape": 1.0, "location": 0.0, "count": 3})


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        (weibull(2.0, 5.0, 3.0), weibull(2.0, 3.0, 3.0)),  # one crossing
        (weibull(3.0, 4.0, 2.0), weibull(1.2, 3.0, 6.0)),  # the wide unknown one is denser again far above
        (weibull(2.0, 8.0, 1.0), weibull(2.0, 1.0, 0.5)),  # a gap between the supports
        (weibull(0.8, 5.0, 1.0), weibull(0.7, 3.0, 1.0)),  # densities without a mode
        (weibull(20.0, -10.0, 18.0), weibull(2.0, 2.0, 2.0)),  # the known support begins first
        (weibull(0.5, 5.0, 3.0), weibull(4.0, 2.0, 5.0)),  # two changes from unknown to known
    ],
)
def test_boundary_separates_best(known: WeibullFit, unknown: WeibullFit) -> None:
    found = density_boundary(known, unknown)
    assert found is not None
    boundary, separation = found
    places = np.linspace(-10, 40, 200_001)
    best = (unknown.cumulative(places) - known.cumulative(places)).max()
    assert separation == pytest.approx(best, abs=1e-3)
    step = 1e-6
    assert unknown.log_density(boundary - step) > known.log_density(boundary - step)
    assert unknown.log_density(boundary + step) <= known.log_density(boundary + step)


def test_no_boundary_if_unknown_lies_above_known() -> None:
    assert density_boundary(weibull(2.0, 3.0, 2.0), weibull(2.0, 5.0, 2.0)) is None


def samples_of(shape: float, location: float, scale: float, count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(stats.weibull_min.rvs(shape, location, scale, count, random_state=seed)).float()


def test_model_decides_monotonically_and_survives_its_state() -> None:
    model = EnergyModel(EnergyOptions())
    values = torch.tensor([-1e4, 0.0, 3.5, 5.5, 9.0, 1e4, torch.nan])
    assert not model.is_unknown(values).any()
    record = model.fit(samples_of(2, 6, 3, 5000, 1), samples_of(2, 3, 2, 300, 2))
    assert record["status"] == "fitted" and record["reason"] is None and 5 < record["boundary"] < 8
    assert len(record["samples"]["known"]) == 2000 and len(record["samples"]["unknown"]) == 300
    assert record["known"]["count"] == 5000
    json.dumps(record, allow_nan=False)
    assert model.is_unknown(values).tolist() == [True, True, True, True, False, False, False]
    twin = EnergyModel(EnergyOptions())
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.is_unknown(values), model.is_unknown(values)) and twin.fitted
    assert WeibullFit.from_json(record["unknown"]).shape == model.unknown[0].item()
    model.reset()
    assert not model.fitted and not model.is_unknown(values).any()


@pytest.mark.parametrize(
    ("known", "unknown", "options", "reason"),
    [
        (torch.zeros(0), torch.zeros(0), {}, "known: 0 samples.*unknown: 0 samples"),
        (samples_of(2, 6, 3, 100, 1), torch.ones(30), {}, "unknown: .*constant"),
        (torch.full((30,), torch.nan), samples_of(2, 6, 3, 100, 1), {}, "not finite"),
        (samples_of(2, 3, 2, 200, 1), samples_of(2, 8, 2, 200, 2), {}, "do not have lower"),
        (samples_of(2, 6, 3, 200, 1), samples_of(2, 5, 3, 200, 2), {"min_separation": 0.9}, "separate by"),
    ],
)
def test_fallback_leaves_the_classifier_alone(
    known: torch.Tensor, unknown: torch.Tensor, options: dict[str, Any], reason: str
) -> None:
    model = EnergyModel(EnergyOptions(**options))
    record = model.fit(known, unknown)
    assert record["status"] == "fallback" and record["boundary"] is None
    assert re.search(reason, record["reason"])
    json.dumps(record, allow_nan=False)
    assert not model.is_unknown(torch.tensor([-1e9, 0.0, 1e9])).any()


def test_off() -> None:
    model = EnergyModel(EnergyOptions(enabled=False))
    record = model.fit(samples_of(2, 6, 3, 200, 1), samples_of(2, 3, 2, 200, 2))
    assert record["status"] == "off" and not model.is_unknown(torch.tensor([-100.0])).any()


@pytest.mark.oracle
@pytest.mark.parametrize("path", FILES)
def test_reference_energies_and_fits(path: Path) -> None:
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    logits, seen = torch.from_numpy(arrays["logits"]), int(arrays["num_seen"])
    for_fit = negative_energy(logits, seen, float(arrays["temperature"]))
    np.testing.assert_allclose(for_fit.numpy(), arrays["energy_fit"], rtol=1e-6)
    np.testing.assert_allclose(negative_energy(logits, seen).numpy(), arrays["energy_eval"], rtol=1e-6)

    rows = arrays["gt_classes"]
    for name, chosen in (("weibull_unk", rows == 80), ("weibull_known", rows < 80)):
        if arrays.get(name, np.array([np.nan])).shape != (3,) or not np.isfinite(arrays[name]).all():
            continue  # the reference made no fit
        samples = arrays["energy_fit"][chosen].astype(np.float64)
        fit = fit_weibull(samples, min_samples=3)
        scale, shape, shift = arrays[name]
        of_reference = stats.weibull_min.logpdf(samples, shape, shift, scale).sum()
        of_ours = stats.weibull_min.logpdf(samples, fit.shape, fit.location, fit.scale).sum()
        assert of_ours >= of_reference - 1e-6
