"""Networks of other libraries: CLIP's stem and TensorFlow's padding, each against an independent computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet


def norm(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    stats = (tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"])
    return F.batch_norm(x, *stats, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def test_clips_image_tower_by_hand() -> None:
    """clip/model.py: three convolutions, average pools in place of strides."""
    torch.manual_seed(0)
    network = ResNet(ResNetOptions(name="resnet50", width=1 / 16, stem_width=4, stem="clip")).eval()
    t = {key: torch.rand_like(value.float()) - 0.3 * (value.ndim == 4) for key, value in network.state_dict().items()}
    network.load_state_dict(t)
    x = images = torch.rand(1, 3, 32, 64)
    stages = network.forward_stages(images)
    for index in (1, 2, 3):
        x = F.conv2d(x, t[f"conv{index}.weight"], stride=2 if index == 1 else 1, padding=1)
        x = norm(x, t, f"bn{index}").relu()
    x = F.avg_pool2d(x, 2)
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            own = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, t[f"{own}.conv1.weight"]), t, f"{own}.bn1").relu()
            y = norm(F.conv2d(y, t[f"{own}.conv2.weight"], padding=1), t, f"{own}.bn2").relu()
            y = norm(F.conv2d(F.avg_pool2d(y, stride), t[f"{own}.conv3.weight"]), t, f"{own}.bn3")
            if block == 0:
                x = F.conv2d(F.avg_pool2d(x, stride), t[f"{own}.downsample.0.weight"])
                x = norm(x, t, f"{own}.downsample.1")
            x = (x + y).relu()
        assert torch.allclose(stages[f"c{stage + 1}"], x, rtol=1e-4), stage


@pytest.mark.parametrize(("height", "width"), [(32, 64), (33, 47)])
def test_padding_at_the_end_as_same(height: int, width: int) -> None:
    """SAME by its definition: ceil(side / 2) outputs, and of the missing rows the smaller half before the image."""
    torch.manual_seed(0)
    network = ResNet(ResNetOptions(name="resnet18", width=1 / 16, stem_width=4, conv_padding="end"))
    images = torch.rand(1, 3, height, width)
    found = network.conv1(images)
    rows, columns = math.ceil(height / 2), math.ceil(width / 2)
    assert found.shape[2:] == (rows, columns)
    for row, column in ((0, 0), (rows - 1, columns - 1), (3, 5)):
        top = 2 * row - ((rows - 1) * 2 + 7 - height) // 2
        left = 2 * column - ((columns - 1) * 2 + 7 - width) // 2
        total = torch.zeros(4)
        for dy in range(7):
            for dx in range(7):
                if 0 <= top + dy < height and 0 <= left + dx < width:
                    total += network.conv1.weight[:, :, dy, dx] @ images[0, :, top + dy, left + dx]
        assert torch.allclose(found[0, :, row, column], total, atol=1e-5)
    assert network(images).shape == (1, network.dim)
