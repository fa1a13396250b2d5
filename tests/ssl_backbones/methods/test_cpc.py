"""CPC and CPC v2: the loss by a slow loop, contexts that do not see what they predict, layer norm."""

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
from ssl_backbones.contexts import ColumnGRU, MaskedConvolutions
from ssl_backbones.method import Batch
from ssl_backbones.methods.cpc import CPC, predictive_info_nce
from ssl_backbones.methods.cpc_options import CPCOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES, sample_view


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def build(views: str = "cpc", norm: str = "batch", **changes: Any) -> CPC:
    arch = ResNetOptions(width=1 / 16, norm=norm)  # type: ignore[arg-type]
    own = CPCOptions(**{"projection_dim": 8, "temperature": 1.0, "context_dim": 12, **changes})
    return CPC(PretrainOptions(method=own, arch=arch, views=views, view_size=32)).train()  # type: ignore[arg-type]


def batch(views: str = "cpc", step: int = 0, count: int = 3) -> Batch:
    """Real views of blurred noise."""
    noise = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    images = (F.interpolate(noise, size=48, mode="bilinear") * 255).to(torch.uint8)
    pictures = [sample_view(images[i], RECIPES[views][0], 32, generator(step, i)) for i in range(count)]
    return Batch([torch.stack(pictures)], torch.arange(count))


def slow_info_nce(predicted: Tensor, targets: Tensor, temperature: float) -> float:
    """A prediction at a time, row r of R being of row G - R + r."""
    everything, total, terms = [], 0.0, 0
    for n in range(targets.shape[0]):
        for row in range(targets.shape[1]):
            for column in range(targets.shape[2]):
                everything.append(((n, row, column), targets[n, row, column]))
    for n in range(predicted.shape[0]):
        for r in range(predicted.shape[1]):
            for column in range(predicted.shape[2]):
                right = (n, targets.shape[1] - predicted.shape[1] + r, column)
                scores = {at: math.exp(float(predicted[n, r, column] @ z) / temperature) for at, z in everything}
                total -= math.log(scores[right] / sum(scores.values()))
                terms += 1
    return total / terms


@pytest.mark.parametrize(("rows", "temperature"), [(3, 1.0), (1, 10.0)])
def test_the_loss_is_its_slow_loop(rows: int, temperature: float) -> None:
    targets, predicted = torch.randn(2, 4, 4, 5), torch.randn(2, rows, 4, 5)
    loss = predictive_info_nce(predicted, targets, temperature).item()
    assert loss == pytest.approx(slow_info_nce(predicted, targets, temperature), rel=1e-5)
    halves = [predictive_info_nce(predicted[n : n + 1], targets, temperature, first=n).item() for n in range(2)]
    assert sum(halves) / 2 == pytest.approx(loss, rel=1e-5)  # of one process that has a half


def test_the_loss_of_nothing() -> None:
    predicted = torch.zeros(0, 2, 4, 5, requires_grad=True)
    loss = predictive_info_nce(predicted, torch.zeros(0, 4, 4, 5), 1.0)
    loss.backward()
    assert loss.item() == 0
    alike = predictive_info_nce(torch.ones(2, 2, 4, 5), torch.ones(2, 4, 4, 5), 1.0)
    assert alike.item() == pytest.approx(math.log(32))


@pytest.mark.parametrize("context", ["pixelcnn", "gru"])
@pytest.mark.parametrize(("skipped", "directions"), [(0, 1), (2, 4)])
def test_cpc_is_its_equation_in_each_direction(context: str, skipped: int, directions: int) -> None:
    method = build(context=context, skipped_rows=skipped, predicted_rows=2, directions=directions).eval()
    given = batch(count=2)
    pictures, side = given.views[0], given.views[0].shape[-1] // 7
    z = torch.stack(
        [
            torch.stack(
                [
                    method.encoder(pictures[:, :, side * r : side * (r + 1), side * c : side * (c + 1)])
                    for c in range(7)
                ],
                dim=1,
            )
            for r in range(7)
        ],
        dim=1,
    )
    expected = []
    for quarter in range(directions):
        turned = z
        for _ in range(quarter):
            turned = turned.transpose(1, 2).flip(1)  # a quarter turn: the last column becomes the first row
        contexts = method.contexts[quarter](turned)
        for number, predictor in enumerate(method.predictors[quarter]):  # type: ignore[arg-type]
            away = 1 + skipped + number
            predicted = predictor(contexts[:, : 7 - away]).detach()
            expected.append(slow_info_nce(predicted, method.projector(turned).detach(), 1.0))
    assert len(expected) == 2 * directions
    assert method.loss(given)[0].item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@pytest.mark.parametrize("network", [MaskedConvolutions, ColumnGRU])
def test_a_context_sees_its_row_and_those_above_alone(network: type[MaskedConvolutions | ColumnGRU]) -> None:
    context = network(6, 9)
    z = torch.randn(1, 7, 7, 6, requires_grad=True)
    for row in (0, 3, 6):
        (gradient,) = torch.autograd.grad(context(z)[0, row, 3].sum(), z)
        seen = gradient.abs().sum(dim=(0, 2, 3)) > 0
        assert seen.tolist()[row:] == [True] + [False] * (6 - row)
        assert seen[max(0, row - 3) : row].all()
    assert context(torch.zeros(0, 7, 7, 6)).shape == (0, 7, 7, context.dim)


def test_loss_without_any_preference_is_the_number_of_patches() -> None:
    method = build(temperature=1e9)
    assert method.loss(batch())[0].item() == pytest.approx(math.log(3 * 49), rel=1e-5)


def test_patches_meet_in_batch_norm_and_not_in_layer_norm() -> None:
    for norm, meet in (("batch", True), ("layer", False)):
        encoder = ResNet(ResNetOptions(width=1 / 16, norm=norm)).train()  # type: ignore[arg-type]
        patches = torch.randn(4, 3, 32, 32, requires_grad=True)
        (gradient,) = torch.autograd.grad(encoder(patches)[0].sum(), patches)
        assert bool(gradient[1:].abs().sum() > 1e-6) == meet


def test_layer_norm_is_torchs_and_its_network_has_no_statistics() -> None:
    encoder = ResNet(ResNetOptions(width=1 / 16, norm="layer"))
    x = torch.randn(2, encoder.bn1.num_channels, 5, 6)  # type: ignore[arg-type]
    assert torch.allclose(encoder.bn1(x), nn.LayerNorm(x.shape[1:])(x), atol=1e-6)
    assert not any("running" in key for key in encoder.state_dict())


def test_what_is_exported_is_the_ordinary_encoder() -> None:
    method = build()
    method.loss(batch())
    plain = ResNet(method.encoder.options)
    plain.load_state_dict(method.backbone().state_dict())
    assert method.backbone() is method.encoder


def test_rows_beyond_the_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 6"):
        build(skipped_rows=4, predicted_rows=3)
    with pytest.raises(ConfigError, match=r"CPCOptions\.directions"):
        CPCOptions(directions=2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="CPC"):
        build(views="moco_v2")
