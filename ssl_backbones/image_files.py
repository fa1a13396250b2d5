"""The image files of a pretraining: which they are, as it goes on with the same ones only; and whether they are few."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openworld.errors import CheckpointError
from openworld.runtime.files import sha256_of
from openworld.runtime.identity import bytes_of_files, names_digest
from ssl_backbones.methods.options import CaptionOptions
from ssl_backbones.options import PretrainOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """Identity of the images of a pretraining. The pixels are not read; the sizes of the files stand in for them.

    Args:
        number: of files, broken ones with the others.
        names: digest of their names below their common folder, and of their order.
        bytes: of all files together.
        captions: SHA-256 of the file of captions, if there is one.
    """

    number: int
    names: str
    bytes: int
    captions: str | None = None

    @classmethod
    def of(cls, options: PretrainOptions, paths: Sequence[Path]) -> ImageFiles:
        """Look at files without reading them."""
        texts, own = [str(path) for path in paths], options.method
        captions = Path(own.captions) if isinstance(own, CaptionOptions) and own.captions is not None else None
        digest = sha256_of(captions) if captions is not None and captions.is_file() else None
        return cls(len(texts), names_digest(texts), bytes_of_files(texts), digest)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def must_be(self, there: Mapping[str, Any] | None, path: Path) -> None:
        """Check that these are the files that a backbone or checkpoint was made of.

        Args:
            there: :meth:`as_json` of its files; None, from an older version, is a warning.
            path: of the backbone or checkpoint, for the message.

        Raises:
            CheckpointError: they are others. Other sizes of files with the same names are a warning.
        """
        if there is None:
            logger.warning("%s: it is not noted of which images it was made, so that they cannot be compared", path)
            return
        remedy = "give the images that it was made of, or choose another output folder"
        if there["names"] != self.names:
            how = (
                f"{there['number']:,} files then, {self.number:,} now"
                if there["number"] != self.number
                else f"{self.number:,} files as then, with other names or in another order"
            )
            raise CheckpointError(f"was made of other images: {how}", where=str(path), remedy=remedy)
        if there["captions"] != self.captions and self.captions is not None:
            raise CheckpointError("was made with other captions", where=str(path), remedy=remedy)
        if there["bytes"] != self.bytes:
            logger.warning(
                "%s: its images had %s bytes together, and have %s now: if other pictures took their names, it goes on "
                "with those",
                path,
                f"{there['bytes']:,}",
                f"{self.bytes:,}",
            )


def warn_of_few_images(options: PretrainOptions, images: int) -> None:
    """Warn where a batch is smaller than asked for, or where an image is told apart from itself."""
    if options.batch_size > images:
        logger.warning(
            "batch_size is %d and there are %d images: every step takes all of them, once each",
            options.batch_size,
            images,
        )
    stored = options.method.stored_negatives
    if stored >= images:
        name = "queue_size" if hasattr(options.method, "queue_size") else "negatives"
        logger.warning(
            "method.%s is %d and there are %d images: the negatives of an image are earlier views of the same images, "
            "itself among them; set it to less than the number of images, or choose simclr or byol",
            name,
            stored,
            images,
        )
