"""Options of the distillation. Standard library only, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass

from openworld.runtime.options import NonNegativeFloat, Share, check


@dataclass(kw_only=True)
class DistillationOptions:
    """What the detector of the task before, the teacher, adds to the training of a later task. All off by default (ORE
    has none).

    The images of a task show objects of earlier classes that are not annotated in it. Without a teacher these are
    background to train on, or are labelled unknown, and the detector unlearns them.

    Raises:
        ConfigError: a value out of its range.
    """

    pseudo_label_score: Share | None = None
    """Detections of earlier classes that the teacher makes on the images of the task, before its training, become
    annotations from this score on: in the losses of proposals and boxes as well as of classes (pseudo-labels, as in
    CL-DETR; Liu et al., CVPR 2023). At least ``model.roi.score_threshold``. They are written to pseudo_labels.json.
    None: no pseudo-labels."""

    pseudo_label_iou: Share = 0.3
    """A detection that overlaps an annotated box of the task by more than this is not a pseudo-label: the annotation
    says what the object is."""

    class_weight: NonNegativeFloat = 0.0
    """Factor of the cross-entropy between the class probabilities of teacher and detector on the sampled regions, but
    for those that are annotated as a new class (own choice: a teacher often takes these for one that it knows). All
    rows that the teacher cannot tell apart, those of new classes, unknown and background, count as one (after
    Cermelli et al., *Modeling Missing Annotations*, CVPR workshops 2022; that unknown is among them is our choice)."""

    box_weight: NonNegativeFloat = 0.0
    """Factor of the smooth L1 distance between the box deltas of both, on those of these regions that the teacher
    takes for an earlier class (after Shmelkov et al., ICCV 2017)."""

    feature_weight: NonNegativeFloat = 0.0
    """Factor of the mean absolute difference between the feature maps of both (after Faster ILOD; Peng et al.,
    Pattern Recognition Letters 2020)."""

    in_replay: bool = True
    """The last three act in the fine-tuning on exemplars too."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher looks at the batches of the training."""
        return self.class_weight > 0 or self.box_weight > 0 or self.feature_weight > 0
