"""Options of the ORE parts. The defaults are the paper's values; each field names its source.

"Paper" is *Towards Open World Object Detection* (Joseph et al., CVPR 2021); "reference code" is JosephKJ/OWOD.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from openworld.methods.options import MethodOptions
from openworld.runtime.options import (
    Above,
    AtLeast,
    AtMost,
    Below,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    check,
    refuse,
)


@dataclass(kw_only=True)
class ClusteringOptions:
    """Contrastive clustering of region features around one prototype per class (paper, section 4.1).

    Raises:
        ConfigError: a value out of its range.
    """

    enabled: bool = True
    """Add the clustering loss to the detection losses (paper, eq. 1 and algorithm 1)."""

    weight: NonNegativeFloat = 0.1
    """Factor of the loss in the total. The paper prints none; 0.1 is the constant of the reference code, which dates
    from before the paper's runs."""

    items_per_class: PositiveInt = 20
    """Q, number of features stored per class, first in first out (paper, section 5.2)."""

    start_step: NonNegativeInt = 1000
    """I_b, step at which the prototypes become the class means and the loss begins (paper, algorithm 1)."""

    later_start_step: NonNegativeInt | None = None
    """I_b of the tasks after the first, counted from the task's own first step; None: ``start_step``. The reference
    code's ``START_ITER`` is the last iteration of the task before, which is 0 here."""

    update_every: PositiveInt = 3000
    """I_p, steps between two momentum updates of the prototypes (paper, algorithm 1)."""

    momentum: Share = 0.99
    """Eta, share of the old prototype in an update (paper, algorithm 1)."""

    margin: NonNegativeFloat = 10.0
    """Delta, distance beyond which another class's prototype no longer repels (paper, section 5.2). The reference code
    has 2 here and gives its "margin" of 10 to the distance as its order."""

    distance_order: Annotated[float, AtLeast(1)] = 2.0
    """Order of the Minkowski distance: 2 is the Euclidean distance of the paper's eq. 1, 10 the reference code's."""

    absent: Literal["masked", "zero"] = "masked"
    """A class without any feature: ``masked`` has no prototype and takes its first class mean whole (paper: the sum is
    over the existing prototypes); ``zero`` is a zero vector that repels and moves by momentum (reference code)."""

    reduction: Literal["region", "all"] = "region"
    """``region``: sum over prototypes, mean over regions (paper, eq. 1). ``all``: mean over regions times prototypes
    (reference code)."""

    background_prototype: bool = False
    """Background features are stored and repel too (reference code). In the paper prototype 0 is *unknown*, and
    background has none."""

    during_replay: bool = True
    """Store features and cluster while fine-tuning on exemplars too, so that old classes are refreshed (paper: one loss
    in all training). False: neither, as in the reference code, whose fine-tuning configs (``t2_ft.yaml``, …) turn
    clustering off."""

    memory: Literal["synchronised", "per_rank"] = "synchronised"
    """With several processes: ``synchronised`` stores the features of all processes in every process (paper: one
    F_store); ``per_rank`` stores only the process's own, so that the prototypes of the processes differ (reference
    code, which saves those of the first process). DistributedDataParallel keeps this difference only with
    ``broadcast_buffers=False``."""

    averaged_over: Literal["all_ranks", "rank"] = "all_ranks"
    """With several processes: ``all_ranks`` averages the loss over the regions of all processes, as in one process
    (paper, eq. 1); with ``rank`` each process takes its own mean, so that a region weighs more in a process with few
    regions (reference code)."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class UnknownLabelOptions:
    """Auto-labelling: which background regions are taken for unknown objects in training (paper, section 4.2).

    Raises:
        ConfigError: a value out of its range.
    """

    enabled: bool = True
    """Label the most object-like background regions *unknown* (paper, section 4.2)."""

    per_image: NonNegativeInt = 1
    """k, number of regions labelled *unknown* per image (paper, section 5.2)."""

    among: Literal["all_proposals", "sampled"] = "all_proposals"
    """Which regions compete: ``all_proposals`` of the image (paper, section 4.2), before the regions of the losses are
    sampled; ``sampled``: only the regions that were sampled at random for the losses, about a quarter of them
    (reference code, roi_heads.py, ``_sample_proposals``)."""

    score: Literal["logit", "probability"] = "logit"
    """Score by which regions compete: the objectness ``logit`` (reference code), or its sigmoid, the ``probability`` of
    the paper's section 4.2. The order is the same with two exceptions: no probability is below the -1 of
    ``foreground``; of probabilities that round to 1 the first wins. Filters and ``min_objectness`` stay in logits."""

    max_iou: Share = 0.5
    """A region is a candidate if its IoU with every annotated box is below this; 0.5 is the threshold under which the
    box head calls a region background (paper, section 4.2: no overlap with a ground-truth object)."""

    min_objectness: float | None = None
    """Lowest objectness logit of a candidate; None takes the best however low (paper)."""

    min_side_px: NonNegativeFloat | None = None
    """Shortest side of a candidate in pixels of the image as it enters the model; None: no limit (paper)."""

    max_area_fraction: Annotated[float, Above(0), AtMost(1)] | None = None
    """Largest share of the image that a candidate may cover; None: no limit (paper)."""

    spread_iou: Annotated[float, Above(0), AtMost(1)] | None = None
    """Background regions that overlap a chosen one by at least this IoU are unknown too, and no second one is chosen
    there; None labels the chosen ones alone (paper). Without it, the neighbours of an unknown region are trained as
    background and the two labels fight over one object (own extension)."""

    foreground: Literal["excluded", "logit_minus_one"] = "excluded"
    """Regions that are not background: ``excluded`` are never relabelled (paper); ``logit_minus_one`` compete with a
    logit of -1, as in the reference code, and win where every background logit is lower. The filters above are then
    not used, since the reference code has none."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class EnergyOptions:
    """The energy-based unknown identifier (paper, section 4.3).

    Raises:
        ConfigError: a value out of its range.
    """

    enabled: bool = True
    """Fit the two Weibull distributions after training and let the energy turn known detections into unknown ones
    (paper, section 4.3)."""

    temperature: PositiveFloat = 1.0
    """T of the free energy in the fit, and at prediction unless ``test_temperature`` says otherwise (paper, eq. 4; the
    reference code fits at 1.5)."""

    test_temperature: PositiveFloat | None = None
    """T of the free energy at prediction; None: that of the fit (paper). The reference code fits at 1.5 and predicts at
    1, which shifts all energies by up to 0.5 log(known classes)."""

    fit_on: Literal["auto_labelled", "annotated_unknown", "annotated_and_auto", "known_only"] = "auto_labelled"
    """Held-out regions that the unknown Weibull is fitted to. ``auto_labelled``: background regions that auto-labelling
    picks; no label of an unknown object is used (own choice; the paper's protocol forbids such labels elsewhere).
    ``annotated_unknown``: regions that match an annotated object of no known class (paper, section 4.3: a held-out set
    with known and unknown instances). ``annotated_and_auto``: both kinds (reference code). These two use labels of
    unknown objects, and every result of the run says so. ``known_only``: none; needs ``decision: threshold``."""

    parameters: Literal[2, 3] = 3
    """Parameters of each Weibull distribution: 3 fits shape, scale and location (paper: shifted Weibull; reference
    code); 2 fixes the location at 0, and falls back if energies are not above it (own extension)."""

    min_samples: Annotated[int, AtLeast(3)] = 20
    """Smallest number of samples per kind to fit a Weibull to; with fewer only the classifier decides (own guard: three
    parameters need more than a handful of samples)."""

    decision: Literal["density", "window", "threshold"] = "density"
    """Rule by which the energy calls a detection unknown. ``density``: where the unknown Weibull exceeds the known one
    (paper, section 4.3), made monotone: see :func:`openworld.methods.ore.energy_model.density_boundary`. ``window``:
    where a window of plus and minus 0.5 around its negative energy holds more of the unknown Weibull than of the known
    one (reference code), which is not monotone. ``threshold``: below the negative energy that the share
    ``known_rejection_rate`` of known regions lies below; unknown regions take no part (own extension)."""

    window_sum: Literal["exact", "riemann"] = "exact"
    """For ``window``: ``exact`` is the difference of the cumulative distribution; ``riemann`` the reference code's sum
    of 100 densities, which is NaN, and decides nothing, where the window reaches below the support."""

    known_rejection_rate: Annotated[float, Above(0), Below(1)] = 0.05
    """For ``threshold``: share of known regions that the energy calls unknown, above 0 and below 1 (own extension)."""

    threshold_from: Literal["empirical", "weibull"] = "empirical"
    """For ``threshold``: ``empirical`` is an order statistic of the held-out known regions: a new known region is below
    it with at most the stated probability, whatever their distribution. ``weibull`` is the quantile of the known
    Weibull (own extension)."""

    contradiction: Literal["relabel", "drop", "rescore"] = "relabel"
    """A detection that the classifier gives a known class and the energy calls unknown: ``relabel`` makes it unknown
    and keeps its score (reference code), ``drop`` removes it, ``rescore`` makes it unknown and multiplies its score by
    :meth:`openworld.methods.ore.energy_model.EnergyModel.confidence` (own extensions)."""

    unknown_contradiction: Literal["keep", "drop"] = "keep"
    """A detection that the classifier calls unknown and the energy known: ``keep`` leaves it unknown (paper: the energy
    finds further unknowns), ``drop`` removes it (reference code)."""

    nms_after_decision: bool = True
    """Non-maximum suppression and the cap on detections come after the decision, so that one object is not called
    unknown twice. False: before it, and not again (reference code)."""

    min_separation: Share = 0.0
    """Smallest difference of the two cumulative distributions at the boundary, from 0 to 1; below it only the
    classifier decides. 0 accepts every separation in the right direction (own guard; the paper has none). For
    ``window`` it is measured at the boundary of ``density``; ``window`` and ``threshold`` measure it only if this is
    above 0."""

    unknown_region_iou: Share = 0.5
    """For ``auto_labelled``: regions labelled *unknown* are samples of the unknown fit if their IoU with every
    annotated box is below this (paper, section 4.2: background by the box head's threshold)."""

    @property
    def uses_unknown_labels(self) -> bool:
        """Whether the fit uses annotations of objects of unknown classes."""
        return self.enabled and self.fit_on in ("annotated_unknown", "annotated_and_auto")

    @property
    def uses_auto_labels(self) -> bool:
        """Whether the fit uses regions that auto-labelling picks."""
        return self.enabled and self.fit_on in ("auto_labelled", "annotated_and_auto")

    def __post_init__(self) -> None:
        check(self)
        if self.decision != "threshold":
            if self.fit_on == "known_only":
                refuse(
                    self, "fit_on", f"is 'known_only' and decision {self.decision!r}", remedy="set decision: threshold"
                )
        elif self.test_temperature not in (None, self.temperature):
            remedy = f"give the temperature of the fit ({self.temperature}), for which the threshold is calibrated"
            refuse(self, "test_temperature", remedy=remedy)


@dataclass(kw_only=True)
class OreOptions(MethodOptions):
    """ORE (Joseph et al., CVPR 2021): its three parts. Defaults that are not the paper's are those of the demo."""

    METHOD: ClassVar[str] = "openworld.methods.ore.method:Ore"

    name: str = "ore"
    unknown_labels: UnknownLabelOptions = field(
        default_factory=lambda: UnknownLabelOptions(per_image=2, max_iou=0.3, spread_iou=0.5)
    )
    clustering: ClusteringOptions = field(
        default_factory=lambda: ClusteringOptions(weight=0.01, start_step=100, update_every=50, momentum=0.9)
    )
    energy: EnergyOptions = field(default_factory=EnergyOptions)

    def __post_init__(self) -> None:
        check(self)

    @property
    def uses_unknown_labels(self) -> bool:
        """See :class:`MethodOptions`."""
        return self.energy.uses_unknown_labels

    def rescaled(self, steps: Callable[[int], int]) -> OreOptions:
        """See :class:`MethodOptions`: the steps that time the prototypes."""
        clustering, later = self.clustering, self.clustering.later_start_step
        return replace(
            self,
            clustering=replace(
                clustering,
                start_step=steps(clustering.start_step),
                later_start_step=None if later is None else steps(later),
                update_every=steps(clustering.update_every),
            ),
        )

    def before_calibration(self) -> OreOptions:
        """See :class:`MethodOptions`: the energy acts after the training."""
        return replace(self, energy=EnergyOptions())

    def variants(self) -> dict[str, OreOptions]:
        """See :class:`MethodOptions`."""
        return {
            "no unknown labelling": replace(self, unknown_labels=replace(self.unknown_labels, enabled=False)),
            "no clustering": replace(self, clustering=replace(self.clustering, enabled=False)),
            "no energy": replace(self, energy=replace(self.energy, enabled=False)),
        }
