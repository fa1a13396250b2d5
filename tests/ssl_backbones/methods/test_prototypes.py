"""PCL, NNCLR, SwAV, DeepCluster-v2 and DINO: first losses, what moves and what does not, what is remembered."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.errors import ConfigError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.losses import sinkhorn
from ssl_backbones.method import Batch, Method
from ssl_backbones.methods.deepcluster_v2 import DeepClusterV2
from ssl_backbones.methods.dino import DINO, teacher_temperature
from ssl_backbones.methods.dino_options import DINOOptions
from ssl_backbones.methods.nnclr import NNCLR
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.methods.pcl import PCLV1, PCLV2, concentration
from ssl_backbones.methods.sela_v2 import SeLaV2
from ssl_backbones.methods.swav import SwAV
from ssl_backbones.optim import build_optimizer, set_learning_rates
from ssl_backbones.options import PretrainOptions

HERE = ("pcl_v1", "pcl_v2", "nnclr", "swav", "deepcluster_v2", "sela_v2", "dino")
IMAGES = 16


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


PCL = {"clusters": [3, 5], "warmup_epochs": 0, "iterations": 5, "restarts": 2}
QUEUE = {"queue_size": 24}
OWN: dict[str, dict[str, Any]] = {
    "pcl_v1": {**PCL, **QUEUE, "teacher_momentum": 0.9},
    "pcl_v2": {**PCL, **QUEUE, "teacher_momentum": 0.9},
    "nnclr": {**QUEUE, "hidden_dim": 64},
    "swav": {"prototypes": 8, "frozen_steps": 1},
    "deepcluster_v2": {"clusters": [4, 6, 5]},
    "sela_v2": {"clusters": [4, 6, 5]},
    "dino": {"outputs": 24, "frozen_steps": 1, "teacher_momentum": 0.9},
}


def options(name: str, **own: Any) -> PretrainOptions:
    method = MethodOptions.named(name)(**{"projection_dim": 32, "temperature": 0.1, **OWN[name], **own})
    return PretrainOptions(method=method, arch=ResNetOptions(width=1 / 16), warmup=0)


def build(name: str, **own: Any) -> Any:
    chosen = options(name, **own)
    method = chosen.method.implementation()(chosen).train()
    method.allocate(IMAGES)
    return method


def batch(step: int = 0, sides: tuple[int, ...] = (32, 32), index: Tensor | None = None) -> Batch:
    """Blurred noise as images; a view changes brightness and adds noise, a small one is resized."""
    index = torch.arange(IMAGES) if index is None else index
    fixed, moving = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step + 1)
    images = F.interpolate(torch.rand(IMAGES, 3, 4, 4, generator=fixed), size=32, mode="bilinear")[index]

    def view(side: int) -> Tensor:
        brightness = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1, generator=moving)
        noisy = images * brightness + 0.1 * torch.randn(images.shape, generator=moving)
        return F.interpolate(noisy, size=side, mode="bilinear")

    return Batch([view(side) for side in sides], index)


def sides_of(name: str) -> tuple[int, ...]:
    return (32, 32, 16, 16) if name in ("swav", "deepcluster_v2", "sela_v2", "dino") else (32, 32)


def whole_set() -> Iterator[Batch]:
    """In batches of five: the last one has a single image."""
    everything = batch(99, (32,))
    for start in range(0, IMAGES, 5):
        yield Batch([everything.views[0][start : start + 5]], everything.index[start : start + 5])


def train(method: Method, name: str, steps: int, lr: float = 0.05, of: int = 100) -> list[tuple[float, float]]:
    """Loss and spread of the first steps of a schedule. Batches are the halves of the set in turns."""
    schedule, seen = PretrainOptions(steps=of, warmup=0, lr=lr), []
    optimizer = build_optimizer(method.param_groups(1e-4), schedule)
    for step in range(steps):
        if step % 2 == 0:
            method.before_epoch(step // 2, whole_set)
        set_learning_rates(optimizer, step, schedule)
        method.before_step(step, steps)
        half = torch.arange(IMAGES).chunk(2)[step % 2]
        loss, numbers = method.loss(batch(step, sides_of(name), half))
        optimizer.zero_grad()
        loss.backward()
        method.after_backward(step, steps)
        optimizer.step()
        method.after_step(step, steps)
        seen.append((loss.item(), numbers["spread"]))
    return seen


@pytest.mark.parametrize("name", HERE)
def test_the_loss_falls_without_collapse(name: str) -> None:
    own: dict[str, Any] = (
        {"queue_size": IMAGES // 2} if "queue_size" in OWN[name] else {}
    )  # the other half of the images
    own |= {"temperature": 0.5} if name.startswith("pcl") else {}
    own |= {"teacher_momentum": 0.99, "head_norm": True} if name == "dino" else {}
    seen = train(build(name, **own), name, 24, lr=0.1 if name.startswith("pcl") else 0.05, of=24)
    losses = [loss for loss, _ in seen]
    assert sum(losses[-4:]) < 0.95 * sum(losses[1:5])
    assert seen[-1][1] > 0.2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pcl_v2", math.log(24 + 1)),  # before the first clustering: InfoNCE against the queue
        ("nnclr", math.log(IMAGES)),
        ("swav", math.log(8)),
        ("deepcluster_v2", (math.log(4) + math.log(6) + math.log(5)) / 3),
        ("sela_v2", (math.log(4) + math.log(6) + math.log(5)) / 3),
        ("dino", math.log(24)),
    ],
)
def test_loss_without_any_preference(name: str, expected: float) -> None:
    method = build(name, temperature=1e6)
    if name in ("deepcluster_v2", "sela_v2"):
        method.before_epoch(0, whole_set)
    method.before_step(0, 10)
    assert method.loss(batch(0, sides_of(name)))[0].item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", HERE)
def test_the_bank_of_state_moves_without_gradient(name: str) -> None:
    method = build(name)
    method.before_epoch(0, whole_set)
    method.before_step(5, 10)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    loss, _ = method.loss(batch(0, sides_of(name)))
    loss.backward()
    moved = {key for key, value in method.state_dict().items() if not torch.equal(value, before[key])}
    stores = {"queue.features", "support.features", "banks.1.features", "center.mean"}
    assert bool(moved & stores) == (name != "swav")
    for key, value in method.named_parameters():
        assert (value.grad is None) == (key.startswith("teacher.") or not value.requires_grad), key
    assert not any(value.requires_grad for value in method.buffers())


@pytest.mark.parametrize("name", HERE)
def test_half_precision_reaches_no_store(name: str) -> None:
    method = build(name, **({"frozen_steps": 10, "queue_length": IMAGES} if name == "swav" else {}))
    method.before_epoch(0, whole_set)
    for step in range(2):
        method.before_step(step, 10)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = method.loss(batch(step, sides_of(name)))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert {v.dtype for v in method.state_dict().values()} <= {torch.float32, torch.int64, torch.bool}


def test_more_clusters_than_images_are_refused_at_once() -> None:
    for name, clusters in (("pcl_v1", [4, 17]), ("deepcluster_v2", [17]), ("sela_v2", [17])):
        with pytest.raises(ConfigError, match="17 clusters of 16 images"):
            build(name, clusters=clusters)


# --- PCL


def reference_concentration(distances: list[float], owners: list[int], clusters: int, temperature: float) -> Any:
    """The steps of the authors' code, with NumPy, cluster by cluster."""
    phi = np.zeros(clusters)
    own = [[d for d, owner in zip(distances, owners, strict=True) if owner == c] for c in range(clusters)]
    for c, each in enumerate(own):
        if len(each) > 1:
            phi[c] = np.mean(each) / np.log(len(each) + 10)
    for c, each in enumerate(own):
        if len(each) <= 1:
            phi[c] = phi.max()
    phi = phi.clip(np.percentile(phi, 10), np.percentile(phi, 90))
    return temperature * phi / phi.mean()


def test_concentration_is_the_reference() -> None:
    random = np.random.default_rng(0)
    owners = [*[0] * 9, *[1] * 2, 2, *[4] * 5, *[5] * 3, *[6] * 30, *[7] * 4]  # 2 has one image, 3 has none
    distances = random.uniform(0.1, 1.5, len(owners))
    found = concentration(torch.tensor(distances), torch.tensor(owners), 8, 0.2)
    np.testing.assert_allclose(found, reference_concentration(list(distances), owners, 8, 0.2), rtol=1e-5)
    assert found.mean().item() == pytest.approx(0.2)
    assert found[2] == found[3] == found.max()


def test_concentration_of_clusters_without_extent() -> None:
    assert concentration(torch.zeros(4), torch.arange(4), 4, 0.2).tolist() == pytest.approx([0.2] * 4)
    assert concentration(torch.zeros(0), torch.zeros(0, dtype=torch.long), 3, 0.2).tolist() == pytest.approx([0.2] * 3)


def test_pcl_warms_up_with_info_nce_alone_and_then_adds_the_prototypes() -> None:
    method: PCLV2 = build("pcl_v2", warmup_epochs=2)
    for epoch in (0, 1):
        method.before_epoch(epoch, whole_set)
        assert "proto_nce" not in method.loss(batch())[1]
    method.before_epoch(2, whole_set)
    both, numbers = method.loss(batch())
    assert both.item() > numbers["proto_nce"] > 0
    again: PCLV2 = build("pcl_v2")
    again.load_state_dict(method.state_dict())
    assert all(clusters.fitted for clusters in again.clusterings)  # read, not remembered in Python


def test_pcl_clusters_the_teachers_features_in_evaluation_mode() -> None:
    method: PCLV1 = build("pcl_v1")
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    state = torch.get_rng_state()
    method.before_epoch(0, whole_set)
    assert torch.equal(state, torch.get_rng_state())
    assert method.teacher.training and all(torch.equal(v, before[k]) for k, v in method.teacher.state_dict().items())
    method.teacher.eval()
    features = F.normalize(method.teacher(batch(99, (32,)).views[0]), dim=1)
    for clusters in method.clusterings:
        means = [features[clusters.assignments == c].mean(dim=0) for c in range(len(clusters.centroids))]
        assert torch.allclose(clusters.centroids, F.normalize(torch.stack(means), dim=1), atol=1e-5)
        assert clusters.concentrations.mean().item() == pytest.approx(0.1)


def test_pcl_by_the_paper_is_its_equation() -> None:
    method: PCLV2 = build("pcl_v2", candidates="paper", iterations=2, restarts=1)
    method.before_epoch(0, whole_set)
    views = batch()
    q = F.normalize(method.projector(method.encoder(views.views[0])), dim=1)
    expected = 0.0
    for clusters in method.clusterings:
        for i in range(IMAGES):
            logits = torch.stack([q[i] @ c / phi for c, phi in zip(clusters.centroids, clusters.concentrations)])
            expected -= logits.log_softmax(0)[clusters.assignments[i]].item() / IMAGES / 2
    assert method.loss(views)[1]["proto_nce"] == pytest.approx(expected, rel=1e-5)


def test_pcl_heads() -> None:
    v1, v2 = build("pcl_v1"), build("pcl_v2")
    assert isinstance(v1.projector, nn.Linear)
    assert [type(layer) for layer in v2.projector] == [nn.Linear, nn.ReLU, nn.Linear]
    assert len(v2.param_groups(0.1)) == 1  # all decayed


# --- NNCLR


def test_nnclr_is_its_pseudo_code() -> None:
    method: NNCLR = build("nnclr")
    views = batch()
    support = method.support.features.clone()
    loss, _ = method.loss(views)
    z = [method.projector(method.encoder(view)) for view in views.views]
    p = [F.normalize(method.predictor(each), dim=1) for each in z]
    total = 0.0
    for one, other in ((0, 1), (1, 0)):
        rows = [int((F.normalize(each, dim=0) - support).norm(dim=1).argmin()) for each in z[one]]
        logits = support[rows] @ p[other].T / 0.1
        total -= sum(logits[i].log_softmax(0)[i].item() for i in range(IMAGES)) / IMAGES / 2
    assert loss.item() == pytest.approx(total, rel=1e-4)
    assert torch.allclose(method.support.features[:IMAGES], F.normalize(z[0], dim=1), atol=1e-5)  # of the first view
    assert int(method.support.filled) == IMAGES


# --- SwAV


def test_swav_keeps_its_prototypes_on_the_sphere_and_frozen_at_first() -> None:
    method: SwAV = build("swav", frozen_steps=2)
    before = method.prototypes.weight.detach().clone()
    train(method, "swav", 2, of=3)
    assert torch.allclose(method.prototypes.weight, before, atol=1e-6)
    train(method, "swav", 3, of=3)
    assert not torch.allclose(method.prototypes.weight, before, atol=1e-4)
    assert torch.allclose(method.prototypes.weight.norm(dim=1), torch.ones(8))


def test_swav_uses_its_queue_once_it_is_full() -> None:
    method: SwAV = build("swav", queue_length=2 * IMAGES, queue_start=1)
    for step, filled in enumerate((0, IMAGES, 2 * IMAGES, 2 * IMAGES)):
        method.before_step(step, 10)
        used = step == 3
        queues = [queue.features.clone() for queue in method.queues]
        views = batch(step, (32, 32, 16))
        method.eval()  # the same features twice
        z = F.normalize(method.projector(torch.cat([method.encoder(view) for view in views.views])), dim=1)
        loss, _ = method.loss(views)
        scores, expected = method.prototypes(z).chunk(3), 0.0
        for assigned in (0, 1):
            balanced = scores[assigned].detach()
            if used:
                balanced = torch.cat([method.prototypes(queues[assigned]).detach(), balanced])
            q = sinkhorn(balanced)[-IMAGES:]
            assert torch.allclose(q.sum(dim=1), torch.ones(IMAGES))
            for v in range(3):
                if v != assigned:
                    expected -= (q * (scores[v] / 0.1).log_softmax(1)).sum(dim=1).mean().item() / 4
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert [int(queue.filled) for queue in method.queues] == [filled] * 2
    assert not torch.equal(method.queues[0].features, method.queues[1].features)
    assert not build("swav").queues  # none is made where none is asked for


# --- DeepCluster-v2


def test_deepcluster_is_the_cross_entropy_with_its_clusters() -> None:
    method: DeepClusterV2 = build("deepcluster_v2")
    method.before_epoch(0, whole_set)
    assert [bank.filled.tolist() for bank in method.banks] == [[True] * 15 + [False]] * 2  # the last batch had one
    for m, head in enumerate(method.heads):
        assert head.assignments[-1] == -1
        rows = method.banks[m % 2].features[:15]
        assert torch.equal(head.assignments[:15], (rows @ head.centroids.T).argmax(dim=1))
        assert torch.allclose(head.centroids.norm(dim=1), torch.ones(len(head.centroids)))
    method.eval()
    views = batch(0, (32, 32, 16))
    z = F.normalize(method.projector(torch.cat([method.encoder(view) for view in views.views])), dim=1)
    expected = 0.0
    for head in method.heads:
        logs = (z @ head.centroids.T / 0.1).log_softmax(1)
        each = [-logs[v * IMAGES + i, head.assignments[i]].item() for v in range(3) for i in range(15)]
        expected += sum(each) / len(each) / 3
    loss, _ = method.loss(views)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    for bank, rows in zip(method.banks, z.chunk(3)[:2], strict=True):
        assert torch.allclose(bank.features, rows, atol=1e-6) and bank.filled.all()
    method.before_epoch(1, whole_set)
    assert all((head.assignments >= 0).all() for head in method.heads)


# --- SeLa-v2


def test_sela_classifies_by_prototypes_that_share_the_images_out() -> None:
    method: SeLaV2 = build("sela_v2", clusters=[2, 6, 5], epsilon=0.01, iterations=200)
    method.before_epoch(0, whole_set)
    for m, head in enumerate(method.heads):
        rows, weight = method.banks[m % 2].features[:15], method.prototypes[m].weight.detach()
        assert torch.equal(head.assignments[:15], sinkhorn(rows @ weight.T, 0.01, 200).argmax(dim=1))
        assert head.assignments[15] == -1 and torch.equal(head.centroids, weight)
    assert method.heads[0].assignments[:15].bincount().tolist() in ([7, 8], [8, 7])
    method.eval()
    views, expected = batch(0, (32, 32, 16)), 0.0
    z = F.normalize(method.projector(torch.cat([method.encoder(view) for view in views.views])), dim=1)
    for m, head in enumerate(method.heads):
        logs = (z @ method.prototypes[m].weight.T / 0.1).log_softmax(1)
        each = [-logs[v * IMAGES + i, head.assignments[i]].item() for v in range(3) for i in range(15)]
        expected += sum(each) / len(each) / 3
    assert method.loss(views)[0].item() == pytest.approx(expected, rel=1e-5)


def test_selas_prototypes_are_learned_on_the_sphere() -> None:
    method: SeLaV2 = build("sela_v2")
    before = [prototypes.weight.detach().clone() for prototypes in method.prototypes]
    train(method, "sela_v2", 2, of=2)
    for prototypes, old in zip(method.prototypes, before, strict=True):
        assert not torch.allclose(prototypes.weight, old, atol=1e-4)
        assert torch.allclose(prototypes.weight.norm(dim=1), torch.ones(len(old)))


# --- DINO


def test_dino_is_its_pseudo_code_and_moves_the_centre_after_the_loss() -> None:
    method: DINO = build("dino")
    views = batch(0, (32, 32, 16))
    method.center.mean.normal_()
    center = method.center.mean.clone()
    method.before_step(0, 10)
    method.eval()
    student = [method.head(method.encoder(view)) for view in views.views]
    teacher = [method.teacher(view) for view in views.views[:2]]
    terms = [
        -(((t - center) / 0.04).softmax(1) * (s / 0.1).log_softmax(1)).sum(dim=1).mean()
        for i, t in enumerate(teacher)
        for j, s in enumerate(student)
        if i != j
    ]
    loss, _ = method.loss(views)
    assert len(terms) == 4 and loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)
    assert torch.allclose(method.center.mean, 0.9 * center + 0.1 * torch.cat(teacher).mean(dim=0), atol=1e-6)


def test_dino_clips_each_parameter_and_holds_the_last_layer() -> None:
    method: DINO = build("dino", frozen_steps=2, clip_gradient=0.01)
    last = method.head.last_layer.get_parameter("parametrizations.weight.original1")
    for step in (1, 2):
        method.zero_grad()
        method.before_step(step, 10)
        method.loss(batch(step))[0].backward()
        sizes = {key: float(p.grad.norm()) for key, p in method.named_parameters() if p.grad is not None}
        assert max(sizes.values()) > 0.01
        method.after_backward(step, 10)
        assert (last.grad is None) == (step == 1)
        for key, p in method.named_parameters():
            if p.grad is not None:
                assert float(p.grad.norm()) == pytest.approx(min(sizes[key], 0.01), rel=1e-3)


@pytest.mark.parametrize("normed", [True, False])
def test_dinos_last_layer_is_weight_normed(normed: bool) -> None:
    method: DINO = build("dino", norm_last_layer=normed, frozen_steps=0)
    assert torch.allclose(method.head.last_layer.weight.norm(dim=1), torch.ones(24))
    train(method, "dino", 3, of=3)
    unit = torch.allclose(method.head.last_layer.weight.norm(dim=1), torch.ones(24), atol=1e-6)
    assert unit == normed
    outputs = method.head(torch.randn(5, method.encoder.dim))
    assert bool((outputs.abs() <= 1 + 1e-6).all()) or not normed


def test_dinos_schedules_and_export() -> None:
    warm = DINOOptions(teacher_temperature=0.07, teacher_temperature_start=0.04, teacher_temperature_warmup=3)
    assert [teacher_temperature(s, warm) for s in range(5)] == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07])
    assert teacher_temperature(0, DINOOptions(teacher_temperature=0.05)) == 0.05
    method: DINO = build("dino", teacher_momentum=0.5)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1)
    teachers = method.backbone().conv1.weight.clone()
    method.after_step(5, 10)  # half of the cosine: 0.75
    expected = 0.75 * teachers + 0.25 * method.encoder.conv1.weight
    assert torch.allclose(method.backbone().conv1.weight, expected)
    assert method.backbone() is not method.encoder
    decayed, free = method.param_groups(0.1)
    assert {p.ndim for p in free["params"]} == {1} and decayed["weight_decay"] == 0.1
