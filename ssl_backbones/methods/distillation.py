"""Distillation of a backbone into another one (SimCLR v2, Chen et al. 2020, section 2; SEED, Fang et al. 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.errors import ConfigError
from ssl_backbones.handover.classifier import read_classifier
from ssl_backbones.handover.read import load_backbone_file
from ssl_backbones.heads import mlp
from ssl_backbones.losses import distillation
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.distillation_options import DistillationOptions
from ssl_backbones.options import Preprocess, PretrainOptions
from ssl_backbones.state import Queue, Teacher
from ssl_backbones.views import RECIPES


class Distillation(Method):
    """A student of any depth and width learns the outputs of a trained network for the same view.

    ``classes`` is SimCLR v2: teacher and student each have a classifier, and the two softmaxes, at one temperature, are
    compared. ``similarities`` is for a teacher trained without labels (SEED): the softmaxes are over the cosines of the
    view with the teacher's features of earlier images and of the view itself, each at its own temperature; the
    student's head D-D-D_teacher makes its features comparable. The teacher is in evaluation mode and sees each view
    with the preprocessing of its file. It is in the checkpoints, not in the backbone.
    """

    view_kinds = ("image",)

    options: DistillationOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        """Raises ConfigError without a teacher or for views that are not RGB, CheckpointError for an unfit file."""
        super().__init__(pretraining)
        own, dim = self.options, self.encoder.dim
        if own.teacher is None:
            raise ConfigError("method.teacher is not given", remedy="name the file of the teacher")
        file = load_backbone_file(Path(own.teacher), network=own.teacher_network)
        self.given, self.wanted = RECIPES[pretraining.views][0].preprocess(), file.preprocess
        if "LAB" in (self.given["order"], self.wanted["order"]):
            raise ConfigError(
                f"views {pretraining.views} and the teacher are not both RGB", remedy="choose other views"
            )
        network = file.network()
        if own.targets == "classes":
            classifier = read_classifier(Path(own.classifier or own.teacher), network.dim)
            self.head: nn.Module = nn.Linear(dim, classifier.out_features)
            self.teacher = Teacher(network, classifier)
        else:
            self.head = mlp([dim, dim, network.dim], hidden_norm=False)
            self.teacher = Teacher(network)
            self.queue = Queue(own.queue_size, network.dim)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute the cross-entropy of student and teacher; ``similarities`` then enqueue the teacher's features."""
        (view,) = batch.views
        student = self.head(self.encoder(view))
        teacher = self.teacher(converted(view, self.given, self.wanted))  # no gradient
        own, temperature = self.options, self.options.temperature
        if own.targets == "classes":
            return distillation(student, teacher, temperature), {"spread": spread(student)}
        earlier = self.queue.negatives()
        loss = distillation(
            similarities(student, teacher, earlier) / temperature,
            similarities(teacher, teacher, earlier) / own.teacher_temperature,
        )
        self.queue.enqueue(teacher)
        return loss, {"spread": spread(student)}


def similarities(z_ND: Tensor, same_ND: Tensor, others_KD: Tensor) -> Tensor:
    """Cosines (N, 1 + K), float32, of each row with its own of ``same_ND`` and with all of ``others_KD``."""
    with torch.autocast(z_ND.device.type, enabled=False):
        z, same, others = (F.normalize(x.float(), dim=1) for x in (z_ND, same_ND, others_KD))
        return torch.cat([(z * same).sum(dim=1, keepdim=True), z @ others.T], dim=1)


def converted(views: Tensor, given: Preprocess, wanted: Preprocess) -> Tensor:
    """Convert (N, 3, S, S) views from one preprocessing to another; both are of RGB or BGR."""

    def column(values: list[float]) -> Tensor:
        return views.new_tensor(values)[:, None, None]

    image = (views * column(given["std"]) + column(given["mean"])) / given["range"]
    image = image if given["order"] == wanted["order"] else image.flip(1)
    return (image * wanted["range"] - column(wanted["mean"])) / column(wanted["std"])
