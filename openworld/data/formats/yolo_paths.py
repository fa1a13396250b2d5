"""Paths as YOLO descriptions and lists of images write them, and the files that they mean.

=================================================  ===============================================================
``images\\train``                                   ``images/train``, counted
``"images/my photo.jpg"`` with its quotes          without them, counted
``../images`` in front of what is in the root      without it, counted (Roboflow)
``data/obj_train_data/a.jpg`` beside the list      without ``data/`` and what stands in front of it, counted (Darknet
                                                   is started one folder above)
in another Unicode form than the file              read, counted
absolute, inside the root                          read
a drive or a share of Windows                      DataError
a name of a list that leaves the root              DataError
=================================================  ===============================================================

Names that exist as they are written are never changed.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from openworld.data.formats.file_names import check_inside
from openworld.errors import DataError
from openworld.repairs import Repairs
from openworld.runtime.text_files import NotText, read_text

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_PLAIN = re.compile(r"(?!\.\.?/|data/)[^\\\"'#:\x00-\x1f\x80-\U0010ffff]*")
"""Most entries of most lists; only a name that can mean several files is looked for on the disk."""


def text_of(path: Path) -> str:
    """Content of a text file, as :func:`openworld.runtime.text_files.read_text`.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_text(path)
    except (OSError, NotText) as error:
        raise DataError(f"cannot be read as text: {error}", where=str(path), remedy="save it as UTF-8") from None


def located(entry: str, base: Path, where: str, repairs: Repairs) -> Path:
    """The file or folder that an entry means, which may not exist.

    Args:
        entry: as it is written.
        base: what it is relative to.
        where: names the record in messages and repairs.
        repairs: counts what had to be changed.

    Raises:
        DataError: a path of Windows, or one with control characters.
    """
    plain = _PLAIN.fullmatch(entry) and "/data/" not in entry
    if plain or (base / entry).exists():
        return base / entry
    if any(character < " " for character in entry):
        raise DataError(
            f"{entry!r} holds a control character",
            where=where,
            remedy="write / in paths; in double quotes YAML reads \\t as a tab",
        )
    text = entry
    if text[:1] == text[-1:] and text[:1] in ("'", '"') and len(text) > 2:
        repairs.add("quotes left out of a path", f"{where}: {entry}")
        text = text[1:-1]
    if _DRIVE.match(text):
        raise DataError(
            f"{text!r} is a path on a Windows machine",
            where=where,
            remedy=f"write it relative to {base}, with / between the folders",
        )
    if "\\" in text:
        repairs.add("backslashes read as slashes", f"{where}: {entry}")
        text = text.replace("\\", "/")
    if (base / text).exists():
        return base / text
    for form in ("NFC", "NFD"):
        if (base / unicodedata.normalize(form, text)).exists():
            repairs.add("path in another Unicode form than the file", f"{where}: {entry}")
            return base / unicodedata.normalize(form, text)
    if text.startswith("../") and (base / text.removeprefix("../")).exists():
        repairs.add("../ left out of a folder", f"{where} is {entry}, and {base / text.removeprefix('../')} exists")
        return base / text.removeprefix("../")
    parts = Path(text).parts
    if "data" in parts[:-1]:
        inner = Path(*parts[parts.index("data") + 1 :])
        if (base / inner).exists() or (len(inner.parts) > 1 and (base / inner.parts[0]).is_dir()):
            repairs.add("data/ left out of a path", f"{where}: {entry}")
            return base / inner
    return base / text


def listed_images(path: Path, root: Path, repairs: Repairs) -> list[Path]:
    """Image files of a list: relative to the root, with ``./`` to the list's folder, or absolute inside the root.

    Empty lines and lines that begin with ``#`` are left out, unless there is a file of that name.

    Raises:
        DataError: the list is missing or empty, or a name leaves the root.
    """
    if not path.is_file():
        raise DataError("the list of images does not exist", where=str(path), remedy="correct the path of the list")
    roots = (root.absolute(), root.resolve())
    files = []
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        entry = line.strip()
        if not entry or (entry.startswith("#") and not (root / entry).exists()):
            continue
        where = f"{path}, line {number}"
        if entry.startswith("/"):
            entry = str(below(Path(entry), next((one for one in roots if Path(entry).is_relative_to(one)), root)))
        base = path.parent if entry.startswith("./") else root
        file = located(entry, base, where, repairs)
        check_inside(str(below(file, base)), where)
        files.append(file)
    if not files:
        raise DataError("names no image", where=str(path), remedy="give a list with at least one image")
    return files


def below(file: Path, root: Path) -> Path:
    """The path relative to the root, or as it is."""
    return file.relative_to(root) if file.is_relative_to(root) else file
