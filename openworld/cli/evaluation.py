"""The verb that scores predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from openworld.cli.parser import PATH, Reads
from openworld.cli.verbs import AddVerb
from openworld.data.formats import annotations_help
from openworld.runtime.options import PositiveInt


def add_verbs(verb: AddVerb) -> None:
    """Add the verb to the command line."""
    evaluate_verb = verb("evaluate", evaluate, "score predictions of any detector under any published protocol")
    evaluate_verb.add_argument(
        "--predictions",
        type=PATH,
        nargs="+",
        required=True,
        help="a run's folder, predictions.json, COCO results, a folder of VOC detection files; one or more per task",
    )
    evaluate_verb.add_argument(
        "--ground-truth", type=PATH, default=None, help=f"{annotations_help()}; a run has its own"
    )
    evaluate_verb.add_argument(
        "--image-set", type=PATH, default=None, help="VOC: name or path of the list of images; COCO: field=value"
    )
    evaluate_verb.add_argument(
        "--orientation",
        type=Reads(Literal["auto", "stored", "upright"]),
        default="auto",
        help="which picture --ground-truth annotates where photographs have an EXIF tag, as data.test.orientation",
    )
    evaluate_verb.add_argument(
        "--schedule",
        type=PATH,
        default=None,
        help="m_owodb, s_owodb, voc_10_10, voc_15_5, voc_19_1, a .yaml file or a run",
    )
    evaluate_verb.add_argument(
        "--task",
        type=Reads(PositiveInt),
        default=None,
        help="task of the model that predicted; needed for foreign files",
    )
    evaluate_verb.add_argument(
        "--protocol", type=str, default="unique", help="unique, ore, owdetr, randbox, orthogonaldet, or all"
    )
    evaluate_verb.add_argument(
        "--rules", type=dict[str, Any], default={}, help="change single rules: --rules.iou_threshold 0.6"
    )
    evaluate_verb.add_argument(
        "--unseen",
        type=Reads(Literal["error", "drop", "unknown"]),
        default="error",
        help="foreign files: what to do with detections of classes that the task does not know",
    )
    evaluate_verb.add_argument(
        "--unknown-category", type=Reads(int), default=None, help="COCO results: the category id that means unknown"
    )
    evaluate_verb.add_argument(
        "--missing-images", action="store_true", help="score images without predictions as empty"
    )
    evaluate_verb.add_argument("--extra-images", action="store_true", help="leave predictions on other images out")
    evaluate_verb.add_argument(
        "--coco", type=Reads(bool), default=True, help="also COCO AP of the known classes (pycocotools)"
    )
    evaluate_verb.add_argument(
        "--output",
        type=PATH,
        default=None,
        help="a .json, .csv, .md or .tex file, or a folder for all of them and plots",
    )


def evaluate(arguments: Namespace) -> None:
    """Print scores of predictions, under one protocol or all."""
    from openworld.metrics.protocols import PROTOCOLS, protocol_named, with_rules
    from openworld.predictions.open import open_predictions
    from openworld.predictions.score import evaluate_protocols
    from openworld.repairs import Repairs
    from openworld.report.evaluation import checked_output, write_results
    from openworld.report.terminal import print_details, print_table
    from openworld.run.notices import say_repairs
    from openworld.run.sources import open_ground_truth
    from openworld.runtime.console import open_console

    output = None if arguments.output is None else checked_output(arguments.output)
    chosen = list(PROTOCOLS) if arguments.protocol == "all" else [arguments.protocol]
    protocols = [with_rules(protocol_named(name), arguments.rules) for name in chosen]
    dataset, schedule, category_names = open_ground_truth(
        [Path(path) for path in arguments.predictions],
        arguments.ground_truth,
        image_set=arguments.image_set,
        orientation=arguments.orientation,
        schedule=arguments.schedule,
    )
    say_repairs({"ground truth": dataset})
    repairs = Repairs()
    results = [
        result
        for path in arguments.predictions
        for predictions in open_predictions(
            Path(path),
            dataset,
            schedule,
            arguments.task,
            category_names=category_names,
            unknown_category=arguments.unknown_category,
            unseen=arguments.unseen,
            repairs=repairs,
        )
        for result in evaluate_protocols(
            predictions,
            dataset,
            protocols,
            missing_images=arguments.missing_images,
            extra_images=arguments.extra_images,
            coco=arguments.coco,
        )
    ]
    written = [] if output is None else write_results(results, output)
    console = open_console()
    for what, count in repairs.counts.items():
        console.print(f"{what}: {count}")
    print_table(results, console)
    print_details(results, console)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True)
