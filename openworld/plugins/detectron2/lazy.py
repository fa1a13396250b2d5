"""Training as described by a LazyConfig, such as configs/detectron2/demo.py.

Its nodes are those that detectron2 uses (``model``, ``dataloader``, ``optimizer``, ``lr_multiplier``, ``train``), and
``openworld``: ``schedule``, ``task``, ``layout`` and ``protocol``, to which the others refer.
"""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model, default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from openworld.engines.detectron2.config import labels_of_schedule
from openworld.engines.detectron2.output_layers import OpenWorldOutputLayers
from openworld.labels import LabelSpace
from openworld.metrics.protocols import protocol_named
from openworld.plugins.detectron2.calibration import Calibration
from openworld.plugins.detectron2.datasets import register_schedule
from openworld.plugins.detectron2.evaluator import OpenWorldEvaluator
from openworld.plugins.detectron2.trainer import CpuAmpTrainer
from openworld.plugins.detectron2.weights import grown_file
from openworld.runtime.environment import select_device

Config = Any
"""A DictConfig of omegaconf."""


def setup(arguments: Namespace) -> Config:
    """Read the configuration from a .py file and ``path.key=value`` pairs; without a GPU the device is the CPU."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(arguments.config_file), arguments.opts)
    cfg.train.device = select_device(cfg.train.device) if torch.cuda.is_available() else "cpu"
    return cfg


def run(arguments: Namespace) -> Any:
    """Train or evaluate in this process."""
    cfg = setup(arguments)
    default_setup(cfg, arguments)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="openworld")
    if not arguments.eval_only and not arguments.resume and comm.is_main_process():
        cfg.train.init_checkpoint = grow_weights(cfg)
    cfg.train.init_checkpoint = comm.all_gather(cfg.train.init_checkpoint)[0]
    model = build_model(cfg)
    if arguments.eval_only:
        checkpointer = DetectionCheckpointer(model, cfg.train.output_dir)
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=arguments.resume)
        return evaluate(cfg, model)
    trainer = build_trainer(cfg, model)
    checkpointer = DetectionCheckpointer(trainer.model, cfg.train.output_dir, trainer=trainer)
    add_hooks(cfg, trainer, checkpointer)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=arguments.resume)
    going_on = arguments.resume and checkpointer.has_checkpoint()
    trainer.train(trainer.iter + 1 if going_on else 0, cfg.train.max_iter)
    return None


def grow_weights(cfg: Config) -> str:
    """Give ``train.init_checkpoint`` the rows of this task: :func:`openworld.plugins.detectron2.grow_weights`."""

    def make(labels: LabelSpace, dim: int) -> OpenWorldOutputLayers:
        earlier = cfg.copy()
        earlier.openworld.task = labels.task
        predictor: OpenWorldOutputLayers = instantiate(earlier.model.roi_heads.box_predictor)
        return predictor

    labels = labels_of_schedule(cfg.openworld.schedule, cfg.openworld.task, cfg.openworld.layout)
    return grown_file(cfg.train.init_checkpoint, cfg.train.output_dir, labels, make)


def build_model(cfg: Config) -> GeneralizedRCNN:
    """Build the detector on its device, and register the data sets of its schedule."""
    model = instantiate(cfg.model).to(cfg.train.device)
    told = model.roi_heads.box_predictor.method.uses_unknown_labels
    register_schedule(cfg.openworld.schedule, layout=cfg.openworld.layout, held_out_with_unknown=told)
    return model


def build_trainer(cfg: Config, model: GeneralizedRCNN) -> SimpleTrainer:
    """Build the trainer: model, data and optimiser; ``train.amp.enabled`` means fp16 on a GPU and bf16 on a CPU."""
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    kind = SimpleTrainer
    if cfg.train.amp.enabled:
        kind = CpuAmpTrainer if cfg.train.device == "cpu" else AMPTrainer
    return kind(create_ddp_model(model, **cfg.train.ddp), instantiate(cfg.dataloader.train), optimizer)


def add_hooks(cfg: Config, trainer: SimpleTrainer, checkpointer: DetectionCheckpointer) -> None:
    """Register the hooks: learning rate, calibration, checkpoints, evaluation and logs, in this order."""
    folder, first = cfg.train.output_dir, comm.is_main_process()
    saving = hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
    writing = hooks.PeriodicWriter(default_writers(folder, cfg.train.max_iter), period=cfg.train.log_period)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            Calibration(held_out_batches(cfg), folder),
            saving if first else None,
            hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, trainer.model)),
            writing if first else None,
        ]
    )


def held_out_batches(cfg: Config) -> Iterator[list[dict[str, Any]]]:
    """Yield the images that the method is calibrated on, ``dataloader.held_out``."""
    yield from instantiate(cfg.dataloader.held_out)


def evaluate(cfg: Config, model: GeneralizedRCNN) -> OrderedDict[str, dict[str, float]] | None:
    """Score ``dataloader.test`` with :class:`OpenWorldEvaluator`."""
    name = cfg.dataloader.test.dataset.names
    predictor = getattr(model, "module", model).roi_heads.box_predictor
    evaluator = OpenWorldEvaluator(
        name,
        Path(cfg.train.output_dir) / "inference" / name,
        [protocol_named(cfg.openworld.protocol)],
        uses_unknown_labels=predictor.method.uses_unknown_labels,
    )
    results: OrderedDict[str, dict[str, float]] | None = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), evaluator
    )
    if comm.is_main_process():
        print_csv_format(results)
    return results
