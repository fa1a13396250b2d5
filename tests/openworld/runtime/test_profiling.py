"""Scopes of a step: every moment belongs to the innermost one, by a clock that ticks once at each look."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch import nn

from openworld.runtime import profiling
from openworld.runtime.profiling import Profile, scope, watched


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: float(next(ticks)))


@pytest.mark.usefixtures("ticking")
def test_the_parts_add_up_to_the_step_and_each_counts_for_itself() -> None:
    profile = Profile(1)
    with profile.step():  # 0  # noqa: SIM117
        with scope("outer"):  # 1
            with scope("inner"):  # 2
                pass  # 3
            with scope("inner"):  # 4
                pass  # 5
        # 6
    # 7
    assert profile.seconds == [{"other": 2.0, "outer": 3.0, "inner": 2.0}]
    assert sum(profile.seconds[0].values()) == 7


@pytest.mark.usefixtures("ticking")
def test_a_watched_module_is_a_scope_also_when_it_fails() -> None:
    profile, model = Profile(2), nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with profile.watch([("model", model), ("layer", model[0])]):
        with profile.step():
            model(torch.zeros(1, 2))
        with pytest.raises(RuntimeError), profile.step():
            model(torch.zeros(1, 5))
        model(torch.zeros(1, 2))  # outside of a step
    with profile.step():
        model(torch.zeros(1, 2))
    first, last = profile.seconds
    assert first == {"other": 2.0, "model": 2.0, "layer": 1.0} and last == {"other": 1.0}
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_nothing_is_timed_without_a_profile() -> None:
    assert scope("a") is scope("b")


@pytest.mark.parametrize(("steps", "timed"), [(range(0, 9), [3, 4]), (range(4, 8), [6, 7]), (range(5, 6), [5])])
def test_steps_are_timed_after_the_first_few_or_at_the_end_of_a_short_phase(steps: range, timed: list[int]) -> None:
    profile, seen = Profile(2), []
    for step in watched(steps, profile):
        seen.append((step, scope("x") is not profiling._OFF))
    assert [step for step, _ in seen] == list(steps)
    assert [step for step, on in seen if on] == timed and len(profile.seconds) == len(timed)
    assert list(watched(steps, None)) == list(steps)


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
