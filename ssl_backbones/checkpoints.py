"""Checkpoints of a pretraining: everything that the next step depends on, and whose they are."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from openworld.errors import CheckpointError
from openworld.runtime.checkpoint import Checkpoint, newest_valid, save_checkpoint
from openworld.runtime.distributed import is_first, objects_of_all, rank, world_size
from openworld.runtime.dotted import leaves
from openworld.runtime.runlog import RunLog
from openworld.runtime.seeding import rng_state, set_rng_state
from ssl_backbones.handover.projector import PROJECTOR_FILE
from ssl_backbones.meters import CollapseMeter
from ssl_backbones.method import Method
from ssl_backbones.options import PretrainOptions

FREE = (
    "checkpoint_every",
    "log_every",
    "workers",
    "images",
    "labelled",
    "probe_every",
    "probe_images",
)
"""Options that may change between a run and its resumption without changing the weights."""


class Checkpoints:
    """The folder of one pretraining's checkpoints. Its methods are collective; rank 0 writes."""

    def __init__(
        self,
        folder: Path,
        options: PretrainOptions,
        seed: int,
        images: int,
        method: Method,
        optimizer: Optimizer,
        meter: CollapseMeter,
        log: RunLog | None,
    ) -> None:
        self.folder, self.method, self.optimizer, self.meter, self.log = folder, method, optimizer, meter, log
        self.identity = {**identity(options), "seed": seed, "number of images": images}

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps."""
        rng = objects_of_all(rng_state())
        if not is_first():
            return
        state = {
            "identity": json.dumps(self.identity),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng,
            "meter": self.meter.state(),
            "log_offset": self.log.offset if self.log else None,
        }
        tensors = self.method.state_dict()
        save_checkpoint(self.folder, f"pretrain-{step:07d}", position=(step,), tensors=tensors, state=state)

    def restore(self) -> int:
        """Take up the newest checkpoint; returns the steps done. Without one, begin.

        Raises:
            CheckpointError: it was made with other options, or by a version whose checkpoints hold other things.
        """
        found = newest_valid(self.folder)
        if found is None:
            return self.clear()
        try:
            must_agree(json.loads(found.state["identity"]), self.identity, found.path)
            self._take(found)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            missing = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(
                f"does not hold what a checkpoint of this version holds ({missing})",
                where=str(found.path),
                remedy="finish it with the version that began it, or start afresh without resuming",
            ) from error
        return found.position[0]

    def _take(self, found: Checkpoint) -> None:
        self.method.load_state_dict(found.tensors)
        self.optimizer.load_state_dict(found.state["optimizer"])
        self.meter.load_state(found.state["meter"])
        rng = found.state["rng"]
        set_rng_state(rng[rank() if len(rng) == world_size() else 0])
        if self.log and found.state["log_offset"] is not None:
            self.log.truncate(found.state["log_offset"])

    def clear(self) -> int:
        """Begin: nothing old in the way, and a checkpoint at step 0, so that the log has a place to go back to."""
        if is_first():
            for old in ("card.json", "backbone.safetensors", PROJECTOR_FILE, "neighbours.json"):
                (self.folder.parent / old).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.save(0)
        return 0


def identity(options: PretrainOptions) -> dict[str, Any]:
    """The options that the weights depend on."""
    return {key: value for key, value in dataclasses.asdict(options).items() if key not in FREE}


def must_agree(there: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError where what is there was made with other options, or by a version with others."""
    found = difference(there, wanted)
    if found is not None:
        raise CheckpointError(found[0], where=str(path), remedy=found[1])


def difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first thing in which two :func:`identity` differ, and what to do about it; None where they agree.

    An option that is not there, because the version that wrote it had none, counts as left at its default.
    """
    other_version = "finish it with the version that began it, or start afresh without resuming"
    had, has = (dict(leaves({key: entries[key] for key in entries if key not in FREE})) for entries in (there, wanted))
    for name in had:
        if name not in has:
            return f"was made with the option {name} ({had[name]!r}), which this version does not have", other_version
    usual = dict(leaves(identity(PretrainOptions())))
    for name, value in has.items():
        if name not in had and (name not in usual or usual[name] != value):
            return (
                f"was made by a version without the option {name}, which is now {value!r}",
                f"leave {name} at its default {usual[name]!r}, or {other_version}" if name in usual else other_version,
            )
        if had.get(name, value) != value:
            return (
                f"was made with {name} {had[name]!r}, now it is {value!r}",
                "choose another output folder, or start afresh without resuming",
            )
    return None
