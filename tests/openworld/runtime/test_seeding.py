"""Seeds from names, and generators that can be put back."""

import random

import numpy as np
import pytest
import torch

from openworld.runtime.seeding import (
    derive_seed,
    generator,
    numpy_generator,
    rng_state,
    seed_everything,
    set_rng_state,
)


def draw() -> tuple[float, float, float, float]:
    return random.gauss(0, 1), float(np.random.normal()), float(torch.randn(())), float(torch.rand(()))


def test_state_restores_every_generator() -> None:
    seed_everything(3, "test")
    random.gauss(0, 1)
    np.random.normal()
    state = rng_state()
    first = draw()
    set_rng_state(state)
    assert draw() == first


def test_state_is_loadable_without_code(tmp_path) -> None:  # type: ignore[no-untyped-def]
    torch.save(rng_state(), tmp_path / "rng.pt")
    before = rng_state()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert torch.equal(torch.get_rng_state(), before["torch"])


def test_seeds_depend_on_every_part_and_on_its_type() -> None:
    seeds = {
        derive_seed(1, "a"),
        derive_seed(1, "b"),
        derive_seed(2, "a"),
        derive_seed("1", "a"),
        derive_seed(1, "a", 0),
    }
    assert len(seeds) == 5


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        ((0,), 3696793467068528757),
        (("order",), 4072536574385729311),
        ((0, "order", 3), 6520630738536837906),
        ((7, "pretrain", 1, "views"), 6481740481109842168),
        ((-1, "é"), 5481500786409181350),
    ],
)
def test_seeds_never_change(parts: tuple[int | str, ...], seed: int) -> None:
    """Recorded numbers: with others a run that an earlier version began would not resume, and ``hold_out`` would hold
    out other images."""
    assert derive_seed(*parts) == seed


def test_draws_never_change() -> None:
    """Recorded numbers of each generator that seeds are given to."""
    assert torch.randperm(8, generator=generator(0, "order", 3)).tolist() == [2, 7, 5, 3, 0, 4, 1, 6]
    assert numpy_generator(0, "order", 3).integers(0, 1000, 5).tolist() == [52, 776, 899, 23, 691]
    seed_everything(3, "pretrain")
    assert [random.randrange(1000) for _ in range(3)] == [15, 150, 836]
    assert np.random.randint(0, 1000, 3).tolist() == [946, 413, 621]
    assert torch.randint(0, 1000, (3,)).tolist() == [274, 885, 573]
