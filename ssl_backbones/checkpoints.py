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
from openworld.runtime.checkpoint import newest_valid, save_checkpoint
from openworld.runtime.distributed import is_first, objects_of_all, rank, world_size
from openworld.runtime.runlog import RunLog
from openworld.runtime.seeding import rng_state, set_rng_state
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
        save_checkpoint(self.folder, f"pretrain-{step:07d}", position=step, tensors=tensors, state=state)

    def restore(self) -> int:
        """Take up the newest checkpoint; returns the steps done. Without one, begin."""
        found = newest_valid(self.folder)
        if found is None:
            return self.clear()
        there = {**identity(PretrainOptions()), **json.loads(found.state["identity"])}
        must_agree(there, self.identity, found.path)
        self.method.load_state_dict(found.tensors)
        self.optimizer.load_state_dict(found.state["optimizer"])
        self.meter.load_state(found.state["meter"])
        rng = found.state["rng"]
        set_rng_state(rng[rank() if len(rng) == world_size() else 0])
        if self.log and found.state["log_offset"] is not None:
            self.log.truncate(found.state["log_offset"])
        return found.position

    def clear(self) -> int:
        """Begin: nothing old in the way, and a checkpoint at step 0, so that the log has a place to go back to."""
        if is_first():
            for old in ("card.json", "backbone.safetensors", "neighbours.json"):
                (self.folder.parent / old).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.save(0)
        return 0


def identity(options: PretrainOptions) -> dict[str, Any]:
    """The options that the weights depend on."""
    return {key: value for key, value in dataclasses.asdict(options).items() if key not in FREE}


def must_agree(there: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError where what is there was made with other options."""
    for key, value in wanted.items():
        if there.get(key) != value:
            raise CheckpointError(
                f"was made with {key} {there.get(key)!r}, now it is {value!r}",
                where=str(path),
                remedy="choose another output folder, or start afresh without resuming",
            )
