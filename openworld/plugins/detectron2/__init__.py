"""For people who train with detectron2: our schedules as its data sets, our scores as its evaluator, and a trainer.

Needs detectron2; see docs/detectron2.md. The heads themselves are in :mod:`openworld.engines.detectron2`.
"""

from __future__ import annotations

from openworld.engines.detectron2.parts import add_ore_config  # first: it says what to do where detectron2 is missing

# isort: split
from openworld.plugins.detectron2.backbones import use_backbone, verify_backbone
from openworld.plugins.detectron2.datasets import register_schedule
from openworld.plugins.detectron2.energy import EnergyFit, fit_energy, held_out_batches
from openworld.plugins.detectron2.evaluator import OpenWorldEvaluator
from openworld.plugins.detectron2.trainer import OpenWorldTrainer
from openworld.plugins.detectron2.weights import grow_weights

__all__ = [
    "EnergyFit",
    "OpenWorldEvaluator",
    "OpenWorldTrainer",
    "add_ore_config",
    "fit_energy",
    "grow_weights",
    "held_out_batches",
    "register_schedule",
    "use_backbone",
    "verify_backbone",
]
