"""A pair of processes in one gloo group, for tests of what several processes compute together.

The pair is started once per test session, because importing torch takes longer than most of what is tested. Each call
of :meth:`TwoProcesses.run` has a process group of its own. Use the fixture ``two_processes``::

    def work(rank: int, rows: Tensor) -> Tensor:
        return distributed.gather_rows(rows[rank])

    def test_rows_of_both(two_processes: TwoProcesses) -> None:
        for gathered in two_processes.run(work, rows):
            assert torch.equal(gathered, rows.flatten(0, 1))
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import distributed as dist

RANKS = (0, 1)
PATIENCE = timedelta(seconds=100)
"""Timeout of a collective. What hangs ends with an error of gloo, which says more than that time ran out."""


class TwoProcesses:
    """Two processes that run functions as ranks 0 and 1."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="two-processes-")
        self.started: dict[int, tuple[BaseProcess, Connection]] = {}
        self.calls = 0
        self.printed_before = dict.fromkeys(RANKS, 0)

    def run(
        self, work: Callable[..., Any], *arguments: Any, seconds: float = 150, exits: Mapping[int, int] | None = None
    ) -> list[Any]:
        """Call ``work(rank, *arguments)`` in both processes and return the two values.

        Args:
            work: a function at the top level of a module of tests. It finds one thread and the group of both processes.
            arguments: what can be pickled; so can the values of ``work``.
            seconds: how long both may take.
            exits: exit code of each rank that is to end instead of returning a value.

        Raises:
            AssertionError: a process raised, ended or took too long; with its traceback and what it printed.
        """
        exits = exits or {}
        self.start()
        self.calls += 1
        meeting = Path(self.folder.name) / f"meeting{self.calls}"
        self.printed_before = {rank: self.output_of(rank).stat().st_size for rank in RANKS}
        for _, pipe in self.started.values():
            pipe.send_bytes(pickle.dumps((work, arguments, meeting)))
        values: dict[int, Any] = {}
        failures: dict[int, str] = {}
        deadline = time.monotonic() + seconds
        while waiting := {pipe: rank for rank, (_, pipe) in self.started.items() if rank not in values | failures}:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            for pipe in ready:
                rank = waiting[pipe]
                succeeded, value = self.receive(rank, exits.get(rank))
                (values if succeeded else failures)[rank] = value
                if not succeeded:  # the partner may wait for this process for long: its reason is of no interest
                    deadline = min(deadline, time.monotonic() + 2)
            if not ready:
                for rank in waiting.values():
                    failures[rank] = "gave no answer in time"
                    self.stop(rank)
        if failures:
            printed = [f"--- printed by rank {rank}\n{self.printed(rank)}" for rank in RANKS]
            raise AssertionError("\n".join([*(f"rank {rank}: {text}" for rank, text in failures.items()), *printed]))
        return [values.get(rank) for rank in RANKS]

    def receive(self, rank: int, exit_code: int | None) -> tuple[bool, Any]:
        """Return whether a process did as it should, and its value or what it did instead."""
        process, pipe = self.started[rank]
        try:
            succeeded, value = pickle.loads(pipe.recv_bytes())
        except EOFError:
            process.join()
            self.stop(rank)
            return process.exitcode == exit_code, f"ended with exit code {process.exitcode}"
        if succeeded and exit_code is not None:
            return False, f"did not end with exit code {exit_code}"
        return succeeded, value

    def printed(self, rank: int) -> str:
        """Return the end of what a process wrote to its standard output and error in the last call."""
        return self.output_of(rank).read_bytes()[self.printed_before[rank] :].decode(errors="replace")[-4000:]

    def output_of(self, rank: int) -> Path:
        """Return the file of a process's standard output and error."""
        return Path(self.folder.name) / f"rank{rank}.txt"

    def start(self) -> None:
        """Start the processes that are not there."""
        context = multiprocessing.get_context("spawn")
        with patch.dict(os.environ, {"OMP_NUM_THREADS": "1"}):
            for rank in sorted(set(RANKS) - self.started.keys()):
                here, there = context.Pipe()
                self.output_of(rank).touch()
                process = context.Process(target=serve, args=(rank, there, self.folder.name))
                process.start()
                there.close()  # so that the end of the process is the end of the pipe
                self.started[rank] = (process, here)

    def stop(self, rank: int) -> None:
        """End a process."""
        process, pipe = self.started.pop(rank)
        pipe.close()
        process.kill()
        process.join()

    def close(self) -> None:
        """End both."""
        for rank in list(self.started):
            self.stop(rank)
        self.folder.cleanup()


def serve(rank: int, pipe: Connection, folder: str) -> None:
    """What a process of the pair does until it is killed or the pipe is closed."""
    with open(Path(folder) / f"rank{rank}.txt", "ab", buffering=0) as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with suppress(EOFError):
        while call := pipe.recv_bytes():
            try:
                work, arguments, meeting = pickle.loads(call)
                torch.set_num_threads(1)
                dist.init_process_group(
                    "gloo", init_method=f"file://{meeting}", rank=rank, world_size=len(RANKS), timeout=PATIENCE
                )
                answer = pickle.dumps((True, work(rank, *arguments)))
            except BaseException:
                answer = pickle.dumps((False, traceback.format_exc()))
            pipe.send_bytes(answer)
            if dist.is_initialized():
                dist.destroy_process_group()
