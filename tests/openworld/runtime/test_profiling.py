"""Parts of a step: every moment belongs to the innermost timed call, by a clock that ticks once at each look."""

from __future__ import annotations

import sys
from itertools import count

import pytest
import torch
from torch import nn

from openworld.runtime import profiling
from openworld.runtime.profiling import Profile


@pytest.fixture(autouse=True)
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: float(next(ticks)))


class Work:
    """An outer function that calls an inner one twice."""

    def outer(self) -> None:
        self.inner()
        self.inner()

    def inner(self) -> None:
        pass


def step(number: int = 7) -> int:
    return number


def test_the_parts_add_up_to_the_step_and_each_counts_for_itself() -> None:
    profile, work = Profile(1), Work()
    with profile.watch([("outer", work, "outer"), ("inner", Work, "inner")]):
        for _ in profile.each([None], 1):  # begins at 0; data from 1 to 2
            work.outer()  # from 3 to 8, with the inner ones from 4 to 5 and from 6 to 7
    assert profile.seconds == [{"other": 3.0, "data": 1.0, "outer": 3.0, "inner": 2.0}]
    assert sum(profile.seconds[0].values()) == 9


def test_functions_of_objects_classes_and_modules_are_put_back() -> None:
    work, here = Work(), sys.modules[__name__]
    before = dict(vars(Work)), dict(vars(here))
    profile = Profile(1)
    with profile.watch([("a", work, "outer"), ("b", Work, "inner"), ("c", here, "step")]):
        for _ in profile.each([None], 1):
            assert here.step(number=8) == 8  # type: ignore[attr-defined]
            assert "outer" in vars(work) and Work.inner is not before[0]["inner"]
        work.outer()  # outside of a step
    assert list(profile.seconds[0]) == ["other", "data", "c"]
    assert vars(work) == {} and (dict(vars(Work)), dict(vars(here))) == before


def test_a_watched_module_is_a_part() -> None:
    profile, model = Profile(1), nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with profile.watch([], [("model", model), ("layer", model[0])]):
        for _ in profile.each([None], 1):
            model(torch.zeros(1, 2))
        model(torch.zeros(1, 2))  # outside of a step
    assert profile.seconds == [{"other": 3.0, "data": 1.0, "model": 2.0, "layer": 1.0}]
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_step_that_fails_is_not_counted_and_all_is_put_back() -> None:
    profile, model = Profile(2), nn.Linear(2, 3)
    with pytest.raises(RuntimeError), profile.watch([("calls", model, "forward")], [("model", model)]):
        for number in profile.each([2, 5], 2):
            model(torch.zeros(1, number))
    assert len(profile.seconds) == 1 and "forward" not in vars(model) and not model._forward_hooks
    model(torch.zeros(1, 2))
    assert len(profile.seconds) == 1


@pytest.mark.parametrize(("steps", "timed"), [(9, [3, 4]), (4, [2, 3]), (1, [0])])
def test_steps_are_timed_after_the_first_few_or_at_the_end_of_a_short_phase(steps: int, timed: list[int]) -> None:
    profile, closed = Profile(2), []

    def batches() -> object:
        yield from range(steps)
        closed.append(True)

    found = []
    with profile.watch([]):
        for number in profile.each(batches(), steps):  # type: ignore[arg-type]
            found.append((number, len(profile.seconds)))
    assert [number for number, _ in found] == list(range(steps)) and closed == [True]
    counts = [done for _, done in found] + [len(profile.seconds)]
    assert [number for number in range(steps) if counts[number + 1] > counts[number]] == timed


def test_the_record_holds_means_and_shares() -> None:
    profile = Profile(2)
    profile.seconds = [{"a": 1.0, "b": 1.0}, {"a": 4.0}]
    assert profile.record() == {
        "steps": 2,
        "step_seconds": {"median": 3.0, "least": 2.0, "most": 4.0},
        "parts": [
            {"name": "a", "seconds": 2.5, "share": pytest.approx(5 / 6)},
            {"name": "b", "seconds": 0.5, "share": pytest.approx(1 / 6)},
        ],
    }
    assert Profile(1).record()["parts"] == []
