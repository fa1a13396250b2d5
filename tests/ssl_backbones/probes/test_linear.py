"""The linear probe against scikit-learn, slow loops and cases by hand."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from openworld.errors import ConfigError
from ssl_backbones.probes.linear import (
    PROTOCOLS,
    LinearClassifier,
    Ridge,
    SgdProtocol,
    _rate,
    fit_ridge,
    fit_sgd,
    linear_table,
    topk_accuracy,
)


def clouds(count: int, *, seed: int, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Features of three classes in four dimensions of different scale and offset, and their classes."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [-1, -1, 0, 0]])
    x = centres[labels] + noise * torch.randn(count, 4, generator=source)
    return x * torch.tensor([1.0, 20.0, 0.1, 5.0]) + torch.tensor([0.0, 100.0, 3.0, -7.0]), labels


def random_features(count: int, *, seed: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("penalty", [1e-4, 0.1, 10.0])
def test_ridge_is_sklearns(penalty: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x, labels = clouds(31, seed=0)
    standardised = preprocessing.StandardScaler().fit_transform(x.double().numpy())
    one_hot = torch.eye(3, dtype=torch.float64)[labels].numpy()
    theirs = linear_model.Ridge(alpha=penalty * 31, solver="cholesky").fit(standardised, one_hot).predict(standardised)
    ours = fit_ridge(x, labels, 3, penalties=[penalty]).logits(x)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_leave_one_out_is_the_loop(noise: float) -> None:
    """Fit N times on N - 1 samples that keep the scaling of all N."""
    x, labels = clouds(17, seed=1, noise=noise)
    z = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    penalties, expected = [1e-3, 0.3, 5.0], []
    for penalty in penalties:
        right = 0
        for i in range(17):
            rest = [j for j in range(17) if j != i]
            a, y = z[rest], torch.eye(3, dtype=torch.float64)[labels[rest]]
            centred, middle = a - a.mean(0), y.mean(0)
            gram = centred.T @ centred + penalty * 17 * torch.eye(4, dtype=torch.float64)
            weights = torch.linalg.solve(gram, centred.T @ (y - middle))
            right += int(((z[i] - a.mean(0)) @ weights + middle).argmax()) == int(labels[i])
        expected.append(right / 17)
    found = Ridge(x, labels, 3).leave_one_out(penalties)
    assert found.tolist() == pytest.approx(expected)


def test_ridge_takes_the_best_penalty_and_the_largest_of_equals() -> None:
    x, labels = clouds(24, seed=2, noise=1.0)
    penalties = [1e-6, 1e-2, 1.0, 1e4]
    scores = Ridge(x, labels, 3).leave_one_out(penalties).tolist()
    best = max(p for p, score in zip(penalties, scores, strict=True) if score == max(scores))
    chosen, alone = fit_ridge(x, labels, 3, penalties=penalties), fit_ridge(x, labels, 3, penalties=[best])
    assert torch.equal(chosen.weight_CD, alone.weight_CD)


def test_ridge_with_more_dimensions_than_samples_and_a_constant_one() -> None:
    x, labels = clouds(9, seed=3)
    x = torch.cat([x, torch.full((9, 1), 0.1), random_features(9, seed=4).repeat(1, 5)], dim=1)
    classifier = fit_ridge(x, labels, 4)  # of the fourth class there is no sample
    assert not classifier.weight_CD[:, 4].any() and torch.isfinite(classifier.weight_CD).all()
    assert topk_accuracy(classifier.logits(x), labels, 1) == 1
    assert not classifier.weight_CD[3].any() and classifier.bias_C[3] == 0


@pytest.mark.parametrize("penalties", [[], [0.0], [1.0, -1.0]])
def test_ridge_asks_for_a_penalty(penalties: list[float]) -> None:
    x, labels = clouds(6, seed=0)
    with pytest.raises(ConfigError, match="above 0"):
        fit_ridge(x, labels, 3, penalties=penalties)


def test_topk_by_hand() -> None:
    logits, labels = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), torch.tensor([1, 2])
    assert [topk_accuracy(logits, labels, k) for k in (1, 2, 5)] == [0.5, 1.0, 1.0]


def test_classifier_by_hand() -> None:
    classifier = LinearClassifier(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.0, -1.0]))
    assert classifier.logits(torch.tensor([[3.0, 4.0]], dtype=torch.float16)).tolist() == [[3.0, 7.0]]
    assert classifier.logits(torch.zeros(0, 2)).shape == (0, 2)


def test_published_protocols() -> None:
    """Rates at their batch sizes: 0.1 * 4096 / 256 = 1.6 (SimCLR, SimSiam), 0.1 * 1024 / 256 = 0.4 (MoCo v3)."""
    rates = {name: (p.lr, p.batch_size, p.epochs) for name, p in PROTOCOLS.items()}
    assert rates["moco"] == (30, 256, 100) and rates["pcl"] == (5, 256, 100)
    assert rates["simclr"] == rates["simsiam"] == (1.6, 4096, 90)
    assert rates["moco_v3"] == (0.4, 1024, 90) and rates["swav"] == rates["barlow_twins"] == (0.3, 256, 100)


def test_rates() -> None:
    moco = [_rate(PROTOCOLS["moco"], epoch, 0, 7) for epoch in (0, 59, 60, 79, 80, 99)]
    assert moco == pytest.approx([30, 30, 3, 3, 0.3, 0.3])
    swav = [_rate(PROTOCOLS["swav"], epoch, batch, 4) for epoch, batch in ((0, 0), (50, 0), (99, 3))]
    assert swav == pytest.approx([0.3, 0.15, 0.3 * 0.5 * (1 + math.cos(math.pi * 399 / 400))])


@pytest.mark.parametrize("name", ["moco", "simclr", "simsiam", "barlow_twins"])
def test_sgd_is_the_loop(name: str) -> None:
    """Gradients of the softmax by hand, momentum, decay and LARS step by step."""
    protocol = dataclasses.replace(PROTOCOLS[name], epochs=3, batch_size=5, weight_decay=0.01)
    x, labels = clouds(12, seed=5)
    x = x / 20
    found = fit_sgd(x, labels, 3, protocol=protocol, generator=torch.Generator().manual_seed(0))
    source = torch.Generator().manual_seed(0)
    parameters = [torch.randn(3, 4, generator=source) * protocol.initial_std, torch.zeros(3)]
    velocities: list[Tensor | None] = [None, None]
    for epoch in range(3):
        for batch, rows in enumerate(torch.randperm(12, generator=source).split(5)):
            slack = (x[rows] @ parameters[0].T + parameters[1]).softmax(dim=1) - torch.eye(3)[labels[rows]]
            gradients = [slack.T @ x[rows] / len(rows), slack.mean(dim=0)]
            for i in range(2):
                g = gradients[i] + 0.01 * parameters[i]
                if protocol.optimizer == "lars" and parameters[i].any():
                    g = g * 0.001 * parameters[i].norm() / g.norm()
                v = g if velocities[i] is None else 0.9 * velocities[i] + g
                velocities[i] = v
                move = g + 0.9 * v if protocol.optimizer == "nesterov" else v
                parameters[i] = parameters[i] - _rate(protocol, epoch, batch, 3) * move
    torch.testing.assert_close(found.weight_CD, parameters[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.bias_C, parameters[1], rtol=1e-4, atol=1e-6)


def test_sgd_learns_and_depends_on_its_generator_alone() -> None:
    x, labels = clouds(60, seed=6, noise=0.1)
    x = (x - x.mean(0)) / x.std(0)
    protocol = SgdProtocol(lr=0.5, epochs=20, batch_size=20, milestones=(15,))
    with torch.no_grad():  # as it may be called
        first, again = (
            fit_sgd(x, labels, 3, protocol=protocol, generator=torch.Generator().manual_seed(1)) for _ in range(2)
        )
    assert topk_accuracy(first.logits(x), labels, 1) == 1
    assert torch.equal(first.weight_CD, again.weight_CD) and not first.weight_CD.requires_grad


@pytest.mark.parametrize("fit", ["ridge", "sgd"])
def test_table_has_a_control(fit: str) -> None:
    """Features that know the classes, beside features that do not: the control stays near chance."""
    (train, train_labels), (test, test_labels) = clouds(90, seed=7, noise=0.2), clouds(60, seed=8, noise=0.2)
    blind = random_features(90, seed=9), random_features(60, seed=10)
    train, test = ((x - train.mean(0)) / train.std(0) for x in (train, test))
    protocol = SgdProtocol(lr=0.5, epochs=20, batch_size=30, milestones=None)
    by_sgd = partial(fit_sgd, protocol=protocol, generator=torch.Generator().manual_seed(0))
    how = fit_ridge if fit == "ridge" else by_sgd
    table = linear_table((train, test), blind, (train_labels, test_labels), fit=how)
    assert table["trained"]["top1"] > 0.9 and table["untrained"]["top1"] < 0.6
    assert table["trained"]["top5"] == table["untrained"]["top5"] == 1
    assert table["chance"] == pytest.approx(1 / 3)
    assert (table["train_samples"], table["test_samples"]) == (90, 60)


def test_table_of_a_class_that_training_lacks() -> None:
    x, labels = torch.eye(3), torch.tensor([0, 1, 1])
    table = linear_table((x, x), (x, x), (labels, torch.tensor([0, 1, 2])), fit=partial(fit_ridge, penalties=[1e-3]))
    assert table["trained"]["top1"] == pytest.approx(2 / 3)
