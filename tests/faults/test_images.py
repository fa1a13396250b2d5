"""Image files that are damaged, disguised or of a rare kind: what each becomes, and that training goes on."""

from __future__ import annotations

import io
import os
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from openworld.data.loader import TrainBatches, load_record
from openworld.data.options import LoaderOptions
from openworld.data.splits import View
from openworld.errors import DataError, EnvironmentProblem
from openworld.records import Dataset, Record
from openworld.runtime.images import load_image

RGB = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)


def encoded(format: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


REFUSED = {
    "truncated": (encoded("JPEG")[:700], "image is damaged"),
    "truncated png": (encoded("PNG")[:700], "image is damaged"),
    "empty": (b"", "file is empty"),
    "text": (b"404 Not Found\n", "is not an image"),
    "zeros": (bytes(5000), "is not an image"),
    "enormous": (png_header(40_000, 40_000), "limit is 100,000,000"),
    "wide": (png_header(2**31 - 1, 1), "limit is 100,000,000"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_file_and_remedy(tmp_path: Path, kind: str) -> None:
    content, words = REFUSED[kind]
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_image(path)
    message = str(caught.value)
    assert "bad.jpg" in message and words in message and "What to do:" in message


READ = {
    "a PNG named .jpg": encoded("PNG"),
    "a GIF named .jpg": encoded("GIF"),
    "grey": encoded("JPEG", "L"),
    "grey with alpha": encoded("PNG", "LA"),
    "CMYK": encoded("JPEG", "CMYK"),
    "YCbCr TIFF": encoded("TIFF", "YCbCr"),
    "palette": encoded("PNG", "P"),
    "palette with transparency": encoded("PNG", "P", transparency=0),
    "black and white": encoded("PNG", "1"),
    "progressive": encoded("JPEG", progressive=True),
    "bytes behind the end": encoded("JPEG") + b"trailing" * 50,
}


@pytest.mark.parametrize("kind", READ)
def test_read_as_pillow_converts_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(READ[kind])
    loaded = load_image(path)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert loaded.dtype == torch.uint8 and loaded.is_contiguous()
    np.testing.assert_array_equal(loaded.permute(1, 2, 0).numpy(), expected)


def test_sixteen_bits_keep_their_order_of_brightness(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    Image.fromarray(values).save(tmp_path / "x.png")
    np.testing.assert_array_equal(load_image(tmp_path / "x.png")[2].numpy(), values // 256)


def test_one_pixel(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "x.png")
    assert load_image(tmp_path / "x.png").flatten().tolist() == [1, 2, 3]
    record = make_record(tmp_path / "x.png", 1, 1)
    batches = train([record], LoaderOptions(min_size=32, max_size=64))
    for images, targets in batches:
        assert min(images[0].shape[-2:]) >= 16 and torch.isfinite(images[0]).all()
        assert targets[0].boxes[:, 2:].gt(targets[0].boxes[:, :2]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_where_the_annotated_size_proves_it(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    Image.fromarray(RGB).save(path, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    stored = load_record(make_record(path, 32, 24))
    np.testing.assert_array_equal(stored.permute(1, 2, 0).numpy(), RGB)
    turned = make_record(path, 24, 32)
    if orientation >= 5:
        np.testing.assert_array_equal(load_record(turned).permute(1, 2, 0).numpy(), upright)
    else:  # nothing turns it by a quarter: the annotation is of another image
        with pytest.raises(DataError, match="turned after it was annotated"):
            load_record(turned)


def make_record(path: Path, width: int, height: int, image_id: int = 0) -> Record:
    box = np.array([[0, 0, width, height]], dtype=np.float32)
    return Record(image_id, path, width, height, box, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.bool_))


def train(records: list[Record], options: LoaderOptions, steps: int = 8) -> TrainBatches:
    images = Dataset.from_records(["cat"], records)
    view = View(images, images.box_categories)
    return TrainBatches(view, batch_size=2, seed_parts=(0,), start_step=0, total_steps=steps, options=options)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_past_bad_images_and_counts_them(tmp_path: Path, workers: int) -> None:
    records = []
    for number, content in enumerate([encoded("JPEG")] * 20 + [content for content, _ in REFUSED.values()]):
        (tmp_path / f"{number}.jpg").write_bytes(content)
        records.append(make_record(tmp_path / f"{number}.jpg", 32, 24, number))
    options = LoaderOptions(min_size=24, max_size=32, workers=workers, max_bad_fraction=0.5)
    batches = train(records, options, steps=28)
    seen = {target.image_id for _, targets in batches for target in targets}
    assert seen == set(range(20))
    assert {Path(path).stem for path in batches.broken} == {str(number) for number in range(20, 27)}
    assert all("What to do:" in message for message in batches.broken.values())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_worker_that_the_system_kills_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded("JPEG"))

    def die(record: Record) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    monkeypatch.setattr("openworld.data.loader.load_record", die)
    options = LoaderOptions(min_size=24, max_size=32, workers=1)
    with pytest.raises(EnvironmentProblem, match="a process that decodes images died") as caught:
        list(train([make_record(tmp_path / "x.jpg", 32, 24)], options))
    assert "data.loader.workers" in str(caught.value)


def test_fault_of_the_program_in_a_worker_is_not_taken_for_one_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded("JPEG"))

    def fail(record: Record) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr("openworld.data.loader.load_record", fail)
    options = LoaderOptions(min_size=24, max_size=32, workers=1)
    with pytest.raises(RuntimeError, match="a bug"):
        list(train([make_record(tmp_path / "x.jpg", 32, 24)], options))
