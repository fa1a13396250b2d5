"""What a check of images and boxes says: findings about single sets, duplicates, and classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openworld.audit.duplicates import HARM, PAIRS
from openworld.audit.findings import Finding, by_gravity, has_or_have, is_or_are, make_finding, shown
from openworld.audit.suspicions import SUSPICIONS
from openworld.report.text import counted

FEW_OBJECTS = 20
"""A class with fewer objects to learn from gets a warning."""


def images_and_boxes_findings(result: Mapping[str, Any]) -> list[Finding]:
    """All findings about images and boxes, the gravest first.

    Args:
        result: the facts of :func:`openworld.audit.images_and_boxes.check_data`.
    """
    found: list[Finding] = []
    for name, facts in result["sets"].items():
        found += [*_files(name, facts), *_boxes(name, facts["suspicious"]), *_annotations(name, facts)]
        found += _duplicates_within(name, result)
    for first, second in PAIRS:
        found += _duplicates_across(first, second, result)
    return by_gravity([*found, *_classes(result)])


def _files(name: str, facts: Mapping[str, Any]) -> list[Finding]:
    """Files that cannot be read, or whose size is not the annotated one."""
    found = []
    missing, unreadable = facts["missing"], facts["unreadable"]
    if missing["images"] and 2 * missing["images"] >= facts["images"]:
        # Probably the wrong folder: nobody should remove annotations for that.
        searched = f"; {missing['searched']}" if missing["searched"] else ""
        found.append(
            make_finding(
                "problem",
                name,
                f"{missing['images']:,} of {counted(facts['images'], 'image')} of {name} "
                f"{'does' if facts['images'] == 1 else 'do'} not exist (e.g. "
                f"{missing['examples'][0]['path']}{searched}).",
                f"Name the folder that holds them with --{name}-images, or as data.{name}.images of a configuration; "
                "or fetch them.",
            )
        )
        unreadable = {
            "images": unreadable["images"] - missing["images"],
            "examples": [entry for entry in unreadable["examples"] if entry not in missing["examples"]],
        }
    if number := unreadable["images"]:
        example = (
            f" (e.g. {first['path']}: {first['problem']})"
            if (first := next(iter(unreadable["examples"]), None))
            else ""
        )
        found.append(
            make_finding(
                "problem",
                name,
                f"{counted(number, 'image')} of {name} cannot be read{example}.",
                "Replace the files, or remove them and their annotations; check.json lists them.",
            )
        )
    if number := facts["other_size"]["images"]:
        first = facts["other_size"]["examples"][0]
        (width, height), (real_width, real_height) = first["annotated"], first["file"]
        exchanged = (width, height) == (real_height, real_width)
        hint = "; the sides are exchanged, as in a photograph that a viewer turns" if exchanged else ""
        found.append(
            make_finding(
                "problem",
                name,
                f"{counted(number, 'image file')} of {name} {has_or_have(number)} another size than the "
                f"annotations say (e.g. {first['image']}: {width}x{height} annotated, {real_width}x{real_height} "
                f"in the file{hint}): boxes lie elsewhere.",
                "Annotate the files as they are, or fetch those that were annotated. Where sides are exchanged, look "
                "at `orientation` of the set.",
            )
        )
    if doubt := facts["undecided_orientation"]["doubt"]:
        evidence = facts["undecided_orientation"]["evidence"]
        found.append(make_finding("problem" if evidence else "warning", name, *doubt))
    if doubt := facts["deep"]["doubt"]:
        number, (finding, remedy) = facts["deep"]["images"], doubt
        found.append(make_finding("warning", name, f"The 16-bit images of {name} ({number:,}) {finding}.", remedy))
    if number := facts["turned"]["images"]:
        found.append(
            make_finding(
                "note",
                name,
                f"{counted(number, 'image file')} of {name} {is_or_are(number)} turned when loaded, as the EXIF "
                f"tag says (e.g. {shown(facts['turned']['examples'], 3)}): they were annotated so.",
                "Nothing needs to be done; other programs may read these files unturned.",
            )
        )
    return found


def _boxes(name: str, suspicious: Mapping[str, Any]) -> list[Finding]:
    """Boxes that look like mistakes."""
    found = []
    for kind, entry in suspicious.items():
        if number := entry["boxes"]:
            first, suspicion = entry["examples"][0], SUSPICIONS[kind]
            found.append(
                make_finding(
                    suspicion.level,
                    name,
                    f"{counted(number, 'box', 'boxes')} of {name} {is_or_are(number)} {suspicion.words} (e.g. "
                    f"{first['class']} on image {first['image']}).",
                    suspicion.remedy,
                )
            )
    return found


def _annotations(name: str, facts: Mapping[str, Any]) -> list[Finding]:
    """Annotations that were repaired while reading, and images without any."""
    found = []
    for kind, count in facts["repairs"].items():
        if kind == "polygon turned into its box":  # as it should
            continue
        harmful = kind in facts["harmful_repairs"]
        advice = "Correct them in the files" if harmful else "Nothing, if the samples look right"
        found.append(
            make_finding(
                "warning" if harmful else "note",
                name,
                f"Annotations of {name} were repaired while reading: {kind} ({count:,}). The first: "
                f"{'; '.join(facts['repair_examples'][kind])}.",
                f"{advice}; repairs.csv of --output names them all.",
            )
        )
    if number := facts["without_objects"]["images"]:
        left_out = f"training leaves {'it' if number == 1 else 'them'} out"
        effect = "every detection there is a false positive" if name == "test" else left_out
        found.append(
            make_finding(
                "note",
                name,
                f"{counted(number, 'image')} of {name} {has_or_have(number)} no object (e.g. "
                f"{shown(facts['without_objects']['examples'], 3)}): {effect}.",
                "Make sure that they really show no object, and that no annotations were lost.",
            )
        )
    return found


def _duplicates_within(name: str, result: Mapping[str, Any]) -> list[Finding]:
    """Images of one set that are byte-identical or look alike."""
    found = []
    same, similar = result["files"]["within"][name], result["similar"]["within"][name]
    if same["images"]:
        found.append(
            make_finding(
                "warning",
                name,
                f"{counted(same['images'], 'image')} of {name} are only {counted(same['groups'], 'picture')}: their "
                f"files have the same content (e.g. {shown(same['examples'][0], 3)}).",
                "Keep one of each group and its annotations.",
            )
        )
    if similar["images"]:
        old, new, bits = similar["examples"][0]
        found.append(
            make_finding(
                "note",
                name,
                f"{counted(similar['images'], 'image')} of {name} look like another one of {name} (e.g. {old} and "
                f"{new}, {bits} of 64 bits differ).",
                "Look at them; copies and frames of one scene count several times.",
            )
        )
    return found


def _duplicates_across(first: str, second: str, result: Mapping[str, Any]) -> list[Finding]:
    """Images of one set that are byte-identical with, or look like, one of another set."""
    found = []
    key = f"{first}_{second}"
    same, similar = result["files"]["across"].get(key), result["similar"]["across"].get(key)
    remedy = f"Remove them from {first if second == 'test' else second}."
    if same and (pairs := [*same["same_id"]["examples"], *same["other_id"]["examples"]]):
        number = same["same_id"]["images"] + same["other_id"]["images"]
        old, new = pairs[0]
        found.append(
            make_finding(
                "problem" if second == "test" else "warning",
                key,
                f"{counted(number, 'image')} of {second} {is_or_are(number)} in {first}, too, byte for byte (e.g. "
                f"{new} is {old}): {HARM[key]}.",
                remedy,
            )
        )
    if similar and (number := similar["images"]):
        old, new, bits = similar["examples"][0]
        found.append(
            make_finding(
                "warning",
                key,
                f"{counted(number, 'image')} of {second} {'looks' if number == 1 else 'look'} like an image of "
                f"{first} (e.g. {new} like {old}, {bits} of 64 bits differ): if they are copies, {HARM[key]}.",
                f"Look at them. {remedy.removesuffix('.')} if they show the same scene.",
            )
        )
    return found


def _classes(result: Mapping[str, Any]) -> list[Finding]:
    """Classes without objects, with few, or of no task."""
    found = []
    classes, tasks, sets = result["classes"], result["tasks"], result["sets"]
    taught = [row for row in classes if row["task"] is not None or not tasks]
    for name, level, harm in (
        ("train", "problem" if tasks else "warning", "that cannot be learned"),
        ("test", "warning", "no average precision there"),
    ):
        if name in sets and (absent := [row["class"] for row in taught if not row[name]]):
            found.append(
                make_finding(
                    level,
                    name,
                    f"{counted(len(absent), 'class', 'classes')} {has_or_have(len(absent))} no object in {name} "
                    f"({shown(absent)}): {harm}.",
                    "Correct the names, or add images that show them, or leave them out of the schedule.",
                )
            )
    if "train" in sets and (few := [row for row in taught if 0 < row["train"] < FEW_OBJECTS]):
        names = [f"{row['class']}: {row['train']}" for row in few]
        found.append(
            make_finding(
                "warning",
                "train",
                f"{counted(len(few), 'class', 'classes')} {has_or_have(len(few))} fewer than {FEW_OBJECTS} objects in "
                f"train ({shown(names)}).",
                "Annotate more of them, or leave them out of the schedule, so that they stay unknown.",
            )
        )
    unnamed = [row for row in classes if row["task"] is None and tasks]
    if unnamed:
        names = [f"{row['class']}: {sum(row[key] for key in sets):,}" for row in unnamed]
        found.append(
            make_finding(
                "note",
                "all",
                f"{counted(len(unnamed), 'class', 'classes')} {is_or_are(len(unnamed))} in no task (objects of "
                f"{shown(names)}): they stay unknown for ever.",
                "Nothing, if that is meant; otherwise add them to a task.",
            )
        )
    return found
