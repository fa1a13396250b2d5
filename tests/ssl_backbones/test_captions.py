"""Captions from JSON lines and from COCO's file, matched with the images of a folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from openworld.errors import ConfigError, DataError
from ssl_backbones.captions import captions_of, read_captions
from ssl_backbones.methods.clip_options import CLIPOptions
from ssl_backbones.options import PretrainOptions


def options(file: Path | None, images: str | None = "images") -> PretrainOptions:
    own = CLIPOptions(captions=None if file is None else str(file), context_length=8)
    return PretrainOptions(method=own, views="clip", images=images)


def lines(folder: Path, *records: Any) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n\n", encoding="utf-8")
    return path


COCO = {
    "images": [{"id": 7, "file_name": "a/1.jpg"}, {"id": 9, "file_name": "2.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "ein Bär"},
        {"id": 2, "image_id": 7, "caption": "a cat"},
        {"id": 3, "image_id": 9, "caption": "a bear"},
    ],
}


def test_both_kinds_of_file(tmp_path: Path) -> None:
    coco = tmp_path / "captions.json"
    coco.write_text(json.dumps(COCO))
    rows = [("2.jpg", "ein Bär"), ("a/1.jpg", "a cat"), ("2.jpg", "a bear")]
    written = lines(tmp_path, *({"image": image, "caption": caption} for image, caption in rows))
    for path in (coco, written):
        found = read_captions(path, Path("images"))
        assert found == {Path("images/2.jpg"): ["ein Bär", "a bear"], Path("images/a/1.jpg"): ["a cat"]}


def test_images_without_captions_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = lines(tmp_path, *({"image": name, "caption": f"number {name}"} for name in ("2.jpg", "1.jpg", "9.jpg")))
    images = [Path("images") / name for name in ("1.jpg", "2.jpg", "3.jpg")]
    with caplog.at_level(logging.WARNING):
        captions = captions_of(options(file), images)
    assert list(captions.by_image) == images[:2]
    assert "2 of 3 images have captions; 1 images" in caplog.text
    drawn = captions.draw(images[1], torch.Generator())
    assert drawn.tolist() == [256, *b"number", 257]


def test_one_of_several_captions_is_drawn(tmp_path: Path) -> None:
    file = lines(tmp_path, *({"image": "1.jpg", "caption": letter} for letter in "abc"))
    captions = captions_of(options(file), [Path("images/1.jpg")])
    source = torch.Generator().manual_seed(0)
    drawn = [int(captions.draw(Path("images/1.jpg"), source)[1]) for _ in range(60)]
    assert {drawn.count(ord(letter)) > 8 for letter in "abc"} == {True}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "1.jpg", "caption": "a"}\n{"image": "2.jpg"', "line 2 is not a JSON object"),
        ("[1]\n", "line 1 is not a JSON object"),
        ('{"image": "1.jpg", "text": "a"}\n', "line 1 has image '1.jpg' and caption None"),
        ('{"image": "1.jpg", "caption": " "}\n', "line 1 has"),
        ('{"images": [], "annotations": [{"id": 4, "image_id": 1, "caption": "a"}]}', "annotation 4 has image None"),
        ('{"annotations": [{"id": 4}]}', "is not in the format of COCO's captions"),
        ("", "none of its 0 images"),
    ],
)
def test_files_that_are_no_captions(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(DataError, match=message):
        captions_of(options(tmp_path / "file"), [Path("images/1.jpg")])


def test_what_is_not_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        captions_of(options(tmp_path / "absent"), [Path("images/1.jpg")])
    for wrong in (options(None), options(tmp_path / "file", None)):
        with pytest.raises(ConfigError, match="learns from images with captions"):
            captions_of(wrong, [])
