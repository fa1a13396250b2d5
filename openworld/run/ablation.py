"""Ablation: variants of one schedule, each with several seeds, in one table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from openworld.config import RunConfig
from openworld.configfile import dump_config, read_config
from openworld.data.synthetic import make_world, pretrain_folder, world_sources
from openworld.errors import ConfigError, OpenWorldError
from openworld.metrics.comparison import compare
from openworld.report.comparison import as_markdown, terminal_tables, time_text
from openworld.report.run_folder import read_log
from openworld.run.first_task import take_over, training_of
from openworld.run.folder import check_data, has_begun, identified_data, same_run
from openworld.run.schedule import run_backbone
from openworld.run.sources import drawn_world, open_sources
from openworld.run.variants import Change, chosen_variants, learns_at_once
from openworld.runtime.console import as_text
from openworld.runtime.files import write_atomic, write_json


@dataclass(frozen=True)
class Plan:
    """One run of an ablation."""

    variant: str
    seed: int
    config: RunConfig
    folder: Path

    @property
    def results(self) -> list[Path]:
        """The metrics.json of each task."""
        return [self.folder / f"task{task}" / "metrics.json" for task in range(1, self.config.last_task + 1)]

    @property
    def has_begun(self) -> bool:
        return (self.folder / "config.yaml").exists() and has_begun(self.folder)

    @property
    def is_finished(self) -> bool:
        return all(path.exists() for path in self.results)


def run_ablation(
    config: RunConfig,
    folder: Path,
    *,
    seeds: Sequence[int],
    variants: Sequence[str],
    jobs: int,
    console: Console,
    define: Sequence[str] = (),
    switch: Mapping[str, Any] | None = None,
    backbones: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Run every variant with every seed, each in its own folder and process, and print means and standard errors.

    The backbone of a seed is pretrained once and shared. So is the training of the first task, among variants that
    differ only in what comes after it, and the whole first task among those that differ only in later ones. Finished
    runs are not repeated: the same command continues an interrupted ablation, and with more seeds or variants runs
    what is new.

    Args:
        config: the full configuration; its seed is replaced.
        folder: folder for the runs, ablation.json and ablation.md.
        seeds: of weights, order and choice; the data stay the same.
        variants, define, switch, backbones: ``names`` and the others of
            :func:`openworld.run.variants.chosen_variants`.
        jobs: number of runs side by side, each with its share of the CPU's threads.

    Returns:
        the content of ablation.json: ``seeds``; ``results``, see :func:`openworld.metrics.comparison.compare`;
        ``time``, see :func:`time_spent`.

    Raises:
        ConfigError: a variant does not exist, or a run in the folder has another configuration.
        DataError: a run in the folder began with other data.
        OpenWorldError: a run failed; the message names its log.
    """
    changes = chosen_variants(config, variants, define=define, switch=switch, backbones=backbones)
    threads = config.threads or _threads_of_runs(folder) or max(1, (os.cpu_count() or 1) // jobs)
    pretrains = any(change(config).pretrain is not None for change in changes.values())
    shared, close_ups = _with_shared_world(replace(config, threads=threads), folder / "world", pretrains=pretrains)
    plans = planned(shared, changes, seeds, folder, close_ups)
    with ThreadPoolExecutor(jobs) as pool:
        if shared.pretrain is not None and any(
            plan.config.model.weights == backbone_of(plan.folder.parent) for plan in plans
        ):
            pretraining = [(replace(shared, seed=seed), folder / f"seed{seed}") for seed in seeds]
            list(pool.map(lambda item: run_backbone(*item), pretraining))
        check_begun(plans)
        trainers = _trainers(plans)
        results: dict[Path, list[dict[str, Any]]] = {}
        for follows in (False, True):
            wave = [plan for plan in plans if (trainers[plan.folder] is not plan) == follows]
            found = pool.map(lambda plan: _run(plan, trainers[plan.folder], console), wave)
            results.update(zip((plan.folder for plan in wave), found, strict=True))
    by_variant = {name: {plan.seed: results[plan.folder] for plan in plans if plan.variant == name} for name in changes}
    at_once = {plan.variant for plan in plans if learns_at_once(plan.config, config)}
    summary = compare(by_variant, config.schedule[: config.last_task], at_once)
    time = time_spent(plans, folder)
    content = {"seeds": list(seeds), "results": summary, "time": time}
    write_json(folder / "ablation.json", content)
    write_atomic(folder / "ablation.md", as_markdown(summary, seeds, time))
    for table in terminal_tables(summary, seeds):
        console.print(table)
    console.print(time_text(time))
    return content


# -- planning ---------------------------------------------------------------------------------------------------------


def planned(
    config: RunConfig, changes: Mapping[str, Change], seeds: Sequence[int], folder: Path, close_ups: str | None = None
) -> list[Plan]:
    """Return the runs of an ablation, seed by seed.

    A variant that pretrains as the configuration does starts from the backbone of its seed. One that pretrains
    otherwise does so itself; on ``close_ups``, the synthetic world's images for it, unless it names others.

    Raises:
        ConfigError: two variants would share a folder, or a variant sets the seed.
    """
    folders: dict[str, str] = {}
    for name in changes:
        place = re.sub(r"[\s/\\]", "-", name)
        if not place.strip(".-") or place.startswith(".") or place == "backbone":
            raise ConfigError(f"{name!r} is not a name of a variant", remedy="choose a name that a folder can have")
        if place in folders:
            raise ConfigError(
                f"the variants {folders[place]!r} and {name!r} share the folder {place}",
                remedy="give one of them another name",
            )
        folders[place] = name
    plans = []
    for seed in seeds:
        for place, name in folders.items():
            plan = changes[name](replace(config, seed=seed))
            if plan.seed != seed:
                raise ConfigError(f"the variant {name!r} sets the seed", remedy="leave it out; --seeds has the seeds")
            where = folder / f"seed{seed}"
            if plan.pretrain is not None and plan.pretrain.images is None and close_ups is not None:
                plan = replace(plan, pretrain=replace(plan.pretrain, images=close_ups))
            if plan.pretrain is not None and plan.pretrain == config.pretrain:
                plan = replace(plan, pretrain=None, model=replace(plan.model, weights=backbone_of(where)))
            plans.append(Plan(name, seed, replace(plan, name=f"{name}, seed {seed}"), where / place))
    return plans


def backbone_of(seed_folder: Path) -> str:
    """Return the file of the backbone that the runs of a seed share."""
    return str(seed_folder / "backbone" / "backbone.safetensors")


def _threads_of_runs(folder: Path) -> int:
    """Return the number of threads of the runs that have begun in the folder; 0 if there are none.

    With another number of jobs the share of each run would be another one, and it would be another run.
    """
    found = next((path for path in sorted(folder.glob("seed*/*/config.yaml")) if has_begun(path.parent)), None)
    return 0 if found is None else read_config(found).threads


def _with_shared_world(config: RunConfig, folder: Path, *, pretrains: bool) -> tuple[RunConfig, str | None]:
    """Draw the synthetic world once, for every run to read like any other data.

    Args:
        config: of the ablation.
        folder: of the world.
        pretrains: some variant pretrains, and needs the world's images for it.

    Returns:
        the configuration that reads the world, and the folder of the images for pretraining; None without a world.
    """
    if config.data.synthetic is None:
        return config, None
    make_world(folder, drawn_world(config.data.synthetic, pretrains=pretrains))
    train, val, test = world_sources(folder)
    data = replace(config.data, synthetic=None, train=train, val=val, test=test)
    close_ups = str(pretrain_folder(folder, config.data.synthetic))
    if config.pretrain is None:
        return replace(config, data=data), close_ups
    images = config.pretrain.images or close_ups
    return replace(config, data=data, pretrain=replace(config.pretrain, images=images)), close_ups


def check_begun(plans: Sequence[Plan]) -> None:
    """Check that every run that is there already, finished or not, is the planned one.

    Raises:
        ConfigError: its configuration is another one; the message names the keys.
        DataError: it began with other data.
    """
    read: dict[tuple[str, int, str | None], dict[str, Any]] = {}
    for plan in plans:
        if plan.has_begun:
            same_run(plan.config, plan.folder / "config.yaml")
            config = plan.config
            key = repr(config.data), config.last_task, config.exemplars.list
            if key not in read:
                read[key] = identified_data(config, open_sources(config, plan.folder))
            check_data(config, plan.folder, read[key])


def _trainers(plans: Sequence[Plan]) -> dict[Path, Plan]:
    """Return, for the folder of each run, the run that trains the first task for it; most train their own.

    Runs that are there already come first.
    """
    texts = {plan.folder: training_of(plan.config) for plan in plans}
    trainers: dict[str, Plan] = {}
    for plan in sorted(plans, key=lambda plan: (not plan.is_finished, not plan.has_begun)):
        trainers.setdefault(texts[plan.folder], plan)
    return {plan.folder: trainers[texts[plan.folder]] for plan in plans}


# -- running ----------------------------------------------------------------------------------------------------------


def _run(plan: Plan, trainer: Plan, console: Console) -> list[dict[str, Any]]:
    """Run one configuration in its own process, unless it is finished; return its metrics by task."""
    folder, there = plan.folder, plan.is_finished
    if not there:
        if trainer is not plan and not folder.exists():
            take_over(trainer.folder, folder, by=trainer.config, to=plan.config)
        folder.mkdir(parents=True, exist_ok=True)
        written = folder.parent / f"{folder.name}.yaml"
        write_atomic(written, dump_config(plan.config))
        command = [sys.executable, "-m", "openworld", "run", "--config", str(written), "--output", str(folder)]
        command += ["--resume"] if (folder / "config.yaml").exists() else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(plan.config.threads)}
        with open(folder.parent / f"{folder.name}.log", "w", encoding="utf-8") as log:
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False).returncode:
                raise OpenWorldError(
                    "the run failed", where=log.name, remedy="read this log, then run the ablation again"
                )
    console.print(as_text(f"{'there already' if there else 'done'}: {plan.config.name}", console))
    return [json.loads(path.read_text()) for path in plan.results]


# -- time -------------------------------------------------------------------------------------------------------------


def time_spent(plans: Sequence[Plan], folder: Path) -> dict[str, Any]:
    """Return how long the runs took, by the phases in their logs.

    A run counts as if it had been alone: with the training that it took over, but without the pretraining that all
    runs of its seed share. What a killed run did after its last finished phase is not in its log, and does not count.

    Returns:
        ``variants``: for each, ``seconds`` of wall-clock time and ``cpu_seconds``, by seed; None where the log does not
        tell. And both for all runs and pretrainings of the seeds together, in which work that several runs share
        counts once.
    """
    variants: dict[str, dict[str, list[float | None]]] = {}
    distinct: dict[str, dict[str, Any]] = {}

    def read(run: Path) -> list[dict[str, Any]]:
        phases = [entry for entry in read_log(run / "metrics.jsonl", []) if entry.get("event") == "phase"]
        # A log that was taken over has the very same lines.
        distinct.update({json.dumps([str(run.parent), phase]): phase for phase in phases})
        return phases

    for plan in plans:
        phases = read(plan.folder)
        of_variant = variants.setdefault(plan.variant, {"seconds": [], "cpu_seconds": []})
        for key, values in of_variant.items():
            values.append(_sum_of(phases, key))
    for seed in {plan.folder.parent for plan in plans}:
        read(seed)
    together = {key: _sum_of([*distinct.values()], key) for key in ("seconds", "cpu_seconds")}
    return {"variants": variants, **together, "seconds": together["seconds"] or 0.0}


def _sum_of(phases: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """Sum a field of the phases; None without phases, or if one does not have it."""
    values: list[float] = [phase[key] for phase in phases if key in phase]
    return sum(values) if values and len(values) == len(phases) else None
