"""A small world for detectron2's own trainers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
CONFIGS = ROOT / "configs" / "detectron2"

WORLD = """
data:
  tasks: [[ball, cube, ring], [star, cross, gear]]
  synthetic: {train_images: 16, val_images: 8, test_images: 4, size: 64, pretrain_images: 0}
pretrain: null
method:
  name: ore
exemplars: {per_class: 2}
"""

SMALL = """
MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.RES2_OUT_CHANNELS 8
MODEL.FPN.OUT_CHANNELS 8 MODEL.ROI_BOX_HEAD.FC_DIM 12 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16
MODEL.RPN.POST_NMS_TOPK_TRAIN 30 MODEL.RPN.POST_NMS_TOPK_TEST 60 MODEL.DEVICE cpu
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 SOLVER.IMS_PER_BATCH 2 SOLVER.WARMUP_ITERS 0
SOLVER.BASE_LR 0.001 OPENWORLD.METHOD.ENERGY.MIN_SAMPLES 3 OPENWORLD.METHOD.CLUSTERING.START_STEP 1 SEED 1
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .yaml of a schedule of two tasks; the images are drawn beside it."""
    path = tmp_path_factory.mktemp("detectron2") / "world.yaml"
    path.write_text(WORLD)
    return path


@pytest.fixture
def arguments(world: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Namespace]:
    """What the command line of tools/train_net.py parses to: a stage of the small world."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world.parent))

    def parsed(
        output: Path, task: int = 1, kind: str = "train", *more: str, resume: bool = False, eval_only: bool = False
    ) -> Namespace:
        node = "OPENWORLD"
        keys = f"{SMALL} {node}.SCHEDULE {world} {node}.TASK {task} {node}.STAGE {kind} OUTPUT_DIR {output}".split()
        keys += ["DATASETS.TRAIN", f"('world_t{task}_{kind}',)", "DATASETS.TEST", f"('world_t{task}_test',)"]
        return Namespace(
            config_file=str(CONFIGS / "demo.yaml"), opts=[*keys, *more], resume=resume, eval_only=eval_only
        )

    return parsed
