"""Image lists of VOC, one image per line, and the XML files that they name.

A line is the name of an XML file without its suffix, or, in the lists of one class, this name and a number. Tools also
write quotes around names with blanks, suffixes, folders in front, backslashes, and pairs of image and XML file
(PaddleX). Each is read where an XML file of that name exists.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from openworld.data.formats.file_names import check_inside, is_inside
from openworld.data.formats.voc_layout import FOLDERS, Layout, main_folder
from openworld.errors import AnnotationError
from openworld.records import file_exists
from openworld.runtime.folders import visible_files
from openworld.runtime.images import SUFFIXES
from openworld.runtime.text_files import NotText, read_text

_NUMBERS = re.compile(r"(\s+[+-]?\d+)+$")
"""The columns of the lists of one class: present (1), absent (-1), difficult (0); of persons: number of the object."""
_PAIR = re.compile(rf".*({'|'.join(map(re.escape, SUFFIXES))})['\"]?\s+(?P<xml>\S.*\.xml['\"]?)", re.IGNORECASE)
_ONLY_A_NAME = re.compile(r"[^/\\.'\"]*")
"""Neither folder nor suffix nor quotes: a text that has one meaning. Long lists hold nothing else."""
_QUOTED = re.compile(r"(['\"])(.+)\1")


def xml_files(folder: Path) -> dict[str, str]:
    """Return the path of each XML file below a folder by its name: the path below the folder, without its suffix.

    Raises:
        AnnotationError: two files of one name, ``a.xml`` and ``a.XML``.
    """
    found: dict[str, str] = {}
    start = len(f"{folder}/") if str(folder) != "." else 0
    for file in sorted(map(str, visible_files(folder, (".xml",)))):
        name = file[start : -len(".xml")]
        if name in found:
            raise AnnotationError(
                f"{Path(found[name]).name} and {Path(file).name} are annotations of one image",
                where=str(folder),
                remedy="remove one of them",
            )
        found[name] = file
    return found


def listed_files(where: Path, layout: Layout, files: Mapping[str, str]) -> tuple[Counter[str], dict[str, str]]:
    """Return how often a list names each XML file, in the order of the list, and the path of each.

    Args:
        where: the list.
        layout: of the data set.
        files: XML files by name. A hidden one is not among them, and may be named all the same.

    Raises:
        AnnotationError: the list is not text or is empty; XML files that do not exist; a name that leaves the folder or
            may mean two files.
    """
    lines = _lines(where)
    names = _in_columns(where, lines, layout, files)
    if names is not None:
        counts = Counter(names)
        return counts, {name: files[name] for name in counts}

    # Each line for itself.
    stems: dict[str, list[str]] = {}
    for name in files:
        stems.setdefault(name.rpartition("/")[2], []).append(name)
    guess = -1 if _is_of_one_class(lines) else 0
    counts, file_of, absent = Counter(), dict[str, str](), dict[str, None]()
    for line in lines.values():
        texts = [_without(line, columns) for columns in range(_numbers_at_end(line) + 1)]
        meanings = [name for text in texts for name in _meanings(text, layout)]
        found = next((name for name in meanings if name in files), None)
        if found is None:  # a name without its folder
            alone = (stems.get(name, ()) for name in meanings)
            found = next((names[0] for names in alone if len(names) == 1), None)
        if found is not None:
            file_of[found] = files[found]
        else:
            found = next((name for name in meanings if _is_there(name, layout)), None)
            if found is None:
                found = _unquoted(texts[guess])
                check_inside(found, where)
                absent[found] = None
            file_of[found] = f"{layout.annotations}/{found}.xml"
        counts[found] += 1
    if absent:
        shown = ", ".join(f"{name}.xml" for name in list(absent)[:3]) + (", …" if len(absent) > 3 else "")
        raise AnnotationError(
            f"{len(absent)} of {len(counts)} annotation files do not exist: {shown}",
            where=str(layout.annotations),
            remedy=f"fetch the annotations or correct the image list {where}",
        )
    return counts, file_of


def missing_list(image_set: str, layout: Layout) -> AnnotationError:
    """The error for an image list that does not exist."""
    lists = [file.stem for file in visible_files(main_folder(layout), (".txt",), deep=False)]
    available = ", ".join([*layout.sets, *lists][:12])
    return AnnotationError(
        f"the image list {image_set!r} does not exist",
        where=image_set if image_set.endswith(".txt") else str(main_folder(layout) / f"{image_set}.txt"),
        remedy=f"choose one of: {available}" if available else "give the path of a .txt file",
    )


def _lines(where: Path) -> dict[int, str]:
    """The lines that are not blank, by number."""
    try:
        text = read_text(where)
    except (OSError, NotText) as error:
        raise AnnotationError(
            f"cannot be read as text: {error}", where=str(where), remedy="save it as UTF-8, with one name per line"
        ) from None
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), start=1) if line.strip()}
    if not lines:
        raise AnnotationError("names no image", where=str(where), remedy="give a list with at least one image")
    return lines


def _in_columns(where: Path, lines: Mapping[int, str], layout: Layout, files: Mapping[str, str]) -> list[str] | None:
    """The XML file of each line, where one number of columns with numbers follows all names.

    None: no number of columns does.

    Raises:
        AnnotationError: names end with numbers, and may be meant with or without.
    """
    possible: dict[int, list[str]] = {}
    most = min(map(_numbers_at_end, lines.values())) if _is_of_one_class(lines) else 0
    for columns in range(most + 1):
        names = []
        for line in lines.values():
            name = next((name for name in _meanings(_without(line, columns), layout) if name in files), None)
            if name is None:
                break
            names.append(name)
        else:
            possible[columns] = names
    if len(possible) > 1:
        number, line = next(iter(lines.items()))
        first, second = (_without(line, columns) for columns in list(possible)[:2])
        raise AnnotationError(
            f"{line!r} may mean {first!r}, or {second!r} and a number",
            where=f"{where}, line {number}",
            remedy="put quotes around the names in the list",
        )
    return next(iter(possible.values()), None)


def _is_of_one_class(lines: Mapping[int, str]) -> bool:
    """Whether each line ends as in the list of a class: absent, difficult or present."""
    return all(_numbers_at_end(line) and line.rsplit(None, 1)[-1] in ("-1", "0", "1") for line in lines.values())


def _numbers_at_end(line: str) -> int:
    numbers = _NUMBERS.search(line)
    return 0 if numbers is None else len(numbers[0].split())


def _without(line: str, columns: int) -> str:
    """A line without its last columns."""
    return line.rsplit(None, columns)[0] if columns else line


def _is_there(name: str, layout: Layout) -> bool:
    """Whether there is such an XML file, hidden or behind a link, which the index leaves out."""
    return is_inside(name) and file_exists(f"{layout.annotations}/{name}.xml")


def _meanings(text: str, layout: Layout) -> Iterator[str]:
    """Names of XML files that a text may mean, the most literal first, then in both Unicode forms."""
    yield from _literal_meanings(text, layout)
    for form in () if text.isascii() else ("NFC", "NFD"):
        yield from _literal_meanings(unicodedata.normalize(form, text), layout)


def _literal_meanings(text: str, layout: Layout) -> Iterator[str]:
    yield text
    if _ONLY_A_NAME.fullmatch(text):
        return
    folders = FOLDERS | {folder.name.lower() for folder in (layout.root, layout.annotations, *layout.images)}
    pair = _PAIR.fullmatch(text)
    for given in (text, _unquoted(text), *([_unquoted(pair["xml"])] if pair is not None else [])):
        yield from _with_and_without_suffix(given)
        parts = given.replace("\\", "/").removeprefix("./").split("/")
        yield from _with_and_without_suffix("/".join(parts))
        for place in range(1, len(parts)):
            if parts[place - 1].lower() in folders:
                yield from _with_and_without_suffix("/".join(parts[place:]))


def _with_and_without_suffix(name: str) -> tuple[str, ...]:
    stem, dot, suffix = name.rpartition(".")
    return (name, stem) if stem and dot + suffix.lower() in (".xml", *SUFFIXES) else (name,)


def _unquoted(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    return quoted[2] if quoted is not None else text
