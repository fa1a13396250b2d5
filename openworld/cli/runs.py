"""Verbs that make a run or look at one: demo, run, pretrain, predict, convert, report, ablate."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from openworld.cli.verbs import AddVerb, run_arguments, with_engine
from openworld.config import RunConfig
from openworld.configfile import find_config, read_config, read_options
from ssl_backbones.options import PretrainOptions

PROFILED_STEPS = 20
QUERIES = 8
"""Images whose nearest neighbours the page of a pretraining shows."""


def add_verbs(verb: AddVerb) -> None:
    """Add them to the command line."""
    demo_verb = verb(
        "demo", demo, "the whole story on a synthetic world: a few minutes on a CPU, ends with report.html", RunConfig
    )
    run_arguments(demo_verb, default_output="runs/demo")
    _profile_argument(demo_verb)

    run_verb = verb(
        "run", run, "carry a schedule of tasks to its end: pretrain, train, replay, fit, evaluate, report", RunConfig
    )
    run_arguments(run_verb, default_output=None)
    _profile_argument(run_verb)

    pretrain_verb = verb(
        "pretrain", pretrain, "contrastive pretraining of a backbone on a folder of images", PretrainOptions
    )
    pretrain_verb.add_argument(
        "--output", type=str, required=True, help="folder for backbone.safetensors, card.json and report.html"
    )
    pretrain_verb.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    pretrain_verb.add_argument("--seed", type=int, default=0)
    pretrain_verb.add_argument("--device", type=str, default="auto")

    predict_verb = verb("predict", predict, "draw what a trained run detects on an image or a folder of images")
    predict_verb.add_argument("images", type=str, help="an image or a folder")
    predict_verb.add_argument("--run", type=str, required=True, help="folder of a run")
    predict_verb.add_argument("--task", type=int, default=0, help="which task's detector; 0: the newest")
    predict_verb.add_argument("--score", type=float, default=0.3, help="draw detections from this score")
    predict_verb.add_argument("--output", type=str, required=True, help="folder for drawings and predictions.json")
    predict_verb.add_argument(
        "--device",
        type=str,
        default=None,
        help="cpu, cuda, cuda:1, … or auto; default: the run's model.device if it is on this machine, else auto",
    )

    convert_verb = verb(
        "convert", convert, "a run out of a published detectron2 checkpoint of ORE, or out of a run of the other engine"
    )
    convert_verb.add_argument("weights", type=str, help="model_final.pth, a .pkl of detectron2, or the folder of a run")
    convert_verb.add_argument(
        "--engine", choices=["torchvision", "detectron2"], default=None, help="of the new run, where a run is converted"
    )
    convert_verb.add_argument(
        "--schedule",
        type=str,
        default=None,
        help="whose classes the head has, as for evaluate; default: that of --config",
    )
    convert_verb.add_argument("--task", type=int, default=None, help="up to which a checkpoint was trained")
    convert_verb.add_argument(
        "--energy", type=str, default=None, help="energy_dist_<classes>.pkl; without it the classifier decides alone"
    )
    convert_verb.add_argument("--config", type=str, default=None, help="a run's .yaml that names the data")
    convert_verb.add_argument("--output", type=str, required=True, help="folder of the new run")

    report_verb = verb("report", report, "write report.html of a run again")
    report_verb.add_argument("run", type=str, help="folder of a run, or of a pretraining")

    ablate_verb = verb(
        "ablate", ablate, "run a schedule with one part switched off at a time, over several seeds", RunConfig
    )
    ablate_verb.add_argument("--seeds", type=list[int], default=[0, 1, 2])
    ablate_verb.add_argument("--variants", type=list[str], default=[], help="names; default: all")
    ablate_verb.add_argument(
        "--switch",
        type=str,
        default=None,
        help="a .yaml whose options are switched one by one: configs/ore/reference.yaml",
    )
    ablate_verb.add_argument(
        "--backbones",
        type=dict[str, str],
        default={},
        help="the same schedule from several and from random: --backbones.simclr runs/simclr --backbones.moco moco.pth",
    )
    ablate_verb.add_argument("--jobs", type=int, default=1, help="runs side by side")
    run_arguments(ablate_verb, default_output=None)


def _profile_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        nargs="?",
        type=int,
        const=PROFILED_STEPS,
        default=0,
        metavar="STEPS",
        help=f"time the parts of so many steps of each phase (without a number {PROFILED_STEPS}): profile.json, report",
    )


def demo(arguments: Namespace, config: RunConfig) -> None:
    """The embedded world with the default configuration."""
    run(arguments, config)


def run(arguments: Namespace, config: RunConfig) -> None:
    """A schedule from its configuration. One process, or torchrun's."""
    from rich.console import Console

    from openworld.report.profile import print_profile
    from openworld.report.terminal import print_table
    from openworld.run.schedule import run_schedule
    from openworld.runtime.distributed import is_first, session
    from openworld.runtime.environment import select_device

    config = with_engine(config, arguments)
    folder = Path(arguments.output)
    with session(select_device(config.model.device)):
        metrics = run_schedule(config, folder, resume=arguments.resume, profile_steps=arguments.profile)
        if is_first():
            console = Console()
            print_table(metrics, console)
            if arguments.profile:
                print_profile(folder, console)
            console.print(f"report: {_report_of_run(folder)}")


def pretrain(arguments: Namespace, options: PretrainOptions) -> None:
    """A backbone from a folder of images, or from the synthetic world, and its page. One process, or torchrun's."""
    from rich.console import Console

    from openworld.report.pretrain import build_pretrain_report, probe_rows
    from openworld.run.sources import pretraining_world
    from openworld.runtime.console import narrow_table
    from openworld.runtime.distributed import first_goes_ahead, is_first, session
    from openworld.runtime.environment import select_device
    from openworld.runtime.images import find_images
    from openworld.runtime.runlog import RunLog
    from ssl_backbones.pretrain import pretrain as run_pretraining

    output = Path(arguments.output)
    device, crops = select_device(arguments.device), None
    with session(device):
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
            console = Console()
            rows = [(name, *cells) for name, cells in probe_rows(result.card)]
            console.print(narrow_table(("probe", "trained", "untrained", "chance"), rows, words=["probe"]))
            console.print(f"backbone: {result.path}")
            console.print(f"report: {build_pretrain_report(output)}")


def predict(arguments: Namespace) -> None:
    """Drawings and predictions.json of a person's own images."""
    from rich.console import Console

    from openworld.run.predict import predict_folder

    count, broken = predict_folder(
        Path(arguments.run),
        arguments.task or None,
        Path(arguments.images),
        Path(arguments.output),
        score=arguments.score,
        device=arguments.device,
    )
    left_out = f", {len(broken)} left out" if broken else ""
    Console().print(f"{count} images{left_out}: {arguments.output}")


def convert(arguments: Namespace) -> None:
    """A published detector as a run, or a run in the other engine."""
    from rich.console import Console

    from openworld.convert.between_engines import convert_engine
    from openworld.convert.published_run import convert_run
    from openworld.errors import ConfigError

    energy, config = (Path(path) if path else None for path in (arguments.energy, arguments.config))
    weights, folder = Path(arguments.weights), Path(arguments.output)
    if (weights / "config.yaml").is_file():
        if arguments.engine is None:
            raise ConfigError("is a run, and no engine is given", where=str(weights), remedy="name it with --engine")
        convert_engine(weights, folder, arguments.engine)
    elif arguments.task is None:
        raise ConfigError("no task is given", remedy="name with --task the task up to which the checkpoint was trained")
    else:
        convert_run(weights, folder, task=arguments.task, schedule=arguments.schedule, energy=energy, config=config)
    Console().print(f"converted: {folder}")


def report(arguments: Namespace) -> None:
    """Write report.html of a run, from its folder and its test images; or of a pretraining."""
    from openworld.report.pretrain import build_pretrain_report

    folder = Path(arguments.run)
    if (folder / "card.json").is_file() and not (folder / "config.yaml").exists():
        print(build_pretrain_report(folder))
        return
    print(_report_of_run(folder))


def _report_of_run(folder: Path) -> Path:
    """The page of a run; where its test set has gone, the page says so instead of showing it."""
    from openworld.errors import DataError
    from openworld.records import check_files
    from openworld.report.build import build_report
    from openworld.run.sources import open_test

    try:
        test, gone = check_files(open_test(read_config(folder / "config.yaml"), folder), folder), None
    except DataError as error:
        test, gone = None, f"{error.where}: {error.problem}" if error.where else error.problem
    return build_report(folder, test, gone=gone)


def ablate(arguments: Namespace, config: RunConfig) -> None:
    """A table of what each part brings."""
    from rich.console import Console

    from openworld.run.ablation import run_ablation

    run_ablation(
        with_engine(config, arguments),
        Path(arguments.output),
        seeds=arguments.seeds,
        variants=arguments.variants,
        jobs=arguments.jobs,
        console=Console(),
        switch=None if arguments.switch is None else read_options(find_config(arguments.switch)),
        backbones={name: Path(file) for name, file in arguments.backbones.items()},
    )
