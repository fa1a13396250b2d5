"""Equal files and look-alikes: hashes by hand, and bands against a comparison of all pairs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openworld.audit.duplicates import (
    MIN_CORRELATION,
    Look,
    file_contents,
    hamming,
    identical_files,
    look_of,
    nearest_look,
    similar_images,
)
from openworld.errors import DataError
from openworld.records import Dataset, Record


def record(name: str, path: Path) -> Record:
    none = np.zeros(0, dtype=np.int64)
    return Record(name, path, 8, 8, np.zeros((0, 4), dtype=np.float32), none, none.astype(np.bool_))


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth noise: a few coloured blots."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def test_hash_by_hand() -> None:
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert look_of(Image.fromarray(ramp)).code == 2**64 - 1
    assert look_of(Image.fromarray(ramp[:, ::-1].copy())).code == 0
    ramp[0] = ramp[0, ::-1]
    assert look_of(Image.fromarray(ramp)).code == 2**56 - 1  # the first row comes first


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6), st.integers(0, 2**64 - 1))
def test_hamming_counts_bits(values: list[int], other: int) -> None:
    found = hamming(np.array(values, dtype=np.uint64), np.array([other], dtype=np.uint64))
    assert found.tolist() == [(value ^ other).bit_count() for value in values]


def all_pairs(looks: list[Look], member: np.ndarray, max_distance: int) -> tuple[list[list[int]], list[list[int]]]:
    """The definition of :func:`nearest_look` as a slow loop."""
    nearest, distance = [], []
    for mine, look in enumerate(looks):
        row = []
        for column in range(member.shape[1]):
            found = [
                ((look.code ^ other.code).bit_count(), place)
                for place, other in enumerate(looks)
                if place != mine
                and member[place, column]
                and (look.code ^ other.code).bit_count() <= max_distance
                and np.corrcoef(look.thumbnail, other.thumbnail)[0, 1] >= MIN_CORRELATION
            ]
            row.append(min(found, default=(65, -1)))
        nearest.append([place for _, place in row])
        distance.append([bits for bits, _ in row])
    return nearest, distance


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 24), max_distance=st.integers(0, 15))
def test_bands_find_what_all_pairs_find(seed: int, count: int, max_distance: int) -> None:
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 3)
    bases = rng.integers(0, 256, (2, 256))
    looks = []
    for _ in range(count):
        code = int(rng.choice(centres))
        for bit in rng.integers(0, 64, rng.integers(0, 9)):
            code ^= 1 << int(bit)
        noise = rng.integers(-3, 4, 256)
        looks.append(Look(code, (bases[rng.integers(2)] + noise).clip(0, 255).astype(np.uint8)))
    member = rng.random((count, 2)) < 0.6
    nearest, distance = nearest_look(looks, member, max_distance=max_distance)
    slow_nearest, slow_distance = all_pairs(looks, member, max_distance)
    assert nearest.tolist() == slow_nearest
    assert distance.tolist() == slow_distance


def test_flat_pictures_look_like_none() -> None:
    flat = look_of(Image.new("RGB", (30, 30), (200, 200, 200)))
    nearest, _ = nearest_look([flat, flat], np.ones((2, 1), dtype=np.bool_))
    assert nearest.tolist() == [[-1], [-1]]


@pytest.mark.parametrize("distance", [-1, 16])
def test_distance_out_of_range(distance: int) -> None:
    with pytest.raises(DataError, match="max_distance"):
        nearest_look([], np.zeros((0, 1), dtype=np.bool_), max_distance=distance)


def test_copies_are_found_and_others_are_not(tmp_path: Path) -> None:
    for seed in range(12):
        picture(seed).save(tmp_path / f"{seed}.png")
    buffer = io.BytesIO()
    picture(0).save(buffer, "JPEG", quality=40)
    (tmp_path / "0.jpg").write_bytes(buffer.getvalue())
    picture(1).resize((48, 32), Image.Resampling.LANCZOS).save(tmp_path / "1small.png")
    picture(2).point(lambda value: round(value * 0.8)).save(tmp_path / "2dark.png")
    (tmp_path / "3copy.png").write_bytes((tmp_path / "3.png").read_bytes())
    train = Dataset.from_records(("a",), tuple(record(str(seed), tmp_path / f"{seed}.png") for seed in range(12)))
    extra = ("0.jpg", "1small.png", "2dark.png", "3copy.png")
    test = Dataset.from_records(("a",), tuple(record(name, tmp_path / name) for name in extra))
    sets = {"train": train, "test": test}
    paths = [one.path for dataset in sets.values() for one in dataset]
    looks = {path: look_of(Image.open(path)) for path in paths}
    content = file_contents(paths)

    exact = identical_files(sets, content)
    assert exact["across"]["train_test"]["other_id"] == {"images": 1, "examples": [["3", "3copy.png"]]}
    found = similar_images(sets, looks, content)
    across = found["across"]["train_test"]
    assert across["images"] == 3
    assert sorted(pair[:2] for pair in across["examples"]) == [["0", "0.jpg"], ["1", "1small.png"], ["2", "2dark.png"]]
    assert found["within"] == {"train": {"images": 0, "examples": []}, "test": {"images": 0, "examples": []}}
    whole = {"train": Dataset.from_records(("a",), (*train, *test))}
    within = similar_images(whole, looks, content)["within"]["train"]
    assert within["images"] == 6 and len(within["examples"]) == 3


def test_files_that_are_absent(tmp_path: Path) -> None:
    assert file_contents([tmp_path / "none.png"]) == {}
    nothing = similar_images({"test": Dataset.from_records((), ())}, {}, {})
    assert nothing["within"] == {"test": {"images": 0, "examples": []}}
