"""Checkpoints that survive a power cut: written beside, synced, renamed, and checked by SHA-256 when read.

One checkpoint is a folder ``NAME/`` with

    model.safetensors   tensors of the model (parameters and buffers)
    state.pt            optimiser, generators, counters (plain containers, read with ``weights_only=True``)
    manifest.json       position (an integer that grows), SHA-256 and size of the two files
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from openworld.errors import CheckpointError
from openworld.runtime.files import sha256_of, sync_file, sync_folder

logger = logging.getLogger(__name__)

_FILES = ("model.safetensors", "state.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: ``tensors`` of the model, ``state`` of everything else."""

    path: Path
    position: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, name: str, *, position: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int = 2
) -> Path:
    """Write ``folder/name`` atomically, then remove all but the ``keep`` newest checkpoints of the folder.

    Args:
        folder: where this run (or phase) keeps its checkpoints.
        name: folder name of this one, e.g. ``train-000200``.
        position: grows with training; the largest is the newest.
        tensors: parameters and buffers; stored contiguous, on the CPU.
        state: plain containers and tensors only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder / f".tmp-{name}-{os.getpid()}"
    temporary.mkdir()
    try:
        plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        safetensors.torch.save_file(plain, temporary / "model.safetensors")
        torch.save(state, temporary / "state.pt")
        manifest = {
            "position": position,
            "files": {
                file: {"sha256": sha256_of(temporary / file), "bytes": (temporary / file).stat().st_size}
                for file in _FILES
            },
        }
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2))
        for file in (*_FILES, "manifest.json"):
            sync_file(temporary / file)
        sync_folder(temporary)
        final = folder / name
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    for old in _by_position(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        CheckpointError: a file is missing, damaged, or holds more than plain containers.
    """
    remedy = "delete this folder and resume from an older checkpoint"
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        position, listed = int(manifest["position"]), manifest["files"]
        for file in _FILES:
            if sha256_of(path / file) != listed[file]["sha256"]:
                raise CheckpointError(f"{file} does not match its SHA-256", where=str(path), remedy=remedy)
        tensors = safetensors.torch.load_file(path / "model.safetensors")
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path), remedy=remedy) from error
    except (pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path), remedy=remedy) from error
    return Checkpoint(path, position, tensors, state)


def newest_valid(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder that verifies, or None where there is none at all.

    Damaged ones are passed over with a warning.

    Raises:
        CheckpointError: there are checkpoints and all are damaged. (Starting afresh silently would lose work.)
    """
    if not folder.is_dir():
        return None
    problems = []
    for path in reversed(_by_position(folder)):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("passed over a damaged checkpoint: %s", error)
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            "every checkpoint is damaged:\n" + "\n".join(problems),
            where=str(folder),
            remedy="delete the folder to start this phase again",
        )
    return None


def _by_position(folder: Path) -> list[Path]:
    """Finished checkpoints of a folder, oldest first. An unreadable manifest counts as oldest."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def position(path: Path) -> tuple[int, str]:
        try:
            return int(json.loads((path / "manifest.json").read_text())["position"]), path.name
        except (OSError, ValueError, KeyError, TypeError):
            return -1, path.name

    return sorted(found, key=position)
