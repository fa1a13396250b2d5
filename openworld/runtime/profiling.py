"""Where the time of a training step goes: scopes around its parts, timed only while a profile is being made.

A step is cut at every beginning and end of a scope, and each piece belongs to the innermost scope that was open: the
times of the parts add up to the step. On a CPU the cuts are read from the clock, on a GPU they are events in its
stream, so that nothing waits inside a step; what a part then counts is the time until the GPU had done it, with the
time in which the GPU waited for the host.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

WARM_UP_STEPS = 3
"""Steps of a phase before the first that is timed: caches fill and kernels are chosen in them."""
REST = "other"
"""What no scope names."""

_OFF = nullcontext()
_active: Profile | None = None


def scope(name: str) -> AbstractContextManager[None]:
    """Time the block as ``name`` if a profile is being made; otherwise nothing."""
    return _OFF if _active is None else _active.scope(name)


class Profile:
    """Times of the parts of some steps.

    Args:
        steps: how many to time.
        device: what computes; ``cuda`` is timed by events.
    """

    def __init__(self, steps: int, device: torch.device | str = "cpu") -> None:
        self.steps = steps
        self.on_gpu = torch.device(device).type == "cuda"
        self.seconds: list[dict[str, float]] = []
        """Of each timed step, seconds by part in the order in which the parts first ran."""
        self._open: list[str] = []
        self._cuts: list[tuple[str, Any]] = []

    def watch(self, modules: Iterable[tuple[str, nn.Module]]) -> AbstractContextManager[None]:
        """Within the block, a call of one of the modules is a scope of its name."""
        return self._watch(list(modules))

    @contextmanager
    def _watch(self, modules: list[tuple[str, nn.Module]]) -> Iterator[None]:
        handles = []
        for name, module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time one step."""
        global _active
        if self.on_gpu:
            torch.cuda.synchronize()
        self._open, self._cuts = [REST], [("", self._now())]
        _active = self
        try:
            yield
        finally:
            _active = None
            self._cut()
            self._open = []
        if self.on_gpu:
            torch.cuda.synchronize()
        self.seconds.append(self._sums())

    def record(self) -> dict[str, Any]:
        """For profile.json: the number of ``steps`` timed, ``step_seconds`` (median, least, most), and of each of the
        ``parts`` its name, its mean ``seconds`` a step and its ``share`` of all the time."""
        wholes = [sum(parts.values()) for parts in self.seconds]
        total = sum(wholes)
        names = dict.fromkeys(name for parts in self.seconds for name in parts)
        sums = {name: sum(parts.get(name, 0.0) for parts in self.seconds) for name in names}
        return {
            "steps": len(wholes),
            "step_seconds": {
                "median": statistics.median(wholes) if wholes else None,
                "least": min(wholes, default=None),
                "most": max(wholes, default=None),
            },
            "parts": [
                {"name": name, "seconds": seconds / len(wholes), "share": seconds / total if total else 0.0}
                for name, seconds in sums.items()
            ],
        }

    def _enter(self, name: str) -> None:
        if self._open:
            self._cut()
            self._open.append(name)

    def _leave(self) -> None:
        if len(self._open) > 1:
            self._cut()
            self._open.pop()

    def _cut(self) -> None:
        """End a piece here; it belongs to the innermost open scope."""
        self._cuts.append((self._open[-1], self._now()))

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _sums(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        for (_, before), (name, now) in zip(self._cuts, self._cuts[1:]):
            seconds = before.elapsed_time(now) / 1000 if self.on_gpu else now - before
            sums[name] = sums.get(name, 0.0) + seconds
        return sums


def watched(steps: range, profile: Profile | None) -> Iterator[int]:
    """The steps, of which the profile times as many as it wants after :data:`WARM_UP_STEPS`, or the last of a phase too
    short for that."""
    if profile is None:
        yield from steps
        return
    first = steps.start + max(0, min(WARM_UP_STEPS, len(steps) - profile.steps))
    for step in steps:
        if first <= step < first + profile.steps:
            with profile.step():
                yield step
        else:
            yield step
