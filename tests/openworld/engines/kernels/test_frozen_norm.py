"""Frozen norms folded into convolutions: the same function, gradients, names and values."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from openworld.engines.backbone import build_features
from openworld.engines.kernels.frozen_norm import fold_frozen_norms
from openworld.engines.options import ModelOptions
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet

ARCHS = [
    ResNetOptions(name="resnet18", width=0.125, norm="frozen"),
    ResNetOptions(name="resnet50", width=0.125, norm="frozen", stride_in_1x1=True, pool_padding="end"),
]


def network(arch: ResNetOptions) -> ResNet:
    """With statistics of which none is 0 or 1."""
    torch.manual_seed(0)
    body = ResNet(arch)
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.3, 1.0),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                assert isinstance(values, Tensor)
                nn.init.uniform_(values, low, high)
    return body


def stages_and_gradients(body: ResNet, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    stages = list(body.forward_stages(images).values())
    parameters = [parameter for parameter in body.parameters() if parameter.requires_grad]
    return stages, list(torch.autograd.grad(torch.stack([stage.square().mean() for stage in stages]).sum(), parameters))


def assert_close(given: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for one, other in zip(given, wanted, strict=True):
        assert float((one - other).detach().abs().max()) <= tolerance * float(other.detach().abs().max())


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.name)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_the_function_and_its_gradient_stay(arch: ResNetOptions, dtype: torch.dtype, tolerance: float) -> None:
    plain = network(arch).to(dtype)
    folded = copy.deepcopy(plain)
    norms = sum(isinstance(module, FrozenBatchNorm2d) for module in plain.modules())
    assert fold_frozen_norms(folded) == norms
    images = torch.randn(2, 3, 64, 64, dtype=dtype)
    (given, given_grad), (wanted, wanted_grad) = (stages_and_gradients(body, images) for body in (folded, plain))
    assert_close(given, wanted, tolerance)
    assert_close(given_grad, wanted_grad, tolerance)


def test_an_empty_batch_has_empty_outputs_and_gradients_of_zero() -> None:
    plain = network(ARCHS[0])
    folded = copy.deepcopy(plain)
    fold_frozen_norms(folded)
    for body in (plain, folded):
        stage = body.forward_stages(torch.zeros(0, 3, 64, 64))["c5"]
        assert stage.shape[0] == 0
        stage.sum().backward()
        assert not any(p.grad.any() for p in body.parameters() if p.grad is not None)
        assert body.conv1.weight.grad is not None


def test_state_moves_between_folded_and_plain() -> None:
    plain = network(ARCHS[1])
    folded = ResNet(ARCHS[1])
    fold_frozen_norms(folded)
    assert list(folded.state_dict()) == list(plain.state_dict())
    folded.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert_close([folded(images)], [plain(images)], 2e-6)
    moved = copy.deepcopy(folded).to(torch.float64)
    assert_close([moved(images.double()).float()], [plain(images)], 2e-6)


def test_the_norms_of_frozen_stages_are_folded_and_the_others_train() -> None:
    options = ModelOptions(arch=ResNetOptions(name="resnet18", width=0.125), freeze_stages=2, fpn_channels=8)
    assert options.arch is not None
    plain = network(options.arch)
    body = build_features(copy.deepcopy(plain), options).body
    kinds = {name: type(body.get_submodule(name)) is nn.BatchNorm2d for name in ("bn1", "layer1.0.bn2", "layer2.0.bn1")}
    assert kinds == {"bn1": False, "layer1.0.bn2": False, "layer2.0.bn1": True}
    plain.eval()
    images = torch.randn(2, 3, 64, 64)
    body.train()  # and what is folded still does not count
    assert_close([body.forward_stages(images, last="c2")["c2"]], [plain.forward_stages(images, last="c2")["c2"]], 2e-6)
    assert torch.equal(body.layer1[0].bn1.running_mean, plain.layer1[0].bn1.running_mean)


def test_what_cannot_be_folded_keeps_its_norm() -> None:
    with_bias = nn.Sequential(nn.Conv2d(2, 3, 1, bias=True), FrozenBatchNorm2d(3))
    trained = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))
    apart = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), FrozenBatchNorm2d(3))
    other = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.GroupNorm(1, 3))
    assert [fold_frozen_norms(each) for each in (with_bias, trained, apart, other)] == [0, 0, 0, 0]
    assert [type(each[-1]) for each in (with_bias, trained, apart)] == [
        FrozenBatchNorm2d,
        nn.BatchNorm2d,
        FrozenBatchNorm2d,
    ]


def test_under_autocast_activations_stay_bfloat16() -> None:
    body = network(ARCHS[0])
    fold_frozen_norms(body)
    images = torch.randn(2, 3, 64, 64)
    wanted = body.forward_stages(images)["c5"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stages = body.forward_stages(images)
    assert {stage.dtype for stage in stages.values()} == {torch.bfloat16}
    assert_close([stages["c5"].float()], [wanted], 0.05)
