"""The parts of a detector's training step in a profile: the functions whose calls are timed."""

from __future__ import annotations

import torch
from torch import distributed as dist
from torch import nn

from openworld.data.loader import TrainBatches
from openworld.detector import Detector
from openworld.run import train
from openworld.run.validation import Validation
from openworld.runtime.checkpoint import Checkpoint
from openworld.runtime.distributed import world_size
from openworld.runtime.gradients import GradientAverage
from openworld.runtime.profiling import Call, Profile
from openworld.runtime.runlog import RunLog, StepBar
from openworld.runtime.weight_average import WeightAverage


def profile_phase(
    profile: Profile,
    detector: Detector,
    batches: TrainBatches,
    phase: train.Phase,
    log: RunLog,
    resume_from: Checkpoint | None,
    validation: Validation | None = None,
) -> None:
    """Run :func:`openworld.run.train.train_phase`, and time some of its steps."""
    with profile.watch(calls_of_a_step(detector, log), detector.engine.parts(), whole=("validation",)):
        timed = profile.each(batches.by_step(), len(batches))
        train.train_phase(detector, timed, phase, log, resume_from, validation)


def calls_of_a_step(detector: Detector, log: RunLog) -> list[Call]:
    """Return part, owner and name of each timed function; the parts of the engine's forward pass are modules."""
    messages = [("communication", dist, name) for name in ("all_reduce", "all_gather", "broadcast")]
    return [
        ("regions", detector, "losses"),
        ("method", detector.method, "relabel"),
        ("method", detector.method, "losses"),
        ("backward", torch.optim.Optimizer, "zero_grad"),
        ("backward", torch.Tensor, "backward"),
        *([*messages, ("communication", GradientAverage, "wait")] if world_size() > 1 else []),
        ("optimiser", nn.utils, "clip_grad_norm_"),
        *(("optimiser", kind, "step") for kind in (torch.optim.AdamW, torch.optim.SGD)),
        ("optimiser", WeightAverage, "update"),
        ("validation", Validation, "best_of"),
        ("logging", log, "append"),
        ("logging", StepBar, "advance"),
        ("checkpoint", train, "save_progress"),
    ]
