"""RoIAlign against torchvision's, forward and backward."""

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from openworld.engines.kernels.roi_align import RoIAlign, level_roi_align, table_roi_align

BOXES = {
    "random": torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) * 60,
    "outside the image": torch.tensor(
        [[-50.0, -50, -20, -20], [-10, -10, 30, 40], [100, 90, 300, 200], [500, 5, 600, 9]]
    ),
    "one pixel": torch.tensor([[5.0, 5, 6, 6], [127, 95, 128, 96], [0, 0, 0.1, 0.1], [30, 30, 30, 30]]),
    "huge": torch.tensor([[0.0, 0, 128, 96], [-1000, -1000, 2000, 2000]]),
    "none": torch.zeros(0, 4),
}
BOXES["random"][:, 2:] += BOXES["random"][:, :2]


@pytest.mark.parametrize("ratio", [1, 2])
@pytest.mark.parametrize("name", list(BOXES))
def test_equals_torchvision(name: str, ratio: int) -> None:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 5, 96 // s, 128 // s, generator=generator).requires_grad_() for s in (4, 8, 16)]
    copies = [level.detach().clone().requires_grad_() for level in levels]
    boxes = [BOXES[name], BOXES[name].flip(0)]
    ours = RoIAlign((4, 8, 16), output_size=3, sampling_ratio=ratio, canonical_size_px=40)(levels, boxes)
    stock = MultiScaleRoIAlign(
        ["a", "b", "c"], output_size=3, sampling_ratio=ratio, canonical_scale=40, canonical_level=4
    )
    expected = stock(dict(zip("abc", copies, strict=True)), boxes, [(96, 128), (96, 128)])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    if len(BOXES[name]):
        up = torch.randn(ours.shape, generator=generator)
        ours.backward(up)
        expected.backward(up)
        for level, copy in zip(levels, copies, strict=True):
            got = level.grad if level.grad is not None else torch.zeros_like(level)
            want = copy.grad if copy.grad is not None else torch.zeros_like(copy)
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    else:
        ours.sum().backward()
        assert ours.shape == (0, 5, 3, 3)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("name", list(BOXES))
def test_one_level_equals_torchvision(name: str, ratio: int, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    level = torch.randn(2, 4, 6, 8, generator=generator).requires_grad_()
    copy = level.detach().clone().requires_grad_()
    boxes = [BOXES[name], BOXES[name].flip(0)]
    ours = RoIAlign((16,), output_size=3, sampling_ratio=ratio, canonical_size_px=224, aligned=aligned)([level], boxes)
    expected = roi_align(copy, boxes, 3, 1 / 16, ratio, aligned)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    up = torch.randn(ours.shape, generator=generator)
    (ours * up).sum().backward()
    (expected * up).sum().backward()
    torch.testing.assert_close(level.grad, copy.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("name", list(BOXES))
def test_the_fast_path_is_the_plain_path(name: str, aligned: bool) -> None:
    """Values and gradients; also where no region lies on any level."""
    generator = torch.Generator().manual_seed(5)
    sides = (24, 12, 6)
    levels = [torch.randn(2, 5, side, side + 8, generator=generator).double().requires_grad_() for side in sides]
    boxes_R4 = BOXES[name].double()
    image_R, level_R = (torch.randint(0, many, (len(boxes_R4),), generator=generator) for many in (2, 3))
    arguments = (4, 8, 16), boxes_R4, image_R, level_R, 3, 2, aligned
    fast, plain = table_roi_align(levels, *arguments), level_roi_align(levels, *arguments)
    torch.testing.assert_close(fast, plain)
    factors = torch.randn(plain.shape, generator=generator).double()
    gradients = [torch.autograd.grad((each * factors).sum(), levels) for each in (fast, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_gradient_equals_finite_differences(ratio: int) -> None:
    generator = torch.Generator().manual_seed(3)
    levels = [torch.randn(2, 1, side, side, generator=generator).double().requires_grad_() for side in (6, 3)]
    boxes = torch.tensor([[1.0, 2, 15, 20], [-9, -9, 5, 40], [3, 3, 4, 4], [60, 60, 80, 80], [0, 0, 24, 24]]).double()
    image, level = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 1])

    def aligned(*levels: torch.Tensor) -> torch.Tensor:
        return table_roi_align(levels, (4, 8), boxes, image, level, 2, ratio)

    assert torch.autograd.gradcheck(aligned, levels)


@pytest.mark.parametrize("ratio", [0, 2])
def test_bfloat16_levels_are_summed_in_float32(ratio: int) -> None:
    generator = torch.Generator().manual_seed(4)
    level = torch.randn(1, 8, 24, 32, generator=generator).bfloat16().requires_grad_()
    exact = level.detach().float().requires_grad_()
    boxes = [torch.tensor([[0.0, 0, 128, 96]]).repeat(40, 1)]  # many regions on the same cells
    align = RoIAlign((4,), output_size=7, sampling_ratio=ratio, canonical_size_px=224)
    given, wanted = align([level], boxes), align([exact], boxes)
    assert given.dtype == torch.bfloat16
    torch.testing.assert_close(given.float(), wanted, atol=0.02, rtol=0.02)
    given.sum().backward()
    wanted.sum().backward()
    assert level.grad is not None and exact.grad is not None
    torch.testing.assert_close(level.grad.float(), exact.grad, atol=0.0, rtol=0.02)
