"""The first task of several runs: which of them share its work, and how one takes it over from another.

A run that took something over stands alone, as every run does: it has copies.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from openworld.config import RunConfig
from openworld.engines.options import RoiOptions
from openworld.run.checkpoints import checkpoints_of
from openworld.run.same_data import LISTS, recorded
from openworld.runtime.files import write_json
from openworld.runtime.runlog import RunLog


def first_task_of(config: RunConfig) -> str:
    """Return a text that is equal for configurations that agree in everything that the first task uses.

    Increment, replay, distillation and exemplars come after it; that task 1 also chooses exemplars is for
    :func:`take_over` to see.
    """
    plain = RunConfig()
    later = {name: getattr(plain, name) for name in ("increment", "replay", "distillation", "exemplars")}
    return repr(replace(config, name="", **later))


def training_of(config: RunConfig) -> str:
    """Return a text that is equal for configurations with the same training of the first task.

    Energy and suppression come after the training, so they do not count.
    """
    plain, roi = RoiOptions(), config.model.roi
    later = ("score_threshold", "nms_iou", "cross_nms_iou", "detections_per_image")
    model = replace(config.model, roi=replace(roi, **{name: getattr(plain, name) for name in later}))
    return first_task_of(replace(config, model=model, method=config.method.before_calibration()))


def take_over(trained: Path, folder: Path, *, by: RunConfig, to: RunConfig) -> None:
    """Copy the first task of another run into a new folder, with the log that led to it.

    If both configurations agree in all that the task uses, it is copied whole, with its results; otherwise its trained
    detector alone. Exemplars are copied if both choose them alike. The folder appears at once and complete.

    Args:
        trained: folder of a run whose first task is finished.
        folder: folder of the run that goes on from there; must not exist.
        by: configuration of the run in ``trained``.
        to: configuration of the run in ``folder``, with the same :func:`training_of`.
    """
    chosen_alike = replace(by.exemplars, enabled=True) == replace(to.exemplars, enabled=True)
    exemplars = chosen_alike and (trained / "task1" / "exemplars.json").exists()
    # Exemplars that the detector chooses are chosen when its training ends, which a later checkpoint would hide.
    still_to_choose = to.exemplars.enabled and to.exemplars.needs_detector and not exemplars
    whole = first_task_of(by) == first_task_of(to) and not still_to_choose
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    left_out = [] if exemplars else ["exemplars.json"]
    if whole:
        shutil.copytree(trained / "task1", partial / "task1", ignore=shutil.ignore_patterns(*left_out))
    else:
        for path in checkpoints_of(trained, 1).glob("train-*"):
            shutil.copytree(path, checkpoints_of(partial, 1) / path.name)
        if exemplars:
            shutil.copy(trained / "task1" / "exemplars.json", partial / "task1" / "exemplars.json")
    shutil.copy(trained / "metrics.jsonl", partial / "metrics.jsonl")
    log = RunLog(partial / "metrics.jsonl")
    log.truncate(log.offset_of_task(2))
    # The run notes its own lists of exemplars, which may be others.
    write_json(partial / "data.json", {name: found for name, found in recorded(trained).items() if name != LISTS})
    partial.rename(folder)
