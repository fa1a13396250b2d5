"""Time per part of a training step. Timed calls are wrapped from outside, only while a profile is made.

A step is cut at the beginning and end of every timed call, and each piece belongs to the innermost running call: the
times of the parts add up to that of the step. On a CPU the cuts are read from the clock. On a GPU they are events in
its stream, so that nothing waits inside a step; the time of a part then ends when the GPU has finished it, and includes
the time in which the GPU waited for the host.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

WARM_UP_STEPS = 3
"""Number of untimed steps at the start of a phase, in which caches fill and kernels are chosen."""
REST = "other"
"""Name of the time outside of all timed calls."""

Call = tuple[str, Any, str]
"""Name of a part, an object or class or module, and the name of its function whose calls are the part."""

Batch = TypeVar("Batch")


class Profile:
    """Times of the parts of some steps.

    Args:
        steps: number of steps to time.
        device: of the computation; ``cuda`` is timed by events.
    """

    def __init__(self, steps: int, device: torch.device | str = "cpu") -> None:
        self.steps = steps
        self.on_gpu = torch.device(device).type == "cuda"
        self.seconds: list[dict[str, float]] = []
        """Per timed step, seconds by part, in the order in which the parts first ran."""
        self._open: list[str] = []
        self._cuts: list[tuple[str, Any]] = []
        self._whole: frozenset[str] = frozenset()

    @contextmanager
    def watch(
        self, calls: Iterable[Call], modules: Iterable[tuple[str, nn.Module]] = (), *, whole: Iterable[str] = ()
    ) -> Iterator[None]:
        """Within the block, time the calls of some functions and of some modules.

        Args:
            calls: functions, which are replaced by timed ones where they are looked up, and put back at the end.
            modules: names of parts, and the modules whose forward passes are the part.
            whole: names of parts that keep the time of the timed calls inside of them.
        """
        calls = list(calls)
        self._whole = frozenset(whole)
        kept = [(owner, attribute, vars(owner).get(attribute)) for _, owner, attribute in calls]
        handles = []
        try:
            for name, owner, attribute in calls:
                setattr(owner, attribute, self._timed(name, getattr(owner, attribute)))
            for name, module in modules:
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
                handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
            yield
        finally:
            self._open = []
            for handle in handles:
                handle.remove()
            for owner, attribute, before in reversed(kept):
                delattr(owner, attribute) if before is None else setattr(owner, attribute, before)

    def each(self, batches: Iterable[Batch], total: int) -> Iterator[Batch]:
        """Yield the batches of a phase, and time its steps: each lasts until the next batch is asked for.

        The steps after the first :data:`WARM_UP_STEPS` are timed, or the last ones of a phase too short for that.

        Args:
            batches: of the steps of the phase; making one is the part ``data``.
            total: number of batches.
        """
        first = max(0, min(WARM_UP_STEPS, total - self.steps))
        source = iter(batches)
        for number in range(total):
            if first <= number < first + self.steps:
                self._begin_step()
            self._enter("data")
            batch = next(source)
            self._leave()
            yield batch
            self._end_step()
        yield from source

    def record(self) -> dict[str, Any]:
        """Summarise the steps for profile.json.

        Returns:
            ``steps``, the number timed; ``step_seconds`` with the median, least and most; ``parts``, each with its
            name, mean ``seconds`` per step and ``share`` of all the time, 0 to 1.
        """
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

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self._enter(name)
            try:
                return function(*arguments, **named)
            finally:
                self._leave()

        return timed

    def _begin_step(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self._open, self._cuts = [REST], [("", self._now())]

    def _end_step(self) -> None:
        if self._open:
            self._cut()
            self._open = []
            if self.on_gpu:
                torch.cuda.synchronize()
            self.seconds.append(self._sums())

    def _enter(self, name: str) -> None:
        if self._open:
            self._cut()
            self._open.append(self._open[-1] if self._open[-1] in self._whole else name)

    def _leave(self) -> None:
        if len(self._open) > 1:
            self._cut()
            self._open.pop()

    def _cut(self) -> None:
        """End a piece of time here; it belongs to the innermost running call."""
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
