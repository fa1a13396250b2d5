"""Randomness that can be resumed: seeds derived from names, and the state of every generator as plain containers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Derive a 63-bit seed from numbers and names, the same on every machine and in every process."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Make a CPU torch generator seeded from ``parts``."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """Make a numpy generator seeded from ``parts``."""
    return np.random.default_rng(derive_seed(*parts))


def seed_everything(*parts: int | str) -> None:
    """Seed the global generators of Python, numpy and torch (CUDA included)."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def global_draws(source: torch.Generator) -> Iterator[None]:
    """Seed torch's global CPU generator from ``source``, for code that draws from it, and restore it afterwards.

    The generators of GPUs, of Python and of numpy are left alone. One number is drawn from ``source``.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=source))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
        yield


def rng_state() -> dict[str, Any]:
    """Return the state of the global generators, loadable with ``torch.load(weights_only=True)``."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "python": random.getstate(),
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "cuda_current": torch.cuda.current_device() if torch.cuda.is_available() else 0,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the state of :func:`rng_state`.

    If the machine has another number of GPUs, or if this process uses another GPU than the process that wrote the state
    (all processes of a training draw alike), the current GPU continues with the state of the writer's GPU.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        current = int(state.get("cuda_current", 0))
        if len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        torch.cuda.set_rng_state(state["cuda"][current], torch.cuda.current_device())
