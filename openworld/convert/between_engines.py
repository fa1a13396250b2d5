"""Convert a run to the other engine: the same tensors under the other engine's names.

A conversion to detectron2 also writes each task's detector in detectron2's own form, a checkpoint with its
configuration. detectron2 need not be installed.
"""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from openworld.config import RunConfig
from openworld.configfile import read_config_of_run
from openworld.detector import detector_to_load
from openworld.engines.detectron2.names import PREDICTOR, detectron2_name, model_keys, option_keys
from openworld.errors import CheckpointError, ConfigError
from openworld.labels import LabelSpace
from openworld.run.checkpoints import checkpoints_of, finished_tasks
from openworld.run.folder import claim, locked
from openworld.runtime.checkpoint import save_checkpoint
from openworld.runtime.environment import describe
from openworld.runtime.files import write_atomic, write_json
from ssl_backbones.backbones import ResNetOptions

Engine = Literal["torchvision", "detectron2"]

KEPT = ("calibration.json", "exemplars.json")
"""Files of a task that do not depend on the engine."""


def convert_engine(source: Path, folder: Path, engine: Engine) -> RunConfig:
    """Write a run with the finished tasks of ``source`` in another engine, ready for prediction and scoring.

    Args:
        source: folder of a run.
        folder: of the new run. To detectron2, ``detectron2/task<n>/`` in it holds ``model_final.pth`` and
            ``config.yaml`` for detectron2's own tools.
        engine: the other one.

    Returns:
        the configuration that was written.

    Raises:
        ConfigError: the run has this engine already, or the folder holds a run.
        CheckpointError: the run has no finished task.
    """
    config = read_config_of_run(source)
    if config.model.engine == engine:
        raise ConfigError(f"its engine is {engine} already", where=str(source), remedy="choose the other engine")
    finished = finished_tasks(source, config)
    if not finished:
        raise CheckpointError("has no finished task", where=str(source), remedy="finish the run first")
    converted = replace(config, model=replace(config.model, engine=engine))
    with locked(folder):
        claim(converted, folder, resume=False)
        write_json(folder / "env.json", describe())
        write_json(folder / "converted.json", {"engine": engine, "tasks": list(finished), "from": str(source)})
        if (source / "backbone").is_dir():
            shutil.copytree(source / "backbone", folder / "backbone", dirs_exist_ok=True)
        for task, checkpoint in finished.items():
            space = LabelSpace.of(config.schedule, task, config.model.layout)
            tensors = renamed(checkpoint.tensors, config, space, engine)
            save_checkpoint(
                checkpoints_of(folder, task),
                checkpoint.path.name,
                position=checkpoint.position,
                tensors=tensors,
                state=None,
                about={**checkpoint.about, "log_offset": 0},
            )
            for name in KEPT:
                if (source / f"task{task}" / name).exists():
                    shutil.copy(source / f"task{task}" / name, folder / f"task{task}" / name)
            if engine == "detectron2":
                write_detectron2(folder / "detectron2" / f"task{task}", tensors, converted, space)
    return converted


def renamed(tensors: dict[str, Tensor], config: RunConfig, space: LabelSpace, engine: Engine) -> dict[str, Tensor]:
    """Return a detector's tensors under the names of an engine.

    Raises:
        CheckpointError: the tensors are not those of the configured detector.
    """
    ours = detector_to_load(replace(config, model=replace(config.model, engine="torchvision", device="cpu")), space)
    names = {}
    for name in ours.state_dict():
        part = name.removeprefix("engine.")
        names[name] = name if part == name else f"engine.model.{detectron2_name(part, config.model.neck)}"
    known = f"engine.model.{PREDICTOR}.num_known"
    if engine == "torchvision":
        names = {theirs: name for name, theirs in names.items()}
        tensors = {name: value for name, value in tensors.items() if name != known}
    if tensors.keys() != names.keys():
        differing = sorted(tensors.keys() ^ names.keys())
        raise CheckpointError(
            f"{len(differing)} tensors are missing or unexpected, e.g. {differing[0]}",
            where="conversion",
            remedy="convert the run with the configuration that it was made with",
        )
    result = {names[name]: value for name, value in tensors.items()}
    return {**result, known: torch.tensor(space.num_known)} if engine == "detectron2" else result


def write_detectron2(folder: Path, tensors: dict[str, Tensor], config: RunConfig, space: LabelSpace) -> None:
    """Write ``model_final.pth`` and ``config.yaml`` for ``tools/train_net.py`` and any project with these heads.

    Args:
        tensors: by the names of the engine detectron2.
    """
    state = {}
    for name, value in tensors.items():
        own = name.removeprefix("engine.model.")
        if own not in ("pixel_mean", "pixel_std"):
            state[own if own != name else f"{PREDICTOR}.{name}"] = value
    options, loader = config.model, config.data.loader
    keys = model_keys(options, options.arch or ResNetOptions(), space) | {
        "INPUT.FORMAT": "RGB",
        "INPUT.MIN_SIZE_TEST": loader.min_size,
        "INPUT.MAX_SIZE_TEST": loader.max_size,
        "MODEL.PIXEL_MEAN": (255 * tensors["engine.model.pixel_mean"]).flatten().tolist(),
        "MODEL.PIXEL_STD": (255 * tensors["engine.model.pixel_std"]).flatten().tolist(),
        "MODEL.WEIGHTS": str(folder.resolve() / "model_final.pth"),
        "OPENWORLD.SCHEDULE": "",
    }
    keys["OPENWORLD.METHOD"] = option_keys(config.method)
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    torch.save({"model": state}, stream)
    write_atomic(folder / "model_final.pth", stream.getvalue())
    write_atomic(folder / "config.yaml", yaml.safe_dump({**_tree(keys), "VERSION": 2}, sort_keys=False))


def _tree(keys: dict[str, Any]) -> dict[str, Any]:
    """Convert dotted names to nested mappings."""
    tree: dict[str, Any] = {}
    for name, value in keys.items():
        node = tree
        *path, last = name.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree
