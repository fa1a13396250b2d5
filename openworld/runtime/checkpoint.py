"""Checkpoints that survive a power cut: written beside, synced, renamed, and checked by SHA-256 when read.

One checkpoint is a folder ``NAME/`` with

    model.safetensors   tensors of the model (parameters and buffers)
    state.pt            state to continue from: optimiser, generators (plain containers, read with
                        ``weights_only=True``); absent where nothing is left to continue
    manifest.json       position (integers, compared from the left), the writer's description of the checkpoint, and
                        SHA-256 and size of each file

The manifest alone describes a checkpoint; tensors and state are read only on request.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from openworld.errors import CheckpointError
from openworld.runtime.files import sha256_of, sync_file, sync_folder

logger = logging.getLogger(__name__)

MODEL, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"

_REMEDY = "delete this folder and resume from an older checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest has been read.

    Args:
        path: its folder.
        position: orders the checkpoints of a folder; the largest is the newest.
        about: the writer's description.
        sha256: hexadecimal digest of each of its files, by name.
    """

    path: Path
    position: tuple[int, ...]
    about: dict[str, Any]
    sha256: dict[str, str]
    _checked: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Read the parameters and buffers of the model, on the CPU.

        Raises:
            CheckpointError: the file is missing, or is not the one that was written.
        """
        self.check([MODEL])
        try:
            return safetensors.torch.load_file(self.path / MODEL)
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise self._unreadable(error) from error

    @cached_property
    def state(self) -> dict[str, Any]:
        """Read the state to continue from, on the CPU.

        Raises:
            CheckpointError: the file is missing, is not the one that was written, or holds more than plain containers.
        """
        if STATE not in self.sha256:
            raise CheckpointError(f"has no {STATE}, for its work is done", where=str(self.path), remedy=_REMEDY)
        self.check([STATE])
        try:
            return torch.load(self.path / STATE, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
        except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise self._unreadable(error) from error

    def check(self, files: Collection[str]) -> None:
        """Compare files with their SHA-256, each once; files that the checkpoint never had are skipped.

        Raises:
            CheckpointError: a file is missing or differs.
        """
        for file in files:
            if file not in self.sha256 or file in self._checked:
                continue
            try:
                found = sha256_of(self.path / file)
            except OSError as error:
                raise self._unreadable(error) from error
            if found != self.sha256[file]:
                raise CheckpointError(f"{file} does not match its SHA-256", where=str(self.path), remedy=_REMEDY)
            self._checked.add(file)

    def _unreadable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"cannot be read ({error})", where=str(self.path), remedy=_REMEDY)


def save_checkpoint(
    folder: Path,
    name: str,
    *,
    position: tuple[int, ...],
    tensors: dict[str, Tensor],
    state: dict[str, Any] | None,
    about: dict[str, Any] | None = None,
    keep: int = 2,
) -> Path:
    """Write ``folder/name`` atomically, then remove all but the ``keep`` newest checkpoints of the folder.

    Args:
        folder: folder of the checkpoints of this run (or phase).
        name: folder name of this checkpoint, e.g. ``train-000200``.
        position: grows with the progress; compared from the left, the largest is the newest.
        tensors: parameters and buffers; stored contiguous, on the CPU.
        state: state to continue from, plain containers and tensors only; None if nothing is left to continue.
        about: JSON for the manifest, which is read without tensors and state.

    Raises:
        CheckpointError: it cannot be written, as on a full disk; older ones are still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = folder / f".tmp-{name}-{os.getpid()}"
    files = [MODEL] if state is None else [MODEL, STATE]
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    temporary.mkdir()
    try:
        safetensors.torch.save_file(plain, temporary / MODEL)
        if state is not None:
            torch.save(state, temporary / STATE)
        manifest = {
            "position": list(position),
            "about": about or {},
            "files": {
                file: {"sha256": sha256_of(temporary / file), "bytes": (temporary / file).stat().st_size}
                for file in files
            },
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
        for file in files:  # safetensors makes files that only their owner can read, whatever the umask says
            shutil.copymode(temporary / MANIFEST, temporary / file)
        for file in (*files, MANIFEST):
            sync_file(temporary / file)
        sync_folder(temporary)
        final = folder / name
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError | RuntimeError | safetensors.SafetensorError):
            raise CheckpointError(
                f"cannot be written ({error})",
                where=str(folder / name),
                remedy="free some space, or let your user write there; --resume then goes on from the last checkpoint",
            ) from error
        raise
    sync_folder(folder)
    for old in _by_position(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read the manifest of one checkpoint; its tensors and state are verified and read only on request.

    Raises:
        CheckpointError: the manifest is missing or damaged.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        position = tuple(int(number) for number in manifest["position"])
        sha256 = {file: str(listed["sha256"]) for file, listed in manifest["files"].items()}
        return Checkpoint(path, position, dict(manifest["about"]), sha256)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path), remedy=_REMEDY) from error


def newest_valid(folder: Path, files: Collection[str] = (MODEL, STATE)) -> Checkpoint | None:
    """Return the newest checkpoint of a folder that verifies, or None if the folder holds no checkpoint.

    Damaged checkpoints are skipped with a warning.

    Args:
        folder: folder of the checkpoints.
        files: files that must verify. With :data:`MODEL` alone the state is neither read nor hashed; with none the
            manifest is enough.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged. (To start afresh silently would lose work.)
    """
    if not folder.is_dir():
        return None
    problems = []
    for path in reversed(_by_position(folder)):
        try:
            found = load_checkpoint(path)
            found.check(files)
            return found
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
    """Return the finished checkpoints of a folder, oldest first. An unreadable manifest counts as oldest."""
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]

    def position(path: Path) -> tuple[tuple[int, ...], str]:
        try:
            return load_checkpoint(path).position, path.name
        except CheckpointError:
            return (), path.name

    return sorted(found, key=position)
