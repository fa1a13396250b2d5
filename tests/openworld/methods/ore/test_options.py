"""Options refuse what is out of range, by name."""

from __future__ import annotations

from typing import Any

import pytest

from openworld.errors import ConfigError
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, UnknownLabelOptions


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (ClusteringOptions, "weight", -1.0),
        (ClusteringOptions, "items_per_class", 0),
        (ClusteringOptions, "start_step", -1),
        (ClusteringOptions, "update_every", 0),
        (ClusteringOptions, "momentum", 1.5),
        (ClusteringOptions, "margin", float("nan")),
        (ClusteringOptions, "distance_order", 0.5),
        (ClusteringOptions, "absent", "gone"),
        (ClusteringOptions, "reduction", "sum"),
        (ClusteringOptions, "memory", "rank 0"),
        (ClusteringOptions, "averaged_over", "rank 0"),
        (UnknownLabelOptions, "per_image", -1),
        (UnknownLabelOptions, "max_iou", 1.5),
        (UnknownLabelOptions, "min_objectness", float("nan")),
        (UnknownLabelOptions, "min_side_px", -1.0),
        (UnknownLabelOptions, "max_area_fraction", 0.0),
        (UnknownLabelOptions, "foreground", "all"),
        (UnknownLabelOptions, "among", "none"),
        (UnknownLabelOptions, "score", "rank"),
        (EnergyOptions, "temperature", 0.0),
        (EnergyOptions, "min_samples", 2),
        (EnergyOptions, "test_temperature", -1.0),
        (EnergyOptions, "fit_on", "everything"),
        (EnergyOptions, "fit_on", "known_only"),  # with decision density
        (EnergyOptions, "parameters", 4),
        (EnergyOptions, "decision", "vote"),
        (EnergyOptions, "window_sum", "trapezoid"),
        (EnergyOptions, "known_rejection_rate", 0.0),
        (EnergyOptions, "threshold_from", "guess"),
        (EnergyOptions, "contradiction", "ignore"),
        (EnergyOptions, "unknown_contradiction", "relabel"),
        (EnergyOptions, "min_separation", 2.0),
        (EnergyOptions, "unknown_region_iou", -0.1),
    ],
)
def test_out_of_range(options: Any, field: str, value: Any) -> None:
    options()
    with pytest.raises(ConfigError, match=rf"^{options.__name__}\.{field} is "):
        options(**{field: value})


def test_energy_options_that_go_together() -> None:
    assert EnergyOptions(fit_on="known_only", decision="threshold").decision == "threshold"
    assert EnergyOptions(decision="threshold", temperature=2.0, test_temperature=2.0).test_temperature == 2.0
    with pytest.raises(ConfigError, match=r"^EnergyOptions\.test_temperature is 1\.0"):
        EnergyOptions(decision="threshold", temperature=2.0, test_temperature=1.0)
    told = {kind for kind in ("auto_labelled", "annotated_unknown", "annotated_and_auto") if _told(kind)}
    assert told == {"annotated_unknown", "annotated_and_auto"}
    assert not EnergyOptions(enabled=False, fit_on="annotated_unknown").uses_unknown_labels


def _told(fit_on: Any) -> bool:
    return EnergyOptions(fit_on=fit_on).uses_unknown_labels
