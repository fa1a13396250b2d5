"""detectron2's ``DefaultTrainer`` for one task of a schedule: evaluator, calibration and a verified backbone."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, hooks
from torch.nn.parallel import DistributedDataParallel

from openworld.engines.detectron2.config import method_options
from openworld.metrics.protocols import protocol_named
from openworld.plugins.detectron2.backbones import load_backbone
from openworld.plugins.detectron2.calibration import Calibration, held_out_batches, held_out_set
from openworld.plugins.detectron2.datasets import registered
from openworld.plugins.detectron2.evaluator import OpenWorldEvaluator


class CpuAmpTrainer(SimpleTrainer):
    """``AMPTrainer`` for a CPU: bf16 in the forward pass. bf16 has float32's range, so losses need no scaling."""

    def run_step(self) -> None:
        """Make one step."""
        assert self.model.training
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = self.model(data)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()


class OpenWorldTrainer(DefaultTrainer):
    """Trains one task (``OPENWORLD.TASK``), or fine-tunes on its exemplars (``OPENWORLD.STAGE: replay``).

    ``SOLVER.AMP`` works on a CPU too, in bf16. After the last step the method is calibrated, before the last checkpoint
    is written and the test sets are scored.
    """

    def __init__(self, cfg: CfgNode) -> None:
        on_cpu = cfg.SOLVER.AMP.ENABLED and torch.device(cfg.MODEL.DEVICE).type == "cpu"
        if on_cpu:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.AMP.ENABLED = False
        super().__init__(cfg)
        if on_cpu:
            self._trainer = CpuAmpTrainer(self.model, self.data_loader, self.optimizer)

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume or load as detectron2 does; without other weights the training starts from ``OPENWORLD.BACKBONE``."""
        super().resume_or_load(resume=resume)
        if self.cfg.OPENWORLD.BACKBONE and not self.cfg.MODEL.WEIGHTS and self.start_iter == 0:
            model = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
            load_backbone(self.cfg, model)

    def build_hooks(self) -> list[HookBase]:
        """Return detectron2's hooks, with :class:`Calibration` before the hook that saves."""
        result: list[HookBase] = super().build_hooks()
        if name := held_out_set(self.cfg):
            saving = [place for place, hook in enumerate(result) if isinstance(hook, hooks.PeriodicCheckpointer)]
            evaluating = [place for place, hook in enumerate(result) if isinstance(hook, hooks.EvalHook)]
            result.insert((saving or evaluating)[0], Calibration(held_out_batches(self.cfg, name), self.cfg.OUTPUT_DIR))
        return result

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> OpenWorldEvaluator:
        """Build the evaluator of a schedule's test set; a subclass may add others."""
        if registered(dataset_name) is None:
            kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
            raise NotImplementedError(f"no evaluator for {dataset_name} of the type {kind}")
        return OpenWorldEvaluator(
            dataset_name,
            Path(output_folder or cfg.OUTPUT_DIR) / "inference" / dataset_name,
            [protocol_named(cfg.OPENWORLD.PROTOCOL)],
            uses_unknown_labels=method_options(cfg).uses_unknown_labels,
        )
