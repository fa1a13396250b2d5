"""The energy-based decision known / unknown (ORE, section 4.3): two Weibull distributions and a rule between them.

Everything here is over the *negative* free energy ``s = T logsumexp(g / T)``: known objects have high s, unknown ones
low s.
"""

from __future__ import annotations

import logging
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from openworld.methods.ore.options import EnergyOptions
from openworld.methods.ore.weibull import WeibullFit, WeibullFitRefused, fit_weibull

logger = logging.getLogger(__name__)

RECORDED_SAMPLES = 2000
"""Largest number of samples per kind in the energy record."""

WINDOW_RADIUS = 0.5
"""Half the width of the window of the reference code's rule, in units of the negative energy."""

WINDOW_POINTS = 100
"""Densities in the reference code's sum over the window."""

_NOT_FITTED, _FITTED, _FALLBACK = 0, 1, 2

# A Kolmogorov-Smirnov distance is remarked on from here, if it is also significant at the level of 1 % (1.63 / sqrt n).
_POOR_KS = 0.1


def density_boundary(known: WeibullFit, unknown: WeibullFit) -> tuple[float, float] | None:
    """Find the negative energy below which the unknown distribution is likelier, and how well it separates.

    The paper calls a detection unknown where the unknown density is the higher one. Two Weibull densities may cross
    more than once: a wide one overtakes a narrow one again in the tail beyond its mode, and neither is positive below
    both supports. There the bare comparison would call the most certain known detections unknown, or have no answer. So
    the decision is extended monotonically: of the places where the higher density changes from unknown to known, the
    boundary is the one that separates best, i.e. where ``F_unknown - F_known`` is largest; everything below it is
    unknown, everything above it known. Where the densities cross once, this is the paper's rule.

    Returns:
        The boundary and ``F_unknown - F_known`` there, in (0, 1]; None if the unknown distribution lies nowhere below
        the known one.
    """
    shares = np.concatenate([[0.0], np.linspace(1e-6, 1 - 1e-6, 2001)])
    places = np.unique(np.concatenate([known.quantile(shares), unknown.quantile(shares)]))
    places = np.concatenate([[places[0] - 1.0], places])
    likelier = _unknown_is_likelier(known, unknown, places)
    best: tuple[float, float] | None = None
    for index in np.flatnonzero(likelier[:-1] & ~likelier[1:]):
        boundary = _bisect(known, unknown, float(places[index]), float(places[index + 1]))
        separation = float(unknown.cumulative(boundary) - known.cumulative(boundary))
        if separation > 0 and (best is None or separation >= best[1]):
            best = boundary, separation
    return best


def _unknown_is_likelier(known: WeibullFit, unknown: WeibullFit, places: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return (N,) bool; below both supports the answer is unknown."""
    of_unknown, of_known = unknown.log_density(places), known.log_density(places)
    return (of_unknown > of_known) | (np.isneginf(of_unknown) & np.isneginf(of_known))


def _bisect(known: WeibullFit, unknown: WeibullFit, low: float, high: float) -> float:
    """Find where the likelier distribution changes from unknown (at low) to known (at high); densities may be 0."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if _unknown_is_likelier(known, unknown, middle):
            low = middle
        else:
            high = middle
    return high


def window_probability(
    values: npt.ArrayLike, fit: WeibullFit, method: Literal["exact", "riemann"] = "exact"
) -> npt.NDArray[np.float64]:
    """Compute the share of a distribution within 0.5 of each value.

    Args:
        values: (N,) real.
        fit: the distribution.
        method: ``exact``, the difference of the survival function at the two ends. ``riemann``, what the reference code
            (``PascalVOCDetectionEvaluator.compute_prob``) calculates: 100 densities at equal distances, both ends
            included, times a hundredth of the width. The result is too large by a hundredth of the ends' mean density.

    Returns:
        (N,) float64. ``riemann`` is NaN where the window reaches below the location of the distribution. NaN values
        give NaN.
    """
    centres = np.asarray(values, dtype=np.float64)
    if method == "exact":
        survival = [np.exp(-fit.cumulative_hazard(centres + side)) for side in (-WINDOW_RADIUS, WINDOW_RADIUS)]
        exact: npt.NDArray[np.float64] = survival[0] - survival[1]
        return exact
    places = centres[:, None] + np.linspace(-WINDOW_RADIUS, WINDOW_RADIUS, WINDOW_POINTS)
    total = np.exp(fit.log_density(places)).sum(axis=1) * (2 * WINDOW_RADIUS / WINDOW_POINTS)
    return np.where(places[:, 0] >= fit.location, total, np.nan)


def rejection_threshold(known_samples: npt.ArrayLike, rate: float) -> float | None:
    """Find the threshold such that a new known region is below it with a probability of at most ``rate``.

    It is the k-th smallest of N samples, ``k = floor(rate (N + 1))``. A further sample of the same distribution,
    whatever that is, falls below it with probability k / (N + 1), or less if samples are equal (order statistics;
    split conformal prediction uses the same quantile).

    Args:
        known_samples: (N,) finite negative energies.
        rate: above 0 and below 1.

    Returns:
        The threshold, or None if the samples are too few for the rate, i.e. k is 0.
    """
    samples = np.sort(np.asarray(known_samples, dtype=np.float64).reshape(-1))
    rank = math.floor(rate * (len(samples) + 1) * (1 + 1e-12))
    return float(samples[rank - 1]) if rank >= 1 else None


class EnergyModel(nn.Module):
    """Both fits and the decision rule, as buffers that are saved with the model.

    The rule itself is in the options; ``density`` and ``threshold`` need the boundary alone to decide, ``window`` needs
    both fits. All rules share the four buffers, so that a checkpoint has the same entries under every option.

    Buffers:
        state: () int64, 0 not fitted, 1 fitted, 2 fallback (the classifier's own *unknown* row decides alone).
        known, unknown: (6,) float64, the fields of :class:`WeibullFit` in their order; NaN without a fit.
        boundary: () float64, negative energy below which a detection is unknown; NaN unless fitted, and for ``window``.
    """

    state: Tensor
    known: Tensor
    unknown: Tensor
    boundary: Tensor

    def __init__(self, options: EnergyOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("state", torch.tensor(_NOT_FITTED))
        self.register_buffer("known", torch.full((6,), torch.nan, dtype=torch.float64))
        self.register_buffer("unknown", torch.full((6,), torch.nan, dtype=torch.float64))
        self.register_buffer("boundary", torch.tensor(torch.nan, dtype=torch.float64))

    @property
    def fitted(self) -> bool:
        """Whether the energy takes part in the decision."""
        return self.options.enabled and int(self.state) == _FITTED

    def reset(self) -> None:
        """Forget the fits; energies of another set of known classes are not comparable."""
        self.state.fill_(_NOT_FITTED)
        for buffer in (self.known, self.unknown, self.boundary):
            buffer.fill_(torch.nan)

    def fit(self, known_samples: Tensor, unknown_samples: Tensor) -> dict[str, Any]:
        """Fit both distributions and find the boundary, or fall back to the classifier alone.

        A failed fit is not an error: the reason is logged and recorded, and no detection is relabelled. Under
        ``decision: threshold`` only the known fit must succeed.

        Args:
            known_samples: (N,) negative energies of regions of known objects, at the options' temperature.
            unknown_samples: (M,) negative energies of regions taken for unknown objects; ignored under
                ``fit_on: known_only``.

        Returns:
            The record for calibration.json: status (fitted, fallback, off), reason (of a fallback), notes (caveats
            about the fits), temperature, test_temperature, fit_on, uses_unknown_labels, parameters, decision,
            known_rejection_rate (null unless ``threshold``), known, unknown (the fits, with log-likelihood,
            Kolmogorov-Smirnov distance and count), samples (at most 2000 of each kind, evenly spaced in order),
            boundary, intervals (of negative energy that are called unknown: pairs of ends, null where open), rejected
            (share of the samples of each kind that is called unknown, at the fit's temperature).
        """
        self.reset()
        options = self.options
        samples = {
            "known": known_samples.detach().double().cpu().numpy().reshape(-1),
            "unknown": unknown_samples.detach().double().cpu().numpy().reshape(-1),
        }
        if options.fit_on == "known_only":
            samples["unknown"] = samples["unknown"][:0]
        record: dict[str, Any] = {
            "status": "off",
            "reason": None,
            "notes": [],
            "temperature": options.temperature,
            "test_temperature": options.temperature if options.test_temperature is None else options.test_temperature,
            "fit_on": options.fit_on,
            "uses_unknown_labels": options.uses_unknown_labels,
            "parameters": options.parameters,
            "decision": options.decision,
            "known_rejection_rate": options.known_rejection_rate if options.decision == "threshold" else None,
            "known": None,
            "unknown": None,
            "samples": {kind: _thinned(values) for kind, values in samples.items()},
            "boundary": None,
            "intervals": [],
            "rejected": {"known": None, "unknown": None},
        }
        if not options.enabled:
            return record

        fits: dict[str, WeibullFit] = {}
        reasons: list[str] = []
        location = 0.0 if options.parameters == 2 else None
        kinds = ("known",) if options.fit_on == "known_only" else ("known", "unknown")
        for kind in kinds:
            try:
                fits[kind] = fit_weibull(samples[kind], min_samples=options.min_samples, location=location)
            except WeibullFitRefused as refusal:
                needed = kind == "known" or options.decision != "threshold"
                (reasons if needed else record["notes"]).append(f"{kind}: {refusal.problem}")
                continue
            record[kind] = fits[kind].to_json()
            record["notes"] += [f"{kind}: {remark}" for remark in _remarks(fits[kind], location)]
        if not reasons:
            refused = self.take(fits["known"], fits.get("unknown"), samples["known"])
            reasons += [] if refused is None else [refused]
        for kind, fit in fits.items():
            getattr(self, kind).copy_(_as_numbers(fit))
        if reasons:
            record.update(status="fallback", reason="; ".join(reasons))
            self.state.fill_(_FALLBACK)
            logger.warning("energy is left out of the decision known / unknown: %s", record["reason"])
            return record
        record["status"] = "fitted"
        if math.isfinite(float(self.boundary)):
            record["boundary"] = float(self.boundary)
        record["intervals"] = self.unknown_intervals()
        for kind, values in samples.items():
            if len(values):
                called = self.is_unknown(torch.from_numpy(values).to(self.state.device))
                record["rejected"][kind] = float(called.double().mean())
        return record

    def take(
        self, known: WeibullFit, unknown: WeibullFit | None, known_samples: npt.ArrayLike | None = None
    ) -> str | None:
        """Use these distributions for all further decisions.

        Args:
            known: distribution of the negative energies of known objects.
            unknown: distribution of the negative energies of unknown objects; may be None for ``decision: threshold``.
            known_samples: (N,) samples of the known distribution; only for ``threshold_from: empirical``.

        Returns:
            None, or the reason why they cannot decide; the model is then as after :meth:`reset`.
        """
        self.reset()
        options = self.options
        found = density_boundary(known, unknown) if unknown is not None and options.decision != "threshold" else None
        boundary, separation = (None, 0.0) if found is None else found
        if options.decision == "threshold":
            if options.threshold_from == "weibull":
                boundary = float(known.quantile(options.known_rejection_rate))
            else:
                boundary = rejection_threshold(
                    () if known_samples is None else known_samples, options.known_rejection_rate
                )
            if boundary is None:
                rate = options.known_rejection_rate
                return f"known: too few samples for a rejection rate of {rate}, which needs {math.ceil(1 / rate) - 1}"
            if unknown is not None:
                separation = float(unknown.cumulative(boundary) - known.cumulative(boundary))
        elif unknown is None:
            return f"decision {options.decision} needs a distribution of unknown regions"
        elif boundary is None and (options.decision == "density" or options.min_separation > 0):
            return "the unknown samples do not have lower negative energies than the known ones"
        if unknown is not None and options.min_separation > 0 and separation < options.min_separation:
            return f"the fits separate by {separation:.3f}, energy.min_separation is {options.min_separation}"
        self.known.copy_(_as_numbers(known))
        if unknown is not None:
            self.unknown.copy_(_as_numbers(unknown))
        if boundary is not None and options.decision != "window":
            self.boundary.fill_(boundary)
        self.state.fill_(_FITTED)
        return None

    def verdict(self, negative_energies: Tensor) -> Tensor:
        """Judge each detection by its energy.

        ``density`` and ``threshold``: unknown below the boundary, known from it on. ``window``: unknown where the
        window holds more of the unknown distribution, else known; nothing where a window has no probability (NaN, or
        zero of both under ``window_sum: exact``).

        Args:
            negative_energies: (N,) floating, at the temperature of prediction.

        Returns:
            (N,) int64: 1 unknown, -1 known, 0 nothing. Without a fit, and for NaN, it is 0.
        """
        values = negative_energies.detach().double()
        if not self.fitted:
            return torch.zeros_like(values, dtype=torch.int64)
        if self.options.decision != "window":
            return (values < self.boundary).long() - (values >= self.boundary).long()
        known, unknown = self._window_probabilities(values)
        said = np.where(unknown > known, 1, np.where(unknown <= known, -1, 0))
        if self.options.window_sum == "exact":
            said[(unknown == 0) & (known == 0)] = 0
        return torch.from_numpy(said.astype(np.int64)).to(values.device)

    def is_unknown(self, negative_energies: Tensor) -> Tensor:
        """Return (N,) bool: the detections that the energy calls unknown, see :meth:`verdict`."""
        return self.verdict(negative_energies) > 0

    def confidence(self, negative_energies: Tensor) -> Tensor:
        """Compute the confidence that a detection called unknown is unknown; the factor of ``rescore``.

        ``density`` and ``window``: the posterior probability of unknown with equal priors, from the two densities or
        window probabilities; at least 0.5, as the monotone boundary may lie where the bare densities say otherwise.
        ``threshold``: the share of the known distribution above this negative energy.

        Args:
            negative_energies: (N,) floating, at the temperature of prediction.

        Returns:
            (N,) float64 in [0, 1]; 1 without a fit and for NaN.
        """
        values = negative_energies.detach().double()
        known = _as_fit(self.known)
        if not self.fitted or known is None:
            return torch.ones_like(values)
        places = values.cpu().numpy()
        if self.options.decision == "threshold":
            sure = 1 - known.cumulative(places)
        else:
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
                if self.options.decision == "window":
                    of_known, of_unknown = self._window_probabilities(values)
                    odds = of_known / of_unknown
                else:
                    unknown = _as_fit(self.unknown)
                    assert unknown is not None
                    odds = np.exp(known.log_density(places) - unknown.log_density(places))
                sure = np.maximum(1 / (1 + odds), 0.5)
        return torch.from_numpy(np.where(np.isnan(sure), 1.0, sure)).to(values.device)

    def unknown_intervals(self) -> list[list[float | None]]:
        """Return where the energy says unknown: rising pairs of negative energies, None where an interval is open.

        Exact for a boundary; for ``window`` the ends are accurate to a thousandth of the range of the distributions.
        """
        if not self.fitted:
            return []
        if self.options.decision != "window":
            return [[None, float(self.boundary)]]
        fits = [fit for fit in (_as_fit(self.known), _as_fit(self.unknown)) if fit is not None]
        ends = np.concatenate([fit.quantile([0.0, 1 - 1e-6]) for fit in fits])
        places = np.linspace(float(ends.min()) - 1, float(ends.max()) + 1, 4001)
        called = self.is_unknown(torch.from_numpy(places).to(self.state.device)).cpu().numpy()
        padded = np.concatenate([[False], called, [False]])
        starts, stops = np.flatnonzero(padded[1:] & ~padded[:-1]), np.flatnonzero(padded[:-1] & ~padded[1:]) - 1
        return [
            [None if low == 0 else float(places[low]), None if high == len(places) - 1 else float(places[high])]
            for low, high in zip(starts, stops, strict=True)
        ]

    def _window_probabilities(self, values: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the window probabilities of known and of unknown, (N,) each."""
        known, unknown = _as_fit(self.known), _as_fit(self.unknown)
        assert known is not None and unknown is not None
        places = values.cpu().numpy()
        method = self.options.window_sum
        return window_probability(places, known, method), window_probability(places, unknown, method)


def _as_numbers(fit: WeibullFit) -> Tensor:
    """Return the fields in their order, (6,) float64."""
    return torch.tensor([float(number) for number in fit.to_json().values()], dtype=torch.float64)


def _as_fit(numbers: Tensor) -> WeibullFit | None:
    """Return the fit of a buffer, or None if it holds none."""
    shape, location, scale, count, log_likelihood, ks_statistic = numbers.tolist()
    return None if math.isnan(shape) else WeibullFit(shape, location, scale, int(count), log_likelihood, ks_statistic)


def _remarks(fit: WeibullFit, location: float | None) -> list[str]:
    """Return the caveats about a fit."""
    remarks = []
    if location is None and fit.shape < 1:
        remarks.append(
            f"the shape {fit.shape:.2f} is below 1, where the likelihood has no maximum: the location is the nearest "
            "allowed to the smallest sample, and the density has a spike there"
        )
    if fit.ks_statistic > max(_POOR_KS, 1.63 / math.sqrt(fit.count)):
        remarks.append(
            f"the Weibull describes the {fit.count} samples badly, Kolmogorov-Smirnov distance {fit.ks_statistic:.2f}"
        )
    return remarks


def _thinned(values: npt.NDArray[np.float64]) -> list[float]:
    """Return at most 2000 finite values, evenly spaced in their order."""
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) > RECORDED_SAMPLES:
        finite = finite[np.linspace(0, len(finite) - 1, RECORDED_SAMPLES).round().astype(np.int64)]
    return [float(value) for value in finite]
