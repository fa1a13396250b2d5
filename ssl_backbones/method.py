"""The interface of a method: views in, loss out, and hooks around each step and before each epoch.

Methods are composed of the same few parts: an encoder E(view) -> h, a projector P(h) -> z, perhaps a predictor, a
teacher and a store (ssl_backbones/state.py). Normalisation and temperature are visible in the line of the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.errors import ConfigError
from ssl_backbones.backbones.base import Backbone, spared_by_decay
from ssl_backbones.dense_conv import densify
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import recipes_with_kinds


@dataclass(frozen=True)
class Batch:
    """Views of N images.

    Attributes:
        views: one (N, 3, S, S) float32 tensor per view, preprocessed; S may differ between views (multi-crop), and a
            stack of F frames has 3 F channels.
        index: (N,) int64 position of each image in the set, for methods that keep something for each image.
        labels: (N,) int64 class of each image, where the method needs labels; otherwise None.
        text: (N, L) int64 tokens of a caption of each image, where the method needs captions; otherwise None.
    """

    views: list[Tensor]
    index: Tensor
    labels: Tensor | None = None
    text: Tensor | None = None

    def to(self, device: torch.device, *, channels_last: bool = False) -> Batch:
        """Copy the batch to a device."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        views = [view.to(device, memory_format=layout, non_blocking=True) for view in self.views]
        labels, text = (
            None if extra is None else extra.to(device, non_blocking=True) for extra in (self.labels, self.text)
        )
        return Batch(views, self.index.to(device, non_blocking=True), labels, text)

    def pin_memory(self) -> Batch:
        """Copy the batch to pinned memory, from which a GPU can read while the CPU continues."""
        labels, text = (None if extra is None else extra.pin_memory() for extra in (self.labels, self.text))
        return Batch([view.pin_memory() for view in self.views], self.index.pin_memory(), labels, text)


class Method(nn.Module, ABC):
    """Base of all methods. All state that outlives one step is a parameter or a persistent buffer."""

    decays_norm_and_bias: ClassVar[bool] = False
    """Whether weight decay (and the layer-wise rates of LARS) applies to one-dimensional parameters too."""
    needs_labels: ClassVar[bool] = False
    """Whether batches must carry labels."""
    view_kinds: ClassVar[tuple[Literal["image", "patches", "frames"], ...]] = ("image", "image")
    """Kinds of the views that a batch holds, the small ones aside, see ViewRecipe.kind."""
    takes_small_views: ClassVar[bool] = False
    """Whether a batch may hold small views after its two large ones (multi-crop)."""
    exports_projector: ClassVar[bool] = False
    """Whether the method has a ``projector`` of linear layers, norms and ReLUs on the features of :meth:`backbone`."""

    projector: nn.Module
    """The head g, of a method that ``exports_projector``."""

    options: MethodOptions
    """The method's own options. A subclass narrows the type to that of its options."""

    def __init__(self, pretraining: PretrainOptions) -> None:
        """Check the views; raise ConfigError if the method does not take those of ``pretraining``."""
        super().__init__()
        fitting = recipes_with_kinds(self.view_kinds)
        if pretraining.views not in fitting:
            raise ConfigError(
                f"views is {pretraining.views}, which is not what {type(self).__name__} learns from",
                remedy=f"set views to one of {', '.join(fitting)}",
            )
        self.options = pretraining.method
        self.encoder: Backbone = pretraining.arch.build()
        densify(self.encoder)

    def allocate(self, images: int) -> None:
        """Allocate the state per image. Called once, before the first step and before a checkpoint is read.

        Args:
            images: number of images in the set, the range of ``Batch.index``.
        """

    @property
    def frames(self) -> int:
        """Number of frames per stack, for views of the kind ``frames``."""
        return 1

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of a batch (scalar with gradient) and numbers for the log. Stores may change."""

    def before_epoch(self, epoch: int, eval_batches: Callable[[], Iterable[Batch]]) -> None:
        """Prepare an epoch, such as by clustering. Called before the first step of each pass over the images.

        Args:
            epoch: from 0.
            eval_batches: makes an iterable over the whole set in order, with one undistorted view per image. With
                several processes each may iterate over a share of it, and results are gathered by ``Batch.index``.
        """

    def before_step(self, step: int, steps: int) -> None:
        """Prepare step ``step`` (from 0) of ``steps``. Called before its loss."""

    def after_backward(self, step: int, steps: int) -> None:
        """Clip gradients, or drop those of frozen parameters. Called between the backward pass and the optimiser."""

    def after_step(self, step: int, steps: int) -> None:
        """Update what follows the parameters. Called after the optimiser has moved them."""

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Group the parameters for the optimiser: those that are decayed and adapted, and those that are not.

        A group may also say ``constant_lr`` and ``lr_scale``, see :func:`ssl_backbones.optim.set_learning_rates`.
        """
        spared = set() if self.decays_norm_and_bias else spared_by_decay(self)
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        free = [parameter for parameter in trained if parameter in spared]
        decayed = [parameter for parameter in trained if parameter not in spared]
        groups = [
            {"params": decayed, "weight_decay": weight_decay, "adapt": True},
            {"params": free, "weight_decay": 0.0, "adapt": False},
        ]
        return [group for group in groups if group["params"]]

    def backbone(self) -> Backbone:
        """Return the network to export: the encoder, unless a method exports its teacher."""
        return self.encoder

    def projection(self) -> nn.Module | None:
        """Return the head to export beside :meth:`backbone`: linear layers, norms and ReLUs, one after the other.

        None if a method has no such head: DINO's has GELUs and normalises in between, CLIP pools a map, and the head of
        a distilled student predicts its teacher's features or classes.
        """
        return self.projector if self.exports_projector else None


def encode_views(encoder: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Encode views of several sizes (multi-crop, SwAV, section 3.2).

    Consecutive views of the same size share a forward pass and its batch-norm statistics (reference code).

    Args:
        views: V tensors (N, 3, S, S); S may differ between them.

    Returns:
        (V * N, D), view by view.
    """
    runs = [list(run) for _, run in groupby(views, key=lambda view: view.shape[-1])]
    return torch.cat([encoder(torch.cat(run)) for run in runs])


@torch.no_grad()
def spread(z_ND: Tensor) -> float:
    """Measure collapse (SimSiam, section 4.1): std of normalised features times sqrt(D); 1 isotropic, 0 collapsed."""
    z = F.normalize(z_ND.float(), dim=1)
    return float(z.std(dim=0, correction=0).mean() * z.shape[1] ** 0.5)
