"""The command line of tools/train_net.py: detectron2's own, with this project's schedules."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from openworld.engines.detectron2.config import add_openworld_config, label_space, method_options
from openworld.plugins.detectron2 import lazy
from openworld.plugins.detectron2.backbones import use_backbone
from openworld.plugins.detectron2.datasets import register_schedule
from openworld.plugins.detectron2.trainer import OpenWorldTrainer
from openworld.plugins.detectron2.weights import grow_weights
from openworld.runtime.environment import select_device


def setup(arguments: Namespace) -> CfgNode:
    """Build the configuration: detectron2's defaults, the node ``OPENWORLD``, the file, the keys of the command line.

    The schedule is registered, ``NUM_CLASSES`` follows from the label space, a backbone sets its own keys, and without
    a GPU the device is the CPU.
    """
    cfg = get_cfg()
    add_openworld_config(cfg)
    cfg.merge_from_file(arguments.config_file)
    cfg.merge_from_list(arguments.opts)
    cfg.MODEL.DEVICE = select_device(cfg.MODEL.DEVICE) if torch.cuda.is_available() else "cpu"
    if cfg.OPENWORLD.SCHEDULE:
        register_schedule(
            cfg.OPENWORLD.SCHEDULE,
            layout=cfg.OPENWORLD.LAYOUT,
            held_out_with_unknown=method_options(cfg).uses_unknown_labels,
        )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = label_space(cfg).background
    use_backbone(cfg)
    return cfg


def run(arguments: Namespace) -> Any:
    """Train or evaluate in this process."""
    cfg = setup(arguments)
    if not arguments.eval_only and not arguments.resume and comm.is_main_process():
        seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)  # new rows are drawn; default_setup seeds again
        cfg.MODEL.WEIGHTS = grow_weights(cfg)
    cfg.MODEL.WEIGHTS = comm.all_gather(cfg.MODEL.WEIGHTS)[0]
    cfg.freeze()
    default_setup(cfg, arguments)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="openworld")
    if arguments.eval_only:
        model = OpenWorldTrainer.build_model(cfg)
        checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=arguments.resume)
        results = OpenWorldTrainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = OpenWorldTrainer(cfg)
    trainer.resume_or_load(resume=arguments.resume)
    return trainer.train()


def main() -> None:
    """Parse the command line, and start one process per GPU. A configuration in Python is a LazyConfig."""
    arguments = default_argument_parser().parse_args()
    launch(
        lazy.run if Path(arguments.config_file).suffix == ".py" else run,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
