"""Checkpoints of a task: their progress, and the detectors that they hold.

A checkpoint and the run's config.yaml are enough to restore the detector; the backbone file that the training started
from is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openworld.config import RunConfig
from openworld.detector import Detector, detector_to_load
from openworld.errors import CheckpointError
from openworld.labels import LabelSpace
from openworld.runtime import distributed
from openworld.runtime.checkpoint import MODEL, Checkpoint, newest_valid, save_checkpoint
from openworld.runtime.runlog import RunLog
from openworld.runtime.seeding import rng_state

STAGES = ("train", "replay", "calibrate")
"""The stages that change the model of a task, in order."""


@dataclass(frozen=True)
class Progress:
    """Progress of a task, as recorded in the manifest of a checkpoint.

    Args:
        task: number of the task, from 1.
        stage: one of :data:`STAGES`.
        step: number of finished steps of the stage; a stage without an optimiser is one step.
        done: the stage is finished.
        known: classes of the head, in the order of its rows.
        log_offset: length of the run's log in bytes.
    """

    task: int
    stage: str
    step: int
    done: bool
    known: tuple[str, ...]
    log_offset: int = 0

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Progress:
        """Read the progress from the manifest of a run's checkpoint.

        Raises:
            CheckpointError: this is not a checkpoint of a task.
        """
        try:
            return cls(**{**checkpoint.about, "known": tuple(checkpoint.about["known"])})
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"does not say of which task and stage it is ({error})",
                where=str(checkpoint.path),
                remedy="give the checkpoint of a run that this version made",
            ) from error

    @property
    def position(self) -> tuple[int, int]:
        """Sort key of the checkpoints of a task: by stage, then by step."""
        return STAGES.index(self.stage), self.step

    @property
    def task_is_finished(self) -> bool:
        """Whether the model of the task is final."""
        return self.done and self.stage == STAGES[-1]

    def has_done(self, stage: str) -> bool:
        """Return whether the stage is finished, or a later one has begun."""
        here, there = STAGES.index(self.stage), STAGES.index(stage)
        return here > there or (here == there and self.done)


def checkpoints_of(run: Path, task: int) -> Path:
    """Return the folder of a task's checkpoints in the folder of a run."""
    return run / f"task{task}" / "checkpoint"


def save_progress(
    folder: Path, detector: Detector, progress: Progress, log: RunLog, going_on: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint; only the first process writes, since all hold the same.

    What a stage goes on with and the generators are written while it is running. A finished stage writes the model
    alone, from which the next stage starts.

    Args:
        folder: see :func:`checkpoints_of`.
        detector: whose state dict is written.
        progress: of the task; the length of the log is filled in.
        log: of the run.
        going_on: state of a running stage beside the model and the generators, such as its optimiser's.
    """
    if not distributed.is_first():
        return
    state = None if progress.done or going_on is None else {**going_on, "rng": rng_state()}
    save_checkpoint(
        folder,
        f"{progress.stage}-{progress.step:06d}",
        position=progress.position,
        tensors=detector.state_dict(),
        state=state,
        about={**asdict(progress), "log_offset": log.offset},
    )


def restore_detector(config: RunConfig, checkpoint: Checkpoint) -> Detector:
    """Restore the detector of a checkpoint from its tensors alone, with the label space of the task that wrote it.

    Args:
        config: of the run, with the architecture resolved.

    Raises:
        CheckpointError: the checkpoint is damaged, or belongs to another model.
    """
    progress = Progress.of(checkpoint)
    space = LabelSpace.of(config.schedule, progress.task, config.model.layout)
    remedy = "use the configuration of the run that wrote it"
    if space.known != progress.known:
        raise CheckpointError(
            f"holds the classes {list(progress.known)}, the configuration {list(space.known)}",
            where=str(checkpoint.path),
            remedy=remedy,
        )
    detector = detector_to_load(config, space)
    try:
        detector.load_state_dict(checkpoint.tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"does not fit the configured model: {str(error).splitlines()[1].strip()}",
            where=str(checkpoint.path),
            remedy=remedy,
        ) from error
    return detector


def finished_tasks(run: Path, config: RunConfig) -> dict[int, Checkpoint]:
    """Return the last checkpoint of each finished task, by its number. Their models are verified, but not read.

    Raises:
        CheckpointError: all checkpoints of a task are damaged.
    """
    found = {}
    for task in range(1, config.last_task + 1):
        checkpoint = finished_task(run, task)
        if checkpoint is not None:
            found[task] = checkpoint
    return found


def finished_task(run: Path, task: int) -> Checkpoint | None:
    """Return the last checkpoint of a task, its model verified; None for a task that is not finished.

    Raises:
        CheckpointError: all checkpoints of the task are damaged.
    """
    checkpoint = newest_valid(checkpoints_of(run, task), [MODEL])
    return checkpoint if checkpoint is not None and Progress.of(checkpoint).task_is_finished else None


def load_task(run: Path, config: RunConfig, task: int | None) -> Detector:
    """Load the detector of a finished task, in evaluation mode; ``task`` None means the newest finished one.

    Raises:
        CheckpointError: the run has not finished this task.
    """
    for number in range(config.last_task, 0, -1) if task is None else [task]:
        checkpoint = finished_task(run, number)
        if checkpoint is not None:
            return restore_detector(config, checkpoint).eval()
    finished = [str(number) for number in range(1, config.last_task + 1) if finished_task(run, number) is not None]
    raise CheckpointError(
        "has no finished task" if task is None else f"has no finished task {task}",
        where=str(run),
        remedy=f"choose from {', '.join(finished)}" if finished else "finish the run first: openworld run --resume",
    )
