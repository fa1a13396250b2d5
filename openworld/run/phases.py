"""The optimisation phases of a run: their lengths, what they train on and what they validate on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch

from openworld.config import PhaseOptions, RunConfig
from openworld.data.loader import TrainBatches, images_per_epoch, local_parts
from openworld.data.splits import View, replay_view, training_view
from openworld.detector import Detector
from openworld.distillation.pseudo_labels import with_pseudo_labels
from openworld.distillation.teacher import Teacher
from openworld.run.checkpoints import Progress, load_task, save_progress
from openworld.run.folder import Run
from openworld.run.profile import profile_phase
from openworld.run.replay import replayed_images
from openworld.run.train import Phase, train_phase
from openworld.run.validation import Validation, validation_view
from openworld.runtime import distributed
from openworld.runtime.checkpoint import Checkpoint
from openworld.runtime.profiling import Profile


def phase_options(config: RunConfig, task: int, stage: str) -> PhaseOptions:
    """Return the options of a stage of a task, with the length of this task."""
    if stage == "replay":
        return config.replay.for_task(task)
    return (config.train if task == 1 else config.increment).for_task(task)


def announce_phases(run: Run) -> None:
    """Print how many steps the phases are whose length is in epochs, before the first one begins.

    A replay is announced when it begins, since it depends on the exemplars.

    Raises:
        DataError: a phase is to validate, and no held-out image shows what it trains.
    """
    for task in range(1, run.config.last_task + 1):
        for stage, options in _phases(run.config, task):
            if options.validate_every:
                validated_view(run, task, stage)
            if stage == "train":
                _print_length(task, stage, options, _images(run, training_view(run.sources.train, run.space(task))))


def _phases(config: RunConfig, task: int) -> Iterator[tuple[str, PhaseOptions]]:
    """The phases that a task has."""
    for stage in ("train", "replay") if task > 1 and config.exemplars.enabled else ("train",):
        options = phase_options(config, task, stage)
        if not options.is_skipped:
            yield stage, options


def _images(run: Run, view: View) -> int:
    return images_per_epoch(view, run.config.data.loader)


def _print_length(task: int, stage: str, options: PhaseOptions, images: int) -> None:
    """Print the length of a phase in steps, if it is in epochs. Only the first process prints."""
    if options.epochs is None or not distributed.is_first():
        return
    steps, size = options.in_steps(images).num_steps, options.batch_size
    length = f"{options.epochs:g} epochs of {images:,} images are {steps:,} steps of {size}"
    print(f"note: task {task} {stage}: {length}", file=sys.stderr)


def optimise(run: Run, task: int, stage: str, detector: Detector, resumed: Checkpoint | None) -> None:
    """Train on the task's new classes, or replay the exemplars of all classes; end with a checkpoint."""
    config, space, loader = run.config, run.space(task), run.config.data.loader
    taught = training_view(run.sources.train, space)
    given, view, first_step, exemplars = phase_options(config, task, stage), taught_view(run, task), 0, None
    if stage == "replay":
        view = exemplar_view(run, task, task)
        first_step = phase_options(config, task, "train").in_steps(_images(run, taught)).num_steps
        _print_length(task, stage, given, _images(run, view))
    elif num_mixed(config, task):
        exemplars = exemplar_view(run, task, task - 1)
    # An epoch is as long as was announced, when there were no pseudo-labels, which change how often images repeat.
    images = _images(run, view if stage == "replay" else taught)
    options = given.in_steps(images)
    if given.epochs is not None and resumed is None:
        length = {"epochs": given.epochs, "images": images, "steps": options.num_steps}
        run.log.append("length", stage=stage, task=task, **length)
    batches = TrainBatches(
        view,
        batch_size=options.batch_size,
        seed_parts=(config.seed, task, stage),
        start_step=0 if resumed is None else Progress.of(resumed).step,
        total_steps=options.num_steps,
        options=loader,
        parts=local_parts(options.batch_size, options.accumulate),
        exemplars=exemplars,
        num_exemplars=0 if exemplars is None else num_mixed(config, task),
    )
    teacher = teacher_of(run, task, stage)
    phase = Phase(task, stage, options, run.checkpoints(task), space.known, first_step, teacher)
    validation = None
    if options.validate_every:
        validation = Validation(validated_view(run, task, stage), loader, keep=options.keep_best)
    profile = Profile(run.profile_steps, detector.engine.pixel_mean.device) if run.profile_steps else None
    with run.log.phase(stage, task):
        if profile is None:
            train_phase(detector, batches.by_step(), phase, run.log, resumed, validation)
        else:
            profile_phase(profile, detector, batches, phase, run.log, resumed, validation)
    save_progress(phase.folder, detector, phase.after(options.num_steps), run.log)
    broken = {path: why for each in distributed.gather_objects(batches.broken) for path, why in each.items()}
    if broken:
        run.write_json(f"task{task}/broken_images_{stage}.json", broken)
    if profile is not None and profile.seconds:
        write_profile(run, phase, profile)


def has_pseudo_labels(config: RunConfig, task: int) -> bool:
    """Return whether the detector of the task before labels the images of a task."""
    trained = task > 1 and not phase_options(config, task, "train").is_skipped
    return trained and config.distillation.pseudo_label_score is not None


def validated_view(run: Run, task: int, stage: str) -> View:
    """Return what a stage validates on; with the earlier classes where the stage is to keep them.

    Raises:
        DataError: see :func:`openworld.run.validation.validation_view`.
    """
    config = run.config
    keeps_old = has_pseudo_labels(config, task) or num_mixed(config, task) > 0 or distils(config, task, stage)
    return validation_view(run.sources.held_out, run.space(task), stage, keeps_old=keeps_old)


def taught_view(run: Run, task: int) -> View:
    """Return what a task trains on: its images with its new classes, and with pseudo-labels if it has any."""
    space = run.space(task)
    view = training_view(run.sources.train, space)
    if not has_pseudo_labels(run.config, task):
        return view
    found = json.loads((run.task_folder(task) / "pseudo_labels.json").read_text())
    return with_pseudo_labels(view, found["images"], space)


def exemplar_view(run: Run, task: int, last: int) -> View:
    """Return the exemplars of the tasks up to ``last``, with all classes known at ``task``."""
    records = [json.loads((run.task_folder(number) / "exemplars.json").read_text()) for number in range(1, last + 1)]
    return replay_view(run.sources.train, run.space(task), replayed_images(records))


def num_mixed(config: RunConfig, task: int) -> int:
    """Return how many images of a batch are exemplars of earlier tasks while a task is trained on its own images."""
    if task == 1 or not config.exemplars.enabled:
        return 0
    size, share = phase_options(config, task, "train").batch_size, config.exemplars.during_training
    return min(max(round(share * size), 1), size - 1) if share else 0


def distils(config: RunConfig, task: int, stage: str) -> bool:
    """Return whether the detector of the task before looks at the batches of a stage."""
    options = config.distillation
    return task > 1 and options.needs_teacher and (stage != "replay" or options.in_replay)


def teacher_of(run: Run, task: int, stage: str) -> Teacher | None:
    """Return the detector of the task before, if the stage distils it.

    Raises:
        CheckpointError: that task is not finished.
    """
    if not distils(run.config, task, stage):
        return None
    return load_task(run.folder, run.config, task - 1).as_teacher(run.config.distillation)


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
