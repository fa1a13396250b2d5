"""Fitting the energy of a detector in detectron2, after its training and before its evaluation."""

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
    """Name of the data set to fit on: ``ORE.HELD_OUT``, or that of the schedule; empty where there is none."""
    own = f"{schedule_name(cfg.ORE.SCHEDULE)}_t{cfg.ORE.TASK}_held_out" if cfg.ORE.SCHEDULE else ""
    name: str = cfg.ORE.HELD_OUT or own
    return name if name in DatasetCatalog.list() else ""


def held_out_batches(cfg: CfgNode, dataset: str) -> Iterator[list[dict[str, Any]]]:
    """The images of a registered data set as at test, with their annotations; several processes share them."""
    mapper = DatasetMapper(cfg, is_train=True, augmentations=build_augmentation(cfg, is_train=False))
    yield from build_detection_test_loader(cfg, dataset, mapper=mapper)


@torch.no_grad()
def fit_energy(model: GeneralizedRCNN, batches: Iterable[list[dict[str, Any]]], folder: str | Path) -> dict[str, Any]:
    """Fit the two Weibull distributions on held-out images.

    Args:
        model: a ``GeneralizedRCNN`` with our heads.
        batches: this process's share of the images, with ``instances``; those of classes that are not known must have
            been left out or be marked as unknown.
        folder: for ``energy.json``.

    Returns:
        the record, see :meth:`openworld.methods.ore.method.Ore.fit_energy`; ``energy.json`` holds it.
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
        write_json(Path(folder) / "energy.json", record)
    return record


class EnergyFit(HookBase):
    """Fits the energy after the last step. It must come before the hook that saves the last checkpoint.

    Args:
        batches: as :func:`held_out_batches` gives them; opened after the last step.
        folder: for ``energy.json``.
    """

    def __init__(self, batches: Iterable[list[dict[str, Any]]], folder: str | Path) -> None:
        self.batches = batches
        self.folder = folder

    def after_step(self) -> None:
        """Fit, after the last step."""
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        record = fit_energy(self.trainer.model, self.batches, self.folder)
        logger.info("energy: %s", record["status"] if not record["reason"] else record["reason"])
