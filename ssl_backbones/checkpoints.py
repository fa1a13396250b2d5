"""Checkpoints of a pretraining: everything that the next step depends on, and the options of the pretraining."""

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
from openworld.runtime.distributed import gather_objects, is_first, rank, world_size
from openworld.runtime.dotted import leaves
from openworld.runtime.runlog import RunLog
from openworld.runtime.seeding import rng_state, set_rng_state
from ssl_backbones.handover.projector import PROJECTOR_FILE
from ssl_backbones.image_files import ImageFiles
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
"""Options that do not change the weights, and may differ when a run is resumed."""


class Checkpoints:
    """Folder of the checkpoints of a pretraining. Its methods are collective; rank 0 writes."""

    def __init__(
        self,
        folder: Path,
        options: PretrainOptions,
        seed: int,
        images: int,
        files: ImageFiles,
        method: Method,
        optimizer: Optimizer,
        meter: CollapseMeter,
        log: RunLog | None,
    ) -> None:
        self.folder, self.method, self.optimizer, self.meter, self.log = folder, method, optimizer, meter, log
        self.files = files
        self.identity = {**identity(options), "seed": seed, "number of images": images}

    def save(self, step: int) -> None:
        """Write the state after ``step`` steps."""
        rng = gather_objects(rng_state())
        if not is_first():
            return
        state = {
            "identity": json.dumps(self.identity),
            "files": self.files.as_json(),
            "optimizer": self.optimizer.state_dict(),
            "rng": rng,
            "meter": self.meter.state(),
            "log_offset": self.log.offset if self.log else None,
        }
        tensors = self.method.state_dict()
        save_checkpoint(self.folder, f"pretrain-{step:07d}", position=(step,), tensors=tensors, state=state)

    def restore(self) -> int:
        """Restore the newest checkpoint, or begin without one; return the number of finished steps.

        Raises:
            CheckpointError: the checkpoint was made with other options or of other images, or does not hold the state
                of this method.
        """
        found = newest_valid(self.folder)
        if found is None:
            return self.clear()
        try:
            self.files.must_be(found.state.get("files"), found.path)
            must_agree(json.loads(found.state["identity"]), self.identity, found.path)
            self._take(found)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            missing = f"entry {error} is missing" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(
                f"does not hold the state of this pretraining ({missing})",
                where=str(found.path),
                remedy="start afresh without resuming",
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
        """Remove old checkpoints, and write one at step 0, to which the log can go back; return 0."""
        if is_first():
            for old in ("card.json", "backbone.safetensors", PROJECTOR_FILE, "neighbours.json"):
                (self.folder.parent / old).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)
        self.save(0)
        return 0


def identity(options: PretrainOptions) -> dict[str, Any]:
    """Return the options on which the weights depend, as nested dictionaries."""
    return {key: value for key, value in dataclasses.asdict(options).items() if key not in FREE}


def must_agree(there: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Check that a file was made with the current options.

    Args:
        there: :func:`identity` of what ``path`` holds; it may have the options in :data:`FREE` too.
        wanted: the same of this pretraining.
        path: for the message.

    Raises:
        CheckpointError: an option differs; the message names the first one.
    """
    had, has = (
        dict(leaves({key: value for key, value in each.items() if key not in FREE})) for each in (there, wanted)
    )
    for name in {**has, **had}:
        if had.get(name) != has.get(name):
            raise CheckpointError(
                f"was made with {name} {had.get(name)!r}, now it is {has.get(name)!r}",
                where=str(path),
                remedy="choose another output folder, or start afresh without resuming",
            )
