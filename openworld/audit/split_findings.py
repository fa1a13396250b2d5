"""What an audit of a split says: findings about lists of images, leaks, classes, and the protocols on this test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openworld.audit.duplicates import HARM, PAIRS
from openworld.audit.findings import Finding, by_gravity, has_or_have, is_or_are, make_finding, shown
from openworld.metrics.protocols import Protocol
from openworld.report.text import counted, listed, percent

PERFECT = 0.999
"""A ceiling below this is worth a finding; a little is lost wherever two objects share one box."""


def split_findings(result: Mapping[str, Any], protocols: Mapping[str, Protocol]) -> list[Finding]:
    """All findings about a split, the gravest first.

    Args:
        result: the facts of :func:`openworld.audit.split.audit_split`.
        protocols: the rules that the ceilings were computed under, by name.
    """
    found = []
    for name, facts in result["sets"].items():
        found += [
            *_repeated_lines(name, facts["listings"], protocols),
            *_colliding_ids(name, facts["collisions"], protocols),
            *_empty_images(name, facts["without_objects"]),
            *_repairs(name, facts["repairs"]),
            *_equal_files(name, result["files"]),
        ]
    for first, second in PAIRS:
        if first in result["sets"] and second in result["sets"]:
            found += _leaks(first, second, result)
    found += [*_classes(result), *_training(result["training"] or ()), *_unread_files(result["files"], result["sets"])]
    found += [*_capped(result["sets"]["test"]["most_objects"], protocols), *_low_ceilings(result["ceilings"])]
    return by_gravity(found)


def _under(names: Sequence[str]) -> str:
    return f"under protocol{'' if len(names) == 1 else 's'} {listed(names)}"


# -- one set -----------------------------------------------------------------------------------------------------------


def _repeated_lines(name: str, listings: Mapping[str, Any], protocols: Mapping[str, Protocol]) -> list[Finding]:
    if not listings["duplicate_lines"]:
        return []
    often = [
        f"{counted(count, 'image')} {'twice' if times == '2' else f'{times} times'}"
        for times, count in listings["images_by_times"].items()
    ]
    effect, remedy = ": each image is read once all the same", "Remove the repeated lines."
    if name == "test":
        counting = [key for key, protocol in protocols.items() if protocol.duplicate_objects == "counted"]
        effect = f": recall {_under(counting)} cannot reach 100 %" if counting else ""
        remedy = (
            "Score each image once (protocol unique). An unknown recall that was published under another protocol "
            "becomes comparable when it is multiplied by the factor in the table of ceilings."
        )
    return [
        make_finding(
            "warning",
            name,
            f"{listings['duplicate_lines']:,} of {listings['lines']:,} lines of {name} repeat an image "
            f"({listed(often)}){effect}.",
            remedy,
        )
    ]


def _colliding_ids(name: str, collisions: Mapping[str, Any], protocols: Mapping[str, Protocol]) -> list[Finding]:
    found = []
    same = collisions["same_number"]
    if same["groups"]:
        keyed = [key for key, protocol in protocols.items() if protocol.image_ids != "exact"]
        effect = f", as {_under(keyed)}" if keyed and name == "test" else ""
        found.append(
            make_finding(
                "warning",
                name,
                f"{counted(same['images'], 'id')} of {name} are only {counted(same['groups'], 'number')} when they are "
                f"read as whole numbers (e.g. {shown(same['examples'][0], 3)}): an evaluator that keys images by "
                f"number{effect}, takes different images for one.",
                "Rename images so that their numbers differ, or use an evaluator that compares ids as text.",
            )
        )
    text = collisions["same_text"]
    if text["groups"]:
        found.append(
            make_finding(
                "warning",
                name,
                f"{counted(text['images'], 'id')} of {name} differ from another only in case or spaces (e.g. "
                f"{', '.join(map(repr, text['examples'][0][:3]))}): some file systems and tools take them for one "
                "image.",
                "Rename the images.",
            )
        )
    return found


def _empty_images(name: str, empty: Mapping[str, Any]) -> list[Finding]:
    if not empty["images"]:
        return []
    left_out = f"training leaves {'it' if empty['images'] == 1 else 'them'} out"
    effect = "every detection there is a false positive" if name == "test" else left_out
    return [
        make_finding(
            "note",
            name,
            f"{counted(empty['images'], 'image')} of {name} {has_or_have(empty['images'])} no object "
            f"(e.g. {shown(empty['examples'], 3)}): {effect}.",
            "Make sure that they really show no object, and that no annotations were lost.",
        )
    ]


def _repairs(name: str, repairs: Mapping[str, int]) -> list[Finding]:
    # Repeated images have their own finding, from the lists.
    kinds = [f"{kind} ({count:,})" for kind, count in repairs.items() if kind != "image listed again"]
    if not kinds:
        return []
    return [
        make_finding(
            "note",
            name,
            f"Annotations of {name} were repaired while reading: {listed(kinds)}.",
            "Correct them in the files; repair_examples of the JSON output names the first ones.",
        )
    ]


def _equal_files(name: str, files: Mapping[str, Any] | None) -> list[Finding]:
    if not files or not files["within"][name]["groups"]:
        return []
    alike = files["within"][name]
    return [
        make_finding(
            "warning",
            name,
            f"{counted(alike['images'], 'image')} of {name} have files of the same content under different ids "
            f"(e.g. {shown(alike['examples'][0], 3)}): they count as different images.",
            "Keep one of each group and its annotations.",
        )
    ]


def _unread_files(files: Mapping[str, Any] | None, sets: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    if not files or not files["not_found"]:
        return []
    searched = "; ".join(f"{name}: {facts['searched']}" for name, facts in sets.items() if facts["searched"])
    return [
        make_finding(
            "note",
            "all",
            f"{counted(files['not_found'], 'image file')} could not be read, so their content was not compared"
            f"{f' ({searched})' if searched else ''}.",
            "Fetch the images, or name their folder (--test-images, or data.test.images of a configuration); or switch "
            "the comparison of files off with --hash-files false.",
        )
    ]


# -- two sets ----------------------------------------------------------------------------------------------------------


def _leaks(first: str, second: str, result: Mapping[str, Any]) -> list[Finding]:
    """Images that two sets share: by id, by the content of their files, or both."""
    found = []
    key = f"{first}_{second}"
    shared = result["leaks"][key]
    files: dict[str, Any] = result["files"]["across"][key] if result["files"] else {}
    level = "problem" if second == "test" else "warning"
    remedy = f"Remove them from {first if second == 'test' else second}."
    compared = bool(files) and not result["files"]["not_found"]
    if shared["images"] and compared and not files["same_id"]["images"]:
        found.append(
            make_finding(
                "note",
                key,
                f"{counted(shared['images'], 'id')} {is_or_are(shared['images'])} in {first} and in {second} (e.g. "
                f"{shown(shared['examples'], 3)}), but the files differ: other images, numbered alike.",
                "Nothing, unless you merge the sets: make ids unique before.",
            )
        )
    elif shared["images"]:
        number = files["same_id"]["images"] if compared else shared["images"]
        examples = [pair[1] for pair in files["same_id"]["examples"]] if compared else shared["examples"]
        doubt = "" if compared else ", judged by the id, as not all files were compared"
        found.append(
            make_finding(
                level,
                key,
                f"{counted(number, 'image')} of {second} {is_or_are(number)} in {first}, too (e.g. {shown(examples, 3)}"
                f"{doubt}): {HARM[key]}.",
                remedy,
            )
        )
    if files and (number := files["other_id"]["images"]):
        old, new = files["other_id"]["examples"][0]
        found.append(
            make_finding(
                level,
                key,
                f"{counted(number, 'image')} of {second} {has_or_have(number)} the same file content as an image of "
                f"{first} with another id (e.g. {new} is {old}): {HARM[key]}.",
                remedy,
            )
        )
    if number := shared["same_number"]:
        old, new = shared["same_number_examples"][0]
        found.append(
            make_finding(
                "note",
                key,
                f"{counted(number, 'pair')} of ids of {first} and {second} {is_or_are(number)} equal as whole numbers "
                f"(e.g. {old} and {new}).",
                "Nothing, unless a tool keys the images of both sets by number.",
            )
        )
    return found


# -- classes -----------------------------------------------------------------------------------------------------------


def _classes(result: Mapping[str, Any]) -> list[Finding]:
    """Classes that the test set lacks, classes of no task, and tasks without unknown objects."""
    found = []
    classes = result["classes"]
    if absent := classes["absent"]:
        found.append(
            make_finding(
                "warning",
                "test",
                f"{counted(len(absent), 'class', 'classes')} of the schedule {has_or_have(len(absent))} no "
                f"object in test ({shown([entry['class'] for entry in absent])}): no average precision, and the mean "
                "leaves them out or counts 0, as the protocol says.",
                "Correct the names (the annotations may spell them otherwise), or add images that show them.",
            )
        )
    if unnamed := classes["unnamed"]:
        names = [f"{name}: {count:,}" for name, count in unnamed.items()]
        found.append(
            make_finding(
                "note",
                "test",
                f"{counted(len(unnamed), 'class', 'classes')} of test {is_or_are(len(unnamed))} in no task "
                f"(objects of {shown(names)}): they stay unknown for ever.",
                "Nothing, if that is meant; otherwise add them to a task, or map their names with rename.",
            )
        )
    if without := [entry["task"] for entry in classes["tasks"] if not entry["unknown"]]:
        last = without == [len(result["tasks"])]
        found.append(
            make_finding(
                "note" if last else "warning",
                "test",
                f"Test has no unknown object at task {listed([str(task) for task in without])}: unknown recall, "
                "WI and A-OSE do not exist there.",
                "Nothing: all classes are known at the last task."
                if last
                else "Annotate classes of no or later tasks.",
            )
        )
    return found


def _training(training: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Classes that cannot be learned, and objects that training images show without saying so."""
    found = [
        make_finding(
            "problem",
            "train",
            f"Task {entry['task']} introduces {shown(entry['absent'])}, of which train has no object: it cannot be "
            "learned.",
            "Correct the names, or add images that show them.",
        )
        for entry in training
        if entry["absent"]
    ]
    unknown = {entry["task"]: entry["hidden_later"] + entry["hidden_unnamed"] for entry in training}
    if any(unknown.values()):
        told = listed([f"{count:,} at task {task}" for task, count in unknown.items() if count])
        found.append(
            make_finding(
                "note",
                "train",
                f"Training images show objects that are not told: {told}. That is what makes the world open: a "
                "detector meets them as background, or finds them as unknown.",
                "Nothing. Do not use their labels in training.",
            )
        )
    return found


# -- protocols ---------------------------------------------------------------------------------------------------------


def _capped(most_objects: int, protocols: Mapping[str, Protocol]) -> list[Finding]:
    """Images with more objects than detections that count."""
    capped = [
        key
        for key, protocol in protocols.items()
        if protocol.detections_per_image is not None and most_objects > protocol.detections_per_image
    ]
    if not capped:
        return []
    return [
        make_finding(
            "warning",
            "test",
            f"An image of test has {most_objects:,} objects, more than the detections that are scored "
            f"{_under(capped)}: not all of them can be found.",
            "Raise the rule detections_per_image for your own numbers.",
        )
    ]


def _low_ceilings(ceilings: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Protocols under which a perfect detector does not reach a known mAP of 100 %."""
    lowest: dict[str, float] = {}
    for entry in ceilings:
        value = entry["known_ap50"]
        if value is not None and value < lowest.get(entry["protocol"], PERFECT):
            lowest[entry["protocol"]] = value
    if not lowest:
        return []
    values = listed([f"{percent(value)} % ({name})" for name, value in lowest.items()])
    return [
        make_finding(
            "warning",
            "test",
            f"Even a detector without any fault scores a known mAP of only {values} at its worst task.",
            "Read results against the ceilings, and compare only results of one protocol.",
        )
    ]
