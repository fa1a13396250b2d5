"""The pool of images and the plan of batches."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openworld.errors import ConfigError, DataError
from openworld.runtime.images import find_images, load_image
from ssl_backbones.images import BatchPlan, ImagePool, eval_batches, labels_of, read_image, view_batches
from ssl_backbones.views import RECIPES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        Image.new("RGB", (60, 40), (i * 40, 10, 200)).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "notes.txt").write_text("no image either")
    return tmp_path


def test_broken_images_are_left_out_with_a_count(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pool = ImagePool(find_images(folder), side=20, cache_megabytes=10)
    assert len(pool) == 4 and pool[2][0, 0, 0] == 120
    assert pool[0].shape == (3, 20, 30) and pool[0].dtype == torch.uint8
    assert "1 of 5 images left out" in caplog.text and "2.png" in caplog.text


def test_without_cache_the_next_one_stands_in(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = ImagePool(find_images(folder), side=20, cache_megabytes=0)
    assert len(pool) == 5
    assert torch.equal(pool[2], pool[3]) and torch.equal(pool[2], pool[3])
    assert caplog.text.count("broken image") == 1


def test_labels_are_names_of_folders() -> None:
    paths = [Path("x/train/dog/1.jpg"), Path("x/train/cat/1.jpg"), Path("x/val/dog/2.jpg")]
    assert labels_of(paths) == [1, 0, 1]
    for none in ([], paths[:1], [Path("1.jpg"), Path("2.jpg")]):
        with pytest.raises(DataError, match="have no labels"):
            labels_of(none)
    with pytest.raises(DataError, match="x/train/dog: the 1 images have no labels"):
        labels_of(paths[:1])


@pytest.mark.parametrize(("cache", "labels"), [(10, {0: 0, 1: 1, 2: 3, 3: 4}), (0, {0: 0, 1: 1, 2: 3, 3: 3, 4: 4})])
def test_an_image_keeps_its_label_where_another_is_broken(folder: Path, cache: int, labels: dict[int, int]) -> None:
    pool = ImagePool(find_images(folder), side=20, cache_megabytes=cache, labels=range(5))
    loader = view_batches(
        pool, RECIPES["simclr"], 16, BatchPlan(len(pool), len(pool), seed=0), start=0, stop=1, workers=0
    )
    (batch,) = loader
    assert batch.labels is not None
    assert dict(zip(batch.index.tolist(), batch.labels.tolist(), strict=True)) == labels
    assert batch.to(torch.device("cpu")).labels is not None


def test_gray_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (8, 6), 7).save(tmp_path / "gray.png")
    Image.new("RGBA", (8, 6), (1, 2, 3, 4)).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "gray.png")[:, 0, 0].tolist() == [7, 7, 7]
    assert read_image(tmp_path / "alpha.png").shape == (3, 6, 8)


@pytest.mark.parametrize("mode", ["16 bit", "palette", "exif", "jpeg"])
def test_pretraining_and_detection_decode_alike(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 13), dtype=np.uint16)
    path, exif = tmp_path / "x.png", Image.Exif()
    if mode == "16 bit":
        Image.fromarray(pixels).save(path)
    elif mode == "palette":
        Image.fromarray(pixels.astype(np.uint8)).convert("P").save(path)
    elif mode == "exif":
        exif[0x0112] = 6
        Image.fromarray(pixels.astype(np.uint8)).save(path, exif=exif)
    else:
        Image.fromarray(pixels.astype(np.uint8)).save(path, "JPEG")
    assert torch.equal(read_image(path), load_image(path, upright=True))


@pytest.mark.parametrize("cache", [0, 10])
def test_too_few_images(folder: Path, cache: int) -> None:
    with pytest.raises(DataError, match="usable images of 1"):
        ImagePool([folder / "1.png"], side=20, cache_megabytes=cache)
    with pytest.raises(DataError, match="0 usable images of 0"):
        ImagePool([], side=20, cache_megabytes=cache)


def test_plan_visits_every_image_once_an_epoch_and_resumes_anywhere() -> None:
    plan = BatchPlan(10, 4, seed=3)
    assert plan.steps_per_epoch == 2
    steps = list(plan.steps(0, 6))
    for epoch in range(3):
        seen = [index for step in steps[2 * epoch : 2 * epoch + 2] for _, _, index in step]
        assert len(seen) == len(set(seen)) == 8
    assert steps[0] != steps[2]
    for start in range(6):
        assert list(plan.steps(start, 6)) == steps[start:]
    assert BatchPlan(3, 64, seed=0).batch_size == 3


def test_processes_and_micro_batches_share_a_batch() -> None:
    """Joined again, the shares are the batch: micro-batch by micro-batch, and rank by rank in each."""
    whole = list(BatchPlan(30, 12, seed=3).steps(1, 5))
    shares = [list(BatchPlan(30, 12, seed=3, accumulate=2, rank=rank, ranks=3).steps(1, 5)) for rank in range(3)]
    assert all(len(share) == 2 * len(whole) for share in shares)
    for step, batch in enumerate(whole):
        joined = [item for micro in range(2) for share in shares for item in share[2 * step + micro]]
        assert joined == batch
    assert BatchPlan(11, 12, seed=0, accumulate=2, ranks=2).batch_size == 8
    for images, size, parts in ((30, 10, 4), (7, 12, 4)):
        with pytest.raises(ConfigError, match="choose a multiple of 4"):
            BatchPlan(images, size, seed=0, ranks=parts)


def test_paths_stay_with_their_images(folder: Path) -> None:
    pool = ImagePool(find_images(folder), side=20, cache_megabytes=10)
    assert [pool.path(position).name for position in range(len(pool))] == ["0.png", "1.png", "3.png", "4.png"]


def test_views_are_the_same_whoever_makes_them(folder: Path) -> None:
    pool = ImagePool(find_images(folder), side=32, cache_megabytes=10)
    plan = BatchPlan(len(pool), 2, seed=0)

    def make(start: int, workers: int) -> list[torch.Tensor]:
        loader = view_batches(pool, RECIPES["simclr"], 16, plan, start=start, stop=3, workers=workers)
        return [view for batch in loader for view in batch.views]

    before = torch.get_rng_state()
    alone = make(0, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert len(alone) == 6 and alone[0].shape == (2, 3, 16, 16)
    for other in (make(0, 1), make(1, 0)):
        assert all(torch.equal(a, b) for a, b in zip(alone[-len(other) :], other, strict=True))


def test_eval_batches_cover_the_set_in_order(folder: Path) -> None:
    pool = ImagePool(find_images(folder), side=32, cache_megabytes=10)
    batches = list(eval_batches(pool, RECIPES["simclr"][0], 16, 3))
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2], [3]]
    assert batches[1].views[0][0, 0, 0, 0].item() == pytest.approx(160 / 255)
