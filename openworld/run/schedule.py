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
from openworld.data.loader import TrainBatches
from openworld.data.options import ExemplarOptions
from openworld.data.splits import View, replay_view, training_view
from openworld.detector import Detector, build_detector
from openworld.distillation.pseudo_labels import with_pseudo_labels
from openworld.distillation.teacher import Teacher
from openworld.errors import CheckpointError, DataError
from openworld.run import evaluate
from openworld.run.checkpoints import Progress, finished_task, restore_detector, save_progress
from openworld.run.folder import Run, check_shares, claim, locked, note_places, open_run
from openworld.run.profile import profile_phase
from openworld.run.pseudo_labels import pseudo_labels
from openworld.run.replay import chosen_exemplars, listed_exemplars, replayed_images
from openworld.run.sources import open_sources
from openworld.run.train import Phase, train_phase
from openworld.runtime import distributed
from openworld.runtime.checkpoint import Checkpoint, newest_valid
from openworld.runtime.environment import select_device
from openworld.runtime.images import WHITE_LEVEL
from openworld.runtime.profiling import Profile
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
    return task > 1 and config.exemplars.enabled and config.replay.for_task(task).steps > 0


def chooses_before_training(config: RunConfig, task: int) -> bool:
    return not config.exemplars.needs_detector


def chooses_after_training(config: RunConfig, task: int) -> bool:
    return config.exemplars.needs_detector and config.exemplars.enabled


def has_pseudo_labels(config: RunConfig, task: int) -> bool:
    return task > 1 and config.distillation.pseudo_label_score is not None


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
    detector = finished_detector(run, task - 1)
    detector.grow(run.space(task))
    return detector


def finished_detector(run: Run, task: int) -> Detector:
    """Load the finished detector of a task that a later one builds on.

    Raises:
        CheckpointError: that task is not finished.
    """
    found = finished_task(run.folder, task)
    if found is None:
        raise CheckpointError(
            f"task {task + 1} needs the detector of task {task}",
            where=str(run.task_folder(task)),
            remedy="run the tasks in order",
        )
    return restore_detector(run.config, found)


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


def optimise(run: Run, task: int, stage: str, detector: Detector, resumed: Checkpoint | None) -> None:
    """Train on the task's new classes, or replay the exemplars of all classes; end with a checkpoint."""
    config, space = run.config, run.space(task)
    taught = (config.train if task == 1 else config.increment).for_task(task)
    if stage == "replay":
        options, view, first_step = config.replay.for_task(task), exemplar_view(run, task), taught.steps
    else:
        options, view, first_step = taught, taught_view(run, task), 0
    exemplars = mixed_exemplars(run, task) if stage == "train" and task > 1 else None
    batches = TrainBatches(
        view,
        batch_size=options.batch_size,
        seed_parts=(config.seed, task, stage),
        start_step=0 if resumed is None else Progress.of(resumed).step,
        total_steps=options.steps,
        options=config.data.loader,
        positions=distributed.local_range(options.batch_size),
        exemplars=exemplars,
        num_exemplars=0 if exemplars is None else num_mixed(config.exemplars, options.batch_size),
    )
    teacher = teacher_of(run, task, stage)
    phase = Phase(task, stage, options, run.checkpoints(task), space.known, first_step, teacher)
    profile = Profile(run.profile_steps, detector.engine.pixel_mean.device) if run.profile_steps else None
    with run.log.phase(stage, task):
        arguments = detector, batches, phase, run.log, resumed
        train_phase(*arguments) if profile is None else profile_phase(profile, *arguments)
    save_progress(phase.folder, detector, phase.after(options.steps), run.log)
    broken = {path: why for each in distributed.gather_objects(batches.broken) for path, why in each.items()}
    if broken:
        run.write_json(f"task{task}/broken_images_{stage}.json", broken)
    if profile is not None and profile.seconds:
        write_profile(run, phase, profile)


def taught_view(run: Run, task: int) -> View:
    """Return what a task trains on: its images with its new classes, and with the pseudo-labels if it has any."""
    space = run.space(task)
    view = training_view(run.sources.train, space)
    if not has_pseudo_labels(run.config, task):
        return view
    found = json.loads((run.task_folder(task) / "pseudo_labels.json").read_text())
    return with_pseudo_labels(view, found["images"], space)


def exemplar_view(run: Run, task: int, last: int | None = None) -> View:
    """Return the exemplars of the tasks up to ``last`` (None: ``task``), with all classes known at ``task``."""
    last = task if last is None else last
    records = [json.loads((run.task_folder(number) / "exemplars.json").read_text()) for number in range(1, last + 1)]
    return replay_view(run.sources.train, run.space(task), replayed_images(records))


def num_mixed(options: ExemplarOptions, batch_size: int) -> int:
    """Return how many images of a batch are exemplars while a later task is trained; the task keeps at least one."""
    return min(round(options.during_training * batch_size), batch_size - 1) if options.enabled else 0


def mixed_exemplars(run: Run, task: int) -> View | None:
    """Return the exemplars of earlier tasks that the training of a task is mixed with; None: it is not mixed."""
    phase = run.config.increment.for_task(task)
    if not num_mixed(run.config.exemplars, phase.batch_size):
        return None
    view = exemplar_view(run, task, task - 1)
    return view if len(view) else None


def teacher_of(run: Run, task: int, stage: str) -> Teacher | None:
    """Return the detector of the task before, if the stage distils it.

    Raises:
        CheckpointError: that task is not finished.
    """
    options = run.config.distillation
    if task == 1 or not options.needs_teacher or (stage == "replay" and not options.in_replay):
        return None
    return finished_detector(run, task - 1).as_teacher(options)


def label_by_teacher(run: Run, task: int) -> None:
    """Write pseudo_labels.json: what the detector of the task before finds on the images of the task."""
    with run.log.phase("pseudo_labels", task):
        detector = finished_detector(run, task - 1).eval()
        view = training_view(run.sources.train, run.space(task))
        entries = pseudo_labels(detector, view, run.config.data.loader, run.config.distillation)
    options = run.config.distillation
    record = {"task": task, "score": options.pseudo_label_score, "iou": options.pseudo_label_iou, "images": entries}
    run.write_json(f"task{task}/pseudo_labels.json", record)


def write_profile(run: Run, phase: Phase, profile: Profile) -> None:
    """Write a phase's times to profile.json; they replace earlier ones of the same phase."""
    path = run.folder / "profile.json"
    phases = json.loads(path.read_text())["phases"] if path.exists() else []
    here = {"task": phase.task, "stage": phase.stage}
    kept = [found for found in phases if {key: found[key] for key in here} != here]
    entry = {
        **here,
        "device": "cuda" if profile.on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "batch_size": phase.options.batch_size,
        **profile.record(),
    }
    run.write_json("profile.json", {"phases": [*kept, entry]})


def calibrate(run: Run, task: int, stage: str, detector: Detector, resumed: Checkpoint | None) -> None:
    """Calibrate the method on held-out images; write calibration.json and the last checkpoint of the task."""
    with run.log.phase(stage, task):
        run.write_json(f"task{task}/calibration.json", evaluate.calibrate(run, task, detector))
    save_progress(run.checkpoints(task), detector, Progress(task, stage, 1, True, run.space(task).known), run.log)


STAGES = (
    Stage("exemplars", chooses_before_training, written("exemplars.json"), choose_exemplars),
    Stage("pseudo_labels", has_pseudo_labels, written("pseudo_labels.json"), label_by_teacher),
    model_stage("train", always, optimise),
    Stage("exemplars", chooses_after_training, written("exemplars.json"), choose_exemplars),
    model_stage("replay", replays, optimise),
    model_stage("calibrate", always, calibrate),
    Stage("evaluate", always, written("metrics.json"), evaluate.evaluate_task),
)
"""The stages of a task, in order."""
