"""Objectness times unfamiliarity: scores by hand, familiarity against a slow count, and what calibration keeps."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from openworld.labels import LabelSpace
from openworld.methods.max_logit.method import LEVELS, MaxLogit
from openworld.methods.max_logit.options import MaxLogitOptions
from openworld.structures import Regions

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)  # cat 0, dog 1, unknown 2, background 3


def regions_of(logits: torch.Tensor, objectness: torch.Tensor, labels: torch.Tensor | None = None) -> Regions:
    count = len(logits)
    index = torch.zeros(count, dtype=torch.int64)
    labels = index if labels is None else labels
    return Regions(torch.zeros(count, 4), index, objectness, torch.zeros(count), labels, logits=logits)


def calibrated(samples: torch.Tensor, rate: float = 0.1) -> MaxLogit:
    method = MaxLogit(SPACE, MaxLogitOptions(known_rejection_rate=rate))
    assert method.calibrate({"known": samples})["status"] == "fitted"
    return method


def test_before_the_calibration_the_softmax_says_how_familiar_a_region_is() -> None:
    """Logits 2, 0 of the classes and 0 of background; the row of unknown is left out by the engine."""
    logits = torch.tensor([[2.0, 0.0, -torch.inf, 0.0], [0.0, 0.0, -torch.inf, 20.0]])
    method = MaxLogit(SPACE, MaxLogitOptions())
    found = method.score(regions_of(logits, torch.tensor([0.0, math.log(3)])))
    familiar = math.exp(2) / (math.exp(2) + 2)
    torch.testing.assert_close(found.extras["familiarity"], torch.tensor([familiar, 0.0]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.extras["objectness"], torch.tensor([0.5, 0.75]))
    wanted = torch.tensor([0.5 * (1 - familiar), 0.75])
    torch.testing.assert_close(found.scores[:, SPACE.unknown], wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found.scores[0, 0], torch.tensor(familiar))


def test_familiarity_is_the_share_of_the_lowest_known_logits_that_are_not_higher() -> None:
    samples = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 8
    method = calibrated(samples)
    lowest = np.sort(samples.numpy())[:400]  # a tenth of them
    places = torch.linspace(float(lowest[0]) - 1, float(lowest[-1]) + 1, 41)
    logits = torch.stack([places, places - 5, torch.full_like(places, 99), places * 0], dim=1)
    got = method.familiarity(logits)
    wanted = [np.mean(lowest <= place) for place in places.tolist()]
    np.testing.assert_allclose(got.numpy(), wanted, atol=0.02)
    assert float(got[0]) == 0.0 and float(got[-1]) == 1.0 and bool((got.diff() >= 0).all())
    assert method.levels.tolist() == pytest.approx(np.quantile(samples.numpy(), np.linspace(0, 0.1, LEVELS)).tolist())


def test_only_regions_of_known_objects_are_collected() -> None:
    logits = torch.arange(20.0).reshape(5, 4)
    method = MaxLogit(SPACE, MaxLogitOptions())
    found = method.collect(regions_of(logits, torch.zeros(5), torch.tensor([0, 3, 1, 2, 3])), torch.zeros(1, 2))
    assert found["known"].tolist() == [1.0, 9.0] and tuple(found) == method.samples


def test_too_few_samples_fall_back_and_growth_forgets(caplog: pytest.LogCaptureFixture) -> None:
    method = calibrated(torch.linspace(0, 1, 100))
    twin = MaxLogit(SPACE, MaxLogitOptions())
    twin.load_state_dict(method.state_dict())
    assert torch.equal(twin.levels, method.levels)
    with caplog.at_level(logging.WARNING):
        record = method.calibrate({"known": torch.tensor([1.0] * 30 + [float("nan")] * 5)[11:]})
    assert record["status"] == "fallback" and "19 held-out known regions" in record["reason"]
    assert "not calibrated" in caplog.text and bool(method.levels.isnan().all())
    twin.grow(SPACE.at(2))
    assert bool(twin.levels.isnan().all()) and twin.unused_rows == (3,)
