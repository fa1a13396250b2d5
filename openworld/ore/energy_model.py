"""The energy-based decision known / unknown (ORE, section 4.3): two Weibull distributions and their boundary.

Everything here is over the *negative* free energy ``s = T logsumexp(g / T)``: known objects have high s, unknown ones
low s.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from openworld.ore.options import EnergyOptions
from openworld.ore.weibull import WeibullFit, WeibullFitRefused, fit_weibull

logger = logging.getLogger(__name__)

RECORDED_SAMPLES = 2000
"""Most samples of a kind that the energy record holds."""

_NOT_FITTED, _FITTED, _FALLBACK = 0, 1, 2


def density_boundary(known: WeibullFit, unknown: WeibullFit) -> tuple[float, float] | None:
    """The negative energy below which the unknown distribution is the likelier, and how well it separates.

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
    """(N,) bool; below both supports the answer is unknown."""
    of_unknown, of_known = unknown.log_density(places), known.log_density(places)
    return (of_unknown > of_known) | (np.isneginf(of_unknown) & np.isneginf(of_known))


def _bisect(known: WeibullFit, unknown: WeibullFit, low: float, high: float) -> float:
    """Where the likelier distribution changes from unknown (at low) to known (at high). Log densities may be -inf."""
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if _unknown_is_likelier(known, unknown, middle):
            low = middle
        else:
            high = middle
    return high


class EnergyModel(nn.Module):
    """Both fits and the boundary, as buffers that are saved with the model.

    Buffers:
        state: () int64, 0 not fitted, 1 fitted, 2 fallback (the classifier's own *unknown* row decides alone).
        known, unknown: (6,) float64, the fields of :class:`WeibullFit` in their order; NaN where there is no fit.
        boundary: () float64, negative energy below which a detection is unknown; NaN unless fitted.
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
        """The energy takes part in the decision."""
        return self.options.enabled and int(self.state) == _FITTED

    def reset(self) -> None:
        """Forget the fits; energies of another set of known classes are not comparable."""
        self.state.fill_(_NOT_FITTED)
        for buffer in (self.known, self.unknown, self.boundary):
            buffer.fill_(torch.nan)

    def fit(self, known_samples: Tensor, unknown_samples: Tensor) -> dict[str, Any]:
        """Fit both distributions and find the boundary, or fall back to the classifier alone.

        A fit that cannot be made is no error: the reason is logged and recorded, and no detection is relabelled.

        Args:
            known_samples: (N,) negative energies of regions of known objects, at the options' temperature.
            unknown_samples: (M,) the same of regions taken for unknown objects.

        Returns:
            The record that becomes energy.json: status (fitted, fallback, off), reason, temperature, known, unknown,
            samples (at most 2000 of each kind, evenly spaced in order), boundary.
        """
        self.reset()
        samples = {
            "known": known_samples.detach().double().cpu().numpy().reshape(-1),
            "unknown": unknown_samples.detach().double().cpu().numpy().reshape(-1),
        }
        record: dict[str, Any] = {
            "status": "off",
            "reason": None,
            "temperature": self.options.temperature,
            "known": None,
            "unknown": None,
            "samples": {kind: _thinned(values) for kind, values in samples.items()},
            "boundary": None,
        }
        if not self.options.enabled:
            return record

        fits: dict[str, WeibullFit] = {}
        reasons: list[str] = []
        for kind, values in samples.items():
            try:
                fits[kind] = fit_weibull(values, min_samples=self.options.min_samples)
            except WeibullFitRefused as refusal:
                reasons.append(f"{kind}: {refusal.problem}")
                continue
            record[kind] = fits[kind].to_json()
            numbers = torch.tensor([float(number) for number in record[kind].values()], dtype=torch.float64)
            getattr(self, kind).copy_(numbers)
        if len(fits) == 2:
            found = density_boundary(fits["known"], fits["unknown"])
            if found is None:
                reasons.append("the unknown samples do not have lower negative energies than the known ones")
            elif found[1] < self.options.min_separation:
                reasons.append(
                    f"the fits separate by {found[1]:.3f}, energy.min_separation is {self.options.min_separation}"
                )
            else:
                record["boundary"] = found[0]
                self.boundary.fill_(found[0])
        if reasons:
            record.update(status="fallback", reason="; ".join(reasons))
            self.state.fill_(_FALLBACK)
            logger.warning("energy is left out of the decision known / unknown: %s", record["reason"])
        else:
            record["status"] = "fitted"
            self.state.fill_(_FITTED)
        return record

    def is_unknown(self, negative_energies: Tensor) -> Tensor:
        """Which detections the energy calls unknown.

        Args:
            negative_energies: (N,) floating, at the options' temperature.

        Returns:
            (N,) bool, true below the boundary (:func:`density_boundary`); all false if there is no fit.
        """
        if not self.fitted:
            return torch.zeros_like(negative_energies, dtype=torch.bool)
        return negative_energies.double() < self.boundary


def _thinned(values: npt.NDArray[np.float64]) -> list[float]:
    """At most 2000 finite values, evenly spaced in their order."""
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) > RECORDED_SAMPLES:
        finite = finite[np.linspace(0, len(finite) - 1, RECORDED_SAMPLES).round().astype(np.int64)]
    return [float(value) for value in finite]
