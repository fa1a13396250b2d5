"""The ORE module: steps, growth, resume, decision."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, UnknownLabelOptions
from openworld.structures import Regions
from tests.regions import candidates_of, clustering_step

TASKS = [["cat", "dog"], ["cow"]]
SPACE = LabelSpace.of(TASKS, task=1)  # cat 0, dog 1, unknown 2, background 3
QUICK = ClusteringOptions(start_step=2, update_every=2, items_per_class=3, momentum=0.5, weight=0.5)


def batch(step: int, labels: list[int] | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(8, 4, generator=generator)
    return features, torch.randint(0, 4, (8,), generator=generator) if labels is None else torch.tensor(labels)


def test_later_tasks_have_a_start_of_their_own() -> None:
    options = replace(QUICK, later_start_step=0)
    features, labels = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    for task, started in ((1, False), (2, True)):
        ore = Ore(LabelSpace.of([["a", "b"], ["c"]], task), 3, options)
        clustering_step(ore, features, labels, 0)
        assert ore.prototypes.started is started


def test_loss_is_zero_before_the_start_and_follows_the_schedule() -> None:
    ore = Ore(SPACE, 4, QUICK)
    for step in range(5):
        features, labels = batch(step, [0, 0, 1, 1, 2, 3, 3, 3])
        features.requires_grad_()
        before = ore.prototypes.vectors.clone()
        loss = clustering_step(ore, features, labels, step)
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
    assert clustering_step(ore, *batch(2, [3] * 8), 2) == 0 and not ore.prototypes.started
    assert clustering_step(ore, *batch(3, [0] * 8), 3) > 0
    assert ore.prototypes.present.tolist() == [True, False, False]


def test_off_does_nothing_and_empty_batches_pass() -> None:
    off = Ore(SPACE, 4, ClusteringOptions(enabled=False), UnknownLabelOptions(enabled=False))
    assert clustering_step(off, *batch(5000), 5000) == 0 and not off.memory.counts.any()
    ore = Ore(SPACE, 4, QUICK)
    empty = torch.zeros(0, dtype=torch.int64)
    for step in range(4):
        assert clustering_step(ore, torch.zeros(0, 4, requires_grad=True), empty, step).requires_grad
    assert len(ore.decide(candidates_of(torch.zeros(0, 4), SPACE))) == 0
    none = Regions(torch.zeros(0, 4), empty, torch.zeros(0), torch.zeros(0), empty)
    assert ore.relabel(none, torch.zeros(0, 2)).labels.shape == (0,)


def test_resume_is_exact() -> None:
    ore = Ore(SPACE, 4, QUICK)
    for step in range(3):
        clustering_step(ore, *batch(step), step)
    ore.calibrate({"known": torch.linspace(5, 9, 100), "unknown": torch.linspace(1, 4, 100)})
    resumed = Ore(SPACE, 4, QUICK)
    resumed.load_state_dict(copy.deepcopy(ore.state_dict()))
    for step in range(3, 8):
        assert torch.equal(clustering_step(ore, *batch(step), step), clustering_step(resumed, *batch(step), step))
    for (name, left), right in zip(ore.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert not list(ore.parameters())


def test_prototypes_move_once_per_step_where_a_batch_comes_in_parts() -> None:
    """Momentum 0.5, an update every 2 steps: from 1 by half of the way to the mean, which is 3 after four cats at 5."""
    ore = Ore(SPACE, 1, replace(QUICK, items_per_class=8))
    cats = torch.zeros(4, dtype=torch.int64)
    clustering_step(ore, torch.ones(4, 1), cats, 3)
    path = []
    for step in (4, 4, 5, 6):
        clustering_step(ore, torch.full((4, 1), 5.0), cats, step)
        path.append(ore.prototypes.vectors[0, 0].item())
    assert path == [2.0, 2.0, 2.0, 3.5]  # at step 6 the memory holds the last eight: from 2 to the middle of 2 and 5


@pytest.mark.parametrize("during_replay", [True, False])
def test_replay_refreshes_the_old_classes(during_replay: bool) -> None:
    """Momentum 0.5, an update every 2 steps: cat's prototype goes from 1 to 3, 4, 4.5 when replay shows cats at 5."""
    ore = Ore(SPACE, 1, replace(QUICK, during_replay=during_replay))
    cats = torch.zeros(4, dtype=torch.int64)
    for step in range(4):
        clustering_step(ore, torch.ones(4, 1), cats, step)
    ore.grow(SPACE.at(2))
    cows = torch.full((4,), 2)
    for step in range(4):  # the new task shows no cat
        clustering_step(ore, torch.full((4, 1), 9.0), cows, step)
    assert ore.prototypes.vectors[:3, 0].tolist() == [1.0, 0.0, 9.0]
    before = {name: value.clone() for name, value in ore.state_dict().items() if name.startswith(("memory", "proto"))}
    path = []
    for step in range(4, 10):
        features = torch.full((4, 1), 5.0, requires_grad=True)
        loss = clustering_step(ore, features, cats, step, replay=True)
        assert loss.requires_grad and bool(loss > 0) == during_replay
        path.append(ore.prototypes.vectors[0].item())
    if during_replay:
        assert path == [3.0, 3.0, 4.0, 4.0, 4.5, 4.5]
        assert ore.memory.features[0].flatten().tolist() == [5.0] * 3
    else:
        assert all(torch.equal(value, ore.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("with_background", [False, True])
def test_growth_keeps_rows_and_moves_unknown(with_background: bool) -> None:
    options = ClusteringOptions(start_step=0, background_prototype=with_background)
    ore = Ore(SPACE, 4, options)
    clustering_step(ore, *batch(0, [0, 1, 1, 2, 2, 2, 3, 3]), 0)
    ore.calibrate({"known": torch.linspace(5, 9, 100), "unknown": torch.linspace(1, 4, 100)})
    old_vectors, old_counts = ore.prototypes.vectors.clone(), ore.memory.counts.tolist()
    ore.grow(SPACE.at(2))
    assert ore.memory.counts.tolist() == [1, 2, 0, 3, *old_counts[3:]]
    assert ore.prototypes.present.tolist() == [True, True, False, True, *([True] if with_background else [])]
    assert torch.equal(ore.prototypes.vectors[3], old_vectors[2])
    assert not ore.energy_model.fitted
    twin = Ore(SPACE.at(2), 4, options)
    twin.load_state_dict(ore.state_dict())
    clustering_step(ore, *batch(1, [0, 1, 2, 2, 3, 3, 4, 4]), 1)
    with pytest.raises(ConfigError, match="grow along"):
        ore.grow(LabelSpace.of([["horse"], ["cow"]], task=1))


def test_decision() -> None:
    ore = Ore(SPACE, 4)
    logits = torch.tensor([[9.0, 1, 0, 12], [0, 9, 1, 0], [1, 0, 9, 0], [1, 0.5, 0, 0]])
    candidates = candidates_of(logits, SPACE)
    decision = ore.decide(candidates)
    assert decision.labels.tolist() == [0, 1, 2, 0] and candidates.known_labels.tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(decision.extras["energy"], -torch.logsumexp(logits[:, :2], 1))
    torch.testing.assert_close(decision.scores, logits.softmax(1)[:, :3].max(1).values)
    record = ore.calibrate({"known": torch.linspace(6, 12, 200), "unknown": torch.linspace(0.5, 4, 200)})
    assert record["status"] == "fitted"
    assert ore.decide(candidates).labels.tolist() == [0, 1, 2, 2] and ore.decide(candidates).kept.all()
    # A region may be detected as several classes; the energy is the region's.
    several = candidates_of(logits, SPACE, torch.tensor([1, 2, 2, 1]))
    assert ore.decide(several).labels.tolist() == [1, 2, 2, 2]


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
    sizes = torch.full((2, 2), 64)
    assert ore.relabel(regions, sizes).labels.tolist() == [0, 3, 2, 2, 3]
    known, unknown = (ore.collect(regions, sizes)[name] for name in ore.samples)
    assert regions.logits is not None
    wanted = 2 * torch.logsumexp(regions.logits[:, :2] / 2, 1)
    assert torch.equal(known, wanted[:1]) and torch.equal(unknown, wanted[2:3])  # region 3 overlaps by 0.4
    with pytest.raises(ConfigError, match="logits"):
        ore.collect(replace(regions, logits=None), sizes)
