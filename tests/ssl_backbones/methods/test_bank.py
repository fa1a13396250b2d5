"""InstDisc, CMC and PIRL: first losses by slow loops, what the banks hold, what is exported."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.errors import ConfigError
from openworld.runtime.seeding import generator
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.backbones.twin_resnet import TwinResNet
from ssl_backbones.method import Batch, Method
from ssl_backbones.methods.cmc import CMC, YDBDR_FROM_RGB
from ssl_backbones.methods.cmc_options import CMCOptions
from ssl_backbones.methods.instdisc import ContrastBank, InstDisc, generators_of
from ssl_backbones.methods.instdisc_options import BankOptions, InstDiscOptions
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.methods.pirl import PIRL
from ssl_backbones.methods.pirl_options import PIRLOptions
from ssl_backbones.methods.simclr import SimCLR
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES, sample_view

HERE = ("instdisc", "cmc", "pirl")
IMAGES, NEGATIVES, TEMPERATURE = 12, 7, 0.2
SMALL: dict[str, Any] = {"temperature": TEMPERATURE, "projection_dim": 8}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def build(name: str, *, views: str | None = None, arch: dict[str, Any] | None = None, **changes: Any) -> Any:
    own = {**SMALL, "negatives": NEGATIVES, **changes}
    chosen = PretrainOptions(
        method=MethodOptions.named(name)(**own),
        arch=ResNetOptions(**{"width": 1 / 16, **(arch or {})}),
        views=views or name,  # type: ignore[arg-type]
        view_size=32,
    )
    method = chosen.method.implementation()(chosen).train()
    method.allocate(IMAGES)
    return method


def batch(name: str, step: int = 0, index: Tensor | None = None) -> Batch:
    """Real views of blurred noise."""
    index = torch.arange(IMAGES) if index is None else index
    noise = torch.rand(IMAGES, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    images = (F.interpolate(noise, size=48, mode="bilinear") * 255).to(torch.uint8)
    views = [
        torch.stack([sample_view(images[i], recipe, 32, generator(step, number, i)) for i in index.tolist()])
        for number, recipe in enumerate(RECIPES[name])
    ]
    return Batch(views, index)


def unit(x: Tensor) -> Tensor:
    return x.double() / x.double().norm(dim=-1, keepdim=True)


def slow_normaliser(z: Tensor, bank: Tensor, index: Tensor, drawn: Tensor) -> float:
    """Z: the number of rows times the mean of exp over every pair that is scored."""
    scores = []
    for i in range(len(z)):
        for row in [int(index[i]), *drawn[i].tolist()]:
            scores.append(math.exp(float(unit(z[i]) @ bank[row].double()) / TEMPERATURE))
    return len(bank) * sum(scores) / len(scores)


def slow_nce(z: Tensor, bank: Tensor, index: Tensor, drawn: Tensor, normaliser: float) -> float:
    """Equations 5 to 7 of InstDisc, a probability at a time."""
    total = 0.0
    for i in range(len(z)):
        for place, row in enumerate([int(index[i]), *drawn[i].tolist()]):
            p = math.exp(float(unit(z[i]) @ bank[row].double()) / TEMPERATURE) / normaliser
            h = p / (p + drawn.shape[1] / len(bank))
            total -= math.log(h) if place == 0 else math.log(1 - h)
    return total / len(z)


def slow_write(bank: Tensor, index: Tensor, z: Tensor, momentum: float = 0.5) -> Tensor:
    """The bank after a step, an image at a time."""
    after = bank.double().clone()
    for i, row in enumerate(index.tolist()):
        after[row] = unit(momentum * after[row] + (1 - momentum) * unit(z[i]))
    return after


def drawn_next(bank: ContrastBank, index: Tensor) -> Tensor:
    """What the next loss will draw; the global generator is put back."""
    state = torch.get_rng_state()
    drawn = bank.draw(generators_of(index))
    torch.set_rng_state(state)
    return drawn


# --- the bank


def test_draws_belong_to_images_and_are_uniform() -> None:
    bank = ContrastBank(50, InstDiscOptions(negatives=4000, projection_dim=4))
    torch.manual_seed(3)
    some = bank.draw(generators_of(torch.tensor([4, 9])))
    torch.manual_seed(3)
    more = bank.draw(generators_of(torch.tensor([9, 30, 4])))
    assert torch.equal(some, more[[2, 0]]) and not torch.equal(more[0], more[1])
    assert not torch.equal(more, bank.draw(generators_of(torch.tensor([9, 30, 4]))))  # another step
    counts = more.flatten().bincount(minlength=50)
    assert len(counts) == 50 and counts.min() > 180 and counts.max() < 300  # 240 expected, deviation 15
    assert bank.draw([]).shape == (0, 4000)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # every probability is 1 / n, so h = 1 / (K + 1)
        ("nce", math.log(NEGATIVES + 1) + NEGATIVES * math.log((NEGATIVES + 1) / NEGATIVES)),
        ("info_nce", math.log(NEGATIVES + 1)),
        ("softmax", math.log(IMAGES)),
    ],
)
def test_loss_without_any_preference(form: str, expected: float) -> None:
    method: InstDisc = build("instdisc", form=form, temperature=1e6)
    assert method.loss(batch("instdisc"))[0].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["info_nce", "softmax"])
def test_the_forms_with_a_softmax_are_its_slow_loop(form: str) -> None:
    bank = ContrastBank(IMAGES, InstDiscOptions(**SMALL, negatives=NEGATIVES, form=form))  # type: ignore[arg-type]
    z, index = torch.randn(3, 8), torch.tensor([5, 0, 11])
    drawn, total = bank.draw(generators_of(index)), 0.0
    for i in range(3):
        rows = [int(index[i]), *drawn[i].tolist()] if form == "info_nce" else list(range(IMAGES))
        scores = [math.exp(float(unit(z[i]) @ bank.features[row].double()) / TEMPERATURE) for row in rows]
        own = scores[0] if form == "info_nce" else scores[int(index[i])]
        total -= math.log(own / sum(scores)) / 3
    loss = bank.contrast(z.requires_grad_(), index, drawn)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    bank.write(index, z)  # before the backward pass
    loss.backward()
    assert z.grad is not None and bank.log_normaliser.isinf()


@pytest.mark.parametrize("form", ["nce", "info_nce", "softmax"])
def test_an_empty_batch_costs_nothing(form: str) -> None:
    bank = ContrastBank(IMAGES, InstDiscOptions(**SMALL, form=form))  # type: ignore[arg-type]
    bank.log_normaliser.zero_()
    z = torch.zeros(0, 8, requires_grad=True)
    loss = bank.contrast(z, torch.zeros(0, dtype=torch.long), bank.draw([]))
    loss.backward()
    assert loss.item() == 0


# --- all three


@pytest.mark.parametrize("name", HERE)
def test_banks_move_without_gradient_in_full_precision(name: str) -> None:
    method: Method = build(name)
    before = {key: value.clone() for key, value in method.named_buffers()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = method.loss(batch(name))
    loss.backward()
    banks = {key: value for key, value in method.named_buffers() if "bank." in key}
    assert all(not torch.equal(value, before[key]) for key, value in banks.items())
    assert all(value.dtype in (torch.float32, torch.bool) and not value.requires_grad for value in banks.values())
    assert all(p.grad is not None for p in method.parameters())
    assert loss.dtype == torch.float32 and loss.isfinite()
    (group,) = method.param_groups(0.1)  # all decayed
    assert len(group["params"]) == len(list(method.parameters()))


@pytest.mark.parametrize("name", HERE)
def test_what_is_exported_loads_into_the_plain_network(name: str) -> None:
    method: Method = build(name)
    method.loss(batch(name))  # so that the batch norms have statistics
    plain = ResNet(method.encoder.options).eval()
    plain.load_state_dict(method.backbone().state_dict())
    images = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        assert torch.allclose(plain(images), method.encoder.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HERE)
def test_views_of_another_method_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)views is moco_v2, which is not what .* one of .*{name}"):
        build(name, views="moco_v2")
    with pytest.raises(ConfigError, match="SimCLR"):
        SimCLR(PretrainOptions(views=name))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (InstDiscOptions, {"negatives": 0}, "InstDiscOptions.negatives"),
        (CMCOptions, {"form": "hinge"}, "CMCOptions.form"),
        (PIRLOptions, {"bank_momentum": 1.0}, "PIRLOptions.bank_momentum"),
        (PIRLOptions, {"jigsaw_weight": 1.5}, "PIRLOptions.jigsaw_weight"),
        (InstDiscOptions, {"proximal_weight": 1.0, "form": "softmax"}, "InstDiscOptions.proximal_weight"),
    ],
)
def test_bad_options_are_named(kind: type[BankOptions], changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        kind(**changes)


# --- InstDisc


def test_instdisc_is_its_equations_and_the_normaliser_stays() -> None:
    method: InstDisc = build("instdisc").eval()
    normaliser = 0.0
    for step, index in enumerate((torch.tensor([3, 0, 7, 11]), torch.tensor([5, 3, 1, 2]))):
        views, bank = batch("instdisc", step, index), method.bank.features.clone()
        drawn = drawn_next(method.bank, index)
        z = method.projector(method.encoder(views.views[0])).detach()
        normaliser = normaliser or slow_normaliser(z, bank, index, drawn)
        loss, _ = method.loss(views)
        assert loss.item() == pytest.approx(slow_nce(z, bank, index, drawn, normaliser), rel=1e-5)
        assert method.bank.log_normaliser.item() == pytest.approx(math.log(normaliser), abs=1e-5)
        assert torch.allclose(method.bank.features.double(), slow_write(bank, index, z), atol=1e-6)
    assert method.bank.filled.nonzero().flatten().tolist() == [0, 1, 2, 3, 5, 7, 11]


def test_proximal_term_is_the_squared_distance_to_the_row() -> None:
    plain, near = (build("instdisc", proximal_weight=weight).eval() for weight in (0.0, 3.0))
    near.load_state_dict(plain.state_dict())
    views, bank = batch("instdisc"), plain.bank.features.clone()
    z = unit(plain.projector(plain.encoder(views.views[0])).detach())
    losses = []
    for method in (plain, near):
        torch.manual_seed(1)
        losses.append(method.loss(views)[0].item())
    expected = 3 * sum(float(((z[i] - bank[i]) ** 2).sum()) for i in range(IMAGES)) / IMAGES
    assert losses[1] - losses[0] == pytest.approx(expected, rel=1e-4)


# --- CMC


def twin_encoders(encoder: TwinResNet) -> list[ResNet]:
    """The two halves as networks of their own, of half the width and with one and two input channels."""
    halves = []
    for number, channels in enumerate((slice(0, 1), slice(1, 3))):
        half = ResNet(ResNetOptions(width=encoder.options.width / 2))
        half.conv1 = nn.Conv2d(channels.stop - channels.start, half.conv1.out_channels, 7, 2, 3, bias=False)
        state = {}
        for key, value in encoder.state_dict().items():
            value = value.chunk(2)[number] if value.ndim else value
            state[key] = value[:, channels] if key == "conv1.weight" else value
        half.load_state_dict(state)
        halves.append(half.train(encoder.training))
    return halves


@pytest.mark.parametrize("views", ["cmc", "cmc_lab"])
def test_cmc_is_two_encoders_and_the_sum_of_two_contrasts(views: str) -> None:
    method: CMC = build("cmc", views=views)
    method.encoder(batch(views).views[0])  # statistics
    method.eval()
    index = torch.tensor([3, 0, 7])
    given = batch(views, 1, index)
    banks = [bank.features.clone() for bank in (method.luminance_bank, method.colour_bank)]
    x = given.views[0]
    if views == "cmc":
        x = torch.stack([sum(YDBDR_FROM_RGB[k][c] * x[:, c] for c in range(3)) for k in range(3)], dim=1)  # type: ignore[misc]
    luminance, colour = twin_encoders(method.encoder)
    z1 = method.luminance_projector(luminance(x[:, :1])).detach()
    z2 = method.colour_projector(colour(x[:, 1:])).detach()
    drawn = drawn_next(method.colour_bank, index)
    expected = sum(
        slow_nce(z, bank, index, drawn, slow_normaliser(z, bank, index, drawn))
        for z, bank in ((z1, banks[1]), (z2, banks[0]))
    )
    assert method.loss(given)[0].item() == pytest.approx(expected, rel=1e-4)
    for bank, old, z in zip((method.luminance_bank, method.colour_bank), banks, (z1, z2), strict=True):
        assert torch.allclose(bank.features.double(), slow_write(old, index, z), atol=1e-5)


@pytest.mark.parametrize(("arch", "width"), [("resnet18", 1 / 16), ("resnet50", 1 / 32)])
def test_cmc_exports_both_encoders_as_one_plain_network(arch: str, width: float) -> None:
    """In training mode: the batch norms of the copy see what those of the two encoders see."""
    method: CMC = build("cmc", arch={"name": arch, "width": width, "stem_width": 4})
    images, state = torch.randn(4, 3, 48, 48), torch.get_rng_state()
    plain = method.backbone()
    assert torch.equal(state, torch.get_rng_state())  # exporting draws nothing
    assert type(plain) is ResNet and plain.training
    with torch.no_grad():
        assert torch.allclose(plain(images), method.encoder(images), rtol=1e-4, atol=1e-5)
        plain.conv1.weight.zero_()
    assert method.encoder.conv1.weight.abs().sum() > 0  # a copy
    halves = method.encoder.layer2[0].conv1.weight  # type: ignore[index]
    merged = plain.layer2[0].conv1.weight  # type: ignore[index]
    inside = halves.shape[1]
    assert merged.shape[1] == 2 * inside and not merged[: len(merged) // 2, inside:].any()


def test_cmc_leaves_both_heads_as_one_layer() -> None:
    method: CMC = build("cmc").eval()
    images, state = torch.randn(3, 3, 32, 32), torch.get_rng_state()
    head = method.projection()
    assert torch.equal(state, torch.get_rng_state())
    luminance, colour = method.encoder(images).chunk(2, dim=1)
    expected = torch.cat([method.luminance_projector(luminance), method.colour_projector(colour)], dim=1)
    assert torch.allclose(head(method.backbone()(images)), expected, rtol=1e-4, atol=1e-5)


def test_cmc_draws_its_encoders_at_their_own_width() -> None:
    torch.manual_seed(0)
    twin, half = TwinResNet(ResNetOptions(width=1.0), YDBDR_FROM_RGB), ResNet(ResNetOptions(width=0.5))
    for key in ("layer1.0.conv1.weight", "layer3.0.conv2.weight"):
        one, other = twin.state_dict()[key], half.state_dict()[key]
        assert one.shape[1] == other.shape[1] and one.std().item() == pytest.approx(other.std().item(), rel=0.02)
    used = twin.conv1.weight.detach().abs().sum(dim=(2, 3)) > 0
    assert used[:32].tolist() == [[True, False, False]] * 32 and used[32:].tolist() == [[False, True, True]] * 32


@pytest.mark.parametrize("arch", [{"width": 3 / 64}, {"norm": "layer"}, {"stem_width": 5}])
def test_cmc_refuses_what_cannot_be_halved(arch: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"two encoders|do not halve"):
        build("cmc", arch=arch)


def test_what_l_a_b_gives_says_so() -> None:
    assert RECIPES["cmc_lab"][0].preprocess()["order"] == "LAB" and RECIPES["cmc"][0].preprocess()["order"] == "RGB"


# --- PIRL


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_pirl_is_its_equations_and_only_images_write(weight: float) -> None:
    method: PIRL = build("pirl", jigsaw_weight=weight).eval()
    index = torch.tensor([3, 0, 7, 11])
    given, bank = batch("pirl", 0, index), method.bank.features.clone()
    state = torch.get_rng_state()
    sources = generators_of(index)
    drawn = method.bank.draw(sources)
    orders = [torch.randperm(9, generator=source).tolist() for source in sources]
    torch.set_rng_state(state)
    f = method.projector(method.encoder(given.views[0])).detach()
    side, g = given.views[1].shape[-1] // 3, []
    for i, order in enumerate(orders):
        each = []
        for place in order:
            top, left = side * (place // 3), side * (place % 3)
            patch = given.views[1][i : i + 1, :, top : top + side, left : left + side]
            each.append(method.patch_projector(method.encoder(patch))[0])
        g.append(method.jigsaw_projector(torch.cat(each)).detach())
    jigsaws = torch.stack(g)
    normaliser = slow_normaliser(jigsaws, bank, index, drawn)
    expected = weight * slow_nce(jigsaws, bank, index, drawn, normaliser)
    expected += (1 - weight) * slow_nce(f, bank, index, drawn, normaliser)
    assert method.loss(given)[0].item() == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(method.bank.features.double(), slow_write(bank, index, f), atol=1e-5)


def test_pirls_heads() -> None:
    method: PIRL = build("pirl")
    shapes = [layer.weight.shape for layer in (method.projector, method.patch_projector, method.jigsaw_projector)]
    assert shapes == [(8, 32), (8, 32), (8, 72)]
