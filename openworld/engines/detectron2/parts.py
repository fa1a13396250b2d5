"""Open-world parts for detectron2: for its registries, and the engine that is made of them.

Importing this module registers ``OpenWorldRes5ROIHeads`` (C4) and ``OpenWorldStandardROIHeads`` (FPN) in
``ROI_HEADS_REGISTRY``, two builders of backbones and an anchor generator. Only this package of
:mod:`openworld.engines` imports detectron2; ``detectron2.model_zoo``, which today's setuptools breaks, is never
imported.
"""

from __future__ import annotations

from importlib.util import find_spec

from openworld.errors import EnvironmentProblem

if find_spec("detectron2") is None:
    raise EnvironmentProblem(
        "detectron2 is not installed",
        remedy="install it from its repository (docs/detectron2.md says how), or use model.engine: torchvision",
    )

from openworld.engines.detectron2.config import add_openworld_config, label_space, labels_of_schedule, roi_options
from openworld.engines.detectron2.engine import Detectron2RCNN
from openworld.engines.detectron2.output_layers import OpenWorldOutputLayers
from openworld.engines.detectron2.roi_heads import OpenWorldRes5ROIHeads, OpenWorldStandardROIHeads

__all__ = [
    "Detectron2RCNN",
    "OpenWorldOutputLayers",
    "OpenWorldRes5ROIHeads",
    "OpenWorldStandardROIHeads",
    "add_openworld_config",
    "label_space",
    "labels_of_schedule",
    "roi_options",
]
