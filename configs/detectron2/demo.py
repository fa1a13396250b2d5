"""demo.yaml as a LazyConfig: the same detector on the synthetic world, with AdamW.

python tools/train_net.py --config-file configs/detectron2/demo.py --num-gpus 0 [path.key=value …]
"""

import torch
from detectron2.config import LazyCall
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.transforms import RandomFlip, ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from openworld.engines.detectron2.parts import OpenWorldOutputLayers, OpenWorldStandardROIHeads, labels_of_schedule
from openworld.engines.options import RoiOptions
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, UnknownLabelOptions

WIDTH, CHANNELS, HIDDEN = 32, 64, 256
LEVELS = ["p2", "p3", "p4", "p5"]

# schedule: a .yaml or a benchmark by its name, such as m_owodb; name: what its data sets begin with
openworld = {"schedule": "configs/demo.yaml", "name": "demo", "task": 1, "layout": "growing", "protocol": "unique"}

model = LazyCall(GeneralizedRCNN)(
    backbone=LazyCall(FPN)(
        bottom_up=LazyCall(ResNet)(
            stem=LazyCall(BasicStem)(in_channels=3, out_channels=WIDTH, norm="BN"),
            stages=[
                LazyCall(ResNet.make_stage)(
                    block_class=BasicBlock,
                    num_blocks=2,
                    stride_per_block=[1 if number == 0 else 2, 1],
                    in_channels=WIDTH * 2 ** max(number - 1, 0),
                    out_channels=WIDTH * 2**number,
                    norm="BN",
                )
                for number in range(4)
            ],
            out_features=["res2", "res3", "res4", "res5"],
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=CHANNELS,
        top_block=LazyCall(LastLevelMaxPool)(),
    ),
    proposal_generator=LazyCall(RPN)(
        in_features=LEVELS,
        head=LazyCall(StandardRPNHead)(in_channels=CHANNELS, num_anchors=3),
        anchor_generator=LazyCall(DefaultAnchorGenerator)(
            sizes=[[16], [32], [64], [128]], aspect_ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32], offset=0.0
        ),
        anchor_matcher=LazyCall(Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=LazyCall(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(400, 300),
        post_nms_topk=(200, 100),
    ),
    roi_heads=LazyCall(OpenWorldStandardROIHeads)(
        box_in_features=LEVELS,
        box_pooler=LazyCall(ROIPooler)(
            output_size=7,
            scales=[1 / 4, 1 / 8, 1 / 16, 1 / 32],
            sampling_ratio="${..box_predictor.roi.sampling_ratio}",
            pooler_type="ROIAlignV2",
            canonical_box_size="${..box_predictor.roi.canonical_size_px}",
        ),
        box_head=LazyCall(FastRCNNConvFCHead)(
            input_shape=LazyCall(ShapeSpec)(channels=CHANNELS, height=7, width=7),
            conv_dims=[],
            fc_dims=[HIDDEN, HIDDEN],
        ),
        box_predictor=LazyCall(OpenWorldOutputLayers)(
            input_shape=LazyCall(ShapeSpec)(channels=HIDDEN),
            space=LazyCall(labels_of_schedule)(
                schedule="${openworld.schedule}", task="${openworld.task}", layout="${openworld.layout}"
            ),
            roi=LazyCall(RoiOptions)(
                sampled_regions=48, smooth_l1_beta=0.0, sampling_ratio=0, aligned=True, canonical_size_px=64
            ),
            method=LazyCall(Ore)(
                space="${..space}",
                feature_dim=HIDDEN,
                clustering=LazyCall(ClusteringOptions)(weight=0.01, start_step=100, update_every=50, momentum=0.9),
                unknown_labels=LazyCall(UnknownLabelOptions)(per_image=2, max_iou=0.3, spread_iou=0.5),
                energy=LazyCall(EnergyOptions)(),
            ),
        ),
    ),
    pixel_mean=[103.53, 116.28, 123.675],
    pixel_std=[57.375, 57.12, 58.395],
    input_format="BGR",
)


def _images(kind, sizes, training, **more):  # the annotations come along in the held-out set too, which has no flip
    mapper = LazyCall(DatasetMapper)(
        is_train=kind != "test",
        augmentations=[
            LazyCall(ResizeShortestEdge)(short_edge_length=sizes, sample_style="choice", max_size=1333),
            *([LazyCall(RandomFlip)()] if training else []),
        ],
        image_format="BGR",
    )
    names = f"${{openworld.name}}_t${{openworld.task}}_{kind}"
    return dict(
        dataset=LazyCall(get_detection_dataset_dicts)(names=names, filter_empty=training), mapper=mapper, **more
    )


dataloader = {
    "train": LazyCall(build_detection_train_loader)(**_images("train", [96, 112, 128], True, total_batch_size=8)),
    "held_out": LazyCall(build_detection_test_loader)(**_images("held_out", [128], False)),
    "test": LazyCall(build_detection_test_loader)(**_images("test", [128], False)),
}

optimizer = LazyCall(torch.optim.AdamW)(
    params=LazyCall(get_default_optimizer_params)(weight_decay_norm=0.0), lr=1e-3, weight_decay=1e-4
)
lr_multiplier = LazyCall(WarmupParamScheduler)(
    scheduler=LazyCall(CosineParamScheduler)(start_value=1.0, end_value=0.01), warmup_length=1 / 16, warmup_factor=0.05
)

train = {
    "output_dir": "runs/detectron2/demo_lazy_t1",
    "init_checkpoint": "",
    "max_iter": 320,
    "seed": 0,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False},
    "checkpointer": {"period": 100, "max_to_keep": 3},
    "eval_period": 0,
    "log_period": 20,
    "device": "cuda",
}
