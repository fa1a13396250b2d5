"""One XML file of VOC: the image's file name and size, and its objects."""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from openworld.data.formats.sizes import usable_size
from openworld.errors import AnnotationError
from openworld.repairs import Repairs
from openworld.runtime.text_files import MARKS

_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([\w.:-]+)["']""")
_BEGINNINGS = (
    *MARKS,
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)
"""First bytes that tell the encoding."""
_MULTI_BYTE = {
    **dict.fromkeys(("gb2312", "gbk", "gb18030"), "gb18030"),  # each holds the one before it
    **dict.fromkeys(("big5", "cp950", "big5hkscs"), "big5hkscs"),
    **dict.fromkeys(("shift_jis", "cp932"), "cp932"),
    **dict.fromkeys(("euc_kr", "cp949"), "cp949"),
    "euc_jp": "euc_jp",
}
"""Encodings that the parser does not know, by their names in Python, and the widest of each family."""
_BARE_AMPERSAND = re.compile(r"&(?!#\d+;|#x[0-9a-fA-F]+;|[\w.:-]+;)")
_COORDINATE = re.compile(r"([xy])(min|max|\d*)")

_YES = frozenset(("1", "true", "yes", "y", "t"))
_NO = frozenset(("0", "false", "no", "n", "f"))
"""Words for flags, in lower case."""


class VocObject(NamedTuple):
    """One object: position in its file, name, corners ``x1 y1 x2 y2`` in pixels from 0, difficult."""

    position: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VocImage:
    """What one XML file says.

    Attributes:
        filename: text of ``<filename>``, or nothing.
        declared: texts of width and height.
        objects: in the order of the file.
    """

    filename: str
    declared: tuple[str | None, str | None]
    objects: list[VocObject]

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height in pixels, or None where the file does not say or cannot be right."""
        try:
            width, height = (float(text or 0) for text in self.declared)
        except ValueError:
            return None
        return usable_size(width, height)


def read_voc_image(file: str, name: str, repairs: Repairs) -> VocImage:
    """Read one XML file.

    Args:
        file: its path.
        name: of the file in messages of repairs.
        repairs: counts polygons that stand for boxes, flags that are neither yes nor no, and deleted objects.

    Raises:
        AnnotationError: see the table of :mod:`openworld.data.formats.voc`.
    """
    tree = _parse(file)
    elements = tree.findall("object")
    if not elements:
        for element in tree.iter():  # a namespace, or tags in upper case, or <objects> around them
            element.tag = element.tag.rpartition("}")[2].lower()
        elements = tree.findall(".//object")
        if tree.tag != "annotation" and not elements:
            whose = ", as CVAT's own XML has it" if tree.tag == "annotations" else ""
            raise AnnotationError(
                f"is not a VOC annotation: its root is <{tree.tag}>{whose}",
                where=file,
                remedy="export the annotations as Pascal VOC, or remove the file if it holds something else",
            )
    objects = []
    for position, element in enumerate(elements):
        where = f"{file}, object {position}"
        if (element.findtext("deleted") or "").strip().lower() in _YES:  # LabelMe keeps them
            repairs.add("object marked as deleted left out", f"{name}.xml, object {position}")
            continue
        label = (element.findtext("name") or "").strip()
        if not label:
            raise AnnotationError("has no <name>", where=where, remedy="complete or remove the object")
        x1, y1, x2, y2 = _corners(element, where, repairs)
        difficult = _flag(element, "difficult", f"{name}.xml, object {position}", repairs)
        objects.append(VocObject(position, label, (x1 - 1, y1 - 1, x2, y2), difficult))
    filename = (tree.findtext("filename") or "").strip()
    return VocImage(filename, (tree.findtext("size/width"), tree.findtext("size/height")), objects)


def _parse(file: str) -> ElementTree.Element:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise AnnotationError(f"cannot be read ({error.strerror})", where=file, remedy="check the file") from None
    content = _decoded(data, file)
    text = content if isinstance(content, str) else content.decode("latin-1")
    try:
        if "<!ENTITY" in text:
            raise ValueError("it declares entities, which an annotation has no need of")
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        bare = _BARE_AMPERSAND.search(text)
        if bare is not None:
            line = text.count("\n", 0, bare.start()) + 1
            around = text[max(0, bare.start() - 20) : bare.start() + 20].replace("\n", " ")
            raise AnnotationError(
                f"cannot be parsed (line {line}: '&' stands alone in {around!r})",
                where=file,
                remedy="write &amp; in place of &, in this and in other names",
            ) from None
        raise AnnotationError(f"cannot be parsed ({error})", where=file, remedy="export the file again") from None


def _decoded(data: bytes, file: str) -> str | bytes:
    """The text of an XML file; its bytes where its encoding has one byte per character, which the parser decodes."""
    encoding = next((encoding for mark, encoding in _BEGINNINGS if data.startswith(mark)), None)
    declared = None
    if encoding is None:
        found = _DECLARED.match(data)
        declared = found[1].decode() if found is not None else None
        try:
            known = "utf-8" if declared is None else codecs.lookup(declared).name
        except LookupError:
            known = "utf-8" if declared in ("unicode", "Unicode") else "unknown"
        # What can be read here as ASCII is not UTF-16, though .NET declares it for any text.
        wide = known.startswith(("utf-8", "utf-16", "utf-32"))
        encoding = "utf-8" if wide else _MULTI_BYTE.get(known)
    if encoding is None:
        return data
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        says = f"declares {declared}" if declared is not None else "declares no encoding"
        raise AnnotationError(
            f"cannot be parsed (it {says} and is not {encoding}: byte 0x{data[error.start]:02x} in line {line})",
            where=file,
            remedy='save it as UTF-8, or name its encoding in its first line: <?xml version="1.0" encoding="gbk"?>',
        ) from None


def _corners(element: ElementTree.Element, where: str, repairs: Repairs) -> tuple[float, float, float, float]:
    """The corners as they are written, or those around the polygon where an object has no bndbox."""
    box, polygon = element.find("bndbox"), element.find("polygon")
    if polygon is not None and (box is None or not len(box)):
        points: dict[str, list[float]] = {"x": [], "y": []}
        for point in polygon.iter():
            named = _COORDINATE.fullmatch(point.tag)
            if named is not None and not len(point):
                points[named[1]].append(_number(point.text, point.tag, where))
        if all(points.values()):
            repairs.add("polygon turned into its box", where)
            return min(points["x"]), min(points["y"]), max(points["x"]), max(points["y"])
    if box is None:
        other = next((part.tag for part in element if "box" in part.tag or "polygon" in part.tag), None)
        raise AnnotationError(
            "has no <bndbox>" + (f", but <{other}>" if other else ""),
            where=where,
            remedy="complete or remove the object" if other is None else "export axis-parallel boxes, or polygons",
        )
    x1, y1, x2, y2 = (_number(box.findtext(key), key, where) for key in ("xmin", "ymin", "xmax", "ymax"))
    return x1, y1, x2, y2


def _flag(element: ElementTree.Element, key: str, where: str, repairs: Repairs) -> bool:
    """A flag by number or word; missing means no, and so does what cannot be told, which is counted."""
    text = element.findtext(key)
    if text is None or text == "0":
        return False
    word = text.strip().lower()
    if word in _YES or word in _NO:
        return word in _YES
    try:
        return float(word) != 0
    except ValueError:
        repairs.add(f"{key} that is neither yes nor no taken for no", f"{where} has {text!r}")
        return False


def _number(text: str | None, key: str, where: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        comma = ", with a point for the decimals" if text is not None and "," in text else ""
        raise AnnotationError(
            f"<{key}> holds {text!r}, which is not a number",
            where=where,
            remedy=f"correct or remove the object{comma}",
        ) from None
