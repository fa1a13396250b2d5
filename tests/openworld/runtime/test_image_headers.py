"""The EXIF orientation tag in every kind of file, and what is not a tag."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from openworld.errors import DataError
from openworld.runtime.image_headers import FORMATS, read_header
from openworld.runtime.images import image_size, load_image, read_rgb
from tests.photographs import BOX, STORED, object_in, upright_picture, write_photograph

NO_AVIF = "AVIF" not in FORMATS
KINDS = [".jpg", ".png", ".webp", ".mpo", pytest.param(".avif", marks=pytest.mark.skipif(NO_AVIF, reason="no AVIF"))]


@pytest.mark.parametrize("tag", STORED)
@pytest.mark.parametrize("suffix", KINDS)
def test_upright_is_what_a_viewer_shows_and_stored_what_the_file_holds(tmp_path: Path, suffix: str, tag: int) -> None:
    path = write_photograph(tmp_path / f"x{suffix}", tag)
    upright, stored = load_image(path, upright=True), load_image(path)
    assert image_size(path, upright=True) == (48, 64) == upright.shape[:0:-1]
    assert image_size(path) == ((64, 48) if tag >= 5 else (48, 64)) == stored.shape[:0:-1]
    assert object_in(upright) == pytest.approx(BOX, abs=1)
    with Image.open(path) as image:  # Pillow's own reading of the tag
        np.testing.assert_array_equal(
            np.asarray(read_rgb(path, upright=True)), np.asarray(ImageOps.exif_transpose(image))
        )


def test_a_file_of_several_photographs_is_its_first(tmp_path: Path) -> None:
    path = write_photograph(tmp_path / "phone.mpo", 6)
    assert Image.open(path).format == "MPO"
    path.rename(tmp_path / "phone.jpg")  # as phones call them
    assert load_image(tmp_path / "phone.jpg").shape == (3, 48, 64)


@pytest.mark.parametrize("tag", [2, 3, 4, 5, 6, 7, 8])
def test_the_tag_of_a_tiff_is_applied_by_its_decoder_and_not_twice(tmp_path: Path, tag: int) -> None:
    path = write_photograph(tmp_path / "x.tif", tag)
    for upright in (True, False, (48, 64)):
        assert object_in(load_image(path, upright)) == BOX
    assert image_size(path) == (48, 64) and read_header(path).orientation == 1
    assert load_image(path, (64, 48)).shape == (3, 64, 48)  # of another size than annotated, which the loader refuses


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_a_tag_that_means_nothing_turns_nothing(tmp_path: Path, tag: int) -> None:
    path = write_photograph(tmp_path / "x.jpg", tag)
    assert read_header(path).orientation == 1
    assert object_in(load_image(path, upright=True)) == pytest.approx(BOX, abs=1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_the_orientation_of_xmp_turns_nothing(tmp_path: Path, suffix: str) -> None:
    """Viewers and OpenCV pass over it: an editor that turns the pixels leaves it behind."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = tmp_path / f"x{suffix}"
    options = {"pnginfo": PngInfo()} if suffix == ".png" else {"xmp": xmp, "quality": 95}
    if isinstance(info := options.get("pnginfo"), PngInfo):
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    Image.fromarray(upright_picture()).save(path, **options)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    assert read_header(path).orientation == 1 and image_size(path, upright=True) == (48, 64)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"],
)
def test_a_broken_block_turns_nothing_and_says_nothing(tmp_path: Path, block: bytes) -> None:
    Image.fromarray(upright_picture()).save(tmp_path / "x.jpg", exif=block, quality=95)
    assert read_header(tmp_path / "x.jpg").orientation == 1
    assert object_in(load_image(tmp_path / "x.jpg", upright=True)) == pytest.approx(BOX, abs=2)


def test_a_tag_behind_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(STORED[6](upright_picture()))).save(buffer, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    content = buffer.getvalue()
    (tmp_path / "x.png").write_bytes(content[:-12] + chunk + content[-12:])  # the last 12 bytes are IEND
    assert read_header(tmp_path / "x.png").orientation == 6
    assert object_in(load_image(tmp_path / "x.png", upright=True)) == BOX


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(upright_picture()), Image.new("RGB", (48, 64), "white")]
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], duration=100)
    assert object_in(load_image(tmp_path / f"x{suffix}", upright=True)) == pytest.approx(BOX, abs=1)


def test_a_heic_photograph_is_named_also_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(DataError, match=r"IMG_1\.jpg: is a HEIC photograph(.|\n)*convert it to JPEG"):
        load_image(tmp_path / "IMG_1.jpg")
