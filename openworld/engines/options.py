"""Options of the detector. Standard library only, so that ``--help`` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from openworld.runtime.options import (
    Between,
    FilePath,
    Items,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    check,
    refuse,
)
from ssl_backbones.backbones import BackboneOptions


@dataclass(kw_only=True)
class RpnOptions:
    """Region proposal network (Faster R-CNN, section 3.1)."""

    anchor_sizes: Annotated[list[PositiveFloat], Items(1)] = field(default_factory=lambda: [16.0, 32.0, 64.0, 128.0])
    """Anchor side lengths in pixels: one per FPN level (C2…C5); with C4 all of them at every cell."""
    anchor_ratios: Annotated[list[PositiveFloat], Items(1)] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    """Height over width of the anchors."""
    foreground_iou: Share = 0.7
    """An anchor is positive from this IoU with a box (each box's best anchor always is)."""
    background_iou: Share = 0.3
    """An anchor is negative below this IoU."""
    sampled_anchors: PositiveInt = 256
    """Anchors sampled per image for the RPN loss; at most half are positive."""
    train_candidates: PositiveInt = 400
    """Proposals per level before NMS in training."""
    train_proposals: PositiveInt = 200
    """Proposals per image after NMS in training."""
    test_candidates: PositiveInt = 300
    """Proposals per level before NMS at test."""
    test_proposals: PositiveInt = 100
    """Proposals per image after NMS at test."""
    nms_iou: Share = 0.7
    """IoU above which the weaker of two proposals is removed."""
    min_side_px: NonNegativeFloat = 1.0
    """Proposals with a shorter side are removed; empty ones are always removed (reference code of ORE: 0)."""
    smooth_l1_beta: NonNegativeFloat = 1 / 9
    """Where the quadratic part of the proposals' box loss ends, in deltas (torchvision: 1/9); 0 is L1 (reference
    code)."""

    def __post_init__(self) -> None:
        check(self)
        if self.background_iou > self.foreground_iou:
            remedy = f"give at most foreground_iou ({self.foreground_iou})"
            refuse(self, "background_iou", remedy=remedy)


@dataclass(kw_only=True)
class RoiOptions:
    """Box head (Fast R-CNN, section 2)."""

    sampled_regions: PositiveInt = 48
    """Regions sampled per image for the classification loss."""
    positive_fraction: Share = 0.25
    """Largest share of foreground among the sampled regions."""
    foreground_iou: Share = 0.5
    """A region belongs to an annotated box from this IoU on."""
    append_annotated: bool = True
    """In training the annotated boxes are regions too (Fast R-CNN code, torchvision and the reference code of ORE)."""
    unknown_share: Literal["separate", "shared"] = "separate"
    """Share of the regions that were labelled unknown before the sampling: ``separate`` gives them their own
    ``positive_fraction``; ``shared`` counts them as foreground (reference code of ORE, where annotated unknowns are
    foreground like any class)."""
    unknown_box_loss: Literal["excluded", "included"] = "excluded"
    """Regions labelled unknown: ``excluded`` from the box loss, since they have no true box (ORE paper: they are
    labelled for classification and clustering); ``included`` regresses them to the annotated box that they overlap
    most, however little (reference code, fast_rcnn.py, ``box_reg_loss``)."""
    box_regression: Literal["agnostic", "per_class"] = "agnostic"
    """``agnostic``: one set of box deltas for all classes, so that an unknown object gets a refined box too (own
    choice; some of the reference code's configurations for incremental detection have it as well). ``per_class``: one
    set per class, and one for unknown (Fast R-CNN; reference code for ORE); with ``unknown_box_loss: excluded`` the set
    of unknown is never trained."""
    smooth_l1_beta: NonNegativeFloat = 1 / 9
    """Where the quadratic part of the box loss ends, in deltas (torchvision: 1/9); 0 is L1 (reference code)."""
    mask_future: Literal["training", "always", "never"] = "training"
    """For ``model.layout: fixed``: classes that no task has taught yet are left out of the softmax in ``training`` only
    (reference code; at test they take probability from the others), ``always``, or ``never``. They are never detected,
    whatever the choice."""
    hidden_dim: PositiveInt = 512
    """Width of the two fully connected layers of the FPN head. (C4: the feature is res5's, 2048-d in a ResNet-50.)"""
    canonical_size_px: PositiveInt = 224
    """FPN: a region with sides of this length is read from the level at stride 16, one of half the length from the
    level at stride 8 (FPN, eq. 1). In images much smaller than its 800 pixels nearly every region is then read from
    the finest level (benchmarks/closed_set.py compares)."""
    sampling_ratio: NonNegativeInt = 1
    """Points per side at which RoIAlign reads each bin (Mask R-CNN and torchvision: 2). 0: as many as the bin has cells
    (reference code of ORE)."""
    aligned: bool = False
    """RoIAlign shifts boxes by half a cell, so that pixel centres meet (detectron2's ROIAlignV2; reference code)."""
    min_side_px: NonNegativeFloat = 1.0
    """Detections with a shorter side are dropped; 0 keeps all (reference code)."""
    score_threshold: Share = 0.05
    """Detections with a lower score are dropped."""
    nms_iou: Share = 0.5
    """Overlap above which the weaker of two detections of one class is dropped."""
    cross_nms_iou: Share = 1.0
    """Overlap above which the weaker of a known and an unknown detection is dropped (own extension: one label per
    object). 1 keeps both: unknown is suppressed as any class is, among its own (Faster R-CNN; reference code)."""
    detections_per_image: PositiveInt = 100
    """Detections kept per image, best first."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class ModelOptions:
    """A Faster R-CNN whose head has rows for known classes, unknown and background (:mod:`openworld.labels`)."""

    engine: Literal["torchvision", "detectron2"] = "torchvision"
    """Library whose parts make up the network. ``detectron2`` must be installed from its repository
    (docs/detectron2.md); with the same weights both compute the same."""
    weights: FilePath | None = None
    """Backbone to start from: a file that `openworld pretrain` wrote, or any checkpoint that `ssl_backbones.handover`
    reads. None: random."""
    weights_network: str | None = None
    """Prefix of the backbone's keys in ``weights``, where the file holds several networks: ``student.``,
    ``encoder_k.``, with the dictionaries around it if need be. null: the one that its authors evaluate
    (``ssl_backbones.handover.networks``); `openworld backbone inspect` shows which."""
    arch: BackboneOptions | None = None
    """The network; its ``name`` chooses the family. null: read from the weight file's card or its tensors; for random
    weights the demo's ResNet.
    Needed for weights whose tensors do not tell everything (stride in the 1x1, padding of the pool)."""
    neck: Literal["fpn", "c4"] = "fpn"
    """Feature pyramid with a two-layer box head, or ORE's C4 with res5 as the box head."""
    layout: Literal["growing", "fixed"] = "growing"
    """Rows of the head: ``growing`` has the known classes, unknown and background, and each task adds its classes;
    ``fixed`` has all classes of the schedule, unknown and background from the start (reference code: 81 + 1 rows)."""
    fpn_channels: PositiveInt = 64
    """Channels of every pyramid level (the papers: 256)."""
    norm: Literal["batch", "frozen"] = "batch"
    """BatchNorm of the backbone: ``batch`` trains it further; ``frozen`` fixes statistics, scale and shift (for
    ImageNet-scale weights)."""
    synchronise_norm: bool = True
    """With several processes and ``norm: batch``: BatchNorm's statistics are those of the joined batch, as in one
    process. Off: each process uses those of its share, which saves two messages per layer."""
    freeze_stages: Annotated[int, Between(0, 5)] = 0
    """Number of frozen stages, from the stem on: 0 none, 1 the stem, 2 the stem and C2, …, 5 all."""
    rpn: RpnOptions = field(default_factory=RpnOptions)
    roi: RoiOptions = field(default_factory=RoiOptions)
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: convolutions and linear layers under autocast; losses, energies and boxes stay float32."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, …; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        check(self)
        if self.weights_network is not None and self.weights is None:
            refuse(
                self, "weights_network", "is given without weights", remedy="give model.weights, or leave it out (null)"
            )
        if self.neck == "fpn" and len(self.rpn.anchor_sizes) != 4:
            refuse(
                self,
                "rpn.anchor_sizes",
                f"has {len(self.rpn.anchor_sizes)} entries and an FPN 4 levels",
                remedy="give one anchor size for each of C2, C3, C4, C5",
            )
