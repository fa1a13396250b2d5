"""The ORE module: steps, growth, resume, decision."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.ore.core import Ore
from openworld.ore.options import ClusteringOptions, EnergyOptions, UnknownLabelOptions
from openworld.structures import Regions

TASKS = [["cat", "dog"], ["cow"]]
SPACE = LabelSpace.of(TASKS, task=1)  # cat 0, dog 1, unknown 2, background 3
QUICK = ClusteringOptions(start_step=2, update_every=2, items_per_class=3, momentum=0.5, weight=0.5)


def batch(step: int, labels: list[int] | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(8, 4, generator=generator)
    return features, torch.randint(0, 4, (8,), generator=generator) if labels is None else torch.tensor(labels)


def test_loss_is_zero_before_the_start_and_follows_the_schedule() -> None:
    ore = Ore(SPACE, 4, QUICK)
    for step in range(5):
        features, labels = batch(step, [0, 0, 1, 1, 2, 3, 3, 3])
        features.requires_grad_()
        before = ore.prototypes.vectors.clone()
        loss = ore.step(features, labels, step)
        loss.backward()  # type: ignore[no-untyped-call]
        assert features.grad is not None
        means, seen = ore.memory.means()
        assert seen.all()
        wanted = {0: before, 1: before, 2: means, 3: before, 4: 0.5 * before + 0.5 * means}[step]
        torch.testing.assert_close(ore.prototypes.vectors, wanted)
        assert (loss.item() > 0) == (step >= 2) == bool(features.grad.abs().sum() > 0)
        assert (features.grad[5:] == 0).all()  # background regions
    own = torch.cdist(features[:5].detach(), ore.prototypes.vectors)
    is_own = labels[:5, None] == torch.arange(3)
    wanted_loss = 0.5 * torch.where(is_own, own, (10 - own).clamp(min=0)).sum() / 5
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)


def test_a_start_without_foreground_is_made_up_for() -> None:
    ore = Ore(SPACE, 4, QUICK)
    assert ore.step(*batch(2, [3] * 8), 2) == 0 and not ore.prototypes.started
    assert ore.step(*batch(3, [0] * 8), 3) > 0
    assert ore.prototypes.present.tolist() == [True, False, False]


def test_off_does_nothing_and_empty_batches_pass() -> None:
    off = Ore(SPACE, 4, ClusteringOptions(enabled=False), UnknownLabelOptions(enabled=False))
    assert off.step(*batch(5000), 5000) == 0 and not off.memory.counts.any()
    ore = Ore(SPACE, 4, QUICK)
    empty = torch.zeros(0, dtype=torch.int64)
    for step in range(4):
        assert ore.step(torch.zeros(0, 4, requires_grad=True), empty, step).requires_grad
    labels, energies, known = ore.decide(torch.zeros(0, 4))
    assert len(labels) == len(energies) == len(known) == 0
    none = Regions(torch.zeros(0, 4), empty, torch.zeros(0), torch.zeros(0), empty)
    assert ore.label_unknowns(none).shape == (0,)


def test_resume_is_exact() -> None:
    ore = Ore(SPACE, 4, QUICK)
    for step in range(3):
        ore.step(*batch(step), step)
    ore.fit_energy(torch.linspace(5, 9, 100), torch.linspace(1, 4, 100))
    resumed = Ore(SPACE, 4, QUICK)
    resumed.load_state_dict(copy.deepcopy(ore.state_dict()))
    for step in range(3, 8):
        assert torch.equal(ore.step(*batch(step), step), resumed.step(*batch(step), step))
    for (name, left), right in zip(ore.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert not list(ore.parameters())


@pytest.mark.parametrize("with_background", [False, True])
def test_growth_keeps_rows_and_moves_unknown(with_background: bool) -> None:
    options = ClusteringOptions(start_step=0, background_prototype=with_background)
    ore = Ore(SPACE, 4, options)
    ore.step(*batch(0, [0, 1, 1, 2, 2, 2, 3, 3]), 0)
    ore.fit_energy(torch.linspace(5, 9, 100), torch.linspace(1, 4, 100))
    old_vectors, old_counts = ore.prototypes.vectors.clone(), ore.memory.counts.tolist()
    ore.grow(SPACE.at(2))
    assert ore.memory.counts.tolist() == [1, 2, 0, 3, *old_counts[3:]]
    assert ore.prototypes.present.tolist() == [True, True, False, True, *([True] if with_background else [])]
    assert torch.equal(ore.prototypes.vectors[3], old_vectors[2])
    assert not ore.energy_model.fitted
    twin = Ore(SPACE.at(2), 4, options)
    twin.load_state_dict(ore.state_dict())
    ore.step(*batch(1, [0, 1, 2, 2, 3, 3, 4, 4]), 1)
    with pytest.raises(ConfigError, match="grow along"):
        ore.grow(LabelSpace.of([["horse"], ["cow"]], task=1))


def test_decision() -> None:
    ore = Ore(SPACE, 4)
    logits = torch.tensor([[9.0, 1, 0, 12], [0, 9, 1, 0], [1, 0, 9, 0], [1, 0.5, 0, 0]])
    labels, energies, known = ore.decide(logits)
    assert labels.tolist() == [0, 1, 2, 0] and known.tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(energies, -torch.logsumexp(logits[:, :2], 1))
    record = ore.fit_energy(torch.linspace(6, 12, 200), torch.linspace(0.5, 4, 200))
    assert record["status"] == "fitted"
    assert ore.decide(logits)[0].tolist() == [0, 1, 2, 2]
    # A region may be detected as several classes; the energy is the region's.
    assert ore.decide(logits, torch.tensor([1, 2, 2, 1]))[0].tolist() == [1, 2, 2, 2]


def test_labels_unknown_and_collects_energy_samples() -> None:
    ore = Ore(SPACE, 4, energy=EnergyOptions(temperature=2.0, unknown_region_iou=0.3))
    regions = Regions(
        boxes=torch.tensor([[0.0, 0, 9, 9]]).repeat(5, 1),
        image_index=torch.tensor([0, 0, 0, 1, 1]),
        objectness=torch.tensor([torch.inf, 1.0, 2.0, -5.0, 9.0]),
        iou=torch.tensor([1.0, 0.0, 0.1, 0.4, 0.6]),
        labels=torch.tensor([0, 3, 3, 3, 3]),
        logits=torch.randn(5, 4),
    )
    labels = ore.label_unknowns(regions)
    assert labels.tolist() == [0, 3, 2, 2, 3]
    labelled = Regions(
        regions.boxes, regions.image_index, regions.objectness, regions.iou, labels, None, regions.logits
    )
    known, unknown = ore.energy_samples(labelled)
    assert regions.logits is not None
    wanted = 2 * torch.logsumexp(regions.logits[:, :2] / 2, 1)
    assert torch.equal(known, wanted[:1]) and torch.equal(unknown, wanted[2:3])  # region 3 overlaps by 0.4
    with pytest.raises(ConfigError, match="logits"):
        ore.energy_samples(
            Regions(*(getattr(regions, n) for n in ("boxes", "image_index", "objectness", "iou", "labels")))
        )
