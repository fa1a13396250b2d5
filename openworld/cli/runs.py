"""Verbs that make or use a run: demo, run, pretrain, predict, convert, report, ablate."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

from jsonargparse import ArgumentParser, Namespace

from openworld.cli.parser import PATH, Reads
from openworld.cli.verbs import AddVerb, run_arguments, with_engine
from openworld.config import RunConfig
from openworld.configfile import find_config, read_config_of_run, read_options
from openworld.errors import ConfigError
from openworld.runtime.option_trees import expanded
from openworld.runtime.options import Items, NonNegativeInt, PositiveInt, Share
from ssl_backbones.options import PretrainOptions

PROFILED_STEPS = 20
QUERIES = 8
"""Number of images whose nearest neighbours the report of a pretraining shows."""


def add_verbs(verb: AddVerb) -> None:
    """Add the verbs to the command line."""
    demo_verb = verb(
        "demo", demo, "run everything on a synthetic world: a few minutes on a CPU, ends with report.html", RunConfig
    )
    run_arguments(demo_verb, default_output="runs/demo")
    _profile_argument(demo_verb)

    run_verb = verb("run", run, "run a schedule of tasks: train, replay, calibrate, evaluate, report", RunConfig)
    run_arguments(run_verb, default_output=None)
    _profile_argument(run_verb)

    pretrain_verb = verb(
        "pretrain", pretrain, "pretrain a backbone contrastively on a folder of images", PretrainOptions
    )
    pretrain_verb.add_argument(
        "--output", type=PATH, required=True, help="folder for backbone.safetensors, card.json and report.html"
    )
    pretrain_verb.add_argument("--resume", action="store_true", help="continue the run in the folder")
    pretrain_verb.add_argument("--seed", type=Reads(int), default=0)
    pretrain_verb.add_argument("--device", type=str, default="auto")

    predict_verb = verb("predict", predict, "draw what a trained run detects on an image or a folder of images")
    predict_verb.add_argument("images", type=PATH, help="an image or a folder")
    predict_verb.add_argument("--run", type=PATH, required=True, help="folder of a run")
    predict_verb.add_argument(
        "--task", type=Reads(NonNegativeInt), default=0, help="task whose detector is used; 0: the newest"
    )
    predict_verb.add_argument(
        "--score", type=Reads(Share), default=0.3, help="draw detections with at least this score"
    )
    predict_verb.add_argument(
        "--orientation",
        type=Reads(Literal["upright", "stored"]),
        default="upright",
        help="photographs as viewers show them, turned by their EXIF tag, or as they are stored",
    )
    predict_verb.add_argument("--output", type=PATH, required=True, help="folder for drawings and predictions.json")
    predict_verb.add_argument(
        "--device",
        type=str,
        default=None,
        help="cpu, cuda, cuda:1, … or auto; default: the run's model.device if it is on this machine, else auto",
    )

    convert_verb = verb(
        "convert", convert, "make a run from a published checkpoint of ORE, or from a run of the other engine"
    )
    convert_verb.add_argument(
        "weights", type=PATH, help="model_final.pth, a .pkl of detectron2, or the folder of a run"
    )
    convert_verb.add_argument(
        "--engine",
        choices=["torchvision", "detectron2"],
        default=None,
        help="engine of the new run, if a run is converted",
    )
    convert_verb.add_argument(
        "--schedule",
        type=PATH,
        default=None,
        help="schedule of the classes of the head, as for evaluate; default: that of --config",
    )
    convert_verb.add_argument(
        "--task", type=Reads(PositiveInt), default=None, help="last task that a checkpoint was trained on"
    )
    convert_verb.add_argument(
        "--energy", type=PATH, default=None, help="energy_dist_<classes>.pkl; without it the classifier decides alone"
    )
    convert_verb.add_argument("--config", type=PATH, default=None, help="a run's .yaml that names the data")
    convert_verb.add_argument("--output", type=PATH, required=True, help="folder of the new run")

    report_verb = verb("report", report, "rewrite report.html of a run")
    report_verb.add_argument("run", type=PATH, help="folder of a run, or of a pretraining")

    ablate_verb = verb(
        "ablate",
        ablate,
        "compare variants of a schedule over several seeds: one part off at a time, or your own",
        RunConfig,
    )
    ablate_verb.add_argument("--seeds", type=Reads(Annotated[list[int], Items(1)]), default=[0, 1, 2])
    ablate_verb.add_argument(
        "--variants",
        type=Reads(list[str]),
        default=[],
        help="names of variants, built-in or of the next three options; default: all of these, else all built-in ones",
    )
    ablate_verb.add_argument(
        "--define",
        type=Reads(list[str]),
        default=[],
        help=".yaml files that define variants by name: configs/ledger.yaml",
    )
    ablate_verb.add_argument(
        "--switch",
        type=PATH,
        default=None,
        help="a .yaml whose options are switched one by one: configs/ore/reference.yaml",
    )
    ablate_verb.add_argument(
        "--backbones",
        type=dict[str, str],
        default={},
        help="compare backbones, and random weights: --backbones.simclr runs/simclr --backbones.moco moco.pth",
    )
    ablate_verb.add_argument("--jobs", type=Reads(PositiveInt), default=1, help="number of parallel runs")
    run_arguments(ablate_verb, default_output=None)


def _path(option: str, text: str) -> Path:
    """Return the path that is the value of an option."""
    try:
        return Path(expanded(text))
    except ConfigError as error:
        raise ConfigError(f"{option} {error.problem}", remedy=error.remedy) from None


def _profile_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        nargs="?",
        type=Reads(NonNegativeInt),
        const=PROFILED_STEPS,
        default=0,
        metavar="STEPS",
        help=f"time the parts of N steps of each phase (without N: {PROFILED_STEPS}): profile.json, report",
    )


def demo(arguments: Namespace, config: RunConfig) -> None:
    """Run the synthetic world with the default configuration."""
    run(arguments, config)


def run(arguments: Namespace, config: RunConfig) -> None:
    """Run a schedule from its configuration, in one process or in those of torchrun."""
    from openworld.report.profile import print_profile
    from openworld.report.terminal import print_table
    from openworld.run.schedule import run_schedule
    from openworld.runtime.console import open_console
    from openworld.runtime.distributed import is_first, session
    from openworld.runtime.environment import select_device
    from openworld.runtime.outputs import output_folder

    config = with_engine(config, arguments)
    folder = output_folder(arguments.output)
    with session(select_device(config.model.device)):
        metrics = run_schedule(config, folder, resume=arguments.resume, profile_steps=arguments.profile)
        if is_first():
            console = open_console()
            try:
                page = _report_of_run(folder)
            finally:  # without the page, the table is the more welcome
                print_table(metrics, console)
            if arguments.profile:
                print_profile(folder, console)
            console.print(f"report: {page}", soft_wrap=True)


def pretrain(arguments: Namespace, options: PretrainOptions) -> None:
    """Pretrain a backbone on a folder of images or the synthetic world, in one process or in those of torchrun."""
    from openworld.report.pretrain import build_pretrain_report, probe_rows
    from openworld.run.sources import pretraining_world
    from openworld.runtime.console import narrow_table, open_console
    from openworld.runtime.distributed import first_goes_ahead, is_first, on_first, session
    from openworld.runtime.environment import select_device
    from openworld.runtime.images import find_images
    from openworld.runtime.outputs import output_folder
    from openworld.runtime.runlog import RunLog
    from ssl_backbones.card import refuse_taken
    from ssl_backbones.pretrain import pretrain as run_pretraining

    output = output_folder(arguments.output)
    device, crops = select_device(arguments.device), None
    with session(device):
        if not arguments.resume:
            on_first(lambda: refuse_taken(output))  # before the synthetic world is drawn there
        if options.images is None:
            with first_goes_ahead():
                paths, crops = pretraining_world(output, options)
        else:
            paths = find_images(Path(options.images))
        result = run_pretraining(
            options,
            paths,
            output,
            seed=arguments.seed,
            device=device,
            resume=arguments.resume,
            log=RunLog(output / "metrics.jsonl"),
            labelled_crops=crops,
            neighbours_of=QUERIES,
        )
        if is_first():
            console = open_console()
            rows = [(name, *cells) for name, cells in probe_rows(result.card)]
            try:
                page = build_pretrain_report(output)
            finally:
                console.print(narrow_table(("probe", "trained", "untrained", "chance"), rows, words=["probe"]))
                console.print(f"backbone: {result.path}", soft_wrap=True)
            console.print(f"report: {page}", soft_wrap=True)


def predict(arguments: Namespace) -> None:
    """Write drawings and predictions.json of the user's own images."""
    from openworld.run.predict import predict_folder
    from openworld.runtime.console import open_console
    from openworld.runtime.outputs import output_folder

    output = output_folder(arguments.output)
    count, broken = predict_folder(
        Path(arguments.run),
        arguments.task or None,
        Path(arguments.images),
        output,
        score=arguments.score,
        upright=arguments.orientation == "upright",
        device=arguments.device,
    )
    left_out = f", {len(broken)} left out" if broken else ""
    open_console().print(f"{count} images{left_out}: {output}", soft_wrap=True)


def convert(arguments: Namespace) -> None:
    """Convert a published detector to a run, or a run to the other engine."""
    from openworld.convert.between_engines import convert_engine
    from openworld.convert.published_run import convert_run
    from openworld.runtime.console import open_console
    from openworld.runtime.outputs import output_folder

    energy, config = (Path(path) if path else None for path in (arguments.energy, arguments.config))
    weights, folder = Path(arguments.weights), output_folder(arguments.output)
    if (weights / "config.yaml").is_file():
        if arguments.engine is None:
            raise ConfigError("is a run, and no engine is given", where=str(weights), remedy="name it with --engine")
        convert_engine(weights, folder, arguments.engine)
    elif arguments.task is None:
        raise ConfigError("no task is given", remedy="name with --task the task up to which the checkpoint was trained")
    else:
        convert_run(weights, folder, task=arguments.task, schedule=arguments.schedule, energy=energy, config=config)
    open_console().print(f"converted: {folder}", soft_wrap=True)


def report(arguments: Namespace) -> None:
    """Write report.html of a run, from its folder and its test images; or of a pretraining."""
    from openworld.report.pretrain import build_pretrain_report
    from openworld.runtime.outputs import output_file

    folder = Path(arguments.run)
    if folder.is_dir():
        output_file(str(folder / "report.html"))
    if (folder / "card.json").is_file() and not (folder / "config.yaml").exists():
        print(build_pretrain_report(folder))
        return
    print(_report_of_run(folder))


def _report_of_run(folder: Path) -> Path:
    """Write the report of a run; if its test set no longer exists or is another one, the report says so."""
    from openworld.errors import DataError
    from openworld.records import check_files
    from openworld.report.build import build_report
    from openworld.run.same_data import difference_in_test_set
    from openworld.run.sources import open_test

    changed = None
    try:
        test, gone = check_files(open_test(read_config_of_run(folder), folder), folder), None
        changed = difference_in_test_set(folder, test)
    except DataError as error:
        test, gone = None, f"{error.where}: {error.problem}" if error.where else error.problem
    if changed is not None:
        logging.getLogger("openworld.run").warning("%s: %s", folder, changed)
    return build_report(folder, test, gone=gone, changed=changed)


def ablate(arguments: Namespace, config: RunConfig) -> None:
    """Print tables that compare the variants of a schedule."""
    from openworld.run.ablation import run_ablation
    from openworld.runtime.console import open_console
    from openworld.runtime.environment import select_device
    from openworld.runtime.outputs import output_folder

    folder = output_folder(arguments.output)
    select_device(config.model.device)
    run_ablation(
        with_engine(config, arguments),
        folder,
        seeds=arguments.seeds,
        variants=arguments.variants,
        jobs=arguments.jobs,
        console=open_console(),
        define=arguments.define,
        switch=None if arguments.switch is None else read_options(find_config(arguments.switch)),
        backbones={name: _path(f"--backbones.{name}", file) for name, file in arguments.backbones.items()},
    )
