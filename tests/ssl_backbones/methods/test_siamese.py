"""BYOL, SimSiam, Barlow Twins, SupCon, MoCo v1 and v3: heads, first losses, what moves, what collapses."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.errors import DataError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.barlow_twins import BarlowTwins
from ssl_backbones.methods.barlow_twins_options import BarlowTwinsOptions
from ssl_backbones.methods.byol import BYOL
from ssl_backbones.methods.byol_options import BYOLOptions
from ssl_backbones.methods.moco import MoCoV1, MoCoV3
from ssl_backbones.methods.moco_options import MoCoV1Options, MoCoV3Options
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.methods.simsiam import SimSiam
from ssl_backbones.methods.simsiam_options import SimSiamOptions
from ssl_backbones.methods.sup_con import SupCon
from ssl_backbones.methods.sup_con_options import SupConOptions
from ssl_backbones.optim import build_optimizer, set_learning_rates
from ssl_backbones.options import PretrainOptions

HERE = ("moco_v1", "moco_v3", "byol", "simsiam", "barlow_twins", "sup_con")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


OWN: dict[str, dict[str, Any]] = {
    "byol": {"hidden_dim": 64},
    "moco_v1": {"queue_size": 32},
    "moco_v3": {"hidden_dim": 64},
    "simsiam": {"predictor_dim": 16},
    "barlow_twins": {"hidden_dim": 64},
    "sup_con": {},
}


def options(name: str, **own: Any) -> PretrainOptions:
    method = MethodOptions.named(name)(**{"projection_dim": 64, **OWN[name], **own})
    return PretrainOptions(method=method, arch=ResNetOptions(width=1 / 16), warmup=0)


def build(name: str, **own: Any) -> Any:
    chosen = options(name, **own)
    return chosen.method.implementation()(chosen).train()


def batch(step: int = 0, count: int = 16) -> Batch:
    """Blurred noise as images, four classes; a view changes brightness and adds noise."""
    fixed, moving = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step + 1)
    images = F.interpolate(torch.rand(count, 3, 4, 4, generator=fixed), size=32, mode="bilinear")

    def view() -> Tensor:
        brightness = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, generator=moving)
        return images * brightness + 0.1 * torch.randn(images.shape, generator=moving)

    return Batch([view(), view()], torch.arange(count), torch.arange(count) % 4)


def train(method: Method, steps: int, lr: float) -> list[tuple[float, float]]:
    """Loss and spread of each step."""
    schedule, seen = PretrainOptions(steps=steps, warmup=0, lr=lr), []
    optimizer = build_optimizer(method.param_groups(schedule.weight_decay), schedule)
    for step in range(steps):
        set_learning_rates(optimizer, step, schedule)
        method.before_step(step, steps)
        loss, numbers = method.loss(batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step, steps)
        seen.append((loss.item(), numbers["spread"]))
    return seen


@pytest.mark.parametrize("name", HERE)
def test_the_loss_falls(name: str) -> None:
    lr = 0.01 if name == "barlow_twins" else 0.1
    teacher = {"teacher_momentum": 0.9} if name in ("byol", "moco_v1", "moco_v3") else {}
    losses = [loss for loss, _ in train(build(name, **teacher), 15, lr)]
    assert sum(losses[-3:]) / 3 < sum(losses[2:5]) / 3 - 0.1  # from step 2 on the queue of 32 holds real keys only


# ---- heads


def layers(head: nn.Module) -> list[str]:
    """One word a layer: its kind, then b for a bias, a for an affine norm."""

    def word(layer: nn.Module) -> str:
        if isinstance(layer, nn.Linear):
            return f"{layer.in_features}-{layer.out_features}{'b' * (layer.bias is not None)}"
        return f"norm{'a' * layer.affine}" if isinstance(layer, nn.BatchNorm1d) else "relu"

    return [word(layer) for layer in (head if isinstance(head, nn.Sequential) else [head])]


def test_heads_are_the_papers() -> None:
    """Widths as published, on a ResNet-50 of few channels."""
    wide = ResNetOptions(name="resnet50", width=1 / 64, stem_width=1)

    def of(own: MethodOptions) -> Any:
        return own.implementation()(PretrainOptions(method=own, arch=wide))

    byol = of(BYOLOptions(projection_dim=256, hidden_dim=4096))
    v1, v3 = of(MoCoV1Options(projection_dim=256)), of(MoCoV3Options(projection_dim=256, hidden_dim=4096))
    dim = byol.encoder.dim
    assert layers(byol.projector) == [f"{dim}-4096b", "norma", "relu", "4096-256"]
    assert layers(byol.predictor) == ["256-4096b", "norma", "relu", "4096-256"]
    assert layers(v3.projector) == [f"{dim}-4096", "norma", "relu", "4096-256", "norm"]
    assert layers(v3.predictor) == ["256-4096", "norma", "relu", "4096-256"]
    assert layers(v1.projector) == [f"{dim}-256b"]
    simsiam, sup_con = (
        of(own) for own in (SimSiamOptions(projection_dim=2048, predictor_dim=512), SupConOptions(projection_dim=2048))
    )
    hidden = [f"{dim}-{dim}", "norma", "relu"]
    assert layers(simsiam.projector) == [*hidden, *hidden, f"{dim}-2048", "norm"]
    assert layers(simsiam.predictor) == ["2048-512", "norma", "relu", "512-2048b"]
    assert layers(sup_con.projector) == [f"{dim}-{dim}b", "relu", f"{dim}-2048b"]
    twins = of(BarlowTwinsOptions(projection_dim=96, hidden_dim=128))
    assert layers(twins.projector) == [f"{dim}-128", "norma", "relu", "128-128", "norma", "relu", "128-96"]


# ---- first losses


def first_loss(method: Method, views: Batch) -> float:
    method.train().before_step(0, 1)
    return method.loss(views)[0].item()


def test_first_losses() -> None:
    wide: dict[str, Any] = {"projection_dim": 1024}
    assert first_loss(build("byol", **wide), batch()) == pytest.approx(4, abs=0.25)
    assert first_loss(build("simsiam", **wide), batch()) == pytest.approx(0, abs=0.1)
    flat: dict[str, Any] = {"temperature": 1e6}  # all similarities equal
    assert first_loss(build("moco_v1", **flat), batch()) == pytest.approx(math.log(32 + 1), rel=1e-4)
    assert first_loss(build("moco_v3", **flat), batch()) == pytest.approx(2 * 2e6 * math.log(16), rel=1e-4)
    sup_con = build("sup_con", **flat, base_temperature=5e5)
    assert first_loss(sup_con, batch()) == pytest.approx(2 * math.log(2 * 16 - 1), rel=1e-4)


def test_barlow_twins_of_two_images() -> None:
    """Two images standardise to +1 and -1 in every dimension, so |C_ij| = 1: only the off-diagonal remains."""
    views = batch(count=2)
    same = Batch([views.views[0], views.views[0]], views.index)
    method = build("barlow_twins", offdiagonal_weight=0.5)
    assert first_loss(method, same) == pytest.approx(0.5 * 64 * 63, rel=0.05)


# ---- which view meets which


def test_views_meet_the_other_view() -> None:
    """Losses again, row by row, from the parts of each method."""
    view1, view2 = batch().views

    def unit(x: Tensor) -> np.ndarray[Any, Any]:
        return F.normalize(x.detach().double(), dim=1).numpy()

    byol: BYOL = build("byol")
    pairs = [
        (byol.predictor(byol.projector(byol.encoder(a))), byol.teacher(b)) for a, b in permutations([view1, view2])
    ]
    assert first_loss(byol, batch()) == pytest.approx(
        sum(((p - t) ** 2).sum() / 16 for p, t in ((unit(p), unit(t)) for p, t in pairs)), rel=1e-4
    )

    v3: MoCoV3 = build("moco_v3", temperature=0.5)
    by_hand = 0.0
    for a, b in permutations([view1, view2]):
        q, k = unit(v3.predictor(v3.projector(v3.encoder(a)))), unit(v3.teacher(b))
        for i in range(16):
            likeness = [math.exp(q[i] @ k[j] / 0.5) for j in range(16)]
            by_hand -= 2 * 0.5 * math.log(likeness[i] / sum(likeness)) / 16
    assert first_loss(v3, batch()) == pytest.approx(by_hand, rel=1e-4)

    v1: MoCoV1 = build("moco_v1")
    q, k, queue = unit(v1.projector(v1.encoder(view1))), unit(v1.teacher(view2)), unit(v1.queue.negatives())
    logits = [[q[i] @ k[i] / 0.2, *(q[i] @ other / 0.2 for other in queue)] for i in range(16)]
    by_hand = -sum(row[0] - math.log(sum(map(math.exp, row))) for row in logits) / 16
    assert first_loss(v1, batch()) == pytest.approx(by_hand, rel=1e-4)

    twins: BarlowTwins = build("barlow_twins")
    z1, z2 = (twins.projector(twins.encoder(view)).detach().double().numpy() for view in (view1, view2))
    correlation = np.corrcoef(z1, z2, rowvar=False)[:64, 64:]
    weight = np.where(np.eye(64) == 1, 1, 0.0051)
    assert first_loss(twins, batch()) == pytest.approx((weight * (correlation - np.eye(64)) ** 2).sum(), rel=1e-2)


# ---- labels


def test_sup_con_pulls_classes_together_and_says_what_it_lacks() -> None:
    method: SupCon = build("sup_con", temperature=0.07)
    views = batch()
    z = F.normalize(method.projector(method.encoder(torch.cat(views.views))), dim=1)
    likeness, classes, by_hand = torch.exp(z @ z.T / 0.07).detach(), torch.arange(32) % 4, 0.0
    for i in range(32):
        others = [j for j in range(32) if j != i]
        everything = likeness[i, others].sum()
        friends = [j for j in others if classes[j] == classes[i]]
        by_hand -= sum(math.log(likeness[i, j] / everything) for j in friends) / len(friends) / 32
    assert first_loss(method, views) == pytest.approx(by_hand, rel=1e-4)
    with pytest.raises(DataError, match="no labels"):
        method.loss(Batch(views.views, views.index))


# ---- gradients and groups


def test_simsiam_holds_the_target_still() -> None:
    method: SimSiam = build("simsiam")
    views = batch()

    def z(view: Tensor) -> Tensor:
        return method.projector(method.encoder(view))

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(method.parameters())))

    with torch.no_grad():
        targets = [z(view).clone() for view in reversed(views.views)]
    predictions = [method.predictor(z(view)) for view in views.views]
    still = gradients(-sum(F.cosine_similarity(p, t).mean() for p, t in zip(predictions, targets, strict=True)) / 2)
    mine = gradients(method.loss(views)[0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, still, strict=True))
    through = gradients(WithoutStop.loss(method, views)[0])  # type: ignore[arg-type]
    assert not torch.allclose(mine[0], through[0], atol=1e-6)


@pytest.mark.parametrize("name", ["byol", "moco_v1", "moco_v3"])
def test_no_gradient_reaches_the_teacher(name: str) -> None:
    method = build(name)
    method.before_step(0, 1)
    method.loss(batch())[0].backward()
    teacher = method.get_submodule("teacher")
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    grouped = {id(p) for group in method.param_groups(0.1) for p in group["params"]}
    assert grouped == {id(p) for p in method.parameters()} - {id(p) for p in teacher.parameters()}


@pytest.mark.parametrize(
    ("name", "when", "momentum"),
    [
        ("byol", "after_step", 1 - (1 - 0.96) * (1 + math.cos(math.pi * 2 / 8)) / 2),
        ("moco_v3", "before_step", 1 - (1 - 0.96) * (1 + math.cos(math.pi * 2 / 8)) / 2),
        ("moco_v1", "before_step", 0.96),
    ],
)
def test_the_teacher_follows(name: str, when: str, momentum: float) -> None:
    method = build(name, teacher_momentum=0.96)
    teacher, student = method.get_submodule("teacher.network"), [method.encoder, method.get_submodule("projector")]
    method.loss(batch())  # each moves the statistics of its own batch norms
    method.double()
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(torch.randn_like(p))
    targets = [p for module in student for p in module.parameters()]
    expected = [t * momentum + s * (1 - momentum) for t, s in zip(teacher.parameters(), targets, strict=True)]
    buffers = [b.clone() for b in teacher.buffers()]
    for other in {"before_step", "after_step"} - {when}:
        getattr(method, other)(2, 8)
        pairs = zip(teacher.parameters(), expected, strict=True)
        assert not any(torch.allclose(t, e, atol=1e-4) for t, e in pairs if t.ndim == 4)
    getattr(method, when)(2, 8)
    torch.testing.assert_close(list(teacher.parameters()), expected, rtol=1e-13, atol=1e-15)
    assert all(torch.equal(b, c) for b, c in zip(teacher.buffers(), buffers, strict=True))


@pytest.mark.parametrize("name", ["byol", "moco_v3", "barlow_twins"])
def test_norms_and_biases_are_spared(name: str) -> None:
    decayed, free = build(name).param_groups(0.1)
    assert {p.ndim for p in decayed["params"]} == {2, 4} and {p.ndim for p in free["params"]} == {1}
    assert (decayed["weight_decay"], decayed["adapt"], free["weight_decay"], free["adapt"]) == (0.1, True, 0.0, False)


@pytest.mark.parametrize("name", ["moco_v1", "simsiam", "sup_con"])
def test_everything_is_decayed(name: str) -> None:
    assert {group["weight_decay"] for group in build(name).param_groups(0.1)} == {0.1}


@pytest.mark.parametrize(
    ("name", "own", "final_lr", "rates"),
    [
        ("simsiam", {}, 0.0, [0.1, 0.2]),  # half way down the cosine; the predictor stays
        ("simsiam", {"predictor_lr_decays": True}, 0.0, [0.1, 0.1]),
        ("barlow_twins", {}, 0.0, [0.1, 0.0024]),
        ("barlow_twins", {}, 0.1, [0.15, 0.0036]),
    ],
)
def test_rates_of_the_groups(name: str, own: dict[str, Any], final_lr: float, rates: list[float]) -> None:
    schedule = PretrainOptions(steps=10, warmup=0, lr=0.2, final_lr=final_lr, optimizer="lars")
    optimizer = build_optimizer(build(name, **own).param_groups(0.1), schedule)
    set_learning_rates(optimizer, 5, schedule)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(rates)


# ---- collapse


class WithoutStop(SimSiam):
    """Gradients flow into the targets."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        z1, z2 = (self.projector(self.encoder(view)) for view in batch.views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
        return loss, {"spread": spread(z1)}


def without_predictor(method: BYOL | SimSiam) -> Method:
    method.predictor = nn.Sequential()
    return method


def hidden_norm_only(method: SimSiam) -> SimSiam:
    """A batch norm on the projector's output keeps a small batch from collapsing whatever the loss does: off with it
    (SimSiam, table 3, b, which learns well)."""
    method.projector = method.projector[:-1]
    return method


@pytest.mark.parametrize(
    ("make", "lr", "collapses"),
    [
        (lambda: hidden_norm_only(build("simsiam")), 0.3, False),
        (lambda: hidden_norm_only(WithoutStop(options("simsiam"))), 0.3, True),
        (lambda: without_predictor(hidden_norm_only(build("simsiam"))), 0.3, True),
        (lambda: build("byol", teacher_momentum=0.9), 0.05, False),
        (lambda: without_predictor(build("byol", teacher_momentum=0.9)), 0.05, True),
    ],
    ids=["simsiam", "simsiam without stop-gradient", "simsiam without predictor", "byol", "byol without predictor"],
)
def test_collapse(make: Callable[[], Method], lr: float, collapses: bool) -> None:
    seen = train(make().train(), 20, lr)
    assert seen[0][1] > 0.7
    assert seen[-1][1] < 0.5 if collapses else seen[-1][1] > 0.65
