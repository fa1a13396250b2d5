"""View recipes: reproducible, of the papers' magnitudes, and equal to torchvision where both do the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.transforms.v2 import functional as T

from openworld.runtime.seeding import generator
from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD
from ssl_backbones.views import RECIPES, blur_kernel, blur_matrix, evaluation_view, sample_crop, sample_view, shift_hue


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8, generator=generator("image"))


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_view_depends_on_its_generator_alone(name: str, image: torch.Tensor) -> None:
    for recipe in RECIPES[name]:
        first = sample_view(image, recipe, 32, generator(0, 3, 5))
        torch.manual_seed(99)
        before = torch.get_rng_state()
        assert torch.equal(first, sample_view(image, recipe, 32, generator(0, 3, 5)))
        assert torch.equal(before, torch.get_rng_state())
        assert not torch.equal(first, sample_view(image, recipe, 32, generator(0, 3, 6)))
        grid = recipe.patches and recipe.patches.scaled(32)
        side = grid.count * grid.patch if grid else 32
        assert first.shape == (3, side, side) and first.dtype == torch.float32


def test_simclr_stays_in_the_unit_range_and_moco_is_standardised(image: torch.Tensor) -> None:
    assert RECIPES["simclr"][0].preprocess() == {"order": "RGB", "range": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}
    views = torch.stack([sample_view(image, RECIPES["simclr"][0], 32, generator(i)) for i in range(40)])
    assert views.min() >= -1e-6 and views.max() <= 1 + 1e-6
    moco = RECIPES["moco_v2"][0].preprocess()
    assert (tuple(moco["mean"]), tuple(moco["std"])) == (IMAGENET_MEAN, IMAGENET_STD)
    black = evaluation_view(torch.zeros_like(image), 16, moco)
    assert torch.allclose(black[:, 0, 0], -torch.tensor(IMAGENET_MEAN) / torch.tensor(IMAGENET_STD))


def test_papers_magnitudes() -> None:
    simclr, moco = RECIPES["simclr"][0], RECIPES["moco_v2"][0]
    assert (simclr.scale, simclr.jitter) == ((0.08, 1.0), (0.8, 0.8, 0.8, 0.2))
    assert (moco.scale, moco.jitter) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1))
    assert {(r.jitter_p, r.gray_p, r.blur_p, r.flip_p, r.blur_sigma) for r in (simclr, moco)} == {
        (0.8, 0.2, 0.5, 0.5, (0.1, 2.0))
    }
    assert [blur_kernel(size) for size in (224, 64, 32, 8)] == [23, 7, 3, 3]


def test_byols_views_differ_in_blur_and_solarisation() -> None:
    first, second = RECIPES["byol"]
    assert (first.scale, first.jitter, first.blur_p, first.solarize_p) == ((0.08, 1.0), (0.4, 0.4, 0.2, 0.1), 1.0, 0.0)
    assert second == replace(first, blur_p=0.1, solarize_p=0.2)
    assert [r.scale for r in RECIPES["moco_v3"]] == [(0.2, 1.0)] * 2
    (v1, _), (sup_con, _) = RECIPES["moco_v1"], RECIPES["sup_con"]
    assert (v1.jitter, v1.jitter_p, v1.blur_p) == ((0.4, 0.4, 0.4, 0.4), 1.0, 0.0)
    assert (sup_con.scale, sup_con.jitter, sup_con.blur_p) == ((0.2, 1.0), (0.4, 0.4, 0.4, 0.1), 0.0)


def test_solarisation_inverts_bright_values(image: torch.Tensor) -> None:
    plain = replace(RECIPES["simclr"][0], jitter_p=0.0, gray_p=0.0, blur_p=0.0)
    view = sample_view(image, plain, 32, generator(1))
    solarized = sample_view(image, replace(plain, solarize_p=1.0), 32, generator(1))
    assert torch.equal(solarized, torch.where(view < 0.5, view, 1 - view))
    assert (view >= 0.5).any() and (view < 0.5).any()


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_blur_is_torchvisions(sigma: float) -> None:
    image = torch.rand(3, 24, 24, generator=generator("blur"))
    blur = blur_matrix(24, 7, sigma)
    assert torch.allclose(blur @ image @ blur.T, T.gaussian_blur(image, [7, 7], [sigma, sigma]), atol=1e-5)


@pytest.mark.parametrize("turns", [-0.2, 0.0, 0.13, 0.5])
def test_hue_is_torchvisions(turns: float) -> None:
    image = torch.rand(3, 16, 16, generator=generator("hue"))
    image[:, 0] = image[:1, 0]  # a row of grays
    image[:, 1] = 0
    assert torch.allclose(shift_hue(image, turns), T.adjust_hue(image, turns), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 200), (200, 3), (64, 64)])
def test_crops_lie_inside(height: int, width: int) -> None:
    for seed in range(50):
        top, left, h, w = sample_crop(height, width, (0.08, 1.0), (3 / 4, 4 / 3), generator(seed))
        assert h >= 1 and w >= 1 and top >= 0 and left >= 0 and top + h <= height and left + w <= width


def test_crop_areas_are_uniform() -> None:
    areas = torch.tensor(
        [
            h * w / 1e6
            for _, _, h, w in (sample_crop(1000, 1000, (0.2, 0.6), (3 / 4, 4 / 3), generator(i)) for i in range(400))
        ]
    )
    assert areas.min() > 0.19 and areas.max() < 0.61
    assert areas.mean().item() == pytest.approx(0.4, abs=0.02)
