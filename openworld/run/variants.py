"""Variants of a configuration by name: what an ablation compares. Each is a change of the whole configuration.

They come from the configuration itself (:func:`variants_of`), from files that define them (:func:`defined_in`), from a
tree of options that are switched one by one (:func:`switched_one_by_one`), and from backbones (:func:`from_backbones`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openworld.config import PhaseOptions, RunConfig
from openworld.configfile import find_config, layers_of
from openworld.engines.options import ModelOptions
from openworld.errors import ConfigError
from openworld.methods.closed.options import ClosedOptions
from openworld.runtime.dotted import leaves, nested
from openworld.runtime.files import read_yaml
from openworld.runtime.option_trees import Given, construct
from openworld.runtime.options import shown
from openworld.runtime.yaml_text import Plain
from ssl_backbones.backbones import BackboneOptions
from ssl_backbones.handover import load_backbone_file

Change = Callable[[RunConfig], RunConfig]

AT_ONCE = "all classes at once"
"""The variant that learns the classes of all tasks in one."""

_DEFINITION = "write `NAME: options`, `NAME: FILE.yaml`, `NAME: BUILT-IN VARIANT`, or a list of these"


def chosen_variants(
    config: RunConfig,
    names: Sequence[str] = (),
    *,
    define: Sequence[str] = (),
    switch: Mapping[str, Any] | None = None,
    backbones: Mapping[str, Path] | None = None,
) -> dict[str, Change]:
    """Return the variants to compare, in the order in which they are shown.

    Args:
        config: the configuration that they change.
        names: of the variants, out of the built-in and all others. None: all that the next three arguments name, or
            else all built-in ones.
        define: files for :func:`defined_in`; a name that they define stands for no built-in variant.
        switch: options for :func:`switched_one_by_one`.
        backbones: weight files for :func:`from_backbones`.

    Raises:
        ConfigError: a variant does not exist or is defined twice, or see the functions above.
    """
    named = [defined_in(file, config) for file in define]
    named += [switched_one_by_one(config, switch)] if switch is not None else []
    named += [from_backbones(config, backbones)] if backbones else []
    given: dict[str, Change] = {}
    for found in named:
        if twice := sorted(given.keys() & found.keys()):
            raise ConfigError(f"the variant {twice[0]!r} is defined twice", remedy="give one of them another name")
        given |= found
    every = {**variants_of(config), **given}
    for name in names:
        if name not in every:
            raise ConfigError(f"there is no variant {name!r}", remedy=f"choose from: {', '.join(every)}")
    return {name: every[name] for name in names or given or every}


def variants_of(config: RunConfig) -> dict[str, Change]:
    """Return the built-in variants of a configuration; each differs from it in one part.

    They are the full configuration, each part that the method can switch off, the closed detector (which bounds known
    mAP from above), no replay, random initialisation where there is another one, and, for several tasks,
    :func:`at_once`. A published benchmark has image lists of its tasks, and phases in epochs have no number of images
    of their own, so that their classes cannot be learned at once.
    """
    variants: dict[str, Change] = {"full": lambda config: config}
    for name in config.method.variants():
        variants[name] = partial(_with_variant, name=name)
    if not isinstance(config.method, ClosedOptions):
        variants["closed"] = lambda config: replace(config, method=ClosedOptions())
    variants["no replay"] = lambda config: replace(
        config, exemplars=replace(config.exemplars, enabled=False, during_training=0.0)
    )
    if config.pretrain is not None or config.model.weights is not None:
        variants["random initialisation"] = lambda config: replace(
            config, pretrain=None, model=replace(config.model, weights=None, arch=_arch(config))
        )
    in_steps = all(phase.steps is not None for phase in _phases(config))
    if config.last_task > 1 and config.data.benchmark is None and in_steps:
        variants[AT_ONCE] = at_once
    return variants


def _with_variant(config: RunConfig, name: str) -> RunConfig:
    variants = config.method.variants()
    if name not in variants:
        raise ConfigError(
            f"the method {config.method.name!r} has no variant {name!r}",
            remedy=f"choose from: {', '.join(variants)}" if variants else "leave it out",
        )
    return replace(config, method=variants[name])


def _arch(config: RunConfig) -> BackboneOptions | None:
    return config.pretrain.arch if config.pretrain is not None else config.model.arch


def at_once(config: RunConfig) -> RunConfig:
    """Return the closed detector that learns the classes of all tasks in one: the upper bound of every later task.

    It is trained as task 1 is, on as many images as all phases of the schedule together: if their batches are equally
    large, that is the sum of their steps.

    Raises:
        ConfigError: a single task; a published benchmark, whose tasks have image lists of their own; or lengths in
            epochs.
    """
    if config.last_task == 1:
        raise ConfigError(
            "there is a single task, which learns all classes at once already",
            remedy=f"leave this variant out: name the others with --variants, without {AT_ONCE!r}",
        )
    if config.data.benchmark is not None:
        raise ConfigError(
            f"the classes of the benchmark {config.data.benchmark.name!r} cannot be learned at once",
            remedy="leave this variant out: each task of a published benchmark trains on its own list of images",
        )
    classes = [name for names in config.schedule[: config.last_task] for name in names]
    images = 0
    for phase in _phases(config):
        if phase.steps is None:
            raise ConfigError(
                "the classes of all tasks cannot be learned at once in as many steps: lengths are in epochs",
                remedy="give steps in place of epochs",
            )
        images += phase.steps * phase.batch_size
    steps = round(images / config.train.batch_size)
    return replace(
        config,
        method=ClosedOptions(),
        tasks=0,
        data=replace(config.data, tasks=[classes]),
        train=replace(config.train, steps=steps, epochs=None, steps_by_task={}),
    )


def _phases(config: RunConfig) -> list[PhaseOptions]:
    """Every optimisation phase of a schedule, with its number of steps."""
    later = range(2, config.last_task + 1)
    replays = later if config.exemplars.enabled else range(0)
    return [
        config.train.for_task(1),
        *(config.increment.for_task(task) for task in later),
        *(config.replay.for_task(task) for task in replays),
    ]


def learns_at_once(config: RunConfig, of: RunConfig) -> bool:
    """Return whether a variant learns in one task what the configuration ``of`` learns in several."""
    classes = {name for names in of.schedule[: of.last_task] for name in names}
    return of.last_task > 1 and config.last_task == 1 and set(config.schedule[0]) == classes


def defined_in(file: str, config: RunConfig) -> dict[str, Change]:
    """Return the variants that a YAML file defines, such as configs/ledger.yaml.

    Each entry is a name and its change: a tree of options, a configuration file (found as ``--config`` finds it), a
    built-in variant, or a list of these, which are applied in their order.

    Args:
        file: found as ``--config`` finds it.
        config: whose built-in variants may be named.

    Raises:
        ConfigError: a file does not exist or is not YAML, or an entry is none of these.
    """
    path, built_in = find_config(file), {**variants_of(config), AT_ONCE: at_once}
    content = read_yaml(path, remedy=_DEFINITION, as_written=True)
    return {str(name): _defined(str(name), change, path, built_in) for name, change in content.items()}


def _defined(name: str, content: Any, path: Path, built_in: Mapping[str, Change]) -> Change:
    steps: list[Change] = []
    layers: list[Given] = []  # that follow each other are read together, so that rules between two options hold at once
    for part in content if isinstance(content, list) else [{} if content is None else content]:
        if isinstance(part, Mapping):
            layers.append(Given(part, str(path)))
        elif not isinstance(part, str) or isinstance(part, Plain):
            raise ConfigError(f"the variant {name!r} is {shown(part)}", where=str(path), remedy=_DEFINITION)
        elif part in built_in:
            steps += [with_options(*layers), built_in[part]]
            layers = []
        else:
            layers += layers_of([part])
    steps.append(with_options(*layers))

    def change(config: RunConfig) -> RunConfig:
        for step in steps:
            config = step(config)
        return config

    return change


def with_options(*layers: Given) -> Change:
    """Return the change that lays options over a configuration."""
    return lambda base: construct(RunConfig, layers, default=base)


def switched_one_by_one(config: RunConfig, options: Mapping[str, Any]) -> dict[str, Change]:
    """Return one variant per leaf of a tree of options that differs from the configuration, and one with all of them.

    Args:
        config: the full configuration.
        options: as in a YAML file, for instance configs/ore/reference.yaml.

    Raises:
        ConfigError: a key that the configuration does not have, or a value out of its domain.
    """
    switches = {f"{key}={value}": Given(nested(key, value), None) for key, value in leaves(options)}
    changed = {name: layer for name, layer in switches.items() if with_options(layer)(config) != config}
    together = {"all of them": with_options(*changed.values())} if len(changed) > 1 else {}
    return {
        "full": lambda config: config,
        **{name: with_options(layer) for name, layer in changed.items()},
        **together,
    }


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
        def change(base: RunConfig) -> RunConfig:
            model: ModelOptions = replace(base.model, weights=weights, weights_network=None, arch=arch)
            return replace(base, pretrain=None, model=model)

        return change

    starts = {name: start_from(str(path.resolve()), config.model.arch) for name, path in files.items()}
    return {"random": start_from(None, found[first]), **starts}
