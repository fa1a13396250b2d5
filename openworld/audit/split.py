"""Look a split over before anything is trained on it: what is wrong with it, what that means, and what to do.

The audit reads annotated data sets under a schedule of tasks and compares them: repeated images, ids that collide,
images in two sets, files of equal content, classes without objects, and what a perfect detector would score. The pure
parts are in :mod:`openworld.audit.split_facts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from openworld.audit.duplicates import HARM, PAIRS, identical_files
from openworld.audit.findings import (
    by_gravity,
    counted,
    has_or_have,
    is_or_are,
    listed,
    make_finding,
    print_findings,
    shown,
)
from openworld.audit.split_facts import (
    CEILINGS,
    EXAMPLES,
    ceiling,
    class_presence,
    duplicate_listings,
    id_collisions,
    images_without_objects,
    leaks,
)
from openworld.data.records import Dataset
from openworld.data.splits import training_view
from openworld.labels import LabelSpace
from openworld.metrics.ground_truth import GroundTruth
from openworld.metrics.protocols import PROTOCOLS, Protocol
from openworld.runtime.console import narrow_table

if TYPE_CHECKING:
    from rich.console import Console

ABSENT = "–"
PERFECT = 0.999
"""A ceiling below this is worth a word; a little is lost wherever two objects share one box."""


def audit_split(
    test: Dataset,
    tasks: Sequence[Sequence[str]],
    *,
    train: Dataset | None = None,
    val: Dataset | None = None,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
    hash_files: bool = True,
) -> dict[str, Any]:
    """Audit a split under a schedule.

    Args:
        test: images that detectors are scored on.
        tasks: class names that each task introduces.
        train: images for training.
        val: images for energy fitting.
        protocols: the rules to compute ceilings under.
        hash_files: compare image files by content (SHA-256; only files of equal size are read). Files that do not exist
            are left out and counted.

    Returns:
        ready for JSON: ``tasks``; ``sets`` by name, each with ``objects``, ``listings``, ``collisions``,
        ``without_objects``, ``repairs`` and ``repair_examples``; ``leaks``; ``files`` or None; ``classes``;
        ``training``, a list by task, or None; ``ceilings``, a list by task and protocol; ``findings`` [{"level", "set",
        "finding", "remedy"}, …], the gravest level first.

    Raises:
        ConfigError: a schedule that cannot be used.
        DataError: a data set that does not fit itself.
    """
    spaces = [LabelSpace.of(tasks, number) for number in range(1, max(len(tasks), 1) + 1)]
    sets = {name: dataset for name, dataset in (("train", train), ("val", val), ("test", test)) if dataset is not None}
    truths = [GroundTruth.from_records(test, space) for space in spaces]
    lines = {
        name: truths[0] if dataset is test else GroundTruth.from_records(dataset, spaces[0])
        for name, dataset in sets.items()
    }
    result: dict[str, Any] = {
        "tasks": [list(names) for names in tasks],
        "sets": {
            name: {
                "objects": dataset.num_annotations,
                "listings": duplicate_listings(lines[name].image_ids),
                "collisions": id_collisions(lines[name].image_ids),
                "without_objects": images_without_objects(lines[name]),
                "repairs": dict(sorted(dataset.repairs.counts.items())),
                "repair_examples": list(dataset.repairs.examples),
            }
            for name, dataset in sets.items()
        },
        "leaks": leaks(*(lines[name].image_ids if name in lines else () for name in ("train", "val", "test"))),
        "files": identical_files(sets) if hash_files else None,
        "classes": class_presence(truths, spaces, _objects_by_class(test)),
        "training": None if train is None else [_training(train, space) for space in spaces],
        "ceilings": [
            {"task": space.task, **ceiling(truth, len(space.previous), space.num_known, protocol)}
            for truth, space in zip(truths, spaces, strict=True)
            for protocol in protocols.values()
        ],
    }
    findings = [*_findings(result, protocols), *_protocol_findings(result, truths[0], protocols)]
    result["findings"] = by_gravity(findings)
    return result


def _objects_by_class(dataset: Dataset) -> dict[str, int]:
    """Objects of each category that are not ignored."""
    counts: Counter[int] = Counter()
    for record in dataset.records:
        counts.update(record.categories[~record.ignore].tolist())
    return {name: counts[position] for position, name in enumerate(dataset.categories)}


def _training(train: Dataset, space: LabelSpace) -> dict[str, Any]:
    """What a task's training images show, and what of it the task is not told.

    Objects of previous classes are told by replay only, those of later classes not yet, those of classes that no task
    names never. Crowds are never told.
    """
    scheduled = {name for names in space.tasks for name in names}
    taught: Counter[str] = Counter()
    hidden: Counter[str] = Counter()
    crowds = images_with_hidden = images_with_later = 0
    examples: list[int | str] = []
    view = training_view(train, space)
    for sample in view:
        taught.update(train.categories[position] for position in sample.record.categories.tolist())
        record = train.by_id[sample.record.image_id]
        single = [True] * len(record) if record.crowd is None else (~record.crowd).tolist()
        crowds += single.count(False)
        names = [
            train.categories[position]
            for position, alone in zip(record.categories.tolist(), single, strict=True)
            if alone and train.categories[position] not in space.current
        ]
        hidden.update(names)
        images_with_hidden += bool(names)
        if any(name not in space.previous for name in names):
            images_with_later += 1
            examples += [record.image_id] if len(examples) < EXAMPLES else []
    return {
        "task": space.task,
        "images": len(view),
        "taught_objects": taught.total(),
        "hidden_previous": sum(hidden[name] for name in space.previous),
        "hidden_later": sum(count for name, count in hidden.items() if name in scheduled - set(space.known)),
        "hidden_unnamed": sum(count for name, count in hidden.items() if name not in scheduled),
        "hidden_crowds": crowds,
        "images_with_hidden_objects": images_with_hidden,
        "images_with_unknown_objects": images_with_later,
        "examples": examples,
        "hidden_by_class": dict(hidden.most_common()),
        "absent": [name for name in space.current if not taught[name]],
    }


# -- findings ---------------------------------------------------------------------------------------------------------


def _under(names: Sequence[str]) -> str:
    return f"under protocol{'' if len(names) == 1 else 's'} {listed(names)}"


def _findings(result: dict[str, Any], protocols: Mapping[str, Protocol]) -> list[dict[str, str]]:
    """What is found in single sets, between them, and in their classes."""
    found = []
    for name, facts in result["sets"].items():
        found += _list_findings(name, facts, protocols)
        if result["files"] and (alike := result["files"]["within"][name])["groups"]:
            found.append(
                make_finding(
                    "warning",
                    name,
                    f"{counted(alike['images'], 'image')} of {name} have files of the same content under different ids "
                    f"(e.g. {shown(alike['examples'][0], 3)}): they count as different images.",
                    "Keep one of each group and its annotations.",
                )
            )
    for first, second in PAIRS:
        if first in result["sets"] and second in result["sets"]:
            found += _leak_findings(first, second, result)
    found += _class_findings(result)
    if result["files"] and result["files"]["not_found"]:
        found.append(
            make_finding(
                "note",
                "all",
                f"{counted(result['files']['not_found'], 'image file')} could not be read, so that their content was "
                "not compared.",
                "Fetch the images, or switch the comparison of files off.",
            )
        )
    return found


def _list_findings(name: str, facts: Mapping[str, Any], protocols: Mapping[str, Protocol]) -> list[dict[str, str]]:
    found = []
    listings, collisions, empty = facts["listings"], facts["collisions"], facts["without_objects"]
    if listings["duplicate_lines"]:
        counting = [key for key, protocol in protocols.items() if protocol.duplicate_objects == "counted"]
        often = [
            f"{counted(count, 'image')} {'twice' if times == '2' else f'{times} times'}"
            for times, count in listings["images_by_times"].items()
        ]
        if name == "test":
            effect = f": recall {_under(counting)} cannot reach 100 %" if counting else ""
            remedy = (
                "Score each image once (protocol unique). An unknown recall that was published under another protocol "
                "becomes comparable when it is multiplied by the factor of the table of ceilings."
            )
        else:
            effect, remedy = ": each image is read once all the same", "Remove the repeated lines."
        found.append(
            make_finding(
                "warning",
                name,
                f"{listings['duplicate_lines']:,} of {listings['lines']:,} lines of {name} repeat an image "
                f"({listed(often)}){effect}.",
                remedy,
            )
        )
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
        example = ", ".join(repr(one) for one in text["examples"][0][:3])
        found.append(
            make_finding(
                "warning",
                name,
                f"{counted(text['images'], 'id')} of {name} differ from another only in case or spaces (e.g. "
                f"{example}): some file systems and tools take them for one image.",
                "Rename the images.",
            )
        )
    if empty["images"]:
        effect = "every detection there is a false positive" if name == "test" else "training leaves them out"
        found.append(
            make_finding(
                "note",
                name,
                f"{counted(empty['images'], 'image')} of {name} {has_or_have(empty['images'])} no object "
                f"(e.g. {shown(empty['examples'], 3)}): {effect}.",
                "Make sure that nothing is to be seen there, and that no annotations were lost.",
            )
        )
    # The lists of images have told what is listed again.
    repairs = {kind: count for kind, count in facts["repairs"].items() if kind != "image listed again"}
    if repairs:
        kinds = listed([f"{kind} ({count:,})" for kind, count in repairs.items()])
        found.append(
            make_finding(
                "note",
                name,
                f"Annotations of {name} were repaired while reading: {kinds}.",
                "Correct them in the files; repair_examples of the JSON output names the first ones.",
            )
        )
    return found


def _leak_findings(first: str, second: str, result: dict[str, Any]) -> list[dict[str, str]]:
    """Images that two sets share: by id, by the content of their files, or both."""
    found = []
    key = f"{first}_{second}"
    shared = result["leaks"][key]
    files: dict[str, Any] = result["files"]["across"][key] if result["files"] else {}
    harm = HARM[key]
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
                f"{doubt}): {harm}.",
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
                f"{first} with another id (e.g. {new} is {old}): {harm}.",
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


def _class_findings(result: dict[str, Any]) -> list[dict[str, str]]:
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
    for entry in result["training"] or ():
        if entry["absent"]:
            found.append(
                make_finding(
                    "problem",
                    "train",
                    f"Task {entry['task']} introduces {shown(entry['absent'])}, of which train has no object: it "
                    "cannot be learned.",
                    "Correct the names, or add images that show them.",
                )
            )
    unknown = {entry["task"]: entry["hidden_later"] + entry["hidden_unnamed"] for entry in result["training"] or ()}
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


def _protocol_findings(
    result: dict[str, Any], truth: GroundTruth, protocols: Mapping[str, Protocol]
) -> list[dict[str, str]]:
    """What single protocols do to this test set."""
    found = []
    objects = max(Counter(truth.image_index[~truth.ignore].tolist()).values(), default=0)
    capped = [
        key
        for key, protocol in protocols.items()
        if protocol.detections_per_image is not None and objects > protocol.detections_per_image
    ]
    if capped:
        found.append(
            make_finding(
                "warning",
                "test",
                f"An image of test has {objects:,} objects, more than the detections that are scored "
                f"{_under(capped)}: not all of them can be found.",
                "Raise detections_per_image for numbers of your own.",
            )
        )
    low: dict[str, float] = {}
    for entry in result["ceilings"]:
        value = entry["known_ap50"]
        if value is not None and value < min(low.get(entry["protocol"], PERFECT), PERFECT):
            low[entry["protocol"]] = value
    if low:
        values = listed([f"{100 * value:.1f} % ({name})" for name, value in low.items()])
        found.append(
            make_finding(
                "warning",
                "test",
                f"Even a detector without any fault scores a known mAP of only {values} at its worst task.",
                "Read results against the ceilings, and compare only results of one protocol.",
            )
        )
    return found


# -- on the terminal --------------------------------------------------------------------------------------------------


def print_audit(result: Mapping[str, Any], console: Console) -> None:
    """Print an audit: the sets, a line for each finding with what to do, then the tables.

    Args:
        result: of :func:`audit_split`.
        console: rich.
    """
    from rich.text import Text

    sets = [
        (name, *(f"{number:,}" for number in (listings["lines"], listings["images"], facts["objects"])))
        for name, facts in result["sets"].items()
        if (listings := facts["listings"])
    ]
    console.print(narrow_table(("Set", "Lines", "Images", "Objects"), sets, "The sets", words=["Set"]))
    console.print()
    print_findings(result["findings"], console, "Nothing was found that distorts scores.")
    console.print()

    kinds: tuple[str, ...] = ("previous", "current", "unknown", "ignored")
    heads: tuple[str, ...] = ("Task", "Previous", "Current", "Unknown", "Ignored")
    console.print(narrow_table(heads, _numbers(result["classes"]["tasks"], kinds), "Objects of test"))
    if result["training"] is not None:
        kinds = ("images", "taught_objects", "hidden_previous", "hidden_later", "hidden_unnamed")
        heads = ("Task", "Images", "Taught", "Hidden:\nprevious", "Hidden:\nlater tasks", "Hidden:\nno task")
        console.print()
        console.print(narrow_table(heads, _numbers(result["training"], kinds), "Objects of train, as the task is told"))
    console.print()
    console.print(
        narrow_table(
            CEILING_HEADS, ceiling_rows(result["ceilings"]), "What a perfect detector scores", words=["Protocol"]
        )
    )
    console.print(
        Text(
            "Percent. Best order: the mAP if every repeated detection ranked last. Factor: unknown recall times this "
            "is unknown recall on distinct images.",
            "dim",
        )
    )


CEILING_HEADS = ("Task", "Protocol", "Known\nmAP", "Best\norder", "Prev", "Curr", "U-AP", "U-Recall", "Factor")


def ceiling_rows(ceilings: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row of text under :data:`CEILING_HEADS` for each task and protocol."""
    rows: list[tuple[str, ...]] = []
    for entry in ceilings:
        known, previous, current, unknown_ap, unknown_recall = (_percent(entry[name]) for name in CEILINGS)
        factor = entry["unknown_recall_factor"]
        rows.append(
            (
                str(entry["task"]),
                str(entry["protocol"]),
                known,
                _percent(entry["equal_scores"]["known_ap50"]),
                previous,
                current,
                unknown_ap,
                unknown_recall,
                ABSENT if factor is None else f"{factor:.4f}",
            )
        )
    return rows


def _numbers(entries: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(f"{entry[kind]:,}" for kind in ("task", *kinds)) for entry in entries]


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f}"
