"""Ablation: the same schedule with one part switched off at a time, over several seeds."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from openworld.config import RunConfig
from openworld.configfile import dump_config
from openworld.data.synthetic import make_world, pretrain_folder, world_sources
from openworld.engines.options import RoiOptions
from openworld.errors import ConfigError, OpenWorldError
from openworld.methods.closed.options import ClosedOptions
from openworld.metrics.table import Metric, headline_metrics, metric_value
from openworld.report.tables import markdown_text
from openworld.report.text import metric_text
from openworld.run.schedule import run_backbone
from openworld.runtime.console import NarrowTable, as_text, narrow_table
from openworld.runtime.dotted import leaves, nested
from openworld.runtime.files import write_atomic, write_json
from openworld.runtime.option_trees import Given, construct
from ssl_backbones.backbones import BackboneOptions
from ssl_backbones.handover import load_backbone_file

Change = Callable[[RunConfig], RunConfig]


def variants_of(config: RunConfig) -> dict[str, Change]:
    """Return the variants of a configuration; each differs from it in one part.

    They are the full configuration, each part that the method can switch off, the closed detector (which bounds known
    mAP from above), no replay, and random initialisation.
    """
    variants: dict[str, Change] = {"full": lambda config: config}
    for name in config.method.variants():
        variants[name] = partial(_with_variant, name=name)
    if not isinstance(config.method, ClosedOptions):
        variants["closed"] = lambda config: replace(config, method=ClosedOptions())
    variants["no replay"] = lambda config: replace(config, exemplars=replace(config.exemplars, enabled=False))
    variants["random initialisation"] = lambda config: replace(
        config, pretrain=None, model=replace(config.model, weights=None, arch=_arch(config))
    )
    return variants


def _with_variant(config: RunConfig, name: str) -> RunConfig:
    return replace(config, method=config.method.variants()[name])


def switched_one_by_one(config: RunConfig, options: Mapping[str, Any]) -> dict[str, Change]:
    """Return one variant per leaf of a tree of options that differs from the configuration, and one with all of them.

    Args:
        config: the full configuration.
        options: as in a YAML file, for instance configs/ore/reference.yaml.

    Raises:
        ConfigError: a key that the configuration does not have, or a value out of its domain.
    """

    def switch(*layers: Given) -> Change:
        return lambda base: construct(RunConfig, layers, default=base)

    switches = {f"{key}={value}": Given(nested(key, value), None) for key, value in leaves(options)}
    changed = {name: layer for name, layer in switches.items() if switch(layer)(config) != config}
    together = {"all of them": switch(*changed.values())} if len(changed) > 1 else {}
    return {"full": lambda config: config, **{name: switch(layer) for name, layer in changed.items()}, **together}


def from_backbones(config: RunConfig, files: Mapping[str, Path]) -> dict[str, Change]:
    """Return one variant per pretrained backbone, and ``random``: the same network with random weights.

    Args:
        config: the schedule that all are trained with; nothing is pretrained.
        files: weights by name, see :func:`ssl_backbones.handover.load_backbone_file`.

    Raises:
        CheckpointError: a file cannot be read.
        ConfigError: a backbone is named `random`, or two backbones are different networks, which is not a fair
            comparison.
    """
    if "random" in files:
        raise ConfigError(
            "a backbone is named 'random'", remedy="choose another name: that one is the untrained network"
        )
    found = {name: load_backbone_file(path, arch=config.model.arch).arch for name, path in files.items()}
    networks = {name: arch.without_initialisation() for name, arch in found.items()}
    first = next(iter(networks))
    for name, network in networks.items():
        if network != networks[first]:
            raise ConfigError(
                f"the backbones {first!r} and {name!r} are different networks: {networks[first]!r} and {network!r}",
                remedy="pretrain them with the same arch options, or compare them in two calls",
            )

    def start_from(weights: str | None, arch: BackboneOptions | None) -> Change:
        return lambda base: replace(
            base, pretrain=None, model=replace(base.model, weights=weights, weights_network=None, arch=arch)
        )

    starts = {name: start_from(str(path.resolve()), config.model.arch) for name, path in files.items()}
    return {"random": start_from(None, found[first]), **starts}


def _arch(config: RunConfig) -> Any:
    return config.pretrain.arch if config.pretrain is not None else config.model.arch


def run_ablation(
    config: RunConfig,
    folder: Path,
    *,
    seeds: Sequence[int],
    variants: Sequence[str],
    jobs: int,
    console: Console,
    switch: Mapping[str, Any] | None = None,
    backbones: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Run every variant with every seed, each in its own folder and process, and print means and spreads.

    The backbone of a seed is pretrained once and shared. So is the training of the first task, among variants that
    differ only in what comes after it. Finished runs are not repeated: the same command continues an interrupted
    ablation.

    Args:
        config: the full configuration; its seed is replaced.
        folder: folder for the runs, ablation.json and ablation.md.
        seeds: of weights, order and choice; the data stay the same.
        variants: names from :func:`variants_of`; none means all.
        switch: a tree of options; the variants are then those of :func:`switched_one_by_one`.
        backbones: weight files by name; the variants are then those of :func:`from_backbones`.
        jobs: number of runs side by side, each with its share of the CPU's threads.

    Raises:
        ConfigError: a variant does not exist, or switch and backbones are given together.
        OpenWorldError: a run failed; the message names its log.
    """
    if switch is not None and backbones:
        raise ConfigError("--switch and --backbones are both given", remedy="ablate one after the other")
    changes = variants_of(config) if switch is None else switched_one_by_one(config, switch)
    if backbones:
        config = replace(config, pretrain=None)
        changes = from_backbones(config, backbones)
    names = list(variants) or list(changes)
    for name in names:
        if name not in changes:
            raise ConfigError(f"there is no variant {name!r}", remedy=f"choose from: {', '.join(changes)}")
    threads = config.threads or max(1, (os.cpu_count() or 1) // jobs)
    shared = _with_shared_world(replace(config, threads=threads), folder / "world")
    with ThreadPoolExecutor(jobs) as pool:
        pretrained: dict[int, str | None] = dict.fromkeys(seeds)
        if config.pretrain is not None:
            pretraining = {seed: replace(shared, seed=seed) for seed in seeds}
            paths = pool.map(lambda seed: run_backbone(pretraining[seed], folder / f"seed{seed}"), seeds)
            pretrained = {seed: str(path) for seed, path in zip(seeds, paths, strict=True)}
        plans = []
        for seed in seeds:
            for name in names:
                plan = changes[name](replace(shared, seed=seed, name=f"{name}, seed {seed}"))
                if plan.pretrain is not None:
                    plan = replace(plan, pretrain=None, model=replace(plan.model, weights=pretrained[seed]))
                plans.append((name, seed, plan, folder / f"seed{seed}" / name.replace(" ", "-")))
        trainers: dict[str, Path] = {}
        for _, _, plan, where in plans:
            trainers.setdefault(training_of(plan), where)
        done: dict[Path, list[dict[str, Any]]] = {}
        for follows in (False, True):
            chosen = [(plan, where) for *_, plan, where in plans if (trainers[training_of(plan)] != where) == follows]
            found = pool.map(lambda item: _run(item[0], item[1], console, trainers[training_of(item[0])]), chosen)
            done.update(zip((where for _, where in chosen), found, strict=True))
        results = [(name, seed, done[where]) for name, seed, _, where in plans]
    summary = summarise(results, names)
    write_json(folder / "ablation.json", {"seeds": list(seeds), "results": summary})
    write_atomic(folder / "ablation.md", as_markdown(summary))
    for table in tables(summary):
        console.print(table)
    return summary


def _with_shared_world(config: RunConfig, folder: Path) -> RunConfig:
    """Draw the synthetic world once, for every run to read like any other data."""
    if config.data.synthetic is None:
        return config
    make_world(folder, config.data.synthetic)
    train, val, test = world_sources(folder)
    data = replace(config.data, synthetic=None, train=train, val=val, test=test)
    if config.pretrain is None:
        return replace(config, data=data)
    images = config.pretrain.images or str(pretrain_folder(folder, config.data.synthetic))
    return replace(config, data=data, pretrain=replace(config.pretrain, images=images))


def training_of(config: RunConfig) -> str:
    """Return a text that is equal for configurations with the same training of the first task.

    Energy and suppression come after the training, so they do not count.
    """
    plain, roi = RoiOptions(), config.model.roi
    later = ("score_threshold", "nms_iou", "cross_nms_iou", "detections_per_image")
    model = replace(config.model, roi=replace(roi, **{name: getattr(plain, name) for name in later}))
    return dump_config(replace(config, name="", model=model, method=config.method.before_calibration()))


def take_over(trained: Path, folder: Path) -> None:
    """Copy the first task's trained detector of another run, with the log that led to it, into a new folder.

    Args:
        trained: folder of a run whose first task is trained.
        folder: folder of the run that goes on from there; must not exist.
    """
    (folder / "task1" / "checkpoint").mkdir(parents=True)
    for path in (trained / "task1" / "checkpoint").glob("train-*"):
        shutil.copytree(path, folder / "task1" / "checkpoint" / path.name)
    for name in ("metrics.jsonl", "data.json"):
        shutil.copy(trained / name, folder / name)
    exemplars = trained / "task1" / "exemplars.json"
    if exemplars.exists():  # a run without replay need not choose any
        shutil.copy(exemplars, folder / "task1" / "exemplars.json")


def _run(config: RunConfig, folder: Path, console: Console, trained: Path) -> list[dict[str, Any]]:
    """Run one configuration in its own process; return its metrics by task."""
    paths = [folder / f"task{task}" / "metrics.json" for task in range(1, config.last_task + 1)]
    if not all(path.exists() for path in paths):
        if trained != folder and not folder.exists():
            take_over(trained, folder)
        folder.mkdir(parents=True, exist_ok=True)
        plan = folder.parent / f"{folder.name}.yaml"
        write_atomic(plan, dump_config(config))
        command = [sys.executable, "-m", "openworld", "run", "--config", str(plan), "--output", str(folder)]
        command += ["--resume"] if (folder / "config.yaml").exists() else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads)}
        with open(folder.parent / f"{folder.name}.log", "w", encoding="utf-8") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode:
                raise OpenWorldError(
                    "the run failed", where=log.name, remedy="read this log, then run the ablation again"
                )
    console.print(as_text(f"done: {config.name}", console))
    return [json.loads(path.read_text()) for path in paths]


def summarise(results: Sequence[tuple[str, int, list[dict[str, Any]]]], names: Sequence[str]) -> dict[str, Any]:
    """Return ``{variant: {task: {metric: {"mean", "spread", "values"}}}}``; the spread is the sample deviation."""
    summary: dict[str, Any] = {}
    for name in names:
        by_task: dict[str, Any] = {}
        runs = [metrics for variant, _, metrics in results if variant == name]
        for position in range(len(runs[0])):
            by_task[str(position + 1)] = {
                key: _spread([metric_value(run[position], key) for run in runs]) for key in headline_metrics()
            }
        summary[name] = by_task
    return summary


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    present = [float(value) for value in values if value is not None]
    return {
        "mean": statistics.fmean(present) if present else None,
        "spread": statistics.stdev(present) if len(present) > 1 else None,
        "values": list(values),
    }


def tables(summary: dict[str, Any]) -> list[NarrowTable]:
    """Make one terminal table per task."""
    result = []
    for task, metrics in _metrics_by_task(summary).items():
        heads = ("variant", *(metric.label.replace(" ", "\n") for metric in metrics.values()))
        rows = [
            (name, *(_cell(metric, by_task[task][key]).replace(" ± ", "\n± ") for key, metric in metrics.items()))
            for name, by_task in summary.items()
        ]
        title = f"after task {task}: mean ± standard deviation over seeds"
        result.append(narrow_table(heads, rows, title, words=["variant"]))
    return result


def as_markdown(summary: dict[str, Any]) -> str:
    """Format the tables as Markdown."""
    lines = []
    for task, metrics in _metrics_by_task(summary).items():
        heads = " | ".join(metric.label for metric in metrics.values())
        lines += [f"After task {task}", "", f"| variant | {heads} |", "|---" * (len(metrics) + 1) + "|"]
        for name, by_task in summary.items():
            cells = " | ".join(_cell(metric, by_task[task][key]) for key, metric in metrics.items())
            lines.append(f"| {markdown_text(name)} | {cells} |")
        lines.append("")
    return "\n".join(lines)


def _metrics_by_task(summary: dict[str, Any]) -> dict[str, dict[str, Metric]]:
    """Return the headline metrics that at least one variant has at each task.

    Without previous classes the current classes are all known classes, so one column shows both.
    """
    shown = {}
    for task in next(iter(summary.values())):
        present = {
            key: metric
            for key, metric in headline_metrics().items()
            if any(by_task[task][key]["mean"] is not None for by_task in summary.values())
        }
        if "previous_ap50" not in present:
            present.pop("current_ap50", None)
        shown[task] = present
    return shown


def _cell(metric: Metric, value: dict[str, Any]) -> str:
    mean = metric_text(metric, value["mean"])
    return mean if value["spread"] is None else f"{mean} ± {metric_text(metric, value['spread'])}"
