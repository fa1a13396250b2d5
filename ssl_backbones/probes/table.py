"""What the card says of a backbone: kNN, linear, alignment and uniformity, each beside the untrained network.

Shapes: N images, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from openworld.runtime.seeding import generator
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.images import ImagePool
from ssl_backbones.options import PretrainOptions
from ssl_backbones.probes.alignment import alignment_table
from ssl_backbones.probes.features import STATISTICS, ViewOf, features_of, spread_evenly, with_statistics
from ssl_backbones.probes.knn import knn_of_set, majority_share
from ssl_backbones.probes.labelled import LabelledSet
from ssl_backbones.probes.linear import linear_table
from ssl_backbones.views import RECIPES, evaluation_view, sample_view

ONLINE = 2000
"""Most labelled images that the probe looks at while the network is trained."""
PAIRS = 512
"""Most images of which two views are made for alignment and uniformity."""
GALLERY = 2000
"""Most images among which neighbours are looked for."""


class Probes:
    """The probes of one pretraining. Nothing here changes the network, or draws from the global generators."""

    def __init__(
        self,
        untrained: Backbone,
        labelled: LabelledSet | None,
        pool: ImagePool,
        options: PretrainOptions,
        seed: int,
        device: torch.device,
    ) -> None:
        """``untrained``: a copy of the network before its first step, whose batch norms see their own process only."""
        self.options, self.pool, self.seed, self.device = options, pool, seed, device
        self.recipe = replace(RECIPES[options.views][0], patches=None)
        self.labelled = None if labelled is None else labelled.thinned(options.probe_images)
        self._untrained = untrained.to(device)

    @cached_property
    def control(self) -> Backbone:
        """The untrained network, with batch-norm statistics of the labelled images, or else of those it trains on."""
        if self.labelled is None:
            view, positions = self._views(self.pool.__getitem__), list(range(len(self.pool)))
        else:
            view, positions = self._views(self.labelled.image), self.labelled.known
        chosen = [positions[at] for at in spread_evenly(len(positions), STATISTICS)]
        return with_statistics(self._untrained, view, chosen, self.device)

    def online(self, network: Backbone) -> float | None:
        """kNN accuracy on at most :data:`ONLINE` labelled images; None without any."""
        if self.labelled is None:
            return None
        few = self.labelled.thinned(ONLINE)
        return self._knn(few, self._features(network, few))

    def tables(self, network: Backbone) -> dict[str, Any]:
        """``knn``, ``linear`` and ``alignment`` of the card, the network beside the control; None without labels."""
        tables: dict[str, Any] = {"knn": None, "linear": None, "alignment": self._alignment(network)}
        if self.labelled is None:
            return tables
        data = self.labelled
        trained, untrained = self._features(network, data), self._features(self.control, data)
        samples = len(data.known) if data.leave_one_out else len(data.train)
        asked = data.labels[data.known if data.leave_one_out else data.test]
        tables["knn"] = {
            "trained": self._knn(data, trained),
            "untrained": self._knn(data, untrained),
            "chance": majority_share(asked),
            "k": min(self.options.knn_k, samples - 1 if data.leave_one_out else samples),
            "samples": samples,
            "test_samples": len(asked),
            "leave_one_out": data.leave_one_out,
            "classes": len(set(data.labels.tolist())),
            "source": data.source,
        }
        if data.test:
            labels = data.labels[data.train], data.labels[data.test]
            tables["linear"] = dict(linear_table(data.parts(trained), data.parts(untrained), labels))
        return tables

    def neighbours(self, network: Backbone, queries: int, k: int) -> list[dict[str, Any]]:
        """For some images, the ``k`` nearest others by the cosine of the features of the network and of the control.

        Returns:
            One entry per query: ``image`` is its absolute path, ``trained`` and ``untrained`` are lists of ``image``
            and ``similarity``, the nearest first.
        """
        positions = spread_evenly(len(self.pool), GALLERY)
        asked = spread_evenly(len(positions), queries)
        entries: list[dict[str, Any]] = [{"image": self._file(positions[row])} for row in asked]
        view = self._views(self.pool.__getitem__)
        for name, each in (("trained", network), ("untrained", self.control)):
            x_ND = F.normalize(features_of(each, view, positions, self.device), dim=1)
            similarity_QN = x_ND[asked] @ x_ND.T
            similarity_QN[torch.arange(len(asked)), asked] = -torch.inf
            nearest = similarity_QN.topk(min(k, len(positions) - 1), dim=1)
            for entry, values, rows in zip(entries, nearest.values.tolist(), nearest.indices.tolist(), strict=True):
                paths = [self._file(positions[row]) for row in rows]
                entry[name] = [{"image": path, "similarity": value} for path, value in zip(paths, values, strict=True)]
        return entries

    def _file(self, position: int) -> str:
        return str(self.pool.path(position).resolve())

    def _alignment(self, network: Backbone) -> dict[str, Any]:
        chosen = spread_evenly(len(self.pool), PAIRS)

        def random_view(which: int) -> ViewOf:
            return lambda at: sample_view(
                self.pool[at], self.recipe, self.options.view_size, generator(self.seed, "alignment", which, at)
            )

        def pair(network: Backbone) -> tuple[Tensor, Tensor]:
            one, other = (features_of(network, random_view(which), chosen, self.device) for which in range(2))
            return one, other

        return dict(alignment_table(pair(network), pair(self.control)))

    def _features(self, network: Backbone, data: LabelledSet) -> Tensor:
        """(N, D) of ``data.known``."""
        return features_of(network, self._views(data.image), data.known, self.device)

    def _knn(self, data: LabelledSet, features_ND: Tensor) -> float:
        return knn_of_set(features_ND, data, k=self.options.knn_k, temperature=self.options.knn_temperature)

    def _views(self, image: Callable[[int], Tensor]) -> ViewOf:
        """Undistorted views of images (3, H, W) uint8."""
        return lambda at: evaluation_view(image(at), self.options.view_size, self.recipe.preprocess())
