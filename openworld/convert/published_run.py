"""Convert a published detector to a run: its weights in a folder that `openworld predict` and `evaluate` read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from openworld.config import RunConfig
from openworld.configfile import find_config, read_config, read_options
from openworld.convert.published_weights import (
    REFERENCE,
    convert_detectron2,
    read_detectron2,
    read_energy,
    reference_options,
)
from openworld.data.options import DataOptions, LoaderOptions, SourceOptions
from openworld.data.schedules import SCHEDULES, Schedule, read_schedule
from openworld.detector import Detector
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import OreOptions
from openworld.run.checkpoints import STAGES, Progress, checkpoints_of, save_progress
from openworld.run.folder import claim, locked
from openworld.runtime.environment import describe
from openworld.runtime.files import sha256_of, write_json
from openworld.runtime.option_trees import Given, construct
from openworld.runtime.runlog import RunLog

TEST_SETTINGS = {1: (0.4, 50), 2: (0.5, 50), 3: (0.4, 100), 4: (0.4, 100)}
"""IoU of the suppression and detections per image for each task of m_owodb (JosephKJ/OWOD,
configs/OWOD/t*/t*_test.yaml; for other schedules detectron2's 0.5 and 100)."""

NOT_GIVEN = "not given: name the data in a configuration, and convert with --config"
"""Stands for the annotations of a detector that was converted without data."""


def convert_run(
    weights: Path,
    folder: Path,
    *,
    task: int,
    schedule: str | None = None,
    energy: Path | None = None,
    config: Path | None = None,
) -> RunConfig:
    """Write a run from a detectron2 checkpoint of ORE: config.yaml and the finished task.

    The model and ORE are configured as in the reference code; exemplars, training phases and data are those of
    ``config``. Such a checkpoint does not hold the feature store and the prototypes: both start empty.

    Args:
        weights: .pth or .pkl, see :func:`openworld.convert.published_weights.read_detectron2`.
        folder: of the new run.
        task: the last task that the detector was trained on, from 1.
        schedule: see :func:`openworld.data.schedules.read_schedule`; None takes that of ``config``.
        energy: energy_dist_<n>.pkl of the reference code; None lets the classifier decide alone.
        config: a run's .yaml that names the data.

    Returns:
        The configuration that was written.

    Raises:
        ConfigError: no schedule is given, or two that differ; the task is outside the schedule; or the folder holds a
            run already.
        CheckpointError: a file cannot be read or does not fit.
    """
    if schedule is None and config is None:
        raise ConfigError("no schedule is given", remedy="name it with --schedule, such as m_owodb, or with --config")
    found = read_schedule(str(config) if schedule is None else schedule)
    base = _without_data(found) if config is None else read_config(config)
    if base.schedule != found.tasks:
        raise ConfigError(
            f"its data.tasks are not the schedule {found.name}",
            where=str(config),
            remedy="give one of --schedule and --config, or the same tasks in both",
        )
    space = LabelSpace.of(found.tasks, task, "fixed")
    tensors = read_detectron2(weights)
    nms_iou, most = TEST_SETTINGS[task] if found.tasks == SCHEDULES["m_owodb"].tasks else (0.5, 100)
    options = reference_options(tensors, str(weights), nms_iou=nms_iou, detections_per_image=most)
    engine = convert_detectron2(tensors, space, options, str(weights))
    options_of_method = reference_ore(energy=energy is not None)
    converted = replace(
        base,
        pretrain=None,
        model=replace(options, device=base.model.device, precision=base.model.precision),
        method=options_of_method,
    )
    ore = Ore.of(options_of_method, space, engine.feature_dim)
    if energy is not None:
        refused = ore.energy_model.take(*read_energy(energy, space.num_known))
        assert refused is None  # the window rule needs nothing but the two distributions
    files = {"weights": weights} if energy is None else {"weights": weights, "energy": energy}
    with locked(folder):
        claim(converted, folder, resume=False)
        write_json(folder / "env.json", describe())
        write_json(
            folder / "converted.json",
            {
                "task": task,
                "from": {kind: {"file": path.name, "sha256": sha256_of(path)} for kind, path in files.items()},
            },
        )
        known, log = space.known, RunLog(folder / "metrics.jsonl")
        save_progress(
            checkpoints_of(folder, task), Detector(engine, ore), Progress(task, STAGES[-1], 1, True, known), log
        )
    return converted


def reference_ore(*, energy: bool) -> OreOptions:
    """Return the options of ORE's reference code (:data:`REFERENCE`); without ``energy`` the classifier decides."""
    section = read_options(find_config(REFERENCE))["method"]
    options = construct(OreOptions, [Given(section, REFERENCE)], "method", OreOptions())
    return replace(options, energy=replace(options.energy, enabled=energy))


def _without_data(schedule: Schedule) -> RunConfig:
    """Return a configuration of the schedule with detectron2's image sizes and no data."""
    nothing = SourceOptions(annotations=NOT_GIVEN)
    loader = LoaderOptions(min_size=800, max_size=1333, scale_jitter=[0.6, 1.0])
    tasks = [list(names) for names in schedule.tasks]
    data = DataOptions(
        tasks=tasks, synthetic=None, train=nothing, test=nothing, rename=dict(schedule.rename), loader=loader
    )
    return RunConfig(name="converted", pretrain=None, data=data)
