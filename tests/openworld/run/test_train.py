"""The optimisation phase: learning rates by hand, batches in parts, the guard against losses that are not finite."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openworld.config import PhaseOptions, RunConfig
from openworld.data.options import DataOptions
from openworld.detector import detector_to_load
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.errors import ConfigError, NumericsError
from openworld.labels import LabelSpace
from openworld.methods.closed.options import ClosedOptions
from openworld.run.train import Phase, backward, check_finite, learning_rate, phase_optimizer
from openworld.structures import Target
from ssl_backbones.backbones import ResNetOptions
from tests.double_precision import in_double_precision


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


class Slopes(nn.Module):
    """A detector whose losses are multiples of its weight: of an image's pixel, and of its square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def losses(
        self, images: list[torch.Tensor], targets: list[Target], step: int, *, replay: bool, teacher: None
    ) -> dict[str, Any]:
        assert (step, replay, teacher) == (7, True, None)
        mean = torch.stack(images).mean()
        return {"one": self.weight * mean, "two": self.weight * mean**2}


def test_parts_count_alike_and_their_gradients_are_averaged() -> None:
    """Means 1, 4 and 7, of one, two and one image: the total is 2 (4 + 22), the gradient (2 + 20 + 56) / 3."""
    model = Slopes()
    parts: Any = [([torch.tensor(value) for value in values], []) for values in ((1.0,), (3.0, 5.0), (7.0,))]
    names, read = backward(model, parts, 7, replay=True)  # type: ignore[arg-type]
    assert names == ["one", "two"]
    assert read() == pytest.approx([2 * 26, 2 * 4, 2 * 22])
    assert model.weight.grad is not None and model.weight.grad.item() == pytest.approx(26)


def test_a_batch_in_parts_makes_the_step_of_the_whole() -> None:
    """But for rounding, with frozen statistics, where nothing is drawn and every image has as many anchors and regions.

    All proposals of an image are kept and sampled, and so are all anchors: no anchor lies between the two IoUs, and the
    shares are as large as their pools.
    """
    roi = RoiOptions(sampled_regions=1000, positive_fraction=1.0, hidden_dim=8)
    rpn = RpnOptions(
        anchor_sizes=[8.0, 16.0, 32.0, 48.0],
        background_iou=0.5,
        foreground_iou=0.5,
        sampled_anchors=100_000,
        train_candidates=4,
        train_proposals=8,
        nms_iou=1.0,
        min_side_px=0.0,
    )
    model = ModelOptions(
        arch=ResNetOptions(width=1 / 16), fpn_channels=4, norm="frozen", rpn=rpn, roi=roi, device="cpu"
    )
    data = DataOptions(tasks=[["ball"], ["cube"]])
    config = RunConfig(data=data, pretrain=None, method=ClosedOptions(), model=model)
    with in_double_precision():
        torch.manual_seed(0)
        detector = detector_to_load(config, LabelSpace.of([["ball"], ["cube"]], 1)).train()
        images = [torch.rand(3, 64, 64) for _ in range(4)]
        boxes = torch.tensor([[[8.0, 8, 40, 40]], [[20.0, 4, 60, 36]], [[2.0, 30, 30, 60]], [[30.0, 30, 62, 62]]])
        targets = [Target(box.double(), torch.zeros(1, dtype=torch.int64), row) for row, box in enumerate(boxes)]
        found = []
        for size in (4, 2, 1):
            detector.zero_grad()
            parts = [(images[first : first + size], targets[first : first + size]) for first in range(0, 4, size)]
            _, read = backward(detector, parts, 0, replay=False)
            gradients = [parameter.grad.clone() for parameter in detector.parameters() if parameter.grad is not None]
            found.append((read(), gradients))
    whole, gradients = found[0]
    assert all(value > 0 for value in whole)
    for losses, others in found[1:]:
        assert losses == pytest.approx(whole, rel=1e-12)
        for one, other in zip(gradients, others, strict=True):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-13)


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
