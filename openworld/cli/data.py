"""Verbs for annotated data: audit, check, tasks, prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from jsonargparse import ArgumentParser, Namespace

from openworld.cli.parser import PATH, Reads
from openworld.cli.verbs import AddVerb
from openworld.configfile import find_config, read_config
from openworld.data.formats import annotations_help, image_set_help
from openworld.data.options import SourceOptions
from openworld.runtime.options import Between, NonNegativeInt, PositiveInt

_ANNOTATIONS = annotations_help()
_IMAGE_SET = image_set_help()
_IMAGES = "folder of the images, where it is not beside the annotations; not with a YOLO data.yaml"


def add_verbs(verb: AddVerb) -> None:
    """Add the verbs below the verb `data`."""
    audit_verb = verb("audit", audit, "find faults of a split, and the scores that a perfect detector reaches on it")
    audit_verb.add_argument("--config", type=PATH, default=None, help="a run's .yaml, in place of the options below")
    _set_arguments(audit_verb)
    audit_verb.add_argument("--schedule", type=PATH, default=None, help="as for evaluate")
    audit_verb.add_argument("--hash-files", type=Reads(bool), default=True, help="compare image files by content")
    audit_verb.add_argument("--output", type=PATH, default=None, help="a .json file for the findings")
    check_verb = verb("check", check, "report counts, sizes, suspicious boxes, broken and duplicate images")
    check_verb.add_argument(
        "--config", type=PATH, default=None, help="a run's .yaml, in place of the sets and schedule"
    )
    _set_arguments(check_verb)
    check_verb.add_argument("--schedule", type=PATH, default=None, help="as for evaluate; without it, no tasks")
    check_verb.add_argument(
        "--samples", type=Reads(NonNegativeInt), default=12, help="most images or objects per sheet; 0 draws none"
    )
    check_verb.add_argument(
        "--alike",
        type=Reads(Annotated[int, Between(0, 64)]),
        default=4,
        help="bits of 64 in which hashes of look-alikes may differ",
    )
    check_verb.add_argument("--workers", type=Reads(PositiveInt), default=2, help="threads that decode images")
    check_verb.add_argument("--output", type=PATH, default=None, help="a folder for check.json and drawn samples")

    tasks_verb = verb("tasks", propose_tasks, "propose the classes of each task, as a .yaml file to edit")
    tasks_verb.add_argument("--train", type=PATH, required=True, help=f"training images: {_ANNOTATIONS}")
    tasks_verb.add_argument("--train-set", type=PATH, default=None, help=_IMAGE_SET)
    tasks_verb.add_argument("--train-images", type=PATH, default=None, help=_IMAGES)
    tasks_verb.add_argument(
        "--tasks", type=Reads(PositiveInt), default=None, help="number of tasks; with groups, one per group"
    )
    tasks_verb.add_argument(
        "--by", type=PATH, default="frequency", help="frequency, or a .yaml file with one line `class: group` per class"
    )
    tasks_verb.add_argument(
        "--leave-unknown",
        type=Reads(NonNegativeInt),
        default=0,
        help="number of the rarest classes to leave out of all tasks",
    )
    tasks_verb.add_argument("--output", type=PATH, required=True, help="the .yaml file")
    prepare_verb = verb("prepare", prepare, "list the files of a published benchmark, and where missing ones belong")
    prepare_verb.add_argument("--benchmark", type=str, default=None, help="m_owodb, s_owodb, voc_10_10, …")
    prepare_verb.add_argument("--root", type=PATH, default="datasets", help="folder of VOCdevkit/ and coco/")
    prepare_verb.add_argument("--config", type=PATH, default=None, help="a run's .yaml, in place of the two")
    prepare_verb.add_argument(
        "--tasks", type=Reads(NonNegativeInt), default=0, help="only what the first tasks need; 0: all"
    )
    prepare_verb.add_argument("--download", action="store_true", help="fetch what is missing")
    prepare_verb.add_argument("--lists", type=PATH, default=None, help="a folder for the image lists as text files")


def _set_arguments(parser: ArgumentParser) -> None:
    for name, what in (("train", "training images"), ("val", "images for energy fitting"), ("test", "test images")):
        parser.add_argument(f"--{name}", type=PATH, default=None, help=f"{what}: {_ANNOTATIONS}")
        parser.add_argument(f"--{name}-set", type=PATH, default=None, help=_IMAGE_SET)
        parser.add_argument(f"--{name}-images", type=PATH, default=None, help=_IMAGES)
    parser.add_argument(
        "--orientation",
        type=Reads(Literal["auto", "stored", "upright"]),
        default="auto",
        help="which picture was annotated where photographs have an EXIF tag, as data.train.orientation",
    )


def _source(arguments: Namespace, name: str) -> SourceOptions:
    return SourceOptions(
        annotations=arguments[name],
        image_set=arguments[f"{name}_set"],
        images=arguments[f"{name}_images"],
        orientation=arguments.get("orientation", "auto"),
    )


def audit(arguments: Namespace) -> None:
    """Print findings about a split, and the scores of a perfect detector."""
    from openworld.audit.split import audit_split
    from openworld.audit.terminal import print_audit
    from openworld.run.sources import open_split
    from openworld.runtime.console import open_console
    from openworld.runtime.files import write_json
    from openworld.runtime.outputs import output_file

    output = None if arguments.output is None else output_file(arguments.output)
    sets, tasks = open_split(
        {name: _source(arguments, name) for name in ("train", "val", "test")},
        schedule=arguments.schedule,
        config=arguments.config,
    )
    found = audit_split(
        sets["test"], tasks, train=sets.get("train"), val=sets.get("val"), hash_files=arguments.hash_files
    )
    if output is not None:
        write_json(output, found)
    print_audit(found, open_console())


def check(arguments: Namespace) -> None:
    """Print counts of annotated images, and suspicious findings."""
    from openworld.audit.anchors import anchor_findings, anchor_fit
    from openworld.audit.findings import by_gravity
    from openworld.audit.images_and_boxes import check_data
    from openworld.audit.sheets import write_check
    from openworld.audit.terminal import print_check
    from openworld.run.sources import open_split
    from openworld.runtime.console import open_console
    from openworld.runtime.outputs import output_folder

    folder = None if arguments.output is None else output_folder(arguments.output)
    sets, tasks = open_split(
        {name: _source(arguments, name) for name in ("train", "val", "test")},
        schedule=arguments.schedule,
        config=arguments.config,
        complete=False,
    )
    result = check_data(sets, tasks, max_distance=arguments.alike, workers=arguments.workers)
    loader = None
    if arguments.config is not None and "train" in sets:
        config = read_config(Path(arguments.config))
        loader = config.data.loader
        result["anchors"] = anchor_fit(sets["train"], config.model, config.data.loader)
        result["findings"] = by_gravity([*result["findings"], *anchor_findings(result["anchors"])])
    written = None
    if folder is not None:
        written = write_check(result, sets, folder, num_samples=arguments.samples, loader=loader)
    console = open_console()
    print_check(result, console)
    if written is not None:
        files = ", ".join(path.name for path in written if path.parent == folder)
        sheets = sum(path.parent != folder for path in written)
        console.print(f"\nwritten: {folder}/: {files} and {sheets} sheets in samples/")


def prepare(arguments: Namespace) -> None:
    """Print which files of a benchmark exist; exit with 2 if some are missing."""
    from openworld.data.benchmarks.archives import missing_archives
    from openworld.data.benchmarks.download import download_parts
    from openworld.data.benchmarks.lists import benchmark_named
    from openworld.data.benchmarks.prepare import check_parts, print_parts, write_lists
    from openworld.data.options import BenchmarkOptions
    from openworld.errors import ConfigError, DataError
    from openworld.runtime.console import open_console
    from openworld.runtime.outputs import output_folder

    if (arguments.config is None) == (arguments.benchmark is None):
        raise ConfigError("no benchmark is named, or two", remedy="give either --benchmark or --config")
    if arguments.config is not None:
        options = read_config(find_config(arguments.config)).data.benchmark
        if options is None:
            raise ConfigError("names no benchmark", where=arguments.config, remedy="set data.benchmark")
    else:
        benchmark_named(arguments.benchmark)
        options = BenchmarkOptions(name=arguments.benchmark, root=arguments.root)
    console = open_console()
    if arguments.lists is not None:
        written = write_lists(options.name, output_folder(arguments.lists))
        console.print(f"written: {len(written)} lists in {arguments.lists}", soft_wrap=True)
    parts = check_parts(options, arguments.tasks)
    if arguments.download and missing_archives(parts):
        download_parts(options, parts, console)
        parts = check_parts(options, arguments.tasks)
    print_parts(options, parts, console)
    if missing := missing_archives(parts):
        raise DataError(
            f"{options.name} is not complete: {len(missing)} archives are missing",
            where=options.root,
            remedy="fetch them as said above, or add --download",
        )
    console.print(f"{options.name} is complete")


def propose_tasks(arguments: Namespace) -> None:
    """Write a schedule derived from the numbers of objects, or from groups of classes."""
    from openworld.audit.images_and_boxes import class_counts
    from openworld.audit.proposed_tasks import propose, schedule_text
    from openworld.run.sources import open_split
    from openworld.runtime.console import open_console
    from openworld.runtime.files import write_atomic
    from openworld.runtime.outputs import output_file

    output = output_file(arguments.output)
    named = {"train": _source(arguments, "train")}
    counts = class_counts(open_split(named, schedule=None, config=None, complete=False)[0]["train"])
    tasks, origin = propose(counts, arguments.tasks, arguments.by, leave_unknown=arguments.leave_unknown)
    text = schedule_text(tasks, counts, f"{origin} of {arguments.train}.")
    write_atomic(output, text)
    console = open_console()
    console.print(text, highlight=False, soft_wrap=True, end="")
    console.print(f"written: {output}", soft_wrap=True)
