"""File names that annotations give: inside the folder of the images, or refused."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from openworld.errors import AnnotationError

_HARMLESS = re.compile(r"\w[\w-]*(\.\w+)*")
"""File names that need no further look; nearly all are such."""


def check_inside(file_name: Any, where: object) -> None:
    """Refuse a file name that could reach outside its folder: absolute, or with a ``..`` part, on any system.

    Symbolic links are followed: who made the folder made them too.

    Args:
        file_name: as the annotations have it.
        where: names the record in the message.

    Raises:
        AnnotationError: such a name, or one that no file can have.
    """
    check_name(file_name, where)
    if not is_inside(file_name):
        raise AnnotationError(
            f"file name {file_name!r} leaves the folder of the images",
            where=str(where),
            remedy="make file names relative to the folder that `images` names",
        )


def check_name(file_name: Any, where: object) -> None:
    """Refuse what no file can be called: not a text, empty, or with characters that no file system takes.

    Args:
        file_name: as the annotations have it.
        where: names the record in the message.

    Raises:
        AnnotationError: such a name.
    """
    if not isinstance(file_name, str) or not file_name or "\0" in file_name or not is_encodable(file_name):
        raise AnnotationError(
            f"{file_name!r} is not a file name", where=str(where), remedy="give the file name of the image"
        )


def is_inside(file_name: str) -> bool:
    """False for a name that could reach outside its folder: absolute, or with a ``..`` part, on any system."""
    if _HARMLESS.fullmatch(file_name):
        return True
    windows, posix = PureWindowsPath(file_name), PurePosixPath(file_name)
    return not (windows.drive or windows.root or posix.is_absolute() or ".." in windows.parts)


def is_encodable(text: str) -> bool:
    """False for half of a surrogate pair, which JSON can hold and no file, terminal or report can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def folded(name: str) -> str:
    """A name without case, in one Unicode form: the same for all names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
