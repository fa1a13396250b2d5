"""The optimisation phase: learning rates by hand, the guard against losses that are not finite."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from openworld.config import PhaseOptions
from openworld.errors import ConfigError, NumericsError
from openworld.run.train import Phase, check_finite, learning_rate, phase_optimizer
from openworld.structures import Target


def options(**changes: object) -> PhaseOptions:
    return PhaseOptions(**{"steps": 100, "lr": 0.1, "warmup_steps": 10, **changes})  # type: ignore[arg-type]


def test_warmup_is_linear_and_cosine_ends_at_a_hundredth() -> None:
    assert [learning_rate(options(), step) for step in (0, 4, 9)] == pytest.approx([0.01, 0.05, 0.1])
    assert learning_rate(options(), 10) == pytest.approx(0.1)
    assert learning_rate(options(), 55) == pytest.approx(0.1 * (0.01 + 0.99 * 0.5))
    assert learning_rate(options(), 100) == pytest.approx(0.001)


def test_steps_fall_by_ten_at_each_milestone() -> None:
    stepped = options(schedule="steps", milestones=[0.5, 0.8])
    assert [learning_rate(stepped, step) for step in (49, 50, 79, 80)] == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_a_constant_rate_warms_up_and_stays() -> None:
    assert [learning_rate(options(schedule="constant"), step) for step in (4, 10, 99)] == pytest.approx(
        [0.05, 0.1, 0.1]
    )


def test_one_dimensional_parameters_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    decayed, spared = phase_optimizer(nn.ModuleList([model, frozen]), options(weight_decay=0.5)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)] and decayed["weight_decay"] == 0.5
    assert len(spared["params"]) == 3 and spared["weight_decay"] == 0.0


def test_the_backbone_learns_at_its_own_rate() -> None:
    backbone, head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Linear(4, 2)
    backbone[0].requires_grad_(False)
    model = nn.ModuleList([backbone, head])
    optimizer = phase_optimizer(model, options(backbone_lr_factor=0.1), backbone)
    found = {parameter: group["lr_scale"] for group in optimizer.param_groups for parameter in group["params"]}
    assert found == {**dict.fromkeys(backbone[1].parameters(), 0.1), **dict.fromkeys(head.parameters(), 1.0)}
    assert {group["lr_scale"] for group in phase_optimizer(model, options(), backbone).param_groups} == {1.0}


def test_a_loss_that_is_not_finite_names_the_images() -> None:
    phase = Phase(2, "train", options(), Path(), ("cat",), 0)
    targets = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), "cat 7")]
    losses = {"box": math.nan}
    with pytest.raises(NumericsError, match=r"task 2, train, step 5.*box nan.*cat 7"):
        check_finite(math.nan, losses, phase, 4, targets)
    check_finite(1.0, losses, phase, 4, targets)


@pytest.mark.parametrize(
    "changes", [{"steps": -1}, {"lr": 0.0}, {"batch_size": 0}, {"backbone_lr_factor": -0.1}, {"checkpoint_every": 0}]
)
def test_values_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        options(**changes)
