"""The log of a run: metrics.jsonl, one JSON object per line; console and report are views of it."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openworld.runtime import distributed


class RunLog:
    """Appends to ``metrics.jsonl``. Checkpoints store its ``offset``, so that a resumed run repeats no line.

    With several processes only the first one writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()

    def append(self, event: str, **fields: Any) -> None:
        """Write one line. Numbers that are not finite are written as null.

        Raises:
            OSError: the line cannot be written; it names the file.
        """
        if not distributed.is_first():
            return
        line = json.dumps({"event": event, **{key: _finite(value) for key, value in fields.items()}}, allow_nan=False)
        try:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    @contextmanager
    def phase(self, stage: str, task: int | None = None) -> Iterator[None]:
        """Write a line "phase" at the end of the block, unless it raises: its duration, and the CPU time that this
        process and its finished children spent, both in seconds."""
        started, spent = time.monotonic(), _cpu_seconds()
        yield
        seconds, cpu_seconds = time.monotonic() - started, _cpu_seconds() - spent
        self.append("phase", stage=stage, task=task, seconds=seconds, cpu_seconds=cpu_seconds)

    @property
    def offset(self) -> int:
        """Length of the log in bytes."""
        return self.path.stat().st_size

    def truncate(self, offset: int) -> None:
        """Remove all lines after ``offset`` (work that a killed run did after its last checkpoint)."""
        if distributed.is_first() and self.offset > offset:
            os.truncate(self.path, offset)

    def offset_of_task(self, task: int) -> int:
        """Return the offset of the first line of a task; the log's length if there is none."""
        offset = 0
        with open(self.path, "rb") as stream:
            for line in stream:
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    return offset
                if entry.get("task") == task:
                    return offset
                offset += len(line)
        return offset

    def read(self) -> list[dict[str, Any]]:
        """Return all complete lines; a line that a killed process left half-written is skipped."""
        entries = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return entries


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class StepBar:
    """Handle of a progress bar: ``advance(loss=0.71)`` moves it by one or more steps, and shows the numbers."""

    def __init__(self, progress: Progress, bar: Any) -> None:
        self._progress, self._bar = progress, bar

    def advance(self, steps: int = 1, /, **numbers: float) -> None:
        text = "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())
        self._progress.update(self._bar, advance=steps, numbers=text)


@contextmanager
def progress_bar(description: str, total: int, *, done: int = 0, console: Console | None = None) -> Iterator[StepBar]:
    """Show a bar with count, elapsed time and ETA; one line at the end if the console is not a terminal.

    With several processes only the first one shows it.
    """
    console = console or Console(stderr=True, quiet=not distributed.is_first())
    with Progress(
        TextColumn("{task.description:<16}", style="bold", markup=False),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        console=console,
    ) as progress:
        yield StepBar(progress, progress.add_task(description, total=total, completed=done, numbers=""))
