"""Calibrate the method of a detector in detectron2, after its training and before its evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils import comm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from openworld.plugins.detectron2.datasets import schedule_name
from openworld.runtime import distributed
from openworld.runtime.files import write_json

logger = logging.getLogger(__name__)


def held_out_set(cfg: CfgNode) -> str:
    """Name the data set to calibrate on: ``OPENWORLD.HELD_OUT``, or that of the schedule; empty without one."""
    own = f"{schedule_name(cfg.OPENWORLD.SCHEDULE)}_t{cfg.OPENWORLD.TASK}_held_out" if cfg.OPENWORLD.SCHEDULE else ""
    name: str = cfg.OPENWORLD.HELD_OUT or own
    return name if name in DatasetCatalog.list() else ""


def held_out_batches(cfg: CfgNode, dataset: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the images of a registered data set as at test, with their annotations; several processes share them."""
    mapper = DatasetMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, is_train=False))
    yield from build_detection_test_loader(cfg, dataset, mapper=mapper)


@torch.no_grad()
def calibrate(model: GeneralizedRCNN, batches: Iterable[list[dict[str, Any]]], folder: str | Path) -> dict[str, Any]:
    """Calibrate the method on held-out images.

    Args:
        model: a ``GeneralizedRCNN`` with the open-world heads.
        batches: this process's share of the images, with ``instances``; those of classes that are not known must be
            left out or marked as unknown.
        folder: for ``calibration.json``.

    Returns:
        the record that ``calibration.json`` holds.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    method = model.roi_heads.box_predictor.method
    parts: list[dict[str, Tensor]] = [dict.fromkeys(method.samples, torch.zeros(0))]
    if method.calibrates_on != "nothing":
        with inference_context(model):
            for batch in batches:
                images = model.preprocess_image(batch)
                features = model.backbone(images.tensor)
                proposals, _ = model.proposal_generator(images, features, None)
                targets = [image["instances"].to(model.device) for image in batch]
                found = model.roi_heads.calibration_samples(features, proposals, targets)
                parts.append({name: values.cpu() for name, values in found.items()})
    samples = {name: distributed.gather_rows(torch.cat([part[name] for part in parts])) for name in method.samples}
    record: dict[str, Any] = method.calibrate(samples)
    if comm.is_main_process():
        write_json(Path(folder) / "calibration.json", record)
    return record


class Calibration(HookBase):
    """Calibrates after the last step. It must come before the hook that saves the last checkpoint.

    Args:
        batches: as :func:`held_out_batches` yields them; opened after the last step.
        folder: for ``calibration.json``.
    """

    def __init__(self, batches: Iterable[list[dict[str, Any]]], folder: str | Path) -> None:
        self.batches = batches
        self.folder = folder

    def after_step(self) -> None:
        """Calibrate if this was the last step."""
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        record = calibrate(self.trainer.model, self.batches, self.folder)
        logger.info("calibration: %s", record["status"] if not record["reason"] else record["reason"])
