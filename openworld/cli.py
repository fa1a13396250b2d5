"""The command line: one function a verb. Heavy imports wait until a verb runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from openworld import __version__
from openworld.config import RunConfig
from openworld.configfile import build, find_config, make_parser, read_config, read_options
from openworld.errors import OpenWorldError
from ssl_backbones.options import PretrainOptions

DESCRIPTION = "Open-world object detection: know what was taught, say unknown on the rest, learn it as the next task."


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script. Exits with the error's code when a user's input or machine is at fault."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        parser, verbs = build_parser()
        parsed = parser.instantiate(parser.parse_args(arguments))
        verbs[parsed.verb](parsed[parsed.verb])
    except OpenWorldError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if debug:
            raise
        print(f"error: {error}\nWhat to do: run `openworld doctor`", file=sys.stderr)
        sys.exit(4)


def build_parser() -> tuple[ArgumentParser, dict[str, Callable[[Namespace], None]]]:
    """The parser of all verbs, and the function of each."""
    parser = make_parser(prog="openworld", description=DESCRIPTION, version=__version__)
    commands = parser.add_subcommands(dest="verb")
    verbs: dict[str, Callable[[Namespace], None]] = {}

    def verb(name: str, function: Callable[[Namespace], None], help: str) -> ArgumentParser:
        sub = make_parser(description=help)
        commands.add_subcommand(name, sub, help=help)
        verbs[name] = function
        return sub

    demo_verb = verb(
        "demo", demo, "the whole story on a synthetic world: a few minutes on a CPU, ends with report.html"
    )
    _run_arguments(demo_verb, default_output="runs/demo")

    run_verb = verb("run", run, "carry a schedule of tasks to its end: pretrain, train, replay, fit, evaluate, report")
    _run_arguments(run_verb, default_output=None)

    pretrain_verb = verb("pretrain", pretrain, "contrastive pretraining of a backbone on a folder of images")
    pretrain_verb.add_argument("--config", action="config", help="a YAML file; see configs/pretrain")
    pretrain_verb.add_argument(
        "--output", type=str, required=True, help="folder for backbone.safetensors and card.json"
    )
    pretrain_verb.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    pretrain_verb.add_argument("--seed", type=int, default=0)
    pretrain_verb.add_argument("--device", type=str, default="auto")
    pretrain_verb.add_class_arguments(PretrainOptions, None)

    evaluate_verb = verb("evaluate", evaluate, "score predictions of any detector under any published protocol")
    evaluate_verb.add_argument(
        "--predictions",
        type=str,
        nargs="+",
        required=True,
        help="a run's folder, predictions.json, COCO results, a folder of VOC detection files; one or more a task",
    )
    evaluate_verb.add_argument(
        "--ground-truth", type=str, default=None, help="COCO .json file or VOC folder; a run has its own"
    )
    evaluate_verb.add_argument("--image-set", type=str, default=None, help="VOC: name or path of the list of images")
    evaluate_verb.add_argument(
        "--schedule",
        type=str,
        default=None,
        help="m_owodb, s_owodb, voc_10_10, voc_15_5, voc_19_1, a .yaml file or a run",
    )
    evaluate_verb.add_argument("--task", type=int, default=None, help="whose model predicted; needed for foreign files")
    evaluate_verb.add_argument(
        "--protocol", type=str, default="unique", help="unique, ore, owdetr, randbox, orthogonaldet, or all"
    )
    evaluate_verb.add_argument(
        "--rules", type=dict[str, Any], default={}, help="single rules of your own: --rules.iou_threshold 0.6"
    )
    evaluate_verb.add_argument(
        "--unseen",
        type=Literal["error", "drop", "unknown"],
        default="error",
        help="foreign files: what to do with a detection of a class that the task does not know",
    )
    evaluate_verb.add_argument(
        "--unknown-category", type=int, default=None, help="COCO results: the category id that means unknown"
    )
    evaluate_verb.add_argument(
        "--missing-images", action="store_true", help="score images without predictions as empty"
    )
    evaluate_verb.add_argument("--extra-images", action="store_true", help="leave predictions on other images out")
    evaluate_verb.add_argument(
        "--coco", type=bool, default=True, help="also COCO AP of the known classes (pycocotools)"
    )
    evaluate_verb.add_argument(
        "--output",
        type=str,
        default=None,
        help="a .json, .csv, .md or .tex file, or a folder for all of them and plots",
    )

    data_verb = make_parser(description="look after annotated data")
    commands.add_subcommand("data", data_verb, help="look after annotated data: audit")
    data_commands = data_verb.add_subcommands(dest="what")
    audit_verb = make_parser(description="what is wrong with a split, and what a perfect detector can reach on it")
    data_commands.add_subcommand("audit", audit_verb, help="look a split over before anything is trained on it")
    audit_verb.add_argument("--config", type=str, default=None, help="a run's .yaml, in place of the options below")
    for name, what in (("test", "test images"), ("train", "training images"), ("val", "images for energy fitting")):
        audit_verb.add_argument(f"--{name}", type=str, default=None, help=f"{what}: COCO .json file or VOC folder")
        audit_verb.add_argument(f"--{name}-set", type=str, default=None, help="VOC: name or path of the list of images")
    audit_verb.add_argument("--schedule", type=str, default=None, help="as for evaluate")
    audit_verb.add_argument("--hash-files", type=bool, default=True, help="compare image files by content")
    audit_verb.add_argument("--output", type=str, default=None, help="a .json file for the findings")
    verbs["data"] = data

    predict_verb = verb("predict", predict, "draw what a trained run detects on an image or a folder of images")
    predict_verb.add_argument("images", type=str, help="an image or a folder")
    predict_verb.add_argument("--run", type=str, required=True, help="folder of a run")
    predict_verb.add_argument("--task", type=int, default=0, help="which task's detector; 0: the newest")
    predict_verb.add_argument("--score", type=float, default=0.3, help="draw detections from this score")
    predict_verb.add_argument("--output", type=str, required=True, help="folder for drawings and predictions.json")

    report_verb = verb("report", report, "write report.html of a run again")
    report_verb.add_argument("run", type=str, help="folder of a run")

    ablate_verb = verb("ablate", ablate, "run a schedule with one part switched off at a time, over several seeds")
    ablate_verb.add_argument("--seeds", type=list[int], default=[0, 1, 2])
    ablate_verb.add_argument("--variants", type=list[str], default=[], help="names; default: all")
    ablate_verb.add_argument(
        "--switch",
        type=str,
        default=None,
        help="a .yaml whose options are switched one by one: configs/ore/reference.yaml",
    )
    ablate_verb.add_argument("--jobs", type=int, default=1, help="runs side by side")
    _run_arguments(ablate_verb, default_output=None)

    verb("doctor", doctor, "explain a broken installation")
    return parser, verbs


def _run_arguments(parser: ArgumentParser, default_output: str | None) -> None:
    parser.add_argument("--config", action="config", help="a YAML file; see configs/")
    parser.add_argument(
        "--output", type=str, required=default_output is None, default=default_output, help="folder of the run"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    parser.add_class_arguments(RunConfig, None)


# -- the verbs --------------------------------------------------------------------------------------------------------


def demo(arguments: Namespace) -> None:
    """The embedded world with the default configuration."""
    run(arguments)


def run(arguments: Namespace) -> None:
    """A schedule from its configuration."""
    from rich.console import Console

    from openworld.evaluate import print_table
    from openworld.report.build import build_report
    from openworld.sources import open_sources
    from openworld.tasks import run_schedule

    config = build(RunConfig, arguments)
    folder = Path(arguments.output)
    console = Console()
    metrics = run_schedule(config, folder, resume=arguments.resume)
    print_table(metrics, console)
    console.print(f"report: {build_report(folder, open_sources(config, folder).test)}")


def pretrain(arguments: Namespace) -> None:
    """A backbone from a folder of images, or from the synthetic world."""
    from rich.console import Console

    from openworld.runtime.environment import select_device
    from openworld.runtime.runlog import RunLog
    from openworld.sources import pretraining_world
    from ssl_backbones.images import find_images
    from ssl_backbones.pretrain import pretrain as run_pretraining

    options, output = build(PretrainOptions, arguments), Path(arguments.output)
    crops = None
    if options.images is None:
        paths, crops = pretraining_world(output, options)
    else:
        paths = find_images(Path(options.images))
    result = run_pretraining(
        options,
        paths,
        output,
        seed=arguments.seed,
        device=select_device(arguments.device),
        resume=arguments.resume,
        log=RunLog(output / "metrics.jsonl"),
        labelled_crops=crops,
    )
    console = Console()
    console.print(f"backbone: {result.path}")
    if probe := result.card.get("knn"):
        console.print(
            f"kNN accuracy: trained {probe['trained']:.3f}, untrained {probe['untrained']:.3f}, "
            f"chance {probe['chance']:.3f}"
        )


def evaluate(arguments: Namespace) -> None:
    """Scores of predictions, under one protocol or all."""
    from rich.console import Console

    from openworld.data.records import Repairs
    from openworld.evaluate import evaluate_protocols, print_details, print_table
    from openworld.external_predictions import open_predictions
    from openworld.metrics.protocols import PROTOCOLS, protocol_named, with_rules
    from openworld.report.evaluation import write_results
    from openworld.sources import open_ground_truth

    chosen = list(PROTOCOLS) if arguments.protocol == "all" else [arguments.protocol]
    protocols = [with_rules(protocol_named(name), arguments.rules) for name in chosen]
    dataset, schedule, category_names = open_ground_truth(
        [Path(path) for path in arguments.predictions],
        arguments.ground_truth,
        image_set=arguments.image_set,
        schedule=arguments.schedule,
    )
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
    console = Console()
    for what, count in repairs.counts.items():
        console.print(f"{what}: {count}")
    print_table(results, console)
    print_details(results, console)
    if arguments.output:
        for path in write_results(results, Path(arguments.output)):
            console.print(f"written: {path}")


def data(arguments: Namespace) -> None:
    """Verbs that look after annotated data."""
    {"audit": audit}[arguments.what](arguments[arguments.what])


def audit(arguments: Namespace) -> None:
    """Findings about a split, and the ceilings of a perfect detector."""
    from rich.console import Console

    from openworld.audit import audit_split, print_audit
    from openworld.runtime.files import write_json
    from openworld.sources import open_split

    sets, tasks = open_split(
        {name: (arguments[name], arguments[f"{name}_set"]) for name in ("train", "val", "test")},
        schedule=arguments.schedule,
        config=arguments.config,
    )
    found = audit_split(
        sets["test"], tasks, train=sets.get("train"), val=sets.get("val"), hash_files=arguments.hash_files
    )
    print_audit(found, Console())
    if arguments.output:
        write_json(Path(arguments.output), found)


def predict(arguments: Namespace) -> None:
    """Drawings and predictions.json of a person's own images."""
    from rich.console import Console

    from openworld.report.gallery import predict_folder

    run_folder = Path(arguments.run)
    config = read_config(run_folder / "config.yaml")
    count, broken = predict_folder(
        run_folder,
        config,
        arguments.task or None,
        Path(arguments.images),
        Path(arguments.output),
        score=arguments.score,
    )
    left_out = f", {len(broken)} left out" if broken else ""
    Console().print(f"{count} images{left_out}: {arguments.output}")


def report(arguments: Namespace) -> None:
    """report.html of a run, from its folder and its test images."""
    from openworld.report.build import build_report
    from openworld.sources import open_sources

    folder = Path(arguments.run)
    print(build_report(folder, open_sources(read_config(folder / "config.yaml"), folder).test))


def ablate(arguments: Namespace) -> None:
    """A table of what each part brings."""
    from rich.console import Console

    from openworld.ablation import run_ablation

    config = build(RunConfig, arguments)
    run_ablation(
        config,
        Path(arguments.output),
        seeds=arguments.seeds,
        variants=arguments.variants,
        jobs=arguments.jobs,
        console=Console(),
        switch=None if arguments.switch is None else read_options(find_config(arguments.switch)),
    )


def doctor(arguments: Namespace) -> None:
    """Findings about the installation; exits with 4 if something is broken."""
    from rich.console import Console

    from openworld.runtime.environment import examine

    console = Console()
    checks = examine()
    for check in checks:
        console.print(
            f"[{'green' if check.ok else 'red'}]{'ok ' if check.ok else 'BAD'}[/] {check.name}: {check.finding}"
        )
        if check.remedy:
            console.print(f"    What to do: {check.remedy}")
    if not all(check.ok for check in checks):
        sys.exit(4)
