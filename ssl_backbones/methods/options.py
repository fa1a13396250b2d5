"""What the options of every self-supervised method have in common.

The options of a method lie beside it, in ``METHOD_options.py``. None of these modules imports torch, so that a
configuration is read, and ``openworld pretrain --help`` printed, without waiting for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from openworld.errors import ConfigError
from openworld.runtime.import_path import class_at
from openworld.runtime.options import AtLeast, FilePath, check
from ssl_backbones.methods import METHODS


@dataclass(kw_only=True)
class MethodOptions:
    """The section ``method`` of a pretraining. Its ``name`` chooses the class that the section is read as."""

    METHOD: ClassVar[str]
    """Import path ``module:class`` of the :class:`ssl_backbones.method.Method` that has these options."""

    name: str
    """A name of :data:`ssl_backbones.methods.METHODS`, or the import path ``module:class`` of the options."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def stored_negatives(self) -> int:
        """Number of features of earlier steps that each image is told apart from; 0 for methods without any."""
        return 0

    @classmethod
    def named(cls, name: str) -> type[MethodOptions]:
        """The options class of a method.

        Raises:
            ConfigError: there is no such method, or it cannot be imported, or it is not an options class.
        """
        path = METHODS.get(name, name)
        if ":" not in path:
            remedy = f"choose from {', '.join(METHODS)}, or give the import path module:class of a method's options"
            raise ConfigError(f"there is no method {name!r}", remedy=remedy)
        return class_at(path, MethodOptions)

    @classmethod
    def implementation(cls) -> Any:
        """The class at :attr:`METHOD`. Imports torch.

        Raises:
            ConfigError: there is none.
        """
        return class_at(cls.METHOD, object)


@dataclass(kw_only=True)
class CaptionOptions(MethodOptions):
    """Options of a method that learns from images with captions."""

    captions: FilePath | None = None
    """File of captions: JSON lines, or COCO's captions, see ssl_backbones/captions.py. It must be given, and ``images``
    be the folder of its images."""
    vocabulary: FilePath | None = None
    """CLIP's own file of merges (bpe_simple_vocab_16e6.txt.gz); None reads a caption byte by byte."""
    context_length: Annotated[int, AtLeast(3)] = 77
    """Tokens of a caption, including the first and the last; longer captions are cut."""
