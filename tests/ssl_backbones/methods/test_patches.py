"""Views made of patches, and colours in L*a*b*: geometry by hand, colours against published values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from openworld.runtime.seeding import generator
from ssl_backbones.methods.cmc import YDBDR_FROM_RGB
from ssl_backbones.views import CPC, CPC_V2, PIRL_JIGSAW, RECIPES, PatchGrid, cut_patches, lab_from_rgb, sample_view

WHOLE = replace(PIRL_JIGSAW, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip_p=0.0)
PLAIN = replace(WHOLE, jitter_p=0.0, gray_p=0.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def ramp(side: int) -> Tensor:
    """(3, side, side) uint8: red counts the columns, green the rows."""
    values = torch.arange(side, dtype=torch.uint8)
    return torch.stack([values.expand(side, -1), values[:, None].expand(-1, side), torch.full((side, side), 9)])


def corners(view: Tensor, count: int) -> list[tuple[int, int]]:
    """Row and column, in the picture, of the first pixel of each patch."""
    patches = (cut_patches(view[None], count) * 255).round().to(torch.int)
    return [(int(patch[1, 0, 0]), int(patch[0, 0, 0])) for patch in patches]


def test_grids_are_the_papers() -> None:
    pirl, cpc, v2 = (recipe.patches for recipe in (PIRL_JIGSAW, CPC, CPC_V2))
    assert pirl and cpc and v2
    found = [(grid.side, grid.count, grid.patch) for grid in (pirl, cpc, v2)]
    assert found == [(255, 3, 64), (256, 7, 64), (260, 6, 80)]
    assert (cpc.stride, cpc.crop, v2.stride, v2.drop_p > 0, v2.flip_p) == (32, 60, 36, True, 0.5)
    assert pirl.scaled(64) == replace(pirl, view=64, cell=24, stride=24, crop=18, patch=18)
    tiny = cpc.scaled(8)
    assert (tiny.cell, tiny.stride, tiny.crop, tiny.patch) == (2, 1, 2, 2)
    for size in range(8, 300):
        grid = cpc.scaled(size)
        assert 0 < grid.crop <= min(grid.cell, grid.patch) and grid.stride > 0


def test_cutting_undoes_laying() -> None:
    patches = torch.rand(2, 9, 3, 4, 4)
    rows = [torch.cat(list(patches[:, 3 * r : 3 * r + 3].unbind(1)), dim=3) for r in range(3)]
    assert torch.equal(cut_patches(torch.cat(rows, dim=2), 3), patches.flatten(0, 1))
    assert cut_patches(torch.zeros(0, 3, 12, 12), 3).shape == (0, 3, 4, 4)


def test_a_jigsaw_has_a_patch_of_each_cell_at_a_random_place() -> None:
    seen = []
    for seed in range(30):
        view = sample_view(ramp(255), PLAIN, 224, generator(seed))
        assert view.shape == (3, 192, 192)
        places = corners(view, 3)
        for number, (row, column) in enumerate(places):
            assert 85 * (number // 3) <= row <= 85 * (number // 3) + 21
            assert 85 * (number % 3) <= column <= 85 * (number % 3) + 21
        (first,) = cut_patches(view[None], 3)[:1]
        row, column = places[0]
        assert torch.equal(first, ramp(255)[:, row : row + 64, column : column + 64] / 255)
        seen.append(tuple(places))
    assert len(set(seen)) == 30
    assert {row for places in seen for row, _ in places[:3]} >= {0, 21}  # both ends of the cell


def test_overlapping_patches_are_framed() -> None:
    grid = PatchGrid(view=256, count=7, cell=64, stride=32, crop=60, patch=64)
    view = sample_view(ramp(256), replace(PLAIN, patches=grid), 256, generator(0))
    assert view.shape == (3, 448, 448)
    patches = cut_patches(view[None], 7)
    assert not patches[:, :, :2].any() and not patches[:, :, -2:].any() and not patches[:, :, :, -2:].any()
    inside = (patches[:, :, 2:-2, 2:-2] * 255).round().to(torch.int)
    for number, patch in enumerate(inside):
        row, column = int(patch[1, 0, 0]), int(patch[0, 0, 0])
        assert 0 <= row - 32 * (number // 7) <= 4 and 0 <= column - 32 * (number % 7) <= 4
        assert torch.equal(patch, ramp(256)[:, row : row + 60, column : column + 60].int())


def test_patches_lose_channels_flip_and_change_colour_by_themselves() -> None:
    assert PLAIN.patches is not None
    dropped = replace(PLAIN, patches=replace(PLAIN.patches, drop_p=1.0, flip_p=0.5))
    kept, flipped = set(), set()
    for seed in range(8):
        for patch in cut_patches(sample_view(ramp(255), dropped, 224, generator(seed))[None], 3):
            (channel,) = patch.flatten(1).any(dim=1).nonzero().flatten().tolist()
            kept.add(channel)
            if channel == 0:
                flipped.add(bool(patch[0, 0, 0] > patch[0, 0, -1]))
    assert kept == {0, 1, 2} and flipped == {True, False}
    gray = replace(PLAIN, gray_p=0.5)
    patches = cut_patches(sample_view(ramp(255), gray, 224, generator(0))[None], 3)
    assert 0 < sum(torch.equal(patch[0], patch[1]) for patch in patches) < 9


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # IEC sRGB primaries and grays under D65, as published in colour tables
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((1, 1, 1), (100.0, 0.0, 0.0)),
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((1, 1, 0), (97.14, -21.55, 94.48)),
        ((1, 0, 1), (60.32, 98.23, -60.82)),
        ((0.5019608, 0.5019608, 0.5019608), (53.59, 0.0, 0.0)),
    ],
)
def test_lab_is_the_published(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    found = lab_from_rgb(torch.tensor(rgb).view(3, 1, 1).float()).flatten().tolist()
    assert found == pytest.approx(lab, abs=0.02)


def test_views_in_lab_are_within_one() -> None:
    """The authors' constants are the half ranges, so the cube of all colours just fits."""
    (recipe,) = RECIPES["cmc_lab"]
    values = torch.tensor([0, 255], dtype=torch.uint8)
    image = torch.cartesian_prod(values, values, values).T.reshape(3, 2, 4)
    image = T.resize_image(image, [32, 64], interpolation=T.InterpolationMode.NEAREST)
    whole = replace(recipe, scale=(1.0, 1.0), ratio=(2.0, 2.0), flip_p=0.0)
    view = sample_view(image, whole, 64, generator(0))
    assert view.shape == (3, 64, 64)
    assert torch.allclose(view.amax(dim=(1, 2)), torch.ones(3), atol=2e-3)
    assert torch.allclose(view.amin(dim=(1, 2)), -torch.ones(3), atol=2e-3)


def test_the_mean_of_cmcs_colours_is_the_published() -> None:
    """(0.457, -0.082, -0.052) over (0.5, 1.331, 1.333): the view is centred, so the linear map needs no offset."""
    mean = torch.tensor(RECIPES["cmc"][0].mean, dtype=torch.float64)
    mapped = torch.tensor(YDBDR_FROM_RGB, dtype=torch.float64) @ mean
    expected = torch.tensor([0.457 / 0.5, -0.082 / 1.331, -0.052 / 1.333], dtype=torch.float64)
    assert torch.allclose(mapped, expected, atol=1e-7)
