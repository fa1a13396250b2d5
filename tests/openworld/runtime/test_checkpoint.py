"""Checkpoints: whole or absent, verified when read, older ones as a fallback."""

import errno
import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import safetensors
import torch

from openworld.errors import CheckpointError
from openworld.runtime import checkpoint as checkpoint_module
from openworld.runtime.checkpoint import MODEL, load_checkpoint, newest_valid, save_checkpoint
from openworld.runtime.files import sha256_of


def save(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {"weight": torch.full((4, 3), float(step)), "count": torch.tensor(step)}
    state, about = {"step": step, "list": [1, 2.5]}, {"name": f"after {step}"}
    return save_checkpoint(
        folder, f"train-{step:06d}", position=(0, step), tensors=tensors, state=state, about=about, keep=keep
    )


def test_round_trip(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path, 7))
    assert checkpoint.position == (0, 7) and checkpoint.about == {"name": "after 7"}
    assert checkpoint.state == {"step": 7, "list": [1, 2.5]}
    assert torch.equal(checkpoint.tensors["weight"], torch.full((4, 3), 7.0))
    assert int(checkpoint.tensors["count"]) == 7


def test_the_oldest_ones_are_removed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000002", "train-000003"]


def test_positions_are_compared_from_the_left(tmp_path: Path) -> None:
    """A later stage is newer, whatever its step; 10 steps are more than 9."""
    for position in ((1, 2), (0, 9), (0, 10)):
        save_checkpoint(tmp_path, "-".join(map(str, position)), position=position, tensors={}, state={})
    found = newest_valid(tmp_path)
    assert found is not None and found.position == (1, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-10", "1-2"]


def test_a_checkpoint_whose_work_is_done_has_no_state(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "done", position=(1,), tensors={"a": torch.ones(2)}, state=None)
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["manifest.json", "model.safetensors"]
    found = newest_valid(tmp_path)
    assert found is not None and torch.equal(found.tensors["a"], torch.ones(2))
    with pytest.raises(CheckpointError, match=r"has no state\.pt"):
        _ = found.state


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_every_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    """safetensors alone makes files that nobody else can read."""
    before = os.umask(mask)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in path.iterdir()} == dict.fromkeys(
        ("model.safetensors", "state.pt", "manifest.json"), 0o666 & ~mask
    )


@pytest.mark.parametrize("failing", ["safetensors.torch.save_file", "torch.save", "os.replace"])
def test_a_full_disk_is_said_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Each library has an error of its own for it."""
    errors = {
        "safetensors.torch.save_file": safetensors.SafetensorError("I/O error: File too large (os error 27)"),
        "torch.save": RuntimeError("[enforce fail at inline_container.cc:746] . PytorchStreamWriter failed"),
        "os.replace": OSError(errno.ENOSPC, "No space left on device"),
    }
    save(tmp_path, 1)

    def fail(*_: object) -> None:
        raise errors[failing]

    monkeypatch.setattr(failing, fail)
    with pytest.raises(CheckpointError, match=r"train-000002: cannot be written .*\nWhat to do: free some space"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["train-000001"]
    found = newest_valid(tmp_path)
    assert found is not None and found.position == (0, 1)


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name costs the manifest; the model, its own file, hashed once; the state, all of it."""
    save(tmp_path, 1)
    hashed: list[str] = []

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr(checkpoint_module, "sha256_of", noted)
    found = newest_valid(tmp_path, [])
    assert found is not None and found.about == {"name": "after 1"} and hashed == []
    found = newest_valid(tmp_path, [MODEL])
    assert found is not None and len(found.tensors) == 2 and hashed == ["model.safetensors"]
    assert found.state["step"] == 1 and hashed == ["model.safetensors", "state.pt"]
    (tmp_path / "train-000001" / "state.pt").unlink()
    assert newest_valid(tmp_path, [MODEL]) is not None
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        newest_valid(tmp_path)


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "absent") is None


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("fault", ["flipped byte", "truncated", "empty", "missing"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, file: str, fault: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = bytearray(path.read_bytes())
    if fault == "flipped byte":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif fault == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    found = newest_valid(tmp_path)
    assert found is not None and found.position == (0, 1)


def test_all_damaged_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        newest_valid(tmp_path)


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return os.system, (f"touch {marker}",)

    torch.save({"step": Hostile()}, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    import hashlib

    manifest["files"]["state.pt"]["sha256"] = hashlib.sha256((path / "state.pt").read_bytes()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="cannot be read"):
        _ = load_checkpoint(path).state
    assert not marker.exists()


def write_without_end(folder: Path, pipe: Connection) -> None:
    """Save one checkpoint after the other and say so."""
    for step in range(1, 10**6):
        tensors = {"weight": torch.full((300_000,), float(step))}
        save_checkpoint(folder, f"train-{step:06d}", position=(step,), tensors=tensors, state={"step": step})
        pipe.send(step)


def test_a_writer_killed_at_any_moment_leaves_a_valid_checkpoint(tmp_path: Path) -> None:
    """The writer is a fork of this process, which has imported torch already."""
    context = multiprocessing.get_context("fork")
    for round_ in range(8):
        folder = tmp_path / str(round_)
        here, there = context.Pipe(duplex=False)
        writer = context.Process(target=write_without_end, args=(folder, there))
        writer.start()
        there.close()
        written = [here.recv(), here.recv()]
        time.sleep(0.0065 * round_)
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        with suppress(EOFError):
            while True:
                written.append(here.recv())
        found = newest_valid(folder)
        assert found is not None and found.position >= (max(written),)
        assert found.state == {"step": found.position[0]}
        assert torch.equal(found.tensors["weight"], torch.full((300_000,), float(found.position[0])))
