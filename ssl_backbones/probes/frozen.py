"""Probes of a pretrained network on a set of labelled images, each beside the same network untrained.

Shapes: N images, T transformed pictures, D dimensions, S pixels per side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from openworld.errors import DataError
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.options import Preprocess
from ssl_backbones.probes.features import STATISTICS, ViewOf, features_of, spread_evenly, with_statistics
from ssl_backbones.probes.knn import knn_of_set, majority_share
from ssl_backbones.probes.labelled import LabelledSet
from ssl_backbones.probes.linear import Fit, LinearTable, fit_ridge, linear_table
from ssl_backbones.probes.transform import TRANSFORMS, TransformTable, transform_table, transformed
from ssl_backbones.views import evaluation_view

_PICTURE: Preprocess = {"order": "RGB", "range": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}


class KnnTable(TypedDict):
    """Accuracies of the kNN probe, and the share of the commonest class."""

    trained: float
    untrained: float
    chance: float
    k: int
    train_samples: int
    test_samples: int


@dataclass(frozen=True)
class FrozenProbes:
    """A network and its control, looking at the same images.

    Attributes:
        trained: the pretrained network.
        untrained: one of the same architecture and random weights, batch-norm statistics of the images.
        data: the images.
        preprocess: for RGB in [0, 1].
        size: S, to which the images are resized.
        seed: of the random weights.
    """

    trained: Backbone
    untrained: Backbone
    data: LabelledSet
    preprocess: Preprocess
    size: int
    seed: int
    device: torch.device | str

    @classmethod
    def of(
        cls,
        network: Backbone,
        data: LabelledSet,
        preprocess: Preprocess,
        *,
        size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> FrozenProbes:
        """Make the control, and put both networks on the device."""
        torch.manual_seed(seed)
        start = network.options.build().to(device)
        chosen = [data.known[at] for at in spread_evenly(len(data.known), STATISTICS)]
        untrained = with_statistics(start, _views(data, size, preprocess), chosen, device)
        return cls(network.to(device), untrained, data, preprocess, size, seed, device)

    def features(self) -> tuple[Tensor, Tensor]:
        """(N, D) of ``data.known``, by the network and by the control."""
        view = _views(self.data, self.size, self.preprocess)
        trained, untrained = (
            features_of(each, view, self.data.known, self.device) for each in (self.trained, self.untrained)
        )
        return trained, untrained

    def knn(self, *, k: int, temperature: float) -> KnnTable:
        """Held-out images asked about the others; without any, each image about all others."""
        data = self.data
        trained, untrained = self.features()
        asked = data.known if data.leave_one_out else data.test
        return {
            "trained": knn_of_set(trained, data, k=k, temperature=temperature),
            "untrained": knn_of_set(untrained, data, k=k, temperature=temperature),
            "chance": majority_share(data.labels[asked]),
            "k": min(k, len(data.known) - 1 if data.leave_one_out else len(data.train)),
            "train_samples": len(data.train),
            "test_samples": len(asked),
        }

    def linear(self, *, fit: Fit = fit_ridge) -> LinearTable:
        """A linear classifier on the features, in closed form or as ``fit`` has it.

        Raises:
            DataError: no image is held out.
        """
        data = held_out(self.data)
        trained, untrained = (data.parts(features) for features in self.features())
        return linear_table(trained, untrained, (data.labels[data.train], data.labels[data.test]), fit=fit)

    def transforms(
        self, projector: nn.Module | None, *, questions: Sequence[str] = tuple(TRANSFORMS)
    ) -> dict[str, TransformTable]:
        """What was done to a picture, guessed from h, and from g(h) where there is a projector; labels play no part.

        The control of g is the same projector with random weights, and batch-norm statistics of the images.

        Raises:
            DataError: no image is held out.
        """
        data = held_out(self.data)
        heads = {"trained": projector, "untrained": None if projector is None else self._fresh(projector)}
        tables = {}
        for question in questions:
            parts: list[dict[str, Tensor]] = []
            labels = []
            for positions in (data.train, data.test):
                pictures, done = self._transformed(question, positions)
                parts.append(self._both(pictures, heads))
                labels.append(done)
            tables[question] = transform_table(parts[0], parts[1], (labels[0], labels[1]), seed=self.seed)
        return tables

    def _transformed(self, question: str, positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        view = _views(self.data, self.size, _PICTURE)
        pictures, done = transformed(torch.stack([view(at) for at in positions]), question, seed=self.seed)
        mean, std = (torch.tensor(self.preprocess[name])[:, None, None] for name in ("mean", "std"))
        return (pictures - mean) / std, done

    def _both(self, pictures: Tensor, heads: dict[str, nn.Module | None]) -> dict[str, Tensor]:
        found = {}
        for name, network in (("trained", self.trained), ("untrained", self.untrained)):
            h = features_of(network, pictures.__getitem__, range(len(pictures)), self.device)
            found[f"{name} h"] = h
            head = heads[name]
            if head is not None:
                with torch.no_grad():
                    found[f"{name} g"] = head(h)
        return found

    def _fresh(self, projector: nn.Module) -> nn.Module:
        torch.manual_seed(self.seed)
        head = copy.deepcopy(projector).train()
        for module in head.modules():
            if isinstance(module, nn.Linear | nn.BatchNorm1d | nn.LayerNorm):
                module.reset_parameters()
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = None
        with torch.no_grad():
            head(self.features()[1])
        return head.eval()


def held_out(data: LabelledSet) -> LabelledSet:
    """The set, if it has images to test on.

    Raises:
        DataError: it has none.
    """
    if not data.test:
        raise DataError(
            "no image is held out", where=data.source, remedy="give train/ and val/, or at least 5 images of each class"
        )
    return data


def _views(data: LabelledSet, size: int, preprocess: Preprocess) -> ViewOf:
    return lambda at: evaluation_view(data.image(at), size, preprocess)
