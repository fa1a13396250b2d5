"""The object of a COCO file as JSON has it, or the part of it that is one image set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openworld.errors import AnnotationError


def decode_file(path: Path) -> dict[str, Any]:
    """The object of a COCO file, in UTF-8, UTF-16 or UTF-32, with its three lists.

    Raises:
        AnnotationError: it is not one.
    """
    try:
        content = path.read_bytes()
        root = json.loads(content.decode(json.detect_encoding(content)))
    except OSError as error:
        raise AnnotationError(f"cannot be read ({error.strerror})", where=str(path), remedy="check the path") from None
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"is not valid JSON ({error})", where=str(path), remedy="export the file again") from None
    if (other := _other_file(root)) is not None:
        raise AnnotationError(f"is {other[0]}", where=str(path), remedy=other[1])
    if not isinstance(root, dict):
        raise AnnotationError(
            f"holds a {type(root).__name__} where COCO has an object",
            where=str(path),
            remedy="give a COCO detection file (a results file is a list and has no images)",
        )
    for key in ("images", "categories", "annotations"):
        if not isinstance(root.get(key), list):
            raise AnnotationError(f"has no list {key!r}", where=str(path), remedy="give a COCO detection file")
    return root


_EXPORT = "export the annotations as COCO"


def _other_file(root: Any) -> tuple[str, str] | None:
    """What a file of another kind is and what to do, by the keys that no COCO detection file has; None for others."""
    if isinstance(root, dict):
        first = next(iter(root.values()), None)
        if "shapes" in root and "imagePath" in root:
            return "a file of labelme, which has one per image", _EXPORT
        if "_via_img_metadata" in root or (isinstance(first, dict) and {"filename", "regions"} <= first.keys()):
            return "a project of the VGG Image Annotator (VIA)", _EXPORT
        if "segments_info" in _first_entry(root.get("annotations")):
            return "a panoptic COCO file", "give the file of the instances, such as instances_train2017.json"
        if "coco_url" in (image := _first_entry(root.get("images"))) and "file_name" not in image:
            return "an LVIS file, whose images have no file_name", "write as file_name the last two parts of coco_url"
    entry = _first_entry(root)
    if {"image", "annotations"} <= entry.keys():
        return "a file of CreateML", _EXPORT
    if "data" in entry and ("annotations" in entry or "completions" in entry):
        return "JSON of Label Studio", _EXPORT
    return None


def _first_entry(entries: Any) -> dict[str, Any]:
    return entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}


def one_set(root: dict[str, Any], image_set: str, path: Path) -> dict[str, Any]:
    """The file as if it held only the images whose field has the value, ``field=value``, and their annotations.

    Raises:
        AnnotationError: there are none.
    """
    field, equals, value = image_set.partition("=")
    entries = [entry for entry in root["images"] if isinstance(entry, dict)]
    chosen = [entry for entry in entries if str(entry.get(field)) == value]
    if not equals or not chosen:
        found = sorted({str(entry[field]) for entry in entries if field in entry})[:12]
        raise AnnotationError(
            f"image_set={image_set!r} chooses no image",
            where=str(path),
            remedy=f"write field=value; {field!r} is {' or '.join(found)}"
            if found
            else "write field=value, such as fold=train, with a field that the images have; or leave it out",
        )
    others = {str(entry.get("id")) for entry in entries} - {str(entry.get("id")) for entry in chosen}
    annotations = [
        entry
        for entry in root["annotations"]
        if not isinstance(entry, dict) or str(entry.get("image_id")) not in others
    ]
    return {**root, "images": chosen, "annotations": annotations}
