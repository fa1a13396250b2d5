"""The schedule: for each task train, replay, fit the energy, evaluate, hand over; resumable at every step.

Every phase starts from a checkpoint on the disk, whether the run was interrupted or not, so that a resumed run and an
uninterrupted one do the same arithmetic.

With several processes all of them go through the same stages. Only the first one writes into the folder of the run,
but all read it, and what depends on its files is decided by the first one for all.
"""

from __future__ import annotations

import fcntl
import io
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openworld.config import PhaseOptions, RunConfig, scaled
from openworld.configfile import dump_config, read_config
from openworld.data.loader import TrainBatches, eval_batches, eval_target, own_batches
from openworld.data.options import LoaderOptions
from openworld.data.records import Record
from openworld.data.splits import View, held_out_view, replay_view, training_view
from openworld.detector import Detector, backbone_file, build_detector, restore_detector
from openworld.errors import CheckpointError, ConfigError
from openworld.labels import LabelSpace
from openworld.predictions.file import PredictedImage, read_predictions, write_predictions
from openworld.predictions.score import evaluate_predictions
from openworld.run.detect import detect_prepared
from openworld.run.profile import profile_phase
from openworld.run.replay import check_lists, chosen_exemplars, listed_exemplars, replayed_images
from openworld.run.sources import Sources, open_sources
from openworld.run.train import Phase, save_progress, train_phase
from openworld.runtime import distributed
from openworld.runtime.checkpoint import Checkpoint, newest_valid
from openworld.runtime.environment import describe, select_device
from openworld.runtime.files import write_atomic, write_json
from openworld.runtime.profiling import Profile
from openworld.runtime.runlog import RunLog, progress_bar
from openworld.runtime.seeding import seed_everything
from openworld.structures import Detections, Target
from ssl_backbones.pretrain import pretrain

logger = logging.getLogger(__name__)

STAGES = ("train", "replay", "energy")
"""What a task does to its model, in order."""

EVALUATION_BATCH = 8
PARTIAL_EVERY = 400
"""Images between two savings of an evaluation."""

_POSITION = {stage: index * 10**9 for index, stage in enumerate(STAGES)}


@dataclass(frozen=True)
class Run:
    """An open run: its configuration, folder, data and log."""

    config: RunConfig
    folder: Path
    sources: Sources
    log: RunLog
    profile_steps: int = 0
    """Steps of each optimisation phase that are timed for profile.json."""

    def task_folder(self, task: int) -> Path:
        return self.folder / f"task{task}"

    def labels(self, task: int) -> LabelSpace:
        return LabelSpace.of(self.config.schedule, task, self.config.model.head)


def run_schedule(config: RunConfig, folder: Path, *, resume: bool, profile_steps: int = 0) -> list[dict[str, Any]]:
    """Carry a schedule to its end and return the metrics of each task.

    Args:
        config: the whole configuration; it is written to the folder.
        folder: where the run lives; every process of the run sees it.
        resume: go on with what the folder holds. Without it a folder that holds a run is refused.
        profile_steps: so many steps of each optimisation phase are timed for profile.json.

    Raises:
        ConfigError: the folder holds a run (and not ``resume``), or a run of another configuration; the processes do
            not divide a batch.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    with locked(folder):
        check_shares(scaled(config))
        distributed.on_first(lambda: claim(config, folder, resume=resume))
        config = scaled(config)
        log = RunLog(folder / "metrics.jsonl")
        _write_json(folder / "env.json", {**describe(), "processes": distributed.world_size()})
        with distributed.first_goes_ahead():
            sources = open_sources(config, folder)
        _write_json(folder / "data.json", sources.summary())
        run = Run(config, folder, sources, log, profile_steps)
        if config.ore.exemplars.list is not None:
            check_lists(sources.train, sources.held_out, run.labels(1), config.ore.exemplars.list, config.last_task)
        if config.pretrain is not None:
            pretrain_backbone(run, resume=resume)
        return [run_task(run, task) for task in range(1, config.last_task + 1)]


def run_backbone(config: RunConfig, folder: Path) -> Path:
    """Only the pretraining of a run; returns its backbone file. Goes on with, or returns, what the folder holds."""
    with locked(folder):
        log = RunLog(folder / "metrics.jsonl")
        pretrain_backbone(Run(config, folder, open_sources(config, folder), log), resume=True)
    return folder / "backbone" / "backbone.safetensors"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run's folder; the lock ends with the (first) process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    if not distributed.is_first():
        yield
        return
    with open(folder / ".lock", "a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            raise ConfigError(
                f"process {stream.read().strip() or '?'} works in this folder",
                where=str(folder),
                remedy="wait for it, or choose another --output",
            ) from error
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def check_shares(config: RunConfig) -> None:
    """Every process takes the same number of images of a batch.

    Raises:
        ConfigError: a batch that the processes do not divide.
    """
    processes = distributed.world_size()
    for name, options in (("train", config.train), ("increment", config.increment), ("replay", config.replay)):
        if options.batch_size % processes:
            raise ConfigError(
                f"{name}.batch_size is {options.batch_size}, which {processes} processes cannot share equally",
                remedy=f"it counts the images of all processes together: give a multiple of {processes}, or start "
                "another number of processes",
            )


def claim(config: RunConfig, folder: Path, *, resume: bool) -> None:
    """Write config.yaml into a new folder, or check that the folder's run is this one."""
    path = folder / "config.yaml"
    if not path.exists():
        write_atomic(path, dump_config(config))
        return
    if not resume:
        raise ConfigError(
            "holds a run already", where=str(folder), remedy="add --resume to go on with it, or choose another --output"
        )
    difference = config_difference(read_config(path), config)
    if difference:
        raise ConfigError(
            "the configuration differs from the one that the run began with: " + "; ".join(difference),
            where=str(path),
            remedy="resume with the same configuration, or start a new run in another folder",
        )


def config_difference(old: RunConfig, new: RunConfig) -> list[str]:
    """Leaves in which two configurations differ, as ``key: old → new``."""

    def leaves(value: Any, key: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return {name: leaf for part, item in value.items() for name, leaf in leaves(item, f"{key}.{part}").items()}
        return {key.removeprefix("."): value}

    before, after = leaves(asdict(old), ""), leaves(asdict(new), "")
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def pretrain_backbone(run: Run, *, resume: bool) -> None:
    """Contrastive pretraining on the images of the schedule's training set, without their labels."""
    options, folder = run.config.pretrain, run.folder / "backbone"
    assert options is not None
    if distributed.on_first(lambda: (folder / "card.json").exists()):
        return
    started = time.monotonic()
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
    run.log.append("phase", stage="pretrain", task=None, seconds=time.monotonic() - started)
    distributed.barrier()


# -- one task ---------------------------------------------------------------------------------------------------------


def run_task(run: Run, task: int) -> dict[str, Any]:
    """All stages of a task that are not done yet, then its evaluation."""
    folder = run.task_folder(task)
    exemplars, record = run.config.ore.exemplars, folder / "exemplars.json"
    if not exemplars.needs_detector and _absent(record):
        choose_exemplars(run, task)
    for stage in stages_of(run.config, task):
        if stage != "train" and exemplars.enabled and _absent(record):
            choose_exemplars(run, task)
        found = newest_valid(folder / "checkpoint")
        at = -1 if found is None else STAGES.index(found.state["stage"])
        if at > STAGES.index(stage) or (found is not None and at == STAGES.index(stage) and found.state["done"]):
            continue
        started = time.monotonic()
        resumed = found if found is not None and at == STAGES.index(stage) else None
        base = found if found is not None or task == 1 else newest_valid(run.task_folder(task - 1) / "checkpoint")
        run.log.truncate(run.log.offset_of_task(task) if found is None else int(found.state["log_offset"]))
        detector = prepare_detector(run, task, stage, base)
        distributed.barrier()  # before the first process writes what the others were to read, and after it has
        if stage == "energy":
            fit_energy(run, task, detector, started)
        else:
            optimise(run, task, stage, detector, resumed)
        distributed.barrier()
    return evaluate_task(run, task)


def stages_of(config: RunConfig, task: int) -> list[str]:
    """Stages that a task has: the first one replays nothing."""
    replays = task > 1 and config.ore.exemplars.enabled and config.replay.for_task(task).steps > 0
    return [stage for stage in STAGES if stage != "replay" or replays]


def prepare_detector(run: Run, task: int, stage: str, base: Checkpoint | None) -> Detector:
    """The detector with which a stage starts: from the newest checkpoint, grown where the task is new."""
    seed_everything(run.config.seed, task, stage)
    weights = backbone_file(run.folder, run.config)
    labels = run.labels(task)
    if base is None:
        if task > 1:
            raise CheckpointError(
                f"task {task} needs the detector of task {task - 1}",
                where=str(run.task_folder(task - 1)),
                remedy="run the tasks in order",
            )
        return build_detector(run.config, labels, weights)
    detector = restore_detector(run.config, base, weights)
    if int(base.state["task"]) < task:
        detector.engine.grow(labels)
        detector.ore.grow(labels)
    return detector


def optimise(run: Run, task: int, stage: str, detector: Detector, resumed: Checkpoint | None) -> None:
    """One optimisation phase: the task's new classes, or the exemplars of all."""
    config = run.config
    first, later = config.train, config.increment
    taught = (first if task == 1 else later).for_task(task)
    options = config.replay.for_task(task) if stage == "replay" else taught
    labels = run.labels(task)
    view = training_view(run.sources.train, labels) if stage == "train" else exemplar_view(run, task)
    batches = TrainBatches(
        view,
        batch_size=options.batch_size,
        seed_parts=(config.seed, task, stage),
        start_step=0 if resumed is None else int(resumed.state["step"]),
        total_steps=options.steps,
        options=config.data.loader,
        positions=distributed.local_range(options.batch_size),
    )
    phase = Phase(
        task=task,
        stage=stage,
        options=options,
        folder=run.task_folder(task) / "checkpoint",
        position=_POSITION[stage],
        first_step=0 if stage == "train" else taught.steps,
    )
    profile = Profile(run.profile_steps, detector.engine.pixel_mean.device) if run.profile_steps else None
    arguments = detector, batches, phase, run.log, resumed, {"known": list(labels.known)}
    train_phase(*arguments) if profile is None else profile_phase(profile, *arguments)
    broken = {path: why for each in distributed.gather_objects(batches.broken) for path, why in each.items()}
    if broken:
        _write_json(run.task_folder(task) / f"broken_images_{stage}.json", broken)
    if profile is not None and profile.seconds and distributed.is_first():
        write_profile(run, phase, profile)


def write_profile(run: Run, phase: Phase, profile: Profile) -> None:
    """Put a phase's times into profile.json, in place of earlier ones of the same phase."""
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
    write_json(path, {"phases": [*kept, entry]})


def choose_exemplars(run: Run, task: int) -> None:
    """Write the task's exemplars.json: images on which its classes are remembered.

    Strategies that need features or scores take them from the detector of the finished "train" stage, read back from
    its checkpoint, so that a run that is killed here and resumed chooses the same images.

    Raises:
        CheckpointError: the file is gone and a later stage has changed the detector.
    """
    options, labels, folder = run.config.ore.exemplars, run.labels(task), run.task_folder(task)
    train, held_out = run.sources.train, run.sources.held_out
    detector = None
    if options.needs_detector:
        checkpoint = newest_valid(folder / "checkpoint")
        if checkpoint is None or checkpoint.state["stage"] != "train":
            raise CheckpointError(
                f"the exemplars of task {task} are missing, and the detector that chose them has gone on",
                where=str(folder / "exemplars.json"),
                remedy="restore the file, or start the run anew",
            )
        detector = restore_detector(run.config, checkpoint, backbone_file(run.folder, run.config)).eval()
    if options.list is not None:
        record = listed_exemplars(train, held_out, labels, options.list)
    else:
        loader, seed = run.config.data.loader, run.config.seed
        record = chosen_exemplars(train, labels, options, seed, detector=detector, loader=loader)
    _write_json(folder / "exemplars.json", record)
    distributed.barrier()


def exemplar_view(run: Run, task: int) -> View:
    """Images that the task replays, its own exemplars and those of earlier tasks, with all classes known now."""
    records = [json.loads((run.task_folder(number) / "exemplars.json").read_text()) for number in range(1, task + 1)]
    return replay_view(run.sources.train, run.labels(task), replayed_images(records))


def fit_energy(run: Run, task: int, detector: Detector, started: float) -> None:
    """Fit the Weibulls on held-out images; write energy.json and the checkpoint.

    The images show the known labels only, unless the options ask to fit on annotated unknown objects.
    """
    labels = run.labels(task)
    view = held_out_view(run.sources.held_out, labels, with_unknown=detector.ore.energy.uses_unknown_labels)
    known, unknown = [torch.zeros(0)], [torch.zeros(0)]
    detector.eval()
    if detector.ore.energy.enabled:
        with progress_bar(f"task {task} energy", _own_images(len(view))) as bar:
            for images, targets in held_out_batches(view, run.config.data.loader):
                regions = detector.engine.labelled_regions(images, targets, detector.ore.label_for_energy)
                for samples, values in zip((known, unknown), detector.ore.energy_samples(regions), strict=True):
                    samples.append(values.cpu())
                bar.advance(len(images))
    report = detector.ore.fit_energy(
        distributed.gather_rows(torch.cat(known)), distributed.gather_rows(torch.cat(unknown))
    )
    _write_json(run.task_folder(task) / "energy.json", report)
    run.log.append("phase", stage="energy", task=task, seconds=time.monotonic() - started)
    phase = Phase(
        task=task,
        stage="energy",
        options=PhaseOptions(steps=1, lr=1.0),
        folder=run.task_folder(task) / "checkpoint",
        position=_POSITION["energy"],
        first_step=0,
    )
    save_progress(detector, None, phase, 1, run.log, {"known": list(labels.known)})


def held_out_batches(view: View, options: LoaderOptions) -> Iterator[tuple[list[Tensor], list[Target]]]:
    """This process's share of the held-out images, without augmentation, with the boxes of the view."""
    own = own_batches(len(view), EVALUATION_BATCH)
    for images, positions, scales in eval_batches(view, EVALUATION_BATCH, options, numbers=own):
        yield images, [eval_target(view[position], scale) for position, scale in zip(positions, scales, strict=True)]


def evaluate_task(run: Run, task: int) -> dict[str, Any]:
    """Detect on the test images, write predictions.json, score that file alone, write metrics.json."""
    folder = run.task_folder(task)
    if not _absent(folder / "metrics.json"):
        return json.loads((folder / "metrics.json").read_text())  # type: ignore[no-any-return]
    started = time.monotonic()
    checkpoint = newest_valid(folder / "checkpoint")
    assert checkpoint is not None
    run.log.truncate(int(checkpoint.state["log_offset"]))
    detector = restore_detector(run.config, checkpoint, backbone_file(run.folder, run.config)).eval()
    records = run.sources.test.records
    parts = [folder / name for name in _partial_names()]
    detections = detect_records(
        detector, records, run.config.data.loader, parts[distributed.rank()], f"task {task} test"
    )
    distributed.barrier()
    return distributed.on_first(
        lambda: score_task(run, task, detector, started, [*detections, *chain(*map(_read_partial, parts[1:]))])
    )


def score_task(
    run: Run, task: int, detector: Detector, started: float, detections: Sequence[Detections]
) -> dict[str, Any]:
    """Write predictions.json, score that file alone, write metrics.json."""
    folder, labels, records = run.task_folder(task), run.labels(task), run.sources.test.records
    images = [
        PredictedImage(record.image_id, _as_seen_from(run.folder, record.path), record.width, record.height, found)
        for record, found in zip(records, detections, strict=True)
    ]
    told = detector.ore.energy.uses_unknown_labels
    write_predictions(folder / "predictions.json", labels, images, uses_unknown_labels=told)
    metrics = evaluate_predictions(read_predictions(folder / "predictions.json"), run.sources.test)
    run.log.append("phase", stage="evaluate", task=task, seconds=time.monotonic() - started)
    write_json(folder / "metrics.json", metrics)
    for partial in folder.glob("detections*.partial"):
        partial.unlink()
    return metrics


def _partial_names() -> list[str]:
    """Of the files that keep the detections of each process's share; shares of another number of processes differ."""
    processes = distributed.world_size()
    if processes == 1:
        return ["detections.partial"]
    return [f"detections-{number + 1}-of-{processes}.partial" for number in range(processes)]


def detect_records(
    detector: Detector, records: Sequence[Record], options: LoaderOptions, partial: Path, title: str
) -> list[Detections]:
    """Detections of this process's share of the records, in order.

    They are kept in ``partial`` every now and then, so that a killed evaluation goes on, and at the end where other
    processes wait for them. An image that cannot be read has none.
    """

    def warn(problem: str) -> None:
        logger.warning("scored as an image without detections: %s", problem)

    numbers, found = own_batches(len(records), EVALUATION_BATCH), _read_partial(partial)
    left = numbers[math.ceil(len(found) / EVALUATION_BATCH) :]
    with progress_bar(title, _own_images(len(records)), done=len(found)) as bar:
        batches = eval_batches(records, EVALUATION_BATCH, options, numbers=left, broken=warn)
        for number, (images, positions, scales) in zip(left, batches, strict=True):
            sizes = [(records[position].width, records[position].height) for position in positions]
            seen = dict(zip(positions, detect_prepared(detector, images, scales, sizes), strict=True))
            first = number * EVALUATION_BATCH
            batch = range(first, min(first + EVALUATION_BATCH, len(records)))
            found += [seen.get(position, Detections.empty()) for position in batch]
            bar.advance(len(batch))
            if len(found) % PARTIAL_EVERY < EVALUATION_BATCH:
                _write_partial(partial, found)
    if distributed.world_size() > 1:
        _write_partial(partial, found)
    return found


def _as_seen_from(folder: Path, path: Path) -> str:
    """A path relative to the run's folder where it lies below, so that the folder can be moved; else absolute."""
    full, root = path.resolve(), folder.resolve()
    return str(full.relative_to(root) if full.is_relative_to(root) else full)


def _own_images(count: int) -> int:
    """How many of so many images this process evaluates."""
    own = own_batches(count, EVALUATION_BATCH)
    return min(own.stop * EVALUATION_BATCH, count) - own.start * EVALUATION_BATCH


def _absent(path: Path) -> bool:
    """The file is not there; the first process looks, and all go by that."""
    return distributed.on_first(lambda: not path.exists())


def _write_json(path: Path, content: Any) -> None:
    """:func:`write_json` by the first process, for all have the same content."""
    if distributed.is_first():
        write_json(path, content)


def _write_partial(path: Path, found: list[Detections]) -> None:
    stream = io.BytesIO()
    torch.save([asdict(detections) for detections in found], stream)
    write_atomic(path, stream.getvalue())


def _read_partial(path: Path) -> list[Detections]:
    if not path.exists():
        return []
    return [Detections(**fields) for fields in torch.load(path, weights_only=True)]
