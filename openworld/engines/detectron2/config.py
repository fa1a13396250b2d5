"""The node ``OPENWORLD`` in detectron2's configuration, and the options of this project read from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal

from detectron2.config import CfgNode

from openworld.data.schedules import read_schedule
from openworld.engines.detectron2.names import ORE_PAPER, ROI_KEYS, openworld_defaults, option_keys, own_roi_fields
from openworld.engines.options import RoiOptions
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.base import OpenWorldMethod
from openworld.methods.options import MethodOptions
from openworld.runtime.options import Place, reading


def add_openworld_config(cfg: CfgNode) -> None:
    """Add the node ``OPENWORLD``; see :func:`openworld.engines.detectron2.names.openworld_defaults`.

    Call it before merging a file, since yacs refuses keys that it does not know. Below ``OPENWORLD.METHOD`` any key may
    be set; :func:`method_options` refuses those that the method does not have.
    """
    defaults = openworld_defaults()
    method = defaults.pop("METHOD")
    cfg.OPENWORLD = CfgNode(defaults)
    cfg.OPENWORLD.METHOD = CfgNode(method, new_allowed=True)


def get_key(cfg: CfgNode, name: str) -> Any:
    """Return the value of a dotted name, such as ``MODEL.RPN.NMS_THRESH``."""
    for part in name.split("."):
        cfg = cfg[part]
    return cfg


def set_keys(cfg: CfgNode, values: Mapping[str, Any]) -> None:
    """Set values by their dotted names."""
    for name, value in values.items():
        path, _, last = name.rpartition(".")
        get_key(cfg, path)[last] = value


def label_space(cfg: CfgNode) -> LabelSpace:
    """Return the label space of ``OPENWORLD.TASK`` in ``OPENWORLD.TASKS`` or ``OPENWORLD.SCHEDULE``, in its ``LAYOUT``.

    Raises:
        ConfigError: neither ``TASKS`` nor ``SCHEDULE`` is set, or the schedule is invalid.
    """
    node = cfg.OPENWORLD
    if not node.TASKS and not node.SCHEDULE:
        raise ConfigError(
            "the configuration names no schedule",
            remedy="set OPENWORLD.SCHEDULE to a name such as m_owodb or to a .yaml file, or list the classes in "
            "OPENWORLD.TASKS",
        )
    if node.TASKS:
        return LabelSpace.of(node.TASKS, node.TASK, node.LAYOUT)
    return labels_of_schedule(node.SCHEDULE, node.TASK, node.LAYOUT)


def labels_of_schedule(schedule: str, task: int, layout: Literal["growing", "fixed"] = "growing") -> LabelSpace:
    """Return the label space of a task (from 1) of a schedule, see :func:`openworld.data.schedules.read_schedule`."""
    return LabelSpace.of(read_schedule(schedule).tasks, task, layout)


def roi_options(cfg: CfgNode) -> RoiOptions:
    """Read the options of the box head: from detectron2's own keys where they exist, else from ``OPENWORLD.ROI``."""
    values: dict[str, Any] = {name: cfg.OPENWORLD.ROI[name.upper()] for name in own_roi_fields()}
    for name, key in ROI_KEYS.items():
        values[name] = key.back(get_key(cfg, key.name))
    return RoiOptions(**values)


def build_method(cfg: CfgNode, space: LabelSpace, feature_dim: int) -> OpenWorldMethod:
    """Build the method of the configuration for a label space."""
    return method_options(cfg).build(space, feature_dim)


def method_options(cfg: CfgNode) -> MethodOptions:
    """Read the options of the method that ``OPENWORLD.METHOD.NAME`` names.

    Raises:
        ConfigError: the method or one of its options does not exist, or a value is out of range.
    """
    node = cfg.OPENWORLD.METHOD
    options: MethodOptions = _options(node, MethodOptions.named(node.NAME), "OPENWORLD.METHOD")
    return options


def _options(node: CfgNode, owner: type, key: str) -> Any:
    """Read an options dataclass from a node; keys of ORE, whose defaults are always there, may stay unused."""
    own = {field.name.upper(): field for field in fields(owner)}
    if unknown := node.keys() - own.keys() - option_keys(ORE_PAPER).keys():
        raise ConfigError(
            f"{key}.{min(unknown)} is not an option of the method", remedy=f"its options are {', '.join(sorted(own))}"
        )
    defaults, values = owner(), {}
    for name, field in own.items():
        default = getattr(defaults, field.name)
        if name in node:
            nested = is_dataclass(default)
            values[field.name] = _options(node[name], type(default), f"{key}.{name}") if nested else node[name]
    with reading(Place(owner, key, {})):
        return owner(**values)


_REFUSED = {
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "smooth_l1",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": False,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": False,
}
"""Keys of detectron2 that the open-world heads would ignore, and the only value that they work with: a region that is
labelled unknown has no mask, and the losses are those of :mod:`openworld.engines.roi_losses`."""


def check_supported(cfg: CfgNode) -> None:
    """Refuse keys that the open-world heads would silently ignore.

    Raises:
        ConfigError: such keys are set; the message names every one.
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
