"""Weibull fits with a given location, and samples of awkward forms, against scipy, closed forms and slow sums."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from openworld.methods.ore.weibull import WeibullFit, WeibullFitRefused, fit_weibull

DRAWN = stats.weibull_min.rvs(2.0, 0.0, 1.0, 500, random_state=7)
FORMS: dict[str, Any] = {
    "plain": DRAWN,
    "shifted": DRAWN + 50,
    "tiny": DRAWN * 1e-30,
    "large": DRAWN * 1e30,
    "huge offset": DRAWN + 1e5,
    "duplicates": np.repeat(DRAWN[:40], 20),
    "rounded": np.round(DRAWN, 1) + 0.1,
    "heavy tail": stats.pareto.rvs(0.6, size=500, random_state=7),
    "heavy tail near 0": np.exp(3 * stats.norm.rvs(size=500, random_state=7)),
    "two hills": np.r_[DRAWN, DRAWN + 20],
    "float32": DRAWN.astype(np.float32) + np.float32(1000),
}


@pytest.mark.parametrize("form", FORMS)
def test_two_parameters_equal_scipy(form: str) -> None:
    samples = np.asarray(FORMS[form], dtype=np.float64)
    fit = fit_weibull(samples, location=0.0)
    own = stats.weibull_min.logpdf(samples, fit.shape, 0.0, fit.scale).sum()
    assert fit.location == 0.0 and fit.count == len(samples)
    assert own == pytest.approx(fit.log_likelihood, rel=1e-9)

    # The likelihood is concave in (log shape, log scale) up to one maximum: its equations, solved by scipy.
    logs = np.log(samples / samples.max())
    equation = lambda k: (logs * np.exp(k * logs)).sum() / np.exp(k * logs).sum() - 1 / k - logs.mean()  # noqa: E731
    shape = optimize.brentq(equation, 1e-3, 1e8, xtol=1e-14, rtol=1e-12)
    assert fit.shape == pytest.approx(shape, rel=1e-7)
    assert fit.scale == pytest.approx(samples.max() * np.mean(np.exp(shape * logs)) ** (1 / shape), rel=1e-7)

    by_scipy = stats.weibull_min.fit(samples, floc=0)
    assert own >= stats.weibull_min.logpdf(samples, *by_scipy).sum() - 1e-6 * len(samples)
    by_kstest = stats.kstest(samples, stats.weibull_min(fit.shape, 0.0, fit.scale).cdf).statistic
    assert fit.ks_statistic == pytest.approx(by_kstest, abs=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_three_parameters_are_not_worse_than_two_nor_than_scipy(form: str) -> None:
    samples = np.asarray(FORMS[form], dtype=np.float64)
    fit = fit_weibull(samples)
    assert fit.log_likelihood == pytest.approx(fit.log_density(samples).sum(), rel=1e-6)
    span, two = np.ptp(samples), fit_weibull(samples, location=0.0)
    if 1e-6 * span < samples.min() < 1e3 * span:
        assert fit.log_likelihood >= two.log_likelihood - 1e-6
    units = (samples - samples.min()) / span  # scipy's start values do not stand 1e-30
    shape, location, scale = stats.weibull_min.fit(units)
    if shape > 1:  # below 1 the likelihood is not bounded, and an optimiser's stop means nothing
        by_scipy = stats.weibull_min.logpdf(units, shape, location, scale).sum() - len(units) * math.log(span)
        assert fit.log_likelihood >= by_scipy - 1e-6


def test_a_given_location_by_hand() -> None:
    """Shape 1 is an exponential distribution, whose scale is the mean above the location."""
    samples = stats.expon.ppf((np.arange(1, 4001) - 0.5) / 4000) * 3 + 5
    fit = fit_weibull(samples, location=5.0)
    assert fit.shape == pytest.approx(1.0, abs=0.01) and fit.scale == pytest.approx(3.0, rel=0.01)
    assert fit.cumulative_hazard(8.0) == pytest.approx((3 / fit.scale) ** fit.shape)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.r_[-1.0, np.arange(1.0, 30)], "1 of 30 samples.*at or below the location 0"),
        (np.r_[0.0, np.arange(1.0, 30)], "1 of 30 samples"),
        (np.r_[5e-324, np.arange(1.0, 30)], "ranges apart"),
        (np.full(30, 2.0), "constant"),
        (np.arange(1.0, 9), "too few"),
    ],
)
def test_refusals_at_a_given_location(samples: Any, reason: str) -> None:
    with pytest.raises(WeibullFitRefused, match=reason):
        fit_weibull(samples, location=0.0)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=3, max_size=40),
    shift=st.sampled_from([0.0, 1e-3, 1e4]),
    unit=st.sampled_from([1.0, 1e-8, 1e5]),
)
def test_any_samples_are_fitted_at_the_maximum_or_refused(samples: list[float], shift: float, unit: float) -> None:
    values = np.array(samples) * unit + shift
    try:
        fit = fit_weibull(values, min_samples=3, location=0.0)
    except WeibullFitRefused:
        return
    numbers = [fit.shape, fit.scale, fit.log_likelihood, fit.ks_statistic]
    assert np.isfinite(numbers).all() and fit.shape > 0 and fit.scale > 0 and 0 <= fit.ks_statistic <= 1
    for factor in (0.99, 1.01):  # a maximum in both directions
        for shape, scale in ((fit.shape * factor, fit.scale), (fit.shape, fit.scale * factor ** (1 / fit.shape))):
            beside = WeibullFit(shape, 0.0, scale, 0, 0.0, 0.0).log_density(values).sum()
            assert beside <= fit.log_likelihood + 1e-6 * abs(fit.log_likelihood) + 1e-6


def test_hundred_thousand_samples_at_a_given_location() -> None:
    """What grows with the square of their number would not end within the timeout."""
    samples = stats.weibull_min.rvs(2.0, 0.0, 3.0, 100_000, random_state=1)
    fit = fit_weibull(samples, location=0.0)
    assert (fit.shape, fit.scale) == pytest.approx((2.0, 3.0), rel=0.02)
