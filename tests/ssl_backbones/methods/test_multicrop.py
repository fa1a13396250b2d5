"""Views of two sizes: what the recipes say, what a batch holds, how the encoder runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from openworld.errors import ConfigError
from openworld.runtime.images import find_images
from openworld.runtime.seeding import generator
from ssl_backbones.images import BatchPlan, ImagePool, view_batches
from ssl_backbones.method import Batch, encode_views
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.pretrain import pretrain
from ssl_backbones.views import RECIPES, sample_view, view_recipes


@pytest.fixture
def pool(tmp_path: Path) -> ImagePool:
    for i in range(3):
        Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / f"{i}.png")
    return ImagePool(find_images(tmp_path), side=48, cache_megabytes=10)


@pytest.mark.parametrize(
    ("name", "small", "large_scale"),
    [("swav", 6, (0.14, 1.0)), ("deepcluster_v2", 4, (0.08, 1.0)), ("dino", 8, (0.14, 1.0))],
)
def test_papers_crops(name: str, small: int, large_scale: tuple[float, float]) -> None:
    recipes = view_recipes(name)
    assert [recipe.local for recipe in recipes] == [False] * 2 + [True] * small
    assert {recipe.scale for recipe in recipes[:2]} == {large_scale}
    assert {recipe.scale for recipe in recipes[2:]} == {(0.05, 0.14)}
    assert view_recipes(name, 0) == recipes[:2] and view_recipes(name, 3) == recipes[:5]


def test_papers_colours() -> None:
    swav, dino = RECIPES["swav"], RECIPES["dino"]
    assert {(r.jitter, r.std, r.blur_p) for r in swav} == {((0.8, 0.8, 0.8, 0.2), (0.228, 0.224, 0.225), 0.5)}
    assert {(r.jitter, r.gray_p, r.jitter_p) for r in dino} == {((0.4, 0.4, 0.2, 0.1), 0.2, 0.8)}
    assert [r.blur_p for r in dino[:3]] == [1.0, 0.1, 0.5]
    assert [r.solarize_p for r in dino[:3]] == [0.0, 0.2, 0.0]


def test_recipes_without_small_views_are_whole() -> None:
    for name in ("simclr", "moco_v2"):
        assert view_recipes(name) == view_recipes(name, 2) == RECIPES[name]


def test_a_method_of_two_views_refuses_more(tmp_path: Path) -> None:
    for method, views in (("simclr", "swav"), ("pcl_v2", "dino")):
        with pytest.raises(ConfigError, match=f"views {views} makes .* and {method} takes two"):
            pretrain(PretrainOptions(method=MethodOptions.named(method)(), views=views), [], tmp_path, seed=0)  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_two_sizes(pool: ImagePool, workers: int) -> None:
    recipes = view_recipes("swav", 2)
    plan = BatchPlan(3, 2, seed=0)
    (batch,) = view_batches(pool, recipes, 24, plan, start=0, stop=1, workers=workers, local_size=12)
    assert [tuple(view.shape) for view in batch.views] == [(2, 3, 24, 24)] * 2 + [(2, 3, 12, 12)] * 2
    ((_, _, image), _) = next(iter(plan.steps(0, 1)))
    source = generator(0, "view", 0, 0)
    expected = [sample_view(pool[image], r, 12 if r.local else 24, source) for r in recipes]
    assert all(torch.equal(view[0], one) for view, one in zip(batch.views, expected, strict=True))


def test_small_views_leave_the_draws_of_the_large_ones(pool: ImagePool) -> None:
    plan = BatchPlan(3, 2, seed=0)

    def large(count: int | None) -> list[Tensor]:
        recipes = view_recipes("dino", count)
        loader = view_batches(pool, recipes, 16, plan, start=0, stop=1, workers=0, local_size=8)
        batch: Batch = next(iter(loader))
        return batch.views[:2]

    assert all(torch.equal(a, b) for a, b in zip(large(0), large(None), strict=True))


def test_draws_of_two_views_are_what_they_were(pool: ImagePool) -> None:
    """A recipe that is not local is made at the size of the view, whatever ``local_size`` says."""
    plan = BatchPlan(3, 2, seed=0)
    one, other = (
        next(iter(view_batches(pool, RECIPES["moco_v2"], 16, plan, start=0, stop=1, workers=0, local_size=size)))
        for size in (0, 9)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    assert replace(RECIPES["moco_v2"][0], local=False) == RECIPES["moco_v2"][0]


class Counting(nn.Module):
    """Means of the pixels, and the sizes of all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(tuple(images.shape))
        return images.mean(dim=(2, 3))


def test_one_forward_a_size_and_rows_view_by_view() -> None:
    views = [torch.rand(2, 3, side, side) for side in (8, 8, 4, 4, 4)]
    encoder = Counting()
    features = encode_views(encoder, views)
    assert encoder.calls == [(4, 3, 8, 8), (6, 3, 4, 4)]
    for view, rows in zip(views, features.chunk(5), strict=True):
        assert torch.allclose(rows, view.mean(dim=(2, 3)))
