"""Captions of images, from a file: JSON lines, or the captions of COCO.

JSON lines hold ``{"image": "a/b.jpg", "caption": "…"}``, one per line; an image with several captions has several
lines. A file with ``images`` and ``annotations`` is COCO's. Image paths are relative to the folder of images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openworld.errors import ConfigError, DataError
from openworld.runtime.text_files import NotText, read_text
from ssl_backbones.methods.options import CaptionOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.text import Tokenizer, tokenizer, tokens_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captions:
    """Captions of images, by path, and their tokenizer. Can be pickled, for the processes that make views."""

    by_image: Mapping[Path, Sequence[str]]
    words: Tokenizer
    length: int

    def draw(self, image: Path, generator: torch.Generator) -> Tensor:
        """Draw one of the image's captions: (L,) int64 tokens."""
        captions = self.by_image[image]
        chosen = int(torch.randint(len(captions), (), generator=generator))
        return tokens_of(captions[chosen], self.words, self.length)


def captions_of(options: PretrainOptions, images: Sequence[Path]) -> Captions:
    """Read the captions of the images that have any, in the order of ``images``.

    Raises:
        ConfigError: the options do not name a file of captions, or a folder of images.
        DataError: the file is damaged, or none of its captions belongs to one of the images.
    """
    own = options.method
    if not isinstance(own, CaptionOptions) or own.captions is None or options.images is None:
        raise ConfigError(
            f"{own.name} learns from images with captions",
            remedy="name a folder of images (images) and a file of their captions (method.captions)",
        )
    found = read_captions(Path(own.captions), Path(options.images))
    by_image = {path: found[path] for path in images if path in found}
    if not by_image:
        raise DataError(
            f"none of its {len(found)} images is one of the {len(images)} images in {options.images}",
            where=own.captions,
            remedy="give image paths relative to that folder",
        )
    if len(by_image) < max(len(images), len(found)):
        logger.warning(
            "%d of %d images have captions; %d images of %s are not there",
            len(by_image),
            len(images),
            len(found) - len(by_image),
            own.captions,
        )
    return Captions(by_image, tokenizer(own.vocabulary), own.context_length)


def read_captions(path: Path, folder: Path) -> dict[Path, list[str]]:
    """Read captions by the paths of their images, below ``folder``; formats as above.

    Raises:
        DataError: the file cannot be read, or a line or an annotation (the message names it) is not a caption.
    """
    try:
        text = read_text(path)
    except (OSError, NotText) as error:
        raise DataError(f"cannot be read ({error})", where=str(path), remedy="give the file of captions") from error
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    records = _coco(whole, path) if isinstance(whole, dict) and "annotations" in whole else _lines(text, path)
    captions: dict[Path, list[str]] = {}
    for where, image, caption in records:
        if not (isinstance(image, str) and isinstance(caption, str) and image and caption.strip()):
            raise DataError(
                f"{where} has image {image!r} and caption {caption!r}", where=str(path), remedy="give both as text"
            )
        captions.setdefault(folder / image, []).append(caption)
    return captions


def _lines(text: str, path: Path) -> list[tuple[str, Any, Any]]:
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                record = json.loads(line)
                records.append((f"line {number}", record.get("image"), record.get("caption")))
            except (ValueError, AttributeError) as error:
                raise DataError(
                    f"line {number} is not a JSON object ({error})",
                    where=str(path),
                    remedy='write {"image": "…", "caption": "…"} in each line',
                ) from error
    return records


def _coco(whole: dict[str, Any], path: Path) -> list[tuple[str, Any, Any]]:
    try:
        names = {image["id"]: image["file_name"] for image in whole["images"]}
        return [
            (f"annotation {one.get('id')}", names.get(one["image_id"]), one["caption"]) for one in whole["annotations"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"is not in the format of COCO's captions ({type(error).__name__}: {error})",
            where=str(path),
            remedy="each image has id and file_name, each annotation image_id and caption",
        ) from error
