"""Batches are a function of seed and step; broken images are left out, counted and limited."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from openworld.data.loader import (
    TrainBatch,
    TrainBatches,
    eval_batches,
    images_per_epoch,
    load_record,
    local_parts,
    to_original,
)
from openworld.data.options import LoaderOptions
from openworld.data.splits import Sample, View
from openworld.data.transforms import as_float
from openworld.errors import DataError
from openworld.records import Dataset, Record
from openworld.runtime import distributed

OPTIONS = LoaderOptions(min_size=24, max_size=32)


def make_sample(folder: Path, number: int, size: tuple[int, int] = (32, 24)) -> Sample:
    path = folder / f"{number}.png"
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    boxes = np.array([[1, 2, 10, 20]] * (number % 3), dtype=np.float32).reshape(-1, 4)
    labels, ignore = np.full(len(boxes), number, dtype=np.int64), np.zeros(len(boxes), dtype=np.bool_)
    return Sample(Record(number, path, *size, boxes, labels, ignore), labels)


def view_of(samples: Sequence[Sample]) -> View:
    names = [str(number) for number in range(10)]
    images = Dataset.from_records(names, [sample.record for sample in samples])
    return View(images, images.box_categories)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return [make_sample(tmp_path, number) for number in range(7)]


def batches(
    samples: Sequence[Sample],
    start: int = 0,
    stop: int = 9,
    options: LoaderOptions = OPTIONS,
    size: int = 3,
    seed: int = 1,
) -> list[TrainBatch]:
    loader = TrainBatches(
        view_of(samples),
        batch_size=size,
        seed_parts=(seed, "train"),
        start_step=start,
        total_steps=stop,
        options=options,
    )
    result = list(loader)
    assert len(result) == len(loader) == stop - start
    return result


def assert_equal(first: list[TrainBatch], second: list[TrainBatch]) -> None:
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        for image, other in zip(images, other_images, strict=True):
            assert torch.equal(image, other)
        for target, other_target in zip(targets, other_targets, strict=True):
            assert target.image_id == other_target.image_id
            assert torch.equal(target.boxes, other_target.boxes) and torch.equal(target.labels, other_target.labels)


def ids(result: list[TrainBatch]) -> list[list[int | str]]:
    return [[target.image_id for target in targets] for _, targets in result]


def test_resumed_batches_are_those_of_the_whole_run(samples: list[Sample]) -> None:
    whole = batches(samples)
    for step in (1, 4, 8, 9):
        assert_equal(batches(samples, start=step), whole[step:])


def test_workers_and_cache_change_nothing(samples: list[Sample]) -> None:
    whole = batches(samples, stop=5)
    state = torch.get_rng_state()
    assert_equal(batches(samples, stop=5, options=LoaderOptions(min_size=24, max_size=32, workers=2)), whole)
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(batches(samples, stop=5, options=LoaderOptions(min_size=24, max_size=32, cache_mib=0)), whole)


def test_strong_augmentation_resumes_and_workers_change_nothing(samples: list[Sample]) -> None:
    options = replace(OPTIONS, augment="strong")
    whole = batches(samples, stop=5, options=options)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert_equal(batches(samples, start=2, stop=5, options=options), whole[2:])
    assert_equal(batches(samples, stop=5, options=replace(options, workers=2)), whole)
    torch.set_rng_state(state)
    sizes = {tuple(image.shape) for images, _ in whole for image in images}
    assert len(sizes) > 5 and ids(whole) == ids(batches(samples, stop=5))


def test_each_epoch_is_a_new_permutation(samples: list[Sample]) -> None:
    flat = [number for step in ids(batches(samples, stop=7)) for number in step]
    epochs = [flat[start : start + 7] for start in range(0, 21, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_images_with_rare_classes_come_more_often(samples: list[Sample]) -> None:
    options = replace(OPTIONS, repeat_threshold=1.0)
    rare = [number for number in range(7) if number % 3]  # each has a class of its own, on one image of seven
    whole = batches(samples, options=options, stop=18)
    times = np.bincount([int(name) for batch in ids(whole) for name in batch], minlength=7)
    expected = 54 * np.sqrt(7) / (4 * np.sqrt(7) + 3)
    assert all(abs(times[number] - expected) <= 4 for number in rare)
    assert all(abs(times[number] - expected / np.sqrt(7)) <= 4 for number in (0, 3, 6))
    assert_equal(batches(samples, start=7, stop=18, options=options), whole[7:])


def test_seed_changes_the_order(samples: list[Sample]) -> None:
    assert ids(batches(samples)) != ids(batches(samples, seed=2))


def test_images_and_targets(samples: list[Sample]) -> None:
    for images, targets in batches(samples):
        for image, target in zip(images, targets, strict=True):
            assert image.dtype == torch.float32 and image.shape[0] == 3 and image.min() >= 0 and image.max() <= 1
            assert target.boxes.dtype == torch.float32 and target.labels.dtype == torch.int64
            assert len(target) == int(target.image_id) % 3
            assert (target.boxes[:, 2:] <= torch.tensor([image.shape[2], image.shape[1]]) + 1e-4).all()


def test_batch_larger_than_the_data(samples: list[Sample]) -> None:
    assert [len(step) for step in ids(batches(samples[:2], size=5))] == [5] * 9


def break_images(samples: list[Sample], numbers: list[int]) -> None:
    contents = [b"", b"no image", samples[0].record.path.read_bytes()[:200], None]
    for kind, number in enumerate(numbers):
        content = contents[kind % 4]
        if content is None:
            Image.new("RGB", (24, 32)).save(samples[number].record.path)  # turned after annotation
        else:
            samples[number].record.path.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_left_out(samples: list[Sample], caplog: pytest.LogCaptureFixture, workers: int) -> None:
    healthy = ids(batches(samples))
    break_images(samples, [1, 2, 3, 4])
    options = LoaderOptions(min_size=24, max_size=32, max_bad_fraction=0.9, workers=workers)
    loader = TrainBatches(
        view_of(samples), batch_size=3, seed_parts=(1, "train"), start_step=0, total_steps=9, options=options
    )
    with caplog.at_level(logging.WARNING, logger="openworld.data"):
        result = ids(list(loader))
    for step, wanted in zip(result, healthy, strict=True):
        good = [number for number in wanted if number not in (1, 2, 3, 4)]
        assert step == good if good else len(step) == 1
    assert sorted(loader.broken) == [str(samples[number].record.path) for number in (1, 2, 3, 4)]
    assert len(caplog.records) == 4
    assert any("stored" in reason or "turned" in reason for reason in loader.broken.values())


def test_batch_of_broken_images_takes_the_next_good_one(samples: list[Sample]) -> None:
    healthy = [number for step in ids(batches(samples, size=1, stop=14)) for number in step]
    break_images(samples, [1, 2])
    options = LoaderOptions(min_size=24, max_size=32, max_bad_fraction=1.0)
    result = batches(samples, size=1, stop=9, options=options)
    expected = [next(number for number in healthy[step:] if number not in (1, 2)) for step in range(9)]
    assert [number for step in ids(result) for number in step] == expected
    assert_equal(batches(samples, size=1, start=4, stop=9, options=options), result[4:])


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_images_stop_the_run(samples: list[Sample], workers: int) -> None:
    break_images(samples, [0, 5])
    options = LoaderOptions(min_size=24, max_size=32, max_bad_fraction=0.2, workers=workers)
    with pytest.raises(DataError, match=r"2 of 7 images cannot be read") as caught:
        batches(samples, options=options)
    assert "0.png" in str(caught.value) and "5.png" in str(caught.value)


def test_no_good_image_and_no_image(samples: list[Sample]) -> None:
    break_images(samples, list(range(7)))
    with pytest.raises(DataError, match="none of 7 images can be read"):
        batches(samples, options=LoaderOptions(min_size=24, max_size=32, max_bad_fraction=1.0))
    with pytest.raises(DataError, match="no image to train on"):
        batches([])


def test_evaluation_sees_each_image_once_and_maps_back(tmp_path: Path) -> None:
    samples = [make_sample(tmp_path, number, size=(40 + number, 30)) for number in range(5)]
    whole = list(eval_batches(view_of(samples).images, 2, OPTIONS))
    assert [len(images) for images, _, _ in whole] == [2, 2, 1]
    assert [position for _, positions, _ in whole for position in positions] == list(range(5))
    for images, positions, scales in whole:
        for image, position, scale in zip(images, positions, scales, strict=True):
            full = torch.tensor([[0.0, 0.0, image.shape[2], image.shape[1]]])
            record = samples[position].record
            back = to_original(full, scale, record.width, record.height)
            assert torch.allclose(back, torch.tensor([[0.0, 0.0, record.width, record.height]]))
    parallel = eval_batches(view_of(samples).images, 2, LoaderOptions(min_size=24, max_size=32, workers=2))
    for (images, _, _), (others, _, _) in zip(whole, parallel, strict=True):
        assert all(torch.equal(image, other) for image, other in zip(images, others, strict=True))
    some = list(eval_batches(view_of(samples).images, 2, OPTIONS, numbers=range(1, 3)))
    assert [positions for _, positions, _ in some] == [[2, 3], [4]]
    assert all(torch.equal(image, whole[2][0][0]) for image in some[1][0])
    assert list(eval_batches([], 2, OPTIONS)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_refuses_a_broken_image(samples: list[Sample], workers: int) -> None:
    break_images(samples, [3])
    with pytest.raises(DataError, match=r"3\.png: file is empty"):
        list(eval_batches(view_of(samples).images, 2, LoaderOptions(min_size=24, max_size=32, workers=workers)))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_leaves_broken_images_out_if_somebody_is_told(samples: list[Sample], workers: int) -> None:
    break_images(samples, [2, 3, 4])
    options, told = LoaderOptions(min_size=24, max_size=32, workers=workers), list[str]()
    found = [positions for _, positions, _ in eval_batches(view_of(samples).images, 2, options, broken=told.append)]
    assert found == [[0, 1], [], [5], [6]]
    assert len(told) == 3 and "2.png" in told[0] and "3.png" in told[1] and "4.png" in told[2]


def test_processes_share_each_batch(samples: list[Sample]) -> None:
    """Two shares of a batch, joined, are the batch; the third process of an uneven split has its own part too."""
    whole = batches(samples, size=4)
    shares = [
        list(
            TrainBatches(
                view_of(samples),
                batch_size=4,
                seed_parts=(1, "train"),
                start_step=0,
                total_steps=9,
                options=OPTIONS,
                parts=[positions],
            )
        )
        for positions in (range(0, 1), range(1, 3), range(3, 4))
    ]
    joined = [
        ([image for images, _ in parts for image in images], [target for _, targets in parts for target in targets])
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(joined, whole)


def test_the_parts_of_a_batch_are_the_batch(samples: list[Sample]) -> None:
    """Also of a run that goes on; a part of which no image can be read takes the next good one alone."""
    whole = batches(samples, size=4)

    def in_parts(start: int) -> list[list[TrainBatch]]:
        loader = TrainBatches(
            view_of(samples),
            batch_size=4,
            seed_parts=(1, "train"),
            start_step=start,
            total_steps=9,
            options=OPTIONS,
            parts=local_parts(4, 2),
        )
        steps = list(loader.by_step())
        assert len(steps) == len(loader) == 9 - start
        return steps

    found = in_parts(0)
    assert all([len(targets) for _, targets in step] == [2, 2] for step in found)
    joined = [
        ([image for images, _ in parts for image in images], [target for _, targets in parts for target in targets])
        for parts in found
    ]
    assert_equal(joined, whole)
    for one, other in zip(in_parts(5), found[5:], strict=True):
        assert_equal(one, other)
    first, second = ids(found[0])
    break_images(samples, [int(number) for number in first])
    loader = TrainBatches(
        view_of(samples),
        batch_size=4,
        seed_parts=(1, "train"),
        start_step=0,
        total_steps=1,
        options=replace(OPTIONS, max_bad_fraction=1.0),
        parts=local_parts(4, 2),
    )
    ((replaced, kept),) = (ids(step) for step in loader.by_step())
    assert kept == second and len(replaced) == 1 and replaced[0] not in first


def test_two_processes_share_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_parts(12, 3) == [range(0, 4), range(4, 8), range(8, 12)]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank, expected in ((0, [(0, 1), (4, 5), (8, 9)]), (1, [(2, 3), (6, 7), (10, 11)])):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        assert [tuple(part) for part in local_parts(12, 3)] == expected


def test_images_of_an_epoch(samples: list[Sample]) -> None:
    """Four of seven images show a class of their own, asked for sqrt(0.5 * 7) = 1.87 times: 3 + 7.48, rounded up."""
    assert images_per_epoch(view_of(samples), OPTIONS) == 7
    assert images_per_epoch(view_of(samples), replace(OPTIONS, repeat_threshold=0.5)) == 11


def test_size_that_differs_from_the_annotation(samples: list[Sample]) -> None:
    Image.new("RGB", (99, 24)).save(samples[0].record.path)
    with pytest.raises(DataError, match=r"image is 99x24, its annotation \(id 0\) says 32x24"):
        load_record(samples[0].record)


def test_workers_do_not_hold_many_objects_of_the_parent(samples: list[Sample]) -> None:
    """A worker's copy of its parent's small objects is what makes the memory of many workers grow."""
    steps = TrainBatches(
        view_of(samples * 500), batch_size=1, seed_parts=(0,), start_step=0, total_steps=1, options=OPTIONS
    )._steps
    seen, todo = set(), [steps]
    while todo:
        value = todo.pop()
        if id(value) not in seen and not isinstance(value, type):
            seen.add(id(value))
            todo += [item for item in gc.get_referents(value) if not isinstance(item, type(gc))]
        assert len(seen) < 2000


@pytest.mark.parametrize("workers", [0, 1])
def test_uint8_resizing_is_close_to_float_and_reaches_both_kinds_of_batches(
    samples: list[Sample], workers: int
) -> None:
    """As bytes up to the engine, from a worker too, which then makes of each byte its 255th."""
    fast = LoaderOptions(min_size=24, max_size=32, resize="uint8", scale_jitter=[0.5, 0.7], workers=workers)
    plain = LoaderOptions(min_size=24, max_size=32, scale_jitter=[0.5, 0.7])
    for (images, targets), (others, other_targets) in zip(
        batches(samples, options=fast), batches(samples, options=plain), strict=True
    ):
        for image, other, target, other_target in zip(images, others, targets, other_targets, strict=True):
            assert (image.dtype, other.dtype) == (torch.uint8, torch.float32) and image.shape == other.shape
            assert 0 < (as_float(image) - other).abs().max() <= 1.5 / 255
            assert torch.equal(target.boxes, other_target.boxes)
            assert torch.equal(as_float(image), torch.tensor(image.numpy().astype(np.float32) / np.float32(255)))
    small = LoaderOptions(min_size=16, max_size=16, resize="uint8", workers=workers)
    images_of = view_of(samples).images
    exact = eval_batches(images_of, 2, LoaderOptions(min_size=16, max_size=16))
    for (images, _, scales), (others, _, other_scales) in zip(eval_batches(images_of, 2, small), exact, strict=True):
        for image, other in zip(images, others, strict=True):
            assert (image.dtype, other.dtype) == (torch.uint8, torch.float32)
            assert (as_float(image) - other).abs().max() <= 1.5 / 255
        assert all(torch.equal(scale, other) for scale, other in zip(scales, other_scales, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("resize", ["float", "uint8"])
def test_what_workers_send_lies_in_pinned_memory(samples: list[Sample], resize: Literal["float", "uint8"]) -> None:
    options = LoaderOptions(min_size=24, max_size=32, resize=resize, workers=1)
    trained = [image for images, _ in batches(samples, stop=2, options=options) for image in images]
    evaluated = [image for images, _, _ in eval_batches(view_of(samples).images, 2, options) for image in images]
    dtype = torch.uint8 if resize == "uint8" else torch.float32
    assert all(image.is_pinned() and image.dtype == dtype for image in trained + evaluated)


def test_collector_of_a_worker_leaves_inherited_objects_alone(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(record: Record) -> torch.Tensor:
        raise DataError(f"frozen: {gc.get_freeze_count()}")

    monkeypatch.setattr("openworld.data.loader.load_record", tell)
    with pytest.raises(DataError, match=r"frozen: [1-9]\d{4}"):
        list(eval_batches(view_of(samples).images, 2, LoaderOptions(min_size=24, max_size=32, workers=1)))
    assert gc.get_freeze_count() == 0


# -- exemplars in the batches -----------------------------------------------------------------------------------------


def mixed(samples: Sequence[Sample], *, start: int = 0, parts: Sequence[range] | None = None) -> list[TrainBatch]:
    """Batches of four, of which one image is of the last two samples."""
    return list(
        TrainBatches(
            view_of(samples[:5]),
            batch_size=4,
            seed_parts=(1, "train"),
            start_step=start,
            total_steps=10,
            options=OPTIONS,
            parts=parts,
            exemplars=view_of(samples[5:]),
            num_exemplars=1,
        )
    )


def test_some_images_of_each_batch_are_exemplars(samples: list[Sample]) -> None:
    shown = ids(mixed(samples))
    assert all({*batch[:3]} <= {0, 1, 2, 3, 4} and batch[3] in (5, 6) for batch in shown)
    own = [image for batch in shown for image in batch[:3]]
    assert all(sorted(own[first : first + 5]) == [0, 1, 2, 3, 4] for first in range(0, 30, 5))
    replayed = [batch[3] for batch in shown]
    assert all({*replayed[first : first + 2]} == {5, 6} for first in range(0, 10, 2))


def test_exemplars_are_a_function_of_seed_and_step(samples: list[Sample]) -> None:
    whole = mixed(samples)
    assert_equal(mixed(samples, start=6), whole[6:])
    halves = [mixed(samples, parts=[part]) for part in (range(2), range(2, 4))]
    joined = [(one[0] + two[0], one[1] + two[1]) for one, two in zip(*halves, strict=True)]
    assert_equal(joined, whole)


def test_without_any_exemplar_a_batch_is_of_the_task_alone(samples: list[Sample]) -> None:
    options: dict[str, Any] = {"seed_parts": (1, "train"), "start_step": 0, "total_steps": 9, "options": OPTIONS}
    loader = TrainBatches(view_of(samples), batch_size=3, exemplars=view_of([]), num_exemplars=1, **options)
    assert_equal(list(loader), batches(samples))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_half_of_a_batch_has_its_share_of_exemplars(samples: list[Sample], count: int) -> None:
    """To the nearest whole image; both streams go through their images in turn."""
    options: dict[str, Any] = {"seed_parts": (1, "train"), "start_step": 0, "total_steps": 10, "options": OPTIONS}
    loader = TrainBatches(
        view_of(samples[:5]), batch_size=4, exemplars=view_of(samples[5:]), num_exemplars=count, **options
    )
    shown = ids(list(loader))
    assert all(sum(image in (5, 6) for image in batch) == count for batch in shown)
    assert all(abs(sum(image in (5, 6) for image in batch[:2]) - count / 2) <= 0.5 for batch in shown)
    streams = [[image for batch in shown for image in batch if (image in (5, 6)) == replayed] for replayed in (0, 1)]
    for stream, images in zip(streams, ([0, 1, 2, 3, 4], [5, 6]), strict=True):
        length = len(images)
        rounds = [stream[first : first + length] for first in range(0, len(stream) - length + 1, length)]
        assert rounds and all(sorted(each) == images for each in rounds)
