"""For training with detectron2: this project's schedules as data sets, its metrics as an evaluator, and a trainer.

Needs detectron2; see docs/detectron2.md. The heads themselves are in :mod:`openworld.engines.detectron2`.
"""

from __future__ import annotations

from openworld.engines.detectron2.parts import (
    add_openworld_config,  # first: it says what to do where detectron2 is missing
)

# isort: split
from openworld.plugins.detectron2.backbones import use_backbone, verify_backbone
from openworld.plugins.detectron2.calibration import Calibration, calibrate, held_out_batches
from openworld.plugins.detectron2.datasets import register_schedule
from openworld.plugins.detectron2.evaluator import OpenWorldEvaluator
from openworld.plugins.detectron2.trainer import OpenWorldTrainer
from openworld.plugins.detectron2.weights import grow_weights

__all__ = [
    "Calibration",
    "OpenWorldEvaluator",
    "OpenWorldTrainer",
    "add_openworld_config",
    "calibrate",
    "grow_weights",
    "held_out_batches",
    "register_schedule",
    "use_backbone",
    "verify_backbone",
]
