"""Linear probe: a linear classifier on frozen features, in closed form or by SGD as the papers train it.

Shapes: N training and M test samples, D dimensions, C classes, P penalties.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from openworld.errors import ConfigError
from openworld.runtime.optim import LARS, warmup_cosine
from ssl_backbones.probes.knn import majority_share

PENALTIES = tuple(10.0**power for power in range(-6, 3))


@dataclass(frozen=True)
class LinearClassifier:
    """``logits = features @ weight_CD.T + bias_C``."""

    weight_CD: Tensor
    bias_C: Tensor

    def logits(self, features_MD: Tensor) -> Tensor:
        """(M, D) -> (M, C), in the precision of the weights."""
        return features_MD.to(self.weight_CD) @ self.weight_CD.T + self.bias_C


def fit_ridge(
    features_ND: Tensor, labels_N: Tensor, classes: int, *, penalties: Sequence[float] = PENALTIES
) -> LinearClassifier:
    """Ridge regression of standardised features on one-hot labels: no learning rate, no seed, no epochs.

    Minimises mean ||y - W x - b||^2 + penalty ||W||^2, b free. Of several penalties the one with the best leave-one-out
    accuracy is taken, the largest among equals; the test set has no part in it.

    Args:
        features_ND: (N, D), any float dtype; N >= 2. Dimensions that never change get the weight 0.
        labels_N: (N,) int64 from 0 to ``classes`` - 1.
        penalties: all above 0.

    Returns:
        Classifier of raw (not standardised) features, float64.

    Raises:
        ConfigError: no penalty, or one that is not above 0.
    """
    problem = _Ridge(features_ND, labels_N, classes)
    ordered = sorted(_checked(penalties), reverse=True)
    best = ordered[0]
    if len(ordered) > 1:
        best = ordered[int(problem.leave_one_out(ordered).argmax())]
    weight_DC = problem.basis_DD @ problem.coefficients(best) / problem.scale_D[:, None]
    return LinearClassifier(weight_DC.T, problem.share_C - problem.mean_D @ weight_DC)


def ridge_leave_one_out(
    features_ND: Tensor, labels_N: Tensor, classes: int, *, penalties: Sequence[float] = PENALTIES
) -> Tensor:
    """(P,) accuracies of :func:`fit_ridge` where each sample is classified by a fit on the others (same scaling).

    From one fit: the residual of the left-out sample is its residual over 1 - its leverage (Hastie et al. 2009, 7.52).
    """
    return _Ridge(features_ND, labels_N, classes).leave_one_out(_checked(penalties))


class _Ridge:
    """The eigenvectors of the features' covariance, in which every penalty has a solution at once."""

    def __init__(self, features_ND: Tensor, labels_N: Tensor, classes: int) -> None:
        x_ND = features_ND.detach().double()
        self.labels_N = labels_N
        self.mean_D, deviation_D = x_ND.mean(dim=0), x_ND.std(dim=0, correction=0)
        varies_D = deviation_D > 1e-12 * x_ND.abs().amax(dim=0)
        self.scale_D = torch.where(varies_D, deviation_D, torch.full_like(deviation_D, torch.inf))
        x_ND = (x_ND - self.mean_D) / self.scale_D
        self.targets_NC = F.one_hot(labels_N, classes).double()
        self.share_C = self.targets_NC.mean(dim=0)
        values_D, basis_DD = torch.linalg.eigh(x_ND.T @ x_ND / len(x_ND))
        self.values_D: Tensor = values_D.clamp(min=0)
        self.basis_DD: Tensor = basis_DD
        self.rotated_ND = x_ND @ self.basis_DD
        self.moments_DC = self.rotated_ND.T @ (self.targets_NC - self.share_C) / len(x_ND)

    def coefficients(self, penalty: float) -> Tensor:
        """(D, C) weights along the eigenvectors."""
        weights_DC: Tensor = self.moments_DC / (self.values_D + penalty)[:, None]
        return weights_DC

    def leave_one_out(self, penalties: Sequence[float]) -> Tensor:
        """(P,) accuracies, float64."""
        found = []
        for penalty in penalties:
            fitted_NC = self.share_C + self.rotated_ND @ self.coefficients(penalty)
            leverage_N = self.rotated_ND.square() @ (1 / (self.values_D + penalty)) / len(self.labels_N)
            leverage_N = leverage_N + 1 / len(self.labels_N)
            without_NC = self.targets_NC - (self.targets_NC - fitted_NC) / (1 - leverage_N)[:, None]
            found.append((without_NC.argmax(dim=1) == self.labels_N).double().mean())
        return torch.stack(found)


def _checked(penalties: Sequence[float]) -> Sequence[float]:
    if not penalties or not all(penalty > 0 for penalty in penalties):
        raise ConfigError(f"penalties are {list(penalties)}", where="linear probe", remedy="give values above 0")
    return penalties


@dataclass(frozen=True, kw_only=True)
class SgdProtocol:
    """How a linear classifier is trained on frozen features. The defaults are MoCo's."""

    lr: float = 30.0
    """Learning rate at ``batch_size``."""
    batch_size: int = 256
    """Samples per step; a smaller set is used whole. ``lr`` stays what it is."""
    epochs: int = 100
    """Passes over the samples."""
    milestones: tuple[int, ...] | None = (60, 80)
    """Epochs before which the rate is divided by ten; None is half a cosine, step by step, to 0."""
    weight_decay: float = 0.0
    """L2 penalty on weights and biases."""
    optimizer: Literal["sgd", "nesterov", "lars"] = "sgd"
    """With momentum 0.9."""
    initial_std: float = 0.01
    """Standard deviation of the initial weights; biases start at 0."""


# Learning rates differ by four orders of magnitude because the scale of the methods' features does.
PROTOCOLS: dict[str, SgdProtocol] = {
    "moco": SgdProtocol(),
    "pcl": SgdProtocol(lr=5.0),
    "simclr": SgdProtocol(
        lr=1.6, batch_size=4096, epochs=90, milestones=None, weight_decay=1e-6, optimizer="nesterov", initial_std=0.0
    ),
    "simsiam": SgdProtocol(lr=1.6, batch_size=4096, epochs=90, milestones=None, optimizer="lars"),
    "moco_v3": SgdProtocol(lr=0.4, batch_size=1024, epochs=90, milestones=None),
    "byol": SgdProtocol(lr=0.2, epochs=80, milestones=None, optimizer="nesterov"),
    "swav": SgdProtocol(lr=0.3, milestones=None, weight_decay=1e-6),
    "barlow_twins": SgdProtocol(lr=0.3, milestones=None, weight_decay=1e-6),
    "dino": SgdProtocol(lr=0.001, milestones=None),
}
"""By method, from the authors' code. BYOL and DINO scale the rate by batch / 256; here it is that of 256."""


def fit_sgd(
    features_ND: Tensor, labels_N: Tensor, classes: int, *, protocol: SgdProtocol, generator: torch.Generator
) -> LinearClassifier:
    """Softmax regression by a published protocol, on features that were computed once.

    The papers crop and flip the training images anew in each epoch; features of one view each are a little less.

    Args:
        features_ND: (N, D), any float dtype; N >= 1. Taken as they are: the protocols' rates go with raw features.
        labels_N: (N,) int64 from 0 to ``classes`` - 1.
        generator: of the initial weights and the order of the samples, on the CPU.

    Returns:
        The classifier after the last epoch, float32 on the features' device.
    """
    x_ND = features_ND.detach().float()
    weight = (torch.randn(classes, x_ND.shape[1], generator=generator) * protocol.initial_std).to(x_ND.device)
    weight, bias = weight.requires_grad_(), torch.zeros(classes, device=x_ND.device, requires_grad=True)
    optimizer = _optimizer([weight, bias], protocol)
    batch_size = min(protocol.batch_size, len(x_ND))
    batches = math.ceil(len(x_ND) / batch_size)
    for epoch in range(protocol.epochs):
        order_N = torch.randperm(len(x_ND), generator=generator).to(x_ND.device)
        for batch, rows in enumerate(order_N.split(batch_size)):
            rate = _rate(protocol, epoch, batch, batches)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = F.cross_entropy(F.linear(x_ND[rows], weight, bias), labels_N[rows])
            loss.backward()
            optimizer.step()
    return LinearClassifier(weight.detach(), bias.detach())


def _optimizer(parameters: list[Tensor], protocol: SgdProtocol) -> Optimizer:
    if protocol.optimizer == "lars":
        return LARS(parameters, lr=protocol.lr, weight_decay=protocol.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=protocol.lr,
        momentum=0.9,
        weight_decay=protocol.weight_decay,
        nesterov=protocol.optimizer == "nesterov",
    )


def _rate(protocol: SgdProtocol, epoch: int, batch: int, batches: int) -> float:
    if protocol.milestones is None:
        return warmup_cosine(epoch * batches + batch, steps=protocol.epochs * batches, warmup=0, lr=protocol.lr)
    return protocol.lr * 0.1 ** sum(epoch >= milestone for milestone in protocol.milestones)


def topk_accuracy(logits_MC: Tensor, labels_M: Tensor, k: int) -> float:
    """Share of M >= 1 samples whose class is among the k largest logits; 1 where there are no more than k classes."""
    best_MK = logits_MC.topk(min(k, logits_MC.shape[1]), dim=1).indices
    return float((best_MK == labels_M[:, None]).any(dim=1).double().mean())


class LinearRow(TypedDict):
    """Fractions of the test samples."""

    top1: float
    top5: float


class LinearTable(TypedDict):
    """A row of the network, one of the same network before training, and the share of the commonest test class."""

    trained: LinearRow
    untrained: LinearRow
    chance: float
    train_samples: int
    test_samples: int


Fit = Callable[[Tensor, Tensor, int], LinearClassifier]
"""(features, labels, number of classes) -> classifier: ``fit_ridge``, or ``fit_sgd`` with its protocol filled in."""


def linear_table(
    trained: tuple[Tensor, Tensor],
    untrained: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    *,
    fit: Fit = fit_ridge,
) -> LinearTable:
    """The probe of a network with the control that says what the architecture and the input give alone.

    Args:
        trained: features (N, D) of the training and (M, D) of the test samples, both N, M >= 1.
        untrained: of the same samples, by the network before training, with batch-norm statistics estimated.
        labels: (N,) and (M,) int64 classes from 0.
    """
    train_labels, test_labels = labels
    classes = 1 + int(torch.cat([train_labels, test_labels]).max())

    def row(train: Tensor, test: Tensor) -> LinearRow:
        logits = fit(train, train_labels, classes).logits(test)
        return {"top1": topk_accuracy(logits, test_labels, 1), "top5": topk_accuracy(logits, test_labels, 5)}

    return {
        "trained": row(*trained),
        "untrained": row(*untrained),
        "chance": majority_share(test_labels),
        "train_samples": len(train_labels),
        "test_samples": len(test_labels),
    }
