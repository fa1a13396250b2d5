"""Seeds from names, and generators that can be put back."""

import random

import numpy as np
import torch

from openworld.runtime.seeding import derive_seed, generator, rng_state, seed_everything, set_rng_state


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
    assert derive_seed(0, "order", 3) == derive_seed(0, "order", 3)
    assert torch.equal(torch.rand(3, generator=generator(5)), torch.rand(3, generator=generator(5)))
