"""Labelled sets, features of undistorted images, and the tables of the card, against loops and cases by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from openworld.errors import DataError
from openworld.runtime.images import find_images
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.images import ImagePool
from ssl_backbones.options import PretrainOptions
from ssl_backbones.probes.features import features_of, spread_evenly, with_statistics
from ssl_backbones.probes.labelled import LabelledSet, classes_of, from_crops, from_folder, hold_out
from ssl_backbones.probes.table import Probes
from ssl_backbones.views import RECIPES, evaluation_view

NETWORK = ResNetOptions(width=1 / 16, stem="cifar3x3")
OPTIONS = PretrainOptions(arch=NETWORK, view_size=16, knn_k=3)


def write(folder: Path, names: list[str]) -> None:
    random = np.random.default_rng(len(names))
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(path)


def test_every_fifth_of_each_class_is_held_out() -> None:
    labels = torch.tensor([0] * 6 + [1] * 4 + [0] * 4 + [1])
    assert hold_out(labels)[1] == [4, 13, 14]
    assert sorted([*hold_out(labels)[0], *hold_out(labels)[1]]) == list(range(15))


def test_spread_evenly() -> None:
    assert spread_evenly(10, 4) == [0, 2, 5, 7]
    assert spread_evenly(3, 9) == [0, 1, 2] and spread_evenly(0, 5) == []


def test_classes_are_folders_and_parts_of_a_set_are_none(tmp_path: Path) -> None:
    def classes(names: list[str]) -> list[str] | None:
        return classes_of(tmp_path, [tmp_path / name for name in names])

    assert classes(["cat/1", "cat/2", "dog/1", "dog/2"]) == ["cat", "dog"]
    assert classes(["cat/1", "cat/2", "dog/1"]) is None  # a class of one image
    assert classes(["cat/1", "cat/2"]) is None
    assert classes(["train2017/1", "train2017/2", "val2017/1", "val2017/2"]) is None
    assert classes(["train/cat/1", "train/cat/2", "train/dog/1", "train/dog/2"]) is None
    assert classes(["1", "2"]) is None


def test_a_folder_with_parts_and_one_without(tmp_path: Path) -> None:
    write(tmp_path, ["train/cat/1", "train/cat/2", "train/dog/1", "val/cat/3", "val/dog/2"])
    parts = from_folder(tmp_path, side=16, cache_megabytes=10)
    assert (parts.train, parts.test, parts.leave_one_out) == ([0, 1, 2], [3, 4], False)
    assert parts.labels.tolist() == [0, 0, 1, 0, 1]
    few = from_folder(tmp_path / "train", side=16, cache_megabytes=10)
    assert (few.train, few.test, few.leave_one_out) == ([0, 1, 2], [], True)
    with pytest.raises(DataError, match="have no labels"):
        from_folder(tmp_path / "val" / "cat", side=16, cache_megabytes=10)


def test_thinned_keeps_both_parts() -> None:
    labels = torch.zeros(100, dtype=torch.long)
    data = LabelledSet(lambda at: torch.zeros(0), labels, *hold_out(labels), leave_one_out=False, source="")
    few = data.thinned(10)
    assert (len(few.train), len(few.test)) == (8, 2)
    assert set(few.train) <= set(data.train) and set(few.test) <= set(data.test)
    assert len(data.thinned(2).test) == 1 and data.thinned(100) is data
    rows = torch.arange(100.0)[few.known][:, None]
    assert [part.flatten().tolist() for part in few.parts(rows)] == [few.train, few.test]


def test_crops_of_one_object_are_no_set() -> None:
    assert from_crops(([torch.zeros(3, 4, 4, dtype=torch.uint8)], ["one"])) is None
    assert from_crops(([], [])) is None


def test_features_are_the_networks_and_statistics_the_images() -> None:
    """70 images in two pieces: averages of the pieces' statistics; a last piece of one image is left out."""
    torch.manual_seed(0)
    network, images = ResNet(NETWORK), torch.randn(65, 3, 16, 16)
    found = features_of(network, images.__getitem__, list(range(65)))
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(found, network(images), rtol=1e-4, atol=1e-5)
    control = with_statistics(network, images.__getitem__, list(range(65)))
    before = network.conv1(images[:64])
    torch.testing.assert_close(control.bn1.running_mean, before.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(control.bn1.running_var, before.var(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert network.bn1.num_batches_tracked == 0
    assert features_of(network, images.__getitem__, []).shape == (0, network.dim)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    write(folder, [f"{name}/{number}" for name in ("a", "b", "c") for number in range(6)])
    return folder


def test_tables_are_the_loops(folder: Path) -> None:
    torch.manual_seed(0)
    pool = ImagePool(find_images(folder), side=32, cache_megabytes=10)
    data = from_folder(folder, side=32, cache_megabytes=10)
    network, untrained = ResNet(NETWORK), ResNet(NETWORK)
    probes = Probes(untrained, data, pool, OPTIONS, 0, torch.device("cpu"))
    state = torch.get_rng_state()
    tables, nearest = probes.tables(network), probes.neighbours(network, 3, 2)
    assert torch.equal(state, torch.get_rng_state())

    def features() -> Tensor:
        preprocess = RECIPES["moco_v2"][0].preprocess()
        views = torch.stack([evaluation_view(pool[at], 16, preprocess) for at in range(18)])
        with torch.no_grad():
            return F.normalize(network.eval()(views), dim=1)

    x = features()
    held_out = [4, 10, 16]
    others = [at for at in range(18) if at not in held_out]
    right = 0
    for at in held_out:
        votes = [0.0] * 3
        for near in sorted(others, key=lambda other: -float(x[at] @ x[other]))[:3]:
            votes[near // 6] += float((x[at] @ x[near] / 0.1).exp())
        right += votes.index(max(votes)) == at // 6
    assert tables["knn"] == {
        **{"trained": right / 3, "untrained": tables["knn"]["untrained"], "chance": 1 / 3, "k": 3},
        **{"samples": 15, "test_samples": 3, "leave_one_out": False, "classes": 3, "source": str(folder)},
    }
    assert tables["knn"]["trained"] == probes.online(network)
    assert (tables["linear"]["train_samples"], tables["linear"]["test_samples"]) == (15, 3)
    assert tables["alignment"]["samples"] == 18 and tables["alignment"]["trained"]["alignment"] > 0
    for query, entry in zip((0, 6, 12), nearest, strict=True):
        ranked = sorted((at for at in range(18) if at != query), key=lambda at: -float(x[query] @ x[at]))[:2]
        assert entry["image"] == str(pool.path(query))
        assert [found["image"] for found in entry["trained"]] == [str(pool.path(at)) for at in ranked]
        assert entry["trained"][0]["similarity"] == pytest.approx(float(x[query] @ x[ranked[0]]), abs=1e-5)


def test_without_labels_there_is_alignment_alone(folder: Path) -> None:
    pool = ImagePool(find_images(folder), side=32, cache_megabytes=10)
    probes = Probes(ResNet(NETWORK), None, pool, OPTIONS, 0, torch.device("cpu"))
    network = ResNet(NETWORK)
    tables = probes.tables(network)
    assert tables["knn"] is tables["linear"] is probes.online(network) is None
    assert tables["alignment"] == probes.tables(network)["alignment"]
