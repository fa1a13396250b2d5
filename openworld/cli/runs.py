"""Verbs that make a run or look at one: demo, run, pretrain, predict, convert, report, ablate."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from openworld.cli.verbs import AddVerb, run_arguments
from openworld.config import RunConfig
from openworld.configfile import build, find_config, read_config, read_options
from ssl_backbones.options import PretrainOptions


def add_verbs(verb: AddVerb) -> None:
    """Add them to the command line."""
    demo_verb = verb(
        "demo", demo, "the whole story on a synthetic world: a few minutes on a CPU, ends with report.html"
    )
    run_arguments(demo_verb, default_output="runs/demo")

    run_verb = verb("run", run, "carry a schedule of tasks to its end: pretrain, train, replay, fit, evaluate, report")
    run_arguments(run_verb, default_output=None)

    pretrain_verb = verb("pretrain", pretrain, "contrastive pretraining of a backbone on a folder of images")
    pretrain_verb.add_argument("--config", action="config", help="a YAML file; see configs/pretrain")
    pretrain_verb.add_argument(
        "--output", type=str, required=True, help="folder for backbone.safetensors and card.json"
    )
    pretrain_verb.add_argument("--resume", action="store_true", help="go on with what the folder holds")
    pretrain_verb.add_argument("--seed", type=int, default=0)
    pretrain_verb.add_argument("--device", type=str, default="auto")
    pretrain_verb.add_class_arguments(PretrainOptions, None)

    predict_verb = verb("predict", predict, "draw what a trained run detects on an image or a folder of images")
    predict_verb.add_argument("images", type=str, help="an image or a folder")
    predict_verb.add_argument("--run", type=str, required=True, help="folder of a run")
    predict_verb.add_argument("--task", type=int, default=0, help="which task's detector; 0: the newest")
    predict_verb.add_argument("--score", type=float, default=0.3, help="draw detections from this score")
    predict_verb.add_argument("--output", type=str, required=True, help="folder for drawings and predictions.json")

    convert_verb = verb("convert", convert, "a run out of a published detectron2 checkpoint of ORE, to predict with")
    convert_verb.add_argument("weights", type=str, help="model_final.pth, or a .pkl of detectron2")
    convert_verb.add_argument(
        "--schedule",
        type=str,
        default=None,
        help="whose classes the head has, as for evaluate; default: that of --config",
    )
    convert_verb.add_argument("--task", type=int, required=True, help="up to which the detector was trained")
    convert_verb.add_argument(
        "--energy", type=str, default=None, help="energy_dist_<classes>.pkl; without it the classifier decides alone"
    )
    convert_verb.add_argument("--config", type=str, default=None, help="a run's .yaml that names the data")
    convert_verb.add_argument("--output", type=str, required=True, help="folder of the new run")

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
    run_arguments(ablate_verb, default_output=None)


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


def convert(arguments: Namespace) -> None:
    """A published detector as a run."""
    from rich.console import Console

    from openworld.converted_run import convert_run

    energy, config = (Path(path) if path else None for path in (arguments.energy, arguments.config))
    folder = Path(arguments.output)
    convert_run(
        Path(arguments.weights), folder, task=arguments.task, schedule=arguments.schedule, energy=energy, config=config
    )
    Console().print(f"converted: {folder}")


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
