"""Images of more than 8 bits: which value is white, and what is said where that does not suit them."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openworld.audit.images_and_boxes import check_data
from openworld.data.loader import load_record
from openworld.errors import DataError
from openworld.records import Dataset, Record
from openworld.runtime.image_depth import depth_doubt, warn_of_depth
from openworld.runtime.images import brightest_value, load_image, read_rgb
from ssl_backbones.images import ImagePool, read_image

VALUES = np.linspace(0, 65535, 12 * 16).astype(np.uint16).reshape(12, 16)


def sixteen(path: Path, values: np.ndarray = VALUES) -> Path:
    Image.fromarray(values.astype(np.uint16)).save(path)
    return path


def bits_of_tiff(path: Path, values: np.ndarray, bits: int, channels: int, kind: int = 1, order: str = "<") -> Path:
    """An uncompressed TIFF written by hand: baseline tags alone (TIFF 6.0)."""
    height, width = values.shape[:2]
    if bits == 12:
        text = "".join(f"{value:012b}" for value in values.ravel().tolist())
        data = int(text, 2).to_bytes(len(text) // 8, "big")
    else:
        data = values.astype(f"{order}u{bits // 8}").tobytes()
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 2 if channels == 3 else 1)]
    tags += [(273, 4, 8), (277, 3, channels), (278, 4, height), (279, 4, len(data)), (339, 3, kind)]
    if channels == 3:
        tags[2] = (258, 3, -1)  # three numbers, behind the directory
    start = 8 + len(data) + len(data) % 2
    entries = b""
    for tag, form, value in tags:
        if value == -1:
            entries += struct.pack(order + "HHII", tag, form, 3, start + 2 + 12 * len(tags) + 4)
        elif form == 3:
            entries += struct.pack(order + "HHIHH", tag, form, 1, value, 0)
        else:
            entries += struct.pack(order + "HHII", tag, form, 1, value)
    content = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start) + data + b"\0" * (len(data) % 2)
    content += struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", 0)
    path.write_bytes(content + struct.pack(order + "HHH", bits, bits, bits))
    return path


@pytest.mark.parametrize(("suffix", "order"), [(".png", ""), (".jp2", ""), (".tif", "<"), (".tif", ">"), (".pgm", "")])
def test_grey_of_sixteen_bits_keeps_the_upper_eight_in_both_loaders(tmp_path: Path, suffix: str, order: str) -> None:
    path = tmp_path / f"x{suffix}"
    if order:
        bits_of_tiff(path, VALUES, 16, 1, order=order)
    elif suffix == ".pgm":
        path.write_bytes(b"P5 16 12 65535\n" + VALUES.astype(">u2").tobytes())
    else:
        sixteen(path)
    for image in (load_image(path), read_image(path)):
        assert [np.array_equal(plane, VALUES >> 8) for plane in image.numpy()] == [True] * 3
    assert brightest_value(path) == 65535


def test_colours_of_sixteen_bits_keep_the_upper_eight(tmp_path: Path) -> None:
    colours = np.stack([VALUES, VALUES[::-1], VALUES // 2], axis=2)
    path = bits_of_tiff(tmp_path / "x.tif", colours, 16, 3)
    for image in (load_image(path), read_image(path)):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), colours >> 8)
    assert brightest_value(path) == 65535
    dark = bits_of_tiff(tmp_path / "dark.tif", colours >> 4, 16, 3)
    assert brightest_value(dark) == 4095
    with pytest.raises(DataError, match=r"16-bit colours(.|\n)*convert the image to 8 bits"):
        load_image(dark, white_level=4095)


def test_twelve_bits_that_the_file_declares_fill_the_range(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 12 * 16).astype(np.uint16).reshape(12, 16)
    path = bits_of_tiff(tmp_path / "x.tif", values, 12, 1)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), values)  # Pillow leaves them as they are
    for image in (load_image(path), read_image(path)):
        np.testing.assert_array_equal(image[0].numpy(), values >> 4)


@pytest.mark.parametrize(("bits", "white_level"), [(10, 1023), (12, 4095), (14, 16383), (16, 65535)])
def test_the_white_level_becomes_white_in_both_loaders(tmp_path: Path, bits: int, white_level: int) -> None:
    values = VALUES >> (16 - bits)
    path = sixteen(tmp_path / "x.png", values)
    for image in (load_image(path, white_level=white_level), read_image(path, white_level=white_level)):
        np.testing.assert_array_equal(image[0].numpy(), values >> (bits - 8))
    pool = ImagePool([path, path], side=12, cache_megabytes=0, white_level=white_level)
    np.testing.assert_array_equal(pool[1][2].numpy(), values >> (bits - 8))
    none = np.zeros(0, dtype=np.int64)
    boxes = np.zeros((0, 4), dtype=np.float32)
    record = Record(1, path, 16, 12, boxes, none, none.astype(np.bool_), white_level=white_level)
    (kept,) = Dataset.from_records(["cat"], [record]).select([0])
    np.testing.assert_array_equal(load_record(kept)[1].numpy(), values >> (bits - 8))


def test_above_the_white_level_is_white_and_eight_bits_stay(tmp_path: Path) -> None:
    path = sixteen(tmp_path / "x.png", np.array([[0, 500, 1000, 1001, 60000]]))
    assert load_image(path, white_level=1000)[0].tolist() == [[0, 127, 255, 255, 255]]  # 500 * 256 // 1001
    Image.fromarray(np.array([[0, 128, 255]], dtype=np.uint8)).save(tmp_path / "y.png")
    assert load_image(tmp_path / "y.png", white_level=1000)[0].tolist() == [[0, 128, 255]]
    assert brightest_value(tmp_path / "y.png") is None


@pytest.mark.parametrize("kind", ["float", "32-bit integer", "negative 16-bit"])
def test_pixels_without_a_range_are_refused_by_both_loaders(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.tif"
    if kind == "float":
        Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)).save(path)
    elif kind == "32-bit integer":
        Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(path)
    else:
        bits_of_tiff(path, np.full((4, 4), -5).astype(np.int16).view(np.uint16), 16, 1, kind=2)
    for read in (load_image, read_image):
        with pytest.raises(DataError, match=r"32-bit pixels(.|\n)*convert the image to 8 or 16 bits"):
            read(path)


@pytest.mark.filterwarnings("error")
def test_grey_and_palette_with_transparency_lose_it(tmp_path: Path) -> None:
    grey = np.arange(192, dtype=np.uint8).reshape(12, 16)
    image = Image.fromarray(grey)
    image.putalpha(7)
    image.save(tmp_path / "la.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "p.png", transparency=b"\0" * 256)
    Image.fromarray(grey).convert("1").save(tmp_path / "1.png")
    for name in ("la.png", "p.png"):
        for read in (load_image, read_image):
            np.testing.assert_array_equal(read(tmp_path / name)[0].numpy(), grey)
    assert set(load_image(tmp_path / "1.png").unique().tolist()) == {0, 255}


# -- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("brightest", "white_level", "words"),
    [
        ([], 65535, None),
        ([65535, 200], 65535, None),
        ([16384], 65535, None),
        ([16383], 65535, ("no value above 16,383 (14 bits)", "63 of 255", "white_level to 16383")),
        ([900, 4095], 65535, ("no value above 4,095 (12 bits)", "15 of 255", "white_level to 4095")),
        ([0], 65535, ("no value above 0", "0 of 255", "white_level to 255")),
        ([3000], 4095, None),
        ([5000], 4095, ("values up to 5,000", "above the white level of 4,095", "white_level to 8191")),
    ],
)
def test_a_white_level_that_does_not_suit(
    brightest: list[int], white_level: int, words: tuple[str, ...] | None
) -> None:
    found = depth_doubt(brightest, white_level)
    assert (found is None) == (words is None)
    assert all(word in " ".join(found) for word in words or () if found)


def test_a_warning_before_work_begins_once_a_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [sixteen(tmp_path / f"{number}.png", VALUES >> 4) for number in range(3)]
    Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(tmp_path / "8.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths += [tmp_path / "8.png", tmp_path / "broken.png"]
    with caplog.at_level(logging.WARNING):
        warn_of_depth(paths, 65535, "train")
        warn_of_depth(paths, 4095, "train")
        warn_of_depth(paths[3:], 65535, "train")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("16-bit images of train have no value above 4,095 (12 bits)")
    assert "Set white_level to 4095" in message


def test_the_check_says_it(tmp_path: Path) -> None:
    none, boxes = np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.float32)

    def dataset(shift: int, white_level: int = 65535) -> Dataset:
        path = sixteen(tmp_path / f"{shift}.png", VALUES >> shift)
        return Dataset.from_records(
            ["cat"], [Record(1, path, 16, 12, boxes, none, none.astype(np.bool_), white_level=white_level)]
        )

    result = check_data({"train": dataset(4), "val": dataset(0), "test": dataset(4, 4095)})
    found = [finding for finding in result["findings"] if "16-bit" in finding["finding"]]
    assert [(finding["set"], finding["level"]) for finding in found] == [("train", "warning")]
    assert found[0]["finding"].startswith("The 16-bit images of train (1) have no value above 4,095")
    assert result["sets"]["val"]["deep"]["brightest"] == 65535


def test_eight_bits_of_every_mode_are_as_pillow_has_them(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    for mode, suffix in (("CMYK", ".jpg"), ("YCbCr", ".tif"), ("RGBA", ".png"), ("P", ".gif")):
        Image.fromarray(colours).convert(mode).save(tmp_path / f"x{suffix}")
        with Image.open(tmp_path / f"x{suffix}") as image:
            np.testing.assert_array_equal(
                np.asarray(read_rgb(tmp_path / f"x{suffix}")), np.asarray(image.convert("RGB"))
            )
