"""Options refuse what is out of range, by name."""

from __future__ import annotations

from typing import Any

import pytest

from openworld.errors import ConfigError
from openworld.ore.options import ClusteringOptions, EnergyOptions, ExemplarOptions, UnknownLabelOptions


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
        (UnknownLabelOptions, "per_image", -1),
        (UnknownLabelOptions, "max_iou", 1.5),
        (UnknownLabelOptions, "min_objectness", float("nan")),
        (UnknownLabelOptions, "min_side_px", -1.0),
        (UnknownLabelOptions, "max_area_fraction", 0.0),
        (UnknownLabelOptions, "foreground", "all"),
        (EnergyOptions, "temperature", 0.0),
        (EnergyOptions, "min_samples", 2),
        (EnergyOptions, "decision", "window"),
        (EnergyOptions, "min_separation", 2.0),
        (EnergyOptions, "unknown_region_iou", -0.1),
        (ExemplarOptions, "per_class", 0),
        (ExemplarOptions, "strategy", "random"),
    ],
)
def test_out_of_range(options: Any, field: str, value: Any) -> None:
    options()
    with pytest.raises(ConfigError, match=rf"\.{field} = "):
        options(**{field: value})
