"""ORE's section of the page: the free energies of known and unknown regions, and the Weibull fits between them.

Everything is read from the calibration.json of each task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from openworld.methods.ore.weibull import weibull_log_density
from openworld.report import plots
from openworld.report.methods.base import MethodPage
from openworld.report.page import markup, render
from openworld.report.plots import PALETTE
from openworld.report.run_folder import TaskArtefacts, mapping, sequence
from openworld.report.text import ABSENT, count, decimal, listed, number, percent, value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Reals = npt.NDArray[np.float64]
Interval = tuple[float | None, float | None]
"""Two negative energies between which a detection is called unknown; None where the interval is open."""

KINDS = ("known", "unknown")
RULES = {
    "density": "unknown where its Weibull is denser, below one boundary",
    "window": "unknown where its Weibull holds more of a window of ±0.5",
    "threshold": "unknown below a threshold",
}
"""The rule of decision, in words."""
FITTED_ON = {
    "auto_labelled": "Fitted on regions of known objects and on background regions taken for unknown ones: no label of "
    "an unknown object was used.",
    "annotated_unknown": "Labels of unknown objects were used: fitted on annotated objects of classes not taught.",
    "annotated_and_auto": "Labels of unknown objects were used: fitted on annotated objects of classes not taught and "
    "on background regions taken for unknown ones.",
    "known_only": "Fitted on regions of known objects alone: no label of an unknown object was used.",
}
"""The regions of the fit, in words."""


def energy_panels(tasks: Sequence[TaskArtefacts]) -> list[str]:
    """Make one panel per task with a calibration.json: histogram, facts of the fit, and fitted parameters."""
    return [
        render("methods/ore.html", **_energy_facts(task.number, task.calibration))
        for task in tasks
        if task.calibration is not None
    ]


def energy_warnings(tasks: Sequence[TaskArtefacts]) -> list[str]:
    """Return a warning that names the tasks without a fit."""
    fallen = [str(task.number) for task in tasks if mapping(task.calibration).get("status") == "fallback"]
    if not fallen:
        return []
    return [
        f"In task{'s' if len(fallen) > 1 else ''} {listed(fallen)} the energy could not be fitted, so the classifier's "
        "own unknown score decided alone between known and unknown. The energy histogram below gives the reason."
    ]


ORE_PAGE = MethodPage(
    link="Energy",
    title="How known and unknown are told apart",
    lead="Free energy is low where a region looks like a class that was taught. The histograms show its negative, so "
    "known lies to the right; a detection in the shaded part is called unknown. The KS distance is the largest gap "
    "between the empirical and the fitted cumulative distribution; of two fits to the same samples, the one with the "
    "higher log-likelihood describes them better.",
    panels=energy_panels,
    warnings=energy_warnings,
)


def _energy_facts(task: int, energy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for the template of a panel."""
    temperature, at_test = decimal(energy.get("temperature"), 2), decimal(energy.get("test_temperature"), 2)
    rule = energy.get("decision")
    rate = number(energy.get("known_rejection_rate"))
    rejected = mapping(energy.get("rejected"))
    shares = [
        f"{percent(rejected[kind])}\u00a0% of the {kind} regions"
        for kind in KINDS
        if number(rejected.get(kind)) is not None
    ]
    facts = [
        str(energy.get("status")),
        f"temperature {temperature}" + (f", {at_test} at prediction" if at_test not in (temperature, ABSENT) else ""),
        RULES.get(str(rule), f"rule {rule}") if rule is not None else "",
        f"calibrated to call {100 * rate:.3g}\u00a0% of known regions unknown" if rate is not None else "",
        f"boundary {decimal(energy.get('boundary'), 3)}" if rule != "window" else "",
        f"calls {listed(shares)} of the fit unknown" if shares else "",
    ]
    return {
        "task": task,
        "figure": markup(energy_histogram(energy, task)),
        "status": value_text(energy.get("status")),
        "reason": energy.get("reason"),
        "fitted_on": FITTED_ON.get(str(energy.get("fit_on"))),
        "uses_unknown_labels": bool(energy.get("uses_unknown_labels")),
        "facts": [fact for fact in facts if fact],
        "notes": [str(note) for note in sequence(energy.get("notes"))],
        "fits": [_fit_row(kind, mapping(energy[kind])) for kind in KINDS if mapping(energy.get(kind))],
    }


def _fit_row(kind: str, fit: Mapping[str, Any]) -> dict[str, Any]:
    numbers = [decimal(fit.get(key), 3) for key in ("shape", "location", "scale")]
    quality = [count(fit.get("count")), decimal(fit.get("log_likelihood"), 1), decimal(fit.get("ks_statistic"), 3)]
    return {"kind": kind, "numbers": numbers + quality}


def energy_histogram(energy: Mapping[str, Any], task: int) -> str | None:
    """Draw the negative free energies of known and unknown regions, the fitted densities, and what is called unknown.

    Args:
        energy: content of calibration.json.
        task: names the figure.

    Returns:
        inline SVG; None without samples.
    """
    samples = {kind: _finite(mapping(energy.get("samples")).get(kind)) for kind in KINDS}
    everything = np.concatenate(list(samples.values()))
    if not everything.size:
        return None
    intervals = unknown_intervals(energy)
    low, high, ends = _shown_range(everything, intervals)
    # One boundary gets a sentence; several intervals get their numbers, and a note what the shade means.
    one_boundary = len(intervals) == 1 and intervals[0][0] is None and intervals[0][1] is not None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        peak = _draw_samples(axes, samples, low, high)
        at = np.linspace(low, high, 400)
        for kind in KINDS:
            density = _density(at, mapping(energy.get(kind)))
            if density is not None:
                axes.plot(at, density, color=PALETTE[kind], linewidth=1.8, label=f"Weibull of {kind}")
        top = 1.25 * peak or 1.0
        for first, last in intervals:
            left, right = low if first is None else max(low, first), high if last is None else min(high, last)
            if left < right:
                axes.axvspan(left, right, color=PALETTE["unknown"], alpha=0.06, linewidth=0)
        for end in ends:
            axes.axvline(end, color=PALETTE["ink"], linewidth=1.2, linestyle=(0, (4, 3)))
            on_left = end - low > 0.35 * (high - low)
            text = f"{end:.2f}"
            if one_boundary:
                text = f"◂ called unknown  |  {text}" if on_left else f"{text}  |  unknown is left of this"
            side, shift = ("right", -6) if on_left else ("left", 6)
            axes.annotate(
                text, (end, 0.965 * top), (shift, 0), textcoords="offset points", ha=side, va="top", fontsize=8
            )
        if ends and not one_boundary:
            note = "shaded: called unknown"
            axes.annotate(note, (0.995, 0.85), xycoords="axes fraction", ha="right", va="top", fontsize=8)
        axes.set_xlim(low, high)
        axes.set_ylim(0, top)
        axes.set_yticks([])
        axes.set_ylabel("density")
        axes.set_xlabel("negative free energy  T · logsumexp(g / T)")
        axes.set_title(f"Task {task}: the less the hills overlap, the better", pad=24)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, borderaxespad=0.1, columnspacing=1.4)

    return plots.svg(f"energy{task}", draw, 9.0, 2.9)


def unknown_intervals(energy: Mapping[str, Any]) -> list[Interval]:
    """Return the ``intervals`` of calibration.json; malformed ones are left out."""
    pairs = [sequence(pair) for pair in sequence(energy.get("intervals"))]
    return [(number(pair[0]), number(pair[1])) for pair in pairs if len(pair) == 2]


def _finite(values: Any) -> Reals:
    return np.array([value for value in map(number, sequence(values)) if value is not None], dtype=np.float64)


def _shown_range(samples: Reals, intervals: Sequence[Interval]) -> tuple[float, float, list[float]]:
    """Return the range of the x axis, with nearly all samples and the ends that are near, and these ends."""
    low, high = (float(value) for value in np.quantile(samples, (0.002, 0.998)))
    margin = 0.06 * (high - low) or 1.0
    low, high = low - margin, high + margin
    reach = low - (high - low), high + (high - low)
    ends = [end for interval in intervals for end in interval if end is not None and reach[0] < end < reach[1]]
    return min([low, *(end - margin for end in ends)]), max([high, *(end + margin for end in ends)]), ends


def _draw_samples(axes: Axes, samples: Mapping[str, Reals], low: float, high: float) -> float:
    """Draw the histograms and return the height of the highest bar."""
    rare = min(values.size for values in samples.values() if values.size) < 100
    edges = np.linspace(low, high, 25 if rare else 46).tolist()
    peak = 0.0
    for kind, values in samples.items():
        if values.size:
            label = f"{kind} regions ({values.size:,})"
            heights, _, _ = axes.hist(values, edges, density=True, color=PALETTE[kind], alpha=0.3, label=label)
            peak = max(peak, float(np.max(heights)))
    return peak


def _density(at: Reals, fit: Mapping[str, Any]) -> Reals | None:
    """Compute the (N,) density of a fit of calibration.json; None if a parameter is missing or invalid."""
    shape, location, scale = (number(fit.get(key)) for key in ("shape", "location", "scale"))
    if shape is None or location is None or scale is None or shape <= 0 or scale <= 0:
        return None
    density: Reals = np.exp(weibull_log_density(at, shape, location, scale))
    return density
