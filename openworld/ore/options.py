"""Options of the ORE parts. The defaults are the paper's values; each field names its source.

"Paper" is *Towards Open World Object Detection* (Joseph et al., CVPR 2021); "reference code" is JosephKJ/OWOD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from openworld.errors import ConfigError


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{name} = {value!r} is out of range", remedy=f"choose {wanted}")


@dataclass(kw_only=True)
class ClusteringOptions:
    """Contrastive clustering of region features around one prototype a class (paper, section 4.1).

    Raises:
        ConfigError: a value out of its range.
    """

    enabled: bool = True
    """Add the clustering loss to the detection losses (paper, eq. 1 and algorithm 1)."""

    weight: float = 0.1
    """Factor of the loss in the total. The paper prints none; 0.1 is the constant of the reference code, which dates
    from before the paper's runs."""

    items_per_class: int = 20
    """Q, features remembered for each class, first in first out (paper, section 5.2)."""

    start_step: int = 1000
    """I_b, step at which the prototypes become the class means and the loss begins (paper, algorithm 1)."""

    update_every: int = 3000
    """I_p, steps between two momentum updates of the prototypes (paper, algorithm 1)."""

    momentum: float = 0.99
    """Eta, share of the old prototype in an update (paper, algorithm 1)."""

    margin: float = 10.0
    """Delta, distance beyond which another class's prototype no longer repels (paper, section 5.2). The reference code
    has 2 here and gives its "margin" of 10 to the distance as its order."""

    distance_order: float = 2.0
    """Order of the Minkowski distance: 2 is the Euclidean distance of the paper's eq. 1, 10 the reference code's."""

    absent: Literal["masked", "zero"] = "masked"
    """A class that has no feature yet: ``masked`` has no prototype and takes its first class mean whole (paper: the sum
    is over the prototypes there are); ``zero`` is a zero vector that repels and moves by momentum (reference code)."""

    reduction: Literal["region", "all"] = "region"
    """``region``: sum over prototypes, mean over regions (paper, eq. 1). ``all``: mean over regions times prototypes
    (reference code)."""

    background_prototype: bool = False
    """Background features are remembered and repel too (reference code). In the paper prototype 0 is *unknown* and
    background has none."""

    def __post_init__(self) -> None:
        _check(math.isfinite(self.weight) and self.weight >= 0, "clustering.weight", self.weight, "0 or more")
        _check(self.items_per_class >= 1, "clustering.items_per_class", self.items_per_class, "1 or more")
        _check(self.start_step >= 0, "clustering.start_step", self.start_step, "0 or more")
        _check(self.update_every >= 1, "clustering.update_every", self.update_every, "1 or more")
        _check(0 <= self.momentum <= 1, "clustering.momentum", self.momentum, "a number from 0 to 1")
        _check(math.isfinite(self.margin) and self.margin >= 0, "clustering.margin", self.margin, "0 or more")
        _check(self.distance_order >= 1, "clustering.distance_order", self.distance_order, "1 or more")
        _check(self.absent in ("masked", "zero"), "clustering.absent", self.absent, "masked or zero")
        _check(self.reduction in ("region", "all"), "clustering.reduction", self.reduction, "region or all")


@dataclass(kw_only=True)
class UnknownLabelOptions:
    """Which background regions are taken for unknown objects in training (paper, section 4.2).

    Raises:
        ConfigError: a value out of its range.
    """

    enabled: bool = True
    """Label the most object-like background regions *unknown* (paper, section 4.2)."""

    per_image: int = 1
    """k, regions labelled in an image (paper, section 5.2)."""

    max_iou: float = 0.5
    """A region is a candidate if its IoU with every annotated box is below this; 0.5 is the threshold under which the
    box head calls a region background (paper, section 4.2: no overlap with a ground-truth object)."""

    min_objectness: float | None = None
    """Lowest objectness logit of a candidate; None takes the best however low (paper)."""

    min_side_px: float | None = None
    """Shortest side of a candidate in pixels of the image as it enters the model; None: no limit (paper)."""

    max_area_fraction: float | None = None
    """Largest share of the image that a candidate may cover; None: no limit (paper)."""

    spread_iou: float | None = None
    """Background regions that overlap a chosen one by at least this IoU are unknown too, and no second one is chosen
    there; None labels the chosen ones alone (paper). Without it, the neighbours of an unknown region are trained as
    background and the two labels fight over one object (own extension)."""

    foreground: Literal["excluded", "logit_minus_one"] = "excluded"
    """Regions that are not background: ``excluded`` are never relabelled (paper); ``logit_minus_one`` compete with a
    logit of -1, as in the reference code, and win where every background logit is lower. The filters above are then
    not used, for the reference code has none."""

    def __post_init__(self) -> None:
        _check(self.per_image >= 0, "unknown.per_image", self.per_image, "0 or more")
        _check(0 <= self.max_iou <= 1, "unknown.max_iou", self.max_iou, "a number from 0 to 1")
        if self.min_objectness is not None:
            _check(not math.isnan(self.min_objectness), "unknown.min_objectness", self.min_objectness, "a number")
        if self.min_side_px is not None:
            _check(self.min_side_px >= 0, "unknown.min_side_px", self.min_side_px, "0 or more")
        if self.max_area_fraction is not None:
            area = self.max_area_fraction
            _check(0 < area <= 1, "unknown.max_area_fraction", area, "a number above 0 and up to 1")
        if self.spread_iou is not None:
            _check(0 < self.spread_iou <= 1, "unknown.spread_iou", self.spread_iou, "a number above 0 and up to 1")
        good = self.foreground in ("excluded", "logit_minus_one")
        _check(good, "unknown.foreground", self.foreground, "excluded or logit_minus_one")


@dataclass(kw_only=True)
class EnergyOptions:
    """The energy-based unknown identifier (paper, section 4.3).

    Raises:
        ConfigError: a value out of its range.
    """

    enabled: bool = True
    """Fit the two Weibull distributions after training and let the energy turn known detections into unknown ones
    (paper, section 4.3)."""

    temperature: float = 1.0
    """T of the free energy, the same in the fit and at prediction (paper, eq. 4; the reference code fits at 1.5 and
    predicts at 1)."""

    min_samples: int = 20
    """Fewest samples of a kind to fit a Weibull to; with fewer only the classifier decides (own guard: three parameters
    need more than a handful of samples)."""

    decision: Literal["density"] = "density"
    """``density``: unknown where the unknown Weibull is denser than the known one (paper, section 4.3), made monotone:
    see :func:`openworld.ore.energy_model.density_boundary`."""

    min_separation: float = 0.0
    """Least difference of the two cumulative distributions at the boundary, from 0 to 1; below it only the classifier
    decides. 0 accepts every separation in the right direction (own guard; the paper has none)."""

    unknown_region_iou: float = 0.5
    """Regions labelled *unknown* are samples of the unknown fit if their IoU with every annotated box is below this
    (paper, section 4.2: background by the box head's threshold)."""

    def __post_init__(self) -> None:
        _check(
            math.isfinite(self.temperature) and self.temperature > 0,
            "energy.temperature",
            self.temperature,
            "a finite number above 0",
        )
        _check(self.min_samples >= 3, "energy.min_samples", self.min_samples, "3 or more, one a parameter")
        _check(self.decision == "density", "energy.decision", self.decision, "density")
        _check(0 <= self.min_separation <= 1, "energy.min_separation", self.min_separation, "a number from 0 to 1")
        iou = self.unknown_region_iou
        _check(0 <= iou <= 1, "energy.unknown_region_iou", iou, "a number from 0 to 1")


@dataclass(kw_only=True)
class ExemplarOptions:
    """The images that are kept for replay after later tasks (paper, section 4.4).

    Raises:
        ConfigError: a value out of its range.
    """

    enabled: bool = True
    """Keep exemplars and fine-tune on them after each later task (paper, section 4.4)."""

    per_class: int = 50
    """N_ex, fewest instances kept of each class, where the data have as many (paper, section 5.2)."""

    strategy: Literal["balanced"] = "balanced"
    """``balanced``: images are added until every class has its instances (paper, section 4.4)."""

    def __post_init__(self) -> None:
        _check(self.per_class >= 1, "exemplars.per_class", self.per_class, "1 or more")
        _check(self.strategy == "balanced", "exemplars.strategy", self.strategy, "balanced")
