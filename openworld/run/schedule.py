"""The schedule of a run: the stages of each task, in order, and the detector with which each of them starts.

A finished stage is recognised by its files on the disk, so that a killed run continues where it was (:func:`run_task`).
A stage that changes the model always starts from a checkpoint on the disk, whether the run was interrupted or not, so
that both do the same arithmetic (:func:`start_stage`):

    the stage was interrupted    its own newest checkpoint; optimiser and generators are restored
    a later stage of a task      the newest checkpoint of the task, which is the end of the stage before
    the first stage of a task    the last checkpoint of the task before; the head grows by the new classes
    the first stage of task 1    the pretrained backbone, or random weights: no other stage reads the backbone's file

With several processes all of them run the same stages. Only the first one inspects the files, decides what to do and
writes; the others read its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from openworld.config import RunConfig, scaled
from openworld.detector import Detector, build_detector
from openworld.errors import CheckpointError, DataError
from openworld.run import evaluate
from openworld.run.checkpoints import Progress, finished_task, restore_detector, save_progress
from openworld.run.folder import Run, check_shares, claim, locked, note_places, open_run
from openworld.run.phases import announce_phases, has_pseudo_labels, optimise
from openworld.run.pseudo_labels import write_pseudo_labels
from openworld.run.replay import chosen_exemplars, listed_exemplars
from openworld.run.sources import open_sources
from openworld.runtime import distributed
from openworld.runtime.checkpoint import Checkpoint, newest_valid
from openworld.runtime.environment import select_device
from openworld.runtime.images import WHITE_LEVEL
from openworld.runtime.runlog import RunLog
from openworld.runtime.seeding import seed_everything
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.card import finished
from ssl_backbones.image_files import ImageFiles
from ssl_backbones.options import PretrainOptions
from ssl_backbones.pretrain import pretrain


def run_schedule(config: RunConfig, folder: Path, *, resume: bool, profile_steps: int = 0) -> list[dict[str, Any]]:
    """Run a schedule to its end and return the metrics of each task.

    Args:
        config: the whole configuration; it is written to the folder.
        folder: folder of the run, visible to every process.
        resume: continue the run in the folder. Otherwise a folder in which a run has begun is refused.
        profile_steps: number of steps of each optimisation phase to time for profile.json.

    Raises:
        ConfigError: the folder holds a run (and not ``resume``), or a run of another configuration; the processes do
            not divide a batch; the method cannot be imported.
        CheckpointError: the backbone file is missing, or belongs to another network.
        DataError: data are missing or cannot be used.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with locked(folder):
        check_shares(scaled(config))
        config.method.method_class()  # a fault in it is found here, not after the pretraining
        claimed = distributed.on_first(lambda: claim(config, folder, resume=resume))
        run = open_run(scaled(claimed), folder, profile_steps)
        announce_phases(run)
        distributed.on_first(lambda: note_places(claimed, folder))
        if run.config.pretrain is not None:
            pretrain_backbone(run, resume=resume)
        return [run_task(run, task) for task in range(1, run.config.last_task + 1)]


def run_backbone(config: RunConfig, folder: Path) -> Path:
    """Pretrain the backbone of a run, and nothing else; return its file. Continues a pretraining that has begun."""
    with locked(folder):
        log = RunLog(folder / "metrics.jsonl")
        pretrain_backbone(Run(config, folder, open_sources(config, folder), log), resume=True)
    return folder / "backbone" / "backbone.safetensors"


def pretrain_backbone(run: Run, *, resume: bool) -> None:
    """Pretrain on the images of the schedule's training set, without their labels, unless task 1 is trained already."""
    options, folder = run.config.pretrain, run.folder / "backbone"
    assert options is not None
    if options.white_level is None and run.config.data.loader.white_level != WHITE_LEVEL:
        options = replace(options, white_level=run.config.data.loader.white_level)
    if distributed.on_first(lambda: backbone_is_done(run, options, folder)):
        return
    with run.log.phase("pretrain"):
        pretrain(
            options,
            run.sources.pretraining_images(options),
            folder,
            seed=run.config.seed,
            device=select_device(run.config.model.device),
            resume=resume,
            log=run.log,
            labelled_crops=run.sources.labelled_crops(options.view_size),
        )
    distributed.barrier()


def backbone_is_done(run: Run, options: PretrainOptions, folder: Path) -> bool:
    """Return whether the run needs no more pretraining.

    Raises:
        CheckpointError: the backbone in the folder was made with other options or of other images.
    """
    if newest_valid(run.checkpoints(1), []) is not None:
        return True
    try:
        files = ImageFiles.of(options, run.sources.pretraining_images(options))
    except DataError:  # a finished backbone does not need them
        files = None
    return finished(folder, options, run.config.seed, files) is not None


# -- the stages of a task ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage of a task."""

    name: str
    when: Callable[[RunConfig, int], bool]
    """Whether a task of a configuration has the stage."""
    done: Callable[[Run, int], bool]
    """Whether its result is on the disk."""
    run: Callable[[Run, int], None]


def run_task(run: Run, task: int) -> dict[str, Any]:
    """Run all stages of a task that are not finished; return its metrics."""
    for stage in STAGES:
        if stage.when(run.config, task) and not distributed.on_first(partial(stage.done, run, task)):
            stage.run(run, task)
            distributed.barrier()
    metrics: dict[str, Any] = json.loads((run.task_folder(task) / "metrics.json").read_text())
    return metrics


def always(config: RunConfig, task: int) -> bool:
    return True


def replays(config: RunConfig, task: int) -> bool:
    """Return whether a task fine-tunes on exemplars: any task but the first one."""
    return task > 1 and config.exemplars.enabled and not config.replay.for_task(task).is_skipped


def chooses_before_training(config: RunConfig, task: int) -> bool:
    return not config.exemplars.needs_detector


def chooses_after_training(config: RunConfig, task: int) -> bool:
    return config.exemplars.needs_detector and config.exemplars.enabled


def written(name: str) -> Callable[[Run, int], bool]:
    """Return a test for whether a task has a file."""
    return lambda run, task: (run.task_folder(task) / name).exists()


def model_stage(
    name: str,
    when: Callable[[RunConfig, int], bool],
    change: Callable[[Run, int, str, Detector, Checkpoint | None], None],
) -> Stage:
    """Make a stage that changes the model: it starts from a checkpoint and ends with one."""

    def done(run: Run, task: int) -> bool:
        newest = newest_valid(run.checkpoints(task))
        return newest is not None and Progress.of(newest).has_done(name)

    def start_and_change(run: Run, task: int) -> None:
        detector, resumed = start_stage(run, task, name)
        change(run, task, name, detector, resumed)

    return Stage(name, when, done, start_and_change)


def start_stage(run: Run, task: int, stage: str) -> tuple[Detector, Checkpoint | None]:
    """Return the detector with which a stage starts, and the checkpoint of the stage that it resumes from, if any.

    Lines of the log after that checkpoint are removed, since their work is repeated.

    Raises:
        CheckpointError: the previous task is not finished; or a checkpoint is damaged or belongs to another model.
    """
    newest = newest_valid(run.checkpoints(task))
    run.log.truncate(run.log.offset_of_task(task) if newest is None else Progress.of(newest).log_offset)
    seed_everything(run.config.seed, task, stage)
    if run.backbone is not None and (newest is not None or task > 1):
        # The generators stand where they stood when each stage loaded the backbone anew, which draws a network: new
        # rows and samples, and so all published figures, stay as they are.
        (run.config.model.arch or ResNetOptions()).build()
    if newest is not None:
        detector = restore_detector(run.config, newest)
    elif task > 1:
        detector = detector_of_task_before(run, task)
    else:
        detector = build_detector(run.config, run.space(task), run.backbone)
    distributed.barrier()  # all have read before the first one writes, which may remove old checkpoints
    interrupted = newest is not None and Progress.of(newest).stage == stage
    return detector, newest if interrupted else None


def detector_of_task_before(run: Run, task: int) -> Detector:
    """Load the finished detector of task ``task - 1``, and grow its head by the classes of ``task``.

    Raises:
        CheckpointError: that task is not finished.
    """
    before = finished_task(run.folder, task - 1)
    if before is None:
        raise CheckpointError(
            f"task {task} needs the detector of task {task - 1}",
            where=str(run.task_folder(task - 1)),
            remedy="run the tasks in order",
        )
    detector = restore_detector(run.config, before)
    detector.grow(run.space(task))
    return detector


# -- the work of the stages -------------------------------------------------------------------------------------------


def choose_exemplars(run: Run, task: int) -> None:
    """Write the task's exemplars.json: images for the replay of its classes.

    Strategies that need features or scores take them from the detector of the finished "train" stage, read back from
    its checkpoint, so that a run that is killed here and resumed chooses the same images.

    Raises:
        CheckpointError: the file is gone and a later stage has changed the detector.
    """
    options, space = run.config.exemplars, run.space(task)
    train, held_out = run.sources.train, run.sources.held_out
    detector = None
    if options.needs_detector:
        newest = newest_valid(run.checkpoints(task))
        if newest is None or Progress.of(newest).stage != "train":
            raise CheckpointError(
                f"the exemplars of task {task} are missing, and the detector that chose them has gone on",
                where=str(run.task_folder(task) / "exemplars.json"),
                remedy="restore the file, or start the run anew",
            )
        detector = restore_detector(run.config, newest).eval()
    if options.list is not None:
        record = listed_exemplars(train, held_out, space, options.list)
    else:
        loader, seed = run.config.data.loader, run.config.seed
        record = chosen_exemplars(train, space, options, seed, detector=detector, loader=loader)
    run.write_json(f"task{task}/exemplars.json", record)


def calibrate(run: Run, task: int, stage: str, detector: Detector, resumed: Checkpoint | None) -> None:
    """Calibrate the method on held-out images; write calibration.json and the last checkpoint of the task."""
    with run.log.phase(stage, task):
        run.write_json(f"task{task}/calibration.json", evaluate.calibrate(run, task, detector))
    save_progress(run.checkpoints(task), detector, Progress(task, stage, 1, True, run.space(task).known), run.log)


STAGES = (
    Stage("exemplars", chooses_before_training, written("exemplars.json"), choose_exemplars),
    Stage("pseudo_labels", has_pseudo_labels, written("pseudo_labels.json"), write_pseudo_labels),
    model_stage("train", always, optimise),
    Stage("exemplars", chooses_after_training, written("exemplars.json"), choose_exemplars),
    model_stage("replay", replays, optimise),
    model_stage("calibrate", always, calibrate),
    Stage("evaluate", always, written("metrics.json"), evaluate.evaluate_task),
)
"""The stages of a task, in order."""
