"""Schedules: which task introduces which classes, and how the names of annotation files become those of the schedule.

The class lists are facts of the published benchmarks, spelt as their annotations spell them:

==============  =====================================================================================================
m_owodb         80 classes in four tasks of 20 that mix VOC and COCO: the split of ORE (Joseph et al., CVPR 2021),
                ``detectron2/data/datasets/pascal_voc.py`` of JosephKJ/OWOD
s_owodb         80 classes in tasks of 19, 21, 20 and 20 that keep super-categories apart: the split of OW-DETR (Gupta
                et al., CVPR 2022), also ``datasets/torchvision_datasets/open_world.py`` of orrzohar/PROB
voc_10_10       incremental detection (Shmelkov et al., ICCV 2017): the 20 classes of VOC in alphabetical order, cut
voc_15_5        after the 10th, the 15th and the 19th
voc_19_1
voc_coco        open-set detection (OpenDet, Han et al., CVPR 2022): one task, the 20 classes of VOC
==============  =====================================================================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openworld.data.class_names import check_rename, check_tasks
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.runtime.files import read_yaml
from openworld.runtime.option_trees import typed


@dataclass(frozen=True)
class Schedule:
    """Classes by task.

    Args:
        name: a known name, or where the schedule was read.
        tasks: class names, one tuple a task.
        rename: class names of annotation files to the names in ``tasks``; other names stay as they are.

    Raises:
        ConfigError: a task without classes, a class named twice, a reserved name.
    """

    name: str
    tasks: tuple[tuple[str, ...], ...]
    rename: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        LabelSpace(self.tasks, 1)

    def at(self, task: int) -> LabelSpace:
        """The label space of a task, counted from 1.

        Raises:
            ConfigError: the schedule has no such task.
        """
        return LabelSpace(self.tasks, task)


COCO_TO_VOC: Mapping[str, str] = {
    "airplane": "aeroplane",
    "dining table": "diningtable",
    "motorcycle": "motorbike",
    "potted plant": "pottedplant",
    "couch": "sofa",
    "tv": "tvmonitor",
}
"""The six classes that COCO and VOC spell differently. Names as VOC spells them stay."""


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


VOC = _names(
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, motorbike, person, "
    "pottedplant, sheep, sofa, train, tvmonitor"
)
_SPORTS_AND_FOOD = _names(
    "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, "
    "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake"
)

SCHEDULES: Mapping[str, Schedule] = {
    schedule.name: schedule
    for schedule in (
        Schedule(
            "m_owodb",
            (
                VOC,
                _names(
                    "truck, traffic light, fire hydrant, stop sign, parking meter, bench, elephant, bear, zebra, "
                    "giraffe, backpack, umbrella, handbag, tie, suitcase, microwave, oven, toaster, sink, refrigerator"
                ),
                _SPORTS_AND_FOOD,
                _names(
                    "bed, toilet, laptop, mouse, remote, keyboard, cell phone, book, clock, vase, scissors, "
                    "teddy bear, hair drier, toothbrush, wine glass, cup, fork, knife, spoon, bowl"
                ),
            ),
            COCO_TO_VOC,
        ),
        Schedule(
            "s_owodb",
            (
                _names(
                    "aeroplane, bicycle, bird, boat, bus, car, cat, cow, dog, horse, motorbike, sheep, train, "
                    "elephant, bear, zebra, giraffe, truck, person"
                ),
                _names(
                    "traffic light, fire hydrant, stop sign, parking meter, bench, chair, diningtable, pottedplant, "
                    "backpack, umbrella, handbag, tie, suitcase, microwave, oven, toaster, sink, refrigerator, bed, "
                    "toilet, sofa"
                ),
                _SPORTS_AND_FOOD,
                _names(
                    "laptop, mouse, remote, keyboard, cell phone, book, clock, vase, scissors, teddy bear, hair drier, "
                    "toothbrush, wine glass, cup, fork, knife, spoon, bowl, tvmonitor, bottle"
                ),
            ),
            COCO_TO_VOC,
        ),
        *(Schedule(f"voc_{first}_{20 - first}", (VOC[:first], VOC[first:]), COCO_TO_VOC) for first in (10, 15, 19)),
        Schedule("voc_coco", (VOC,), COCO_TO_VOC),
    )
}
"""The published schedules by name."""


def read_schedule(name_or_path: str | Path) -> Schedule:
    """A schedule by name, or from a file.

    Args:
        name_or_path: a name in :data:`SCHEDULES`; a .yaml file with ``tasks``, a list of lists of class names, and
            perhaps ``rename``, a mapping of names; a configuration, which has both under ``data``; or the folder of a
            run, which has one. A known name wins over a path.

    Raises:
        ConfigError: neither, with the nearest name; or a file without a schedule, or with one that cannot be used.
    """
    if str(name_or_path) in SCHEDULES:
        return SCHEDULES[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.yaml"
        if not path.is_file():
            raise ConfigError(
                "the folder has no config.yaml",
                where=str(path.parent),
                remedy=f"give the folder of a run, a .yaml file, or one of: {', '.join(SCHEDULES)}",
            )
    if not path.is_file():
        raise _no_schedule(str(name_or_path))
    content = _load(path)
    section = content if isinstance(content.get("tasks"), list) else content.get("data")  # a run counts its `tasks`
    if not isinstance(section, dict) or not isinstance(section.get("tasks"), list):
        raise ConfigError(
            "has no list `tasks`, neither at the top nor under `data`",
            where=str(path),
            remedy="write `tasks:` with one list of class names for each task",
        )
    tasks = typed(list[list[str]], section["tasks"])
    rename = {} if section.get("rename") is None else typed(dict[str, str], section["rename"])
    for key, check, value in (("tasks", check_tasks, tasks), ("rename", check_rename, rename)):
        try:
            check(value)
        except ConfigError as error:
            raise ConfigError(f"`{key}` {error.problem}", where=str(path), remedy=error.remedy) from None
    return Schedule(str(name_or_path), tuple(tuple(names) for names in tasks), rename)


def _no_schedule(wanted: str) -> ConfigError:
    known = ", ".join(SCHEDULES)
    if Path(wanted).suffix.lower() in (".yaml", ".yml") or len(Path(wanted).parts) > 1:
        return ConfigError(
            "there is no such file", where=wanted, remedy=f"correct the path of the schedule, or name one of: {known}"
        )
    close = difflib.get_close_matches(wanted.lower().replace("-", "_"), SCHEDULES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return ConfigError(
        f"schedule {wanted!r} is neither a known name nor a file{hint}",
        remedy=f"name one of: {known}; or give a .yaml file with `tasks`, or the folder of a run",
    )


def _load(path: Path) -> dict[str, Any]:
    remedy = "a schedule is a .yaml file with `tasks`, a list of lists of class names, and perhaps `rename`"
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError("is not a .yaml file", where=str(path), remedy=remedy)
    return read_yaml(path, remedy=remedy, as_written=True)
