"""The node ``ORE`` in detectron2's configuration, and our options out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from detectron2.config import CfgNode

from openworld.data.schedules import read_schedule
from openworld.engines.detectron2.names import ROI_KEYS, SECTIONS, ore_defaults, own_roi_fields
from openworld.engines.options import RoiOptions
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.methods.ore.method import Ore


def add_ore_config(cfg: CfgNode) -> None:
    """Add the node ``ORE``; see :func:`openworld.engines.detectron2.names.ore_defaults`. Call it before merging a file,
    since yacs refuses keys that it does not know."""
    cfg.ORE = CfgNode(ore_defaults())


def get_key(cfg: CfgNode, name: str) -> Any:
    """The value of a dotted name, such as ``MODEL.RPN.NMS_THRESH``."""
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def set_keys(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    """Set values by their dotted names."""
    for name, value in values.items():
        path, _, last = name.rpartition(".")
        get_key(cfg, path)[last] = value


def label_space(cfg: CfgNode) -> LabelSpace:
    """The label space that ``ORE.TASKS`` or ``ORE.SCHEDULE``, ``ORE.TASK`` and ``ORE.HEAD`` name.

    Raises:
        ConfigError: neither of the first two, or a schedule that is not one.
    """
    ore = cfg.ORE
    if not ore.TASKS and not ore.SCHEDULE:
        raise ConfigError(
            "the configuration names no schedule",
            remedy="set ORE.SCHEDULE to a name such as m_owodb or to a .yaml file, or list the classes in ORE.TASKS",
        )
    if ore.TASKS:
        return LabelSpace.of(ore.TASKS, ore.TASK, ore.HEAD)
    return labels_of_schedule(ore.SCHEDULE, ore.TASK, ore.HEAD)


def labels_of_schedule(schedule: str, task: int, head: Literal["growing", "fixed"] = "growing") -> LabelSpace:
    """The label space of a task (from 1) of a schedule, see :func:`openworld.data.schedules.read_schedule`."""
    return LabelSpace.of(read_schedule(schedule).tasks, task, head)


def roi_options(cfg: CfgNode) -> RoiOptions:
    """Options of the box head: from detectron2's own keys where it has them, the others from ``ORE.ROI``."""
    values: dict[str, Any] = {name: cfg.ORE.ROI[name.upper()] for name in own_roi_fields()}
    for name, key in ROI_KEYS.items():
        values[name] = key.back(get_key(cfg, key.name))
    return RoiOptions(**values)


def build_method(cfg: CfgNode, space: LabelSpace, feature_dim: int) -> OpenWorldMethod:
    """ORE with the options of the configuration."""
    unknown, clustering, energy = (section(cfg, name) for name in ("UNKNOWN_LABELS", "CLUSTERING", "ENERGY"))
    return Ore(space, feature_dim, clustering, unknown, energy)


def section(cfg: CfgNode, name: str) -> Any:
    """The options of a node below ``ORE``, for instance :class:`ClusteringOptions` of ``CLUSTERING``."""
    node, owner = cfg.ORE[name], SECTIONS[name]
    return owner(**{field.name: node[field.name.upper()] for field in fields(owner)})


_REFUSED = {
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
}
"""Keys of detectron2 that our heads would ignore, and the only value that they work with: a region that is labelled
unknown has no mask, and the losses are those of :mod:`openworld.engines.roi_losses`."""


def check_supported(cfg: CfgNode) -> None:
    """Refuse what our heads would silently ignore.

    Raises:
        ConfigError: names every such key.
    """
    problems = []
    for name, wanted in _REFUSED.items():
        given = get_key(cfg, name)
        if (tuple(given) if isinstance(given, list) else given) != wanted:
            problems.append(f"{name} is {given!r}, must be {wanted!r}")
    if problems:
        raise ConfigError(
            f"the open-world heads do not work with this: {'; '.join(problems)}", remedy="leave these keys as they were"
        )
