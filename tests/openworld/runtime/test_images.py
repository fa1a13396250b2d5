"""Image files of every kind, whole and broken."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openworld.errors import DataError
from openworld.runtime.images import find_images, image_size, load_image


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "below/c.webp", "notes.txt", "d.jpeg/e.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [file.relative_to(tmp_path).as_posix() for file in find_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "below/c.webp", "d.jpeg/e.gif"]  # d.jpeg is a folder
    assert find_images(tmp_path / "a.png") == [tmp_path / "a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        find_images(tmp_path / "empty")
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "absent")


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "RGB", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    source = Image.new("L", (6, 4), 255)
    image = Image.fromarray(np.full((4, 6), 65535, dtype=np.uint16)) if mode == "I;16" else source.convert(mode)
    path = save(tmp_path / f"x.{suffix}", image)
    loaded = load_image(path)
    assert loaded.shape == (3, 4, 6) and loaded.dtype == torch.uint8
    assert (loaded == 255).all() and image_size(path) == (6, 4)


def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert load_image(save(tmp_path / "x.png", Image.fromarray(values)))[1].tolist() == [[0, 0, 1, 128, 255]]


def test_channels_and_stored_orientation(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer would turn it by 90 degrees
    path = save(tmp_path / "x.png", Image.fromarray(pixels), exif=exif)
    assert torch.equal(load_image(path), torch.from_numpy(pixels).permute(2, 0, 1))


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def jpeg(size: int = 64) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


BROKEN = {
    "empty": (b"", "file is empty"),
    "text": (b"<html>not found</html>", "not an image"),
    "truncated": (jpeg()[:800], "damaged"),
    "header only": (jpeg()[:20], "image"),
    "pixels missing": (png_of_size(50, 50), "damaged"),
    "huge": (png_of_size(11_000, 10_000), "limit is 100,000,000"),
    "bomb": (png_of_size(60_000, 60_000), "limit is 100,000,000"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_file_is_named(tmp_path: Path, kind: str) -> None:
    content, words = BROKEN[kind]
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.jpg") as caught:
        load_image(path)
    assert words in str(caught.value)


def test_missing_file_folder_and_float_pixels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="not an image"):
        load_image(tmp_path)
    path = save(tmp_path / "x.tif", Image.fromarray(np.zeros((4, 4), dtype=np.float32)))
    with pytest.raises(DataError, match="32-bit pixels"):
        load_image(path)


def test_damaged_bytes_give_an_image_or_a_data_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {"a.jpg": jpeg(24), "a.png": png_of_size(4, 4)}
    for name, content in whole.items():
        for _ in range(60):
            damaged = bytearray(content)
            for place in rng.integers(0, len(damaged), 4):
                damaged[place] = rng.integers(256)
            (tmp_path / name).write_bytes(damaged)
            with contextlib.suppress(DataError):
                assert load_image(tmp_path / name).shape[0] == 3
