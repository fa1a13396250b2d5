"""Exports to other libraries, read back by an independent renaming; and the check that finds each mistake."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from openworld.cli import main
from openworld.errors import ConfigError, HandoverError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.handover import PREPROCESSES, BackboneFile, export_backbone, load_backbone_file
from ssl_backbones.handover.settings import verify_settings
from ssl_backbones.options import Preprocess

ARCH = ResNetOptions(name="resnet50", width=1 / 16, stem_width=4)


def backbone(preprocess: Preprocess = PREPROCESSES["imagenet"], **arch: Any) -> BackboneFile:
    torch.manual_seed(0)
    options = ResNetOptions(**{"name": "resnet50", "width": 1 / 16, "stem_width": 4, **arch})
    return BackboneFile(options, preprocess, ResNet(options).state_dict(), "test", ())


@pytest.mark.parametrize(
    ("target", "trunk", "res5"),
    [
        ("detectron2", "", ""),
        ("detectron2-c4", "backbone.", "roi_heads."),
        ("detectron2-fpn", "backbone.bottom_up.", "backbone.bottom_up."),
    ],
)
def test_detectron2(target: Any, trunk: str, res5: str, tmp_path: Path) -> None:
    own = backbone(PREPROCESSES["swav"])
    files = export_backbone(own, target, tmp_path / "out" / "moco.pkl")
    content = pickle.loads(files.weights.read_bytes())
    assert content.get("matching_heuristics", False) is (target == "detectron2")
    model, expected = content["model"], own.state_dict
    assert len(model) == 53 * 5 and not any("num_batches" in key for key in model)
    pairs = {
        f"{trunk}stem.conv1.weight": "conv1.weight",
        f"{trunk}stem.conv1.norm.running_var": "bn1.running_var",
        f"{trunk}res2.0.shortcut.weight": "layer1.0.downsample.0.weight",
        f"{trunk}res3.1.conv2.norm.bias": "layer2.1.bn2.bias",
        f"{res5}res5.0.shortcut.norm.weight": "layer4.0.downsample.1.weight",
        f"{res5}res5.2.conv3.weight": "layer4.2.conv3.weight",
    }
    for theirs, ours in pairs.items():
        assert np.array_equal(model[theirs], expected[ours].numpy())
    settings = yaml.safe_load(files.settings.read_text())
    assert settings["MODEL"]["WEIGHTS"] == "moco.pkl" and settings["INPUT"]["FORMAT"] == "RGB"
    assert settings["MODEL"]["PIXEL_MEAN"] == pytest.approx([123.675, 116.28, 103.53])
    assert settings["MODEL"]["PIXEL_STD"] == pytest.approx([58.14, 57.12, 57.375])
    assert settings["MODEL"]["BACKBONE"] == {"FREEZE_AT": 0}
    assert settings["MODEL"]["RESNETS"] == {
        "DEPTH": 50,
        "STRIDE_IN_1X1": False,
        "NORM": "SyncBN",
        "STEM_OUT_CHANNELS": 4,
        "WIDTH_PER_GROUP": 4,
        "RES2_OUT_CHANNELS": 16,
    }
    again = load_backbone_file(files.weights)
    assert again.arch == ARCH and again.preprocess == own.preprocess
    assert all(torch.equal(again.state_dict[key], value) for key, value in expected.items())
    assert max(verify_settings(own, files.settings).values()) < 1e-5


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_torchvision_reads_rgb_whatever_the_pretraining_read(name: str, tmp_path: Path) -> None:
    own = backbone(PREPROCESSES["caffe"])
    files = export_backbone(own, "torchvision", tmp_path / name)
    settings = yaml.safe_load(files.settings.read_text())
    assert settings["image_mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert settings["image_std"] == pytest.approx([1 / 255] * 3) and settings["trainable_layers"] == 5
    again = load_backbone_file(files.weights)
    assert torch.equal(again.state_dict["conv1.weight"], own.state_dict["conv1.weight"].flip(1))
    verify_settings(own, files.settings)


def test_torchvisions_own_network_takes_the_file(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    own = backbone(name="resnet18", width=1.0, stem_width=64)
    files = export_backbone(own, "torchvision", tmp_path / "weights.pth")
    network = resnet18(weights=None)
    found = network.load_state_dict(torch.load(files.weights, weights_only=True), strict=False)
    assert found.unexpected_keys == [] and found.missing_keys == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(
    ("target", "arch", "why"),
    [
        ("torchvision", {"stride_in_1x1": True}, "strides in the 1x1"),
        ("detectron2", {"stem": "cifar3x3"}, "stem is cifar3x3"),
        ("detectron2", {"name": "resnet18"}, "width 1 alone"),
        ("detectron2", {"pool_padding": "end"}, "pads at the end"),
    ],
)
def test_what_a_library_cannot_compute_is_refused(target: Any, arch: dict[str, Any], why: str, tmp_path: Path) -> None:
    suffix = ".pkl" if target == "detectron2" else ".pth"
    with pytest.raises(ConfigError, match=why):
        export_backbone(backbone(**arch), target, tmp_path / f"no{suffix}")
    assert not list(tmp_path.iterdir())
    if "pool_padding" in arch:
        files = export_backbone(backbone(**arch), target, tmp_path / "edges.pkl", inexact=True)
        with pytest.raises(HandoverError, match="The cause: in the second, the pool padding is on both sides"):
            verify_settings(backbone(**arch), files.settings)
    with pytest.raises(ConfigError, match=r"reads no \.bin"):
        export_backbone(backbone(), target, tmp_path / "x.bin")


def changed(settings: Path, changes: dict[str, Any]) -> Path:
    content = yaml.safe_load(settings.read_text())
    for key, value in changes.items():
        owner = content
        *path, last = key.split(".")
        for name in path:
            owner = owner[name]
        owner[last] = value
    other = settings.with_name("changed.yaml")
    other.write_text(yaml.safe_dump(content))
    return other


BGR_STATISTICS = {"MODEL.PIXEL_MEAN": [103.53, 116.28, 123.675], "MODEL.PIXEL_STD": [57.375, 57.12, 58.395]}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"MODEL.RESNETS.STRIDE_IN_1X1": True}, r"C3.*The cause.*stride is in the 1x1"),
        ({"INPUT.FORMAT": "BGR", **BGR_STATISTICS}, "The cause.*colour order.*mean and std with it"),
        ({"INPUT.FORMAT": "BGR"}, "The cause.*colour order.*mean and std not"),
        ({"MODEL.PIXEL_STD": [1.0, 1.0, 1.0]}, "The cause.*std is 1 for values up to 255"),
        ({"MODEL.PIXEL_MEAN": [0.0] * 3, "MODEL.PIXEL_STD": [255.0] * 3}, "The cause.*'simclr'|left out"),
        ({"MODEL.PIXEL_STD": [1.0] * 3, "MODEL.RESNETS.STRIDE_IN_1X1": True}, "stride is in the 1x1.* and .*std is 1"),
        ({"MODEL.RESNETS.DEPTH": 34}, "another architecture"),
        ({"MODEL.RESNETS.WIDTH_PER_GROUP": 8}, r"another architecture.*\(8, 4, 1, 1\), pretrained \(4, 4, 1, 1\)"),
    ],
)
def test_verify_names_the_mistake(changes: dict[str, Any], cause: str, tmp_path: Path) -> None:
    own = backbone()
    files = export_backbone(own, "detectron2", tmp_path / "own.pkl")
    with pytest.raises(HandoverError, match=cause):
        verify_settings(own, changed(files.settings, changes))


def rewrite(path: Path, **changes: Any) -> None:
    content = {**pickle.loads(path.read_bytes()), **changes}
    path.write_bytes(pickle.dumps({key: value for key, value in content.items() if value is not None}))
    path.with_suffix(".json").unlink()


def test_verify_finds_weights_that_are_not_loaded(tmp_path: Path) -> None:
    own = backbone()
    files = export_backbone(own, "detectron2", tmp_path / "own.pkl")
    model = pickle.loads(files.weights.read_bytes())["model"]
    rewrite(files.weights, model={key: value for key, value in model.items() if "res4.5" not in key})
    with pytest.raises(HandoverError, match=r"no values for 15 tensors of the backbone: layer3\.5\.conv1\.weight"):
        verify_settings(own, files.settings)


def test_verify_finds_a_stem_frozen_at_random(tmp_path: Path) -> None:
    own = backbone()
    files = export_backbone(own, "detectron2", tmp_path / "own.pkl")
    model = pickle.loads(files.weights.read_bytes())["model"]
    random = {**model, "stem.conv1.weight": np.ones_like(model["stem.conv1.weight"])}
    rewrite(files.weights, model=random)
    with pytest.raises(HandoverError, match=r"1 tensors .* other values than pretrained: conv1.weight\n"):
        verify_settings(own, files.settings)
    frozen = changed(files.settings, {"MODEL.BACKBONE.FREEZE_AT": 2})
    with pytest.raises(HandoverError, match=r"the stem is frozen at random values .*conv1.weight never changes"):
        verify_settings(own, frozen)


def test_bare_names_without_heuristics_load_nothing(tmp_path: Path) -> None:
    own = backbone()
    files = export_backbone(own, "detectron2", tmp_path / "own.pkl")
    rewrite(files.weights, matching_heuristics=None)
    with pytest.raises(HandoverError, match="no values for 265 tensors"):
        verify_settings(own, files.settings)


def test_detectron2s_defaults_are_a_mistake_of_their_own(tmp_path: Path) -> None:
    """A configuration that names the weights and nothing else: BGR, std 1, stride in the 1x1."""
    own = backbone()
    files = export_backbone(own, "detectron2", tmp_path / "own.pkl")
    (tmp_path / "plain.yaml").write_text(f"_BASE_: base.yaml\nMODEL: {{WEIGHTS: {files.weights.name}}}\n")
    (tmp_path / "base.yaml").write_text("MODEL: {RESNETS: {STEM_OUT_CHANNELS: 4, WIDTH_PER_GROUP: 4}}\n")
    with pytest.raises(HandoverError, match=r"stride is in the 1x1.* and .*'caffe'"):
        verify_settings(own, tmp_path / "plain.yaml")


def test_settings_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for text, match in (
        ("a: 1\n", "neither MODEL nor backbone_name"),
        ("MODEL: {}\n", "names no weights"),
        ("MODEL: {WEIGHTS: a.pkl, RESNETS: {DEPTH: many}}\n", "another kind"),
        ("MODEL: {WEIGHTS: a.pkl, PIXEL_MEAN: [1]}\n", "3 channels"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            verify_settings(backbone(), path)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "swav.pth"
    tensors = {f"module.{key}": value for key, value in backbone().state_dict.items()}
    torch.save({**tensors, "module.prototypes.weight": torch.ones(2, 2)}, source)
    main(["backbone", "inspect", str(source)])
    text = capsys.readouterr().out
    assert "SwAV" in text and "resnet50" in text and "0.228" in text and "module.prototypes.weight" in text
    target = tmp_path / "d2.pkl"
    main(["backbone", "export", str(source), "--to", "detectron2", "--output", str(target)])
    assert "C2 to C5 agree" in capsys.readouterr().out
    main(["backbone", "verify", str(source), "--settings", str(target.with_suffix(".yaml"))])
    assert "the detector sees what the backbone saw" in capsys.readouterr().out
    assert json.loads(target.with_suffix(".json").read_text())["target"] == "detectron2"
    with pytest.raises(SystemExit):
        main(["backbone", "verify", str(source), "--preprocess", "simclr", "--settings", str(tmp_path / "d2.yaml")])
    assert "The cause: in the second" in capsys.readouterr().err
