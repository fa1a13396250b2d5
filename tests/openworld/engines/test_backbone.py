"""The detector on backbones of each family: its grid, what it refuses, and a handover that is verified."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from openworld.engines.backbone import build_features
from openworld.engines.detectron2.names import arch_keys
from openworld.engines.options import ModelOptions, RoiOptions
from openworld.engines.weights import build_engine, load_backbone
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.runtime.files import sha256_of, write_json
from ssl_backbones.backbones import BackboneOptions, ConvNeXtOptions, ResNetOptions
from ssl_backbones.handover import PREPROCESSES, load_backbone_file

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)
CONVNEXT = ConvNeXtOptions(width=1 / 12, depths=[1, 1, 2, 1], layer_scale=0.5)
EACH = pytest.mark.parametrize(
    "arch",
    [ResNetOptions(width=1 / 16), ResNetOptions(width=1 / 16, stem="cifar3x3"), CONVNEXT],
    ids=["resnet", "cifar3x3", "convnext"],
)


def options(arch: BackboneOptions | None, **changes: object) -> ModelOptions:
    base = ModelOptions(arch=arch, fpn_channels=16, roi=RoiOptions(hidden_dim=24, sampled_regions=16))
    return replace(base, **changes)  # type: ignore[arg-type]


def written(folder: Path, arch: BackboneOptions) -> Path:
    """A backbone as a pretraining leaves it."""
    torch.manual_seed(3)
    path = folder / "backbone.safetensors"
    safetensors.torch.save_file(arch.build().state_dict(), path)
    write_json(
        folder / "card.json",
        {"arch": asdict(arch), "preprocess": PREPROCESSES["imagenet"], "sha256": sha256_of(path)},
    )
    return path


@EACH
def test_the_cells_of_each_level_lie_on_the_grid(arch: BackboneOptions) -> None:
    """Levels of a padded batch have as many cells as the strides say, and RoIAlign and RPN have the same strides."""
    engine = build_engine(SPACE, options(arch), None).eval()
    batch = engine.normalise([torch.rand(3, 50, 70)])  # type: ignore[attr-defined]
    height, width = batch.tensors.shape[2:]
    levels = engine.features(batch.tensors)  # type: ignore[attr-defined]
    strides = engine.features.grid.strides_px  # type: ignore[attr-defined]
    assert [tuple(level.shape[2:]) for level in levels.values()] == [(height // s, width // s) for s in strides]
    assert engine.features.roi_align.strides == engine.rpn.strides_px == strides  # type: ignore[attr-defined]


@EACH
@pytest.mark.parametrize("freeze_stages", [0, 3])
def test_a_backbone_arrives_verified(arch: BackboneOptions, freeze_stages: int, tmp_path: Path) -> None:
    path = written(tmp_path, arch)
    engine = build_engine(SPACE, options(None, freeze_stages=freeze_stages), path)
    assert engine.backbone.options == arch
    differences = load_backbone(engine, load_backbone_file(path))
    assert max(differences.values()) < 1e-4
    tensors, own = safetensors.torch.load_file(path), engine.backbone.state_dict()
    assert all(torch.equal(own[key], value) for key, value in tensors.items())


def test_of_two_networks_in_a_file_the_named_one_arrives(tmp_path: Path) -> None:
    arch, path = ResNetOptions(width=1 / 16), tmp_path / "moco.pth"
    query, key = arch.build().state_dict(), arch.build().state_dict()
    networks = {"encoder_q.": query, "encoder_k.": key}
    torch.save({f"{prefix}{name}": value for prefix, own in networks.items() for name, value in own.items()}, path)
    for network, tensors in ((None, query), ("encoder_k", key)):
        chosen = options(None, weights=str(path), weights_network=network)
        own = build_engine(SPACE, chosen, path).backbone.state_dict()
        assert all(torch.equal(own[name], value) for name, value in tensors.items())
    with pytest.raises(ConfigError, match=r"model\.weights_network|weights_network is given without weights"):
        options(None, weights_network="encoder_k")


def test_c4_wants_a_stage_as_box_head() -> None:
    with pytest.raises(ConfigError, match=r"model\.neck is 'c4'.*model\.arch\.name 'convnext_tiny'(.|\n)*fpn"):
        build_features(CONVNEXT.build(), options(CONVNEXT, neck="c4"))


def test_layer_norms_have_no_statistics_to_freeze(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.norm is 'frozen'.*model\.arch\.name 'convnext_tiny'"):
        build_engine(SPACE, options(None, norm="frozen"), written(tmp_path, CONVNEXT))


def test_detectron2_has_resnets_alone() -> None:
    with pytest.raises(ConfigError, match=r"model\.arch\.name is 'convnext_tiny'(.|\n)*model\.engine: torchvision"):
        arch_keys(CONVNEXT)
