"""Every published layout, on files made with its prefixes, wrappers, extra keys and types; torchvision's names out."""

from __future__ import annotations

import argparse
import collections
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from openworld.errors import CheckpointError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.handover import PREPROCESSES, BackboneFile, load_backbone_file, pickles

ARCH = ResNetOptions(name="resnet50", width=1 / 16, stem_width=4)
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def own() -> Tensors:
    torch.manual_seed(0)
    network = ResNet(ARCH)
    for name, value in network.state_dict().items():
        if "running_" in name:
            value.uniform_(0.5, 1.5)
    return network.state_dict()


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def decoy(tensors: Tensors) -> Tensors:
    """The other network of a checkpoint: right names, wrong numbers."""
    return {key: torch.full_like(value, 9) for key, value in tensors.items()}


def mlp(*numbers: int) -> Tensors:
    return {f"{number}.weight": torch.ones(2, 2) for number in numbers}


def numbered(tensors: Tensors) -> Tensors:
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {f"{numbers[key.split('.')[0]]}.{key.split('.', 1)[1]}": value for key, value in tensors.items()}


FC = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}
ARGS = argparse.Namespace(arch="resnet50", lr=0.3)

LAYOUTS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "torchvision": (lambda own: {**own, **FC}, "torchvision"),
    "moco_v1": (
        lambda own: {
            "epoch": 200,
            "arch": "resnet50",
            "state_dict": {
                **under("module.encoder_q.", {**own, **FC}),
                **under("module.encoder_k.", {**decoy(own), **FC}),
                "module.queue": torch.ones(2, 3),
                "module.queue_ptr": torch.zeros(1, dtype=torch.long),
            },
            "optimizer": {"state": {}, "param_groups": []},
        },
        "MoCo v1",
    ),
    "moco_v2_or_pcl": (
        lambda own: {
            "state_dict": {
                **under("module.encoder_k.", decoy(own)),
                **under("module.encoder_q.", {**own, **under("fc.", mlp(0, 2))}),
            }
        },
        "PCL",
    ),
    "moco_v3": (
        lambda own: {
            "state_dict": {
                **under("module.momentum_encoder.", decoy(own)),
                **under("module.base_encoder.", {**own, **under("fc.", mlp(0, 3))}),
                **under("module.predictor.", mlp(0, 3)),
            },
            "args": ARGS,
            "scaler": {"scale": 65536.0},
        },
        "MoCo v3",
    ),
    "simsiam": (
        lambda own: {
            "state_dict": {
                **under("module.encoder.", {**own, **under("fc.", mlp(0, 3, 6))}),
                **under("module.predictor.", mlp(0, 3)),
            }
        },
        "SimSiam",
    ),
    "swav": (
        lambda own: under(
            "module.", {**own, **under("projection_head.", mlp(0, 3)), "prototypes.weight": FC["fc.bias"]}
        ),
        "SwAV",
    ),
    "swav_full": (
        lambda own: {
            "epoch": 400,
            "state_dict": under("module.", {**own, "prototypes.weight": FC["fc.weight"]}),
            "amp": {"opt_level": "O1"},
        },
        "SwAV",
    ),
    "deepcluster_v2": (
        lambda own: under("module.", {**own, **under("prototypes.prototypes0.", FC)}),
        "DeepCluster-v2",
    ),
    "barlow_twins_full": (
        lambda own: {
            "epoch": 1000,
            "model": {**under("module.backbone.", own), **under("module.projector.", mlp(0, 3, 6))},
            "optimizer": {},
        },
        "Barlow Twins",
    ),
    "dino_full": (
        lambda own: {
            "student": under("module.backbone.", decoy(own)),
            "teacher": {**under("module.backbone.", own), "module.head.last_layer.weight_g": torch.ones(2)},
            "args": ARGS,
            "dino_loss": {"center": torch.zeros(1, 2)},
        },
        "DINO",
    ),
    "instdisc": (lambda own: {"state_dict": under("module.", {**own, **FC}), "best_prec1": torch.ones(())}, "InstDisc"),
    "pycontrast": (
        lambda own: {
            "opt": ARGS,
            "model": {**under("module.encoder.", own), **under("module.head.", mlp(0, 2))},
            "model_ema": {**under("encoder.", decoy(own)), **under("head.", mlp(0, 2))},
        },
        "PyContrast",
    ),
    "pycontrast_ema": (lambda own: {"model_ema": under("encoder.", own)}, "PyContrast"),
    "supcon_devices": (
        lambda own: {"opt": ARGS, "model": {**under("encoder.module.", own), **under("head.", mlp(0, 2))}},
        "SupCon",
    ),
    "vissl": (
        lambda own: {
            "classy_state_dict": {
                "base_model": {"model": {"trunk": under("_feature_blocks.", own), "heads": under("0.clf.", mlp(0))}}
            }
        },
        "VISSL",
    ),
    "solo_learn": (
        lambda own: {
            "pytorch-lightning_version": "2.1.2",
            "state_dict": {
                **under("momentum_backbone.", decoy(own)),
                **under("backbone.", own),
                **under("projector.", mlp(0, 3)),
                "classifier.weight": FC["fc.weight"],
            },
        },
        "solo-learn",
    ),
    "mmselfsup": (
        lambda own: {
            "meta": {"epoch": 200},
            "state_dict": {**under("backbone.", own), **under("neck.", mlp(0)), "head.fc.weight": FC["fc.weight"]},
        },
        "mmselfsup",
    ),
    "openselfsup_byol": (
        lambda own: {"state_dict": {**under("target_net.0.", decoy(own)), **under("online_net.0.", own)}},
        "OpenSelfSup",
    ),
    "lightly": (
        lambda own: {
            "state_dict": {**under("backbone.", numbered(own)), **under("backbone_momentum.", numbered(decoy(own)))}
        },
        "lightly",
    ),
    "lightly_dino": (
        lambda own: {
            "state_dict": {
                **under("student_backbone.", numbered(decoy(own))),
                **under("teacher_backbone.", numbered(own)),
            }
        },
        "lightly",
    ),
    "any_prefix": (lambda own: {"state_dict": under("net.trunk.", own)}, "net.trunk."),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_torch(name: str, own: Tensors, tmp_path: Path) -> None:
    make, layout = LAYOUTS[name]
    torch.save(make(dict(own)), tmp_path / "checkpoint.pth.tar")
    found = load_backbone_file(tmp_path / "checkpoint.pth.tar")
    same(found, own)
    assert layout in found.layout and found.arch == ARCH
    assert found.preprocess == PREPROCESSES["swav" if "swav" in name or name == "deepcluster_v2" else "imagenet"]


def same(found: BackboneFile, own: Tensors) -> None:
    assert list(found.state_dict) == list(own)
    for key, value in own.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(found.state_dict[key], value), key


def test_files_from_before_torch_1_6(own: Tensors, tmp_path: Path) -> None:
    torch.save({"state_dict": under("module.", own)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    same(load_backbone_file(tmp_path / "old.pth"), own)


class Lemniscate(nn.Module):
    """The memory bank that InstDisc's checkpoints hold as a pickled module."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.ones(3, 2))


@pytest.mark.parametrize("new", [True, False])
def test_objects_of_other_code_are_left_as_husks(own: Tensors, new: bool, tmp_path: Path) -> None:
    content = {"lemniscate": Lemniscate(), "state_dict": under("module.", own)}
    torch.save(content, tmp_path / "instdisc.pth", _use_new_zipfile_serialization=new)
    same(load_backbone_file(tmp_path / "instdisc.pth"), own)
    with pytest.raises(CheckpointError, match="could run code"):
        pickles.read_pickle(tmp_path / "instdisc.pth")


def test_a_module_that_was_pickled_whole(own: Tensors, tmp_path: Path) -> None:
    network = ResNet(ARCH)
    network.load_state_dict(own)
    torch.save({"model": network}, tmp_path / "whole.pth")
    same(load_backbone_file(tmp_path / "whole.pth"), own)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("open('attacked', 'w')",))


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_nothing_in_a_file_is_run(own: Tensors, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"bad{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": dict(own), "bad": Attack()}, path)
    else:
        path.write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in own.items()}, "bad": Attack()}, protocol=2))
    same(load_backbone_file(path), own)
    assert not (tmp_path / "attacked").exists()


def detectron2(own: Tensors) -> dict[str, np.ndarray]:
    """As MoCo's converter renames, worked out by text replacement and not by our table."""
    renamed = {}
    for key, value in own.items():
        if "layer" not in key:
            key = "stem." + key
        for stage in (1, 2, 3, 4):
            key = key.replace(f"layer{stage}", f"res{stage + 1}")
        for index in (1, 2, 3):
            key = key.replace(f"bn{index}", f"conv{index}.norm")
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[key] = value.numpy()
    return renamed


def test_detectron2_converters(own: Tensors, tmp_path: Path) -> None:
    content = {"model": detectron2(own), "__author__": "MOCO", "matching_heuristics": True}
    (tmp_path / "moco.pkl").write_bytes(pickle.dumps(content))
    found = load_backbone_file(tmp_path / "moco.pkl")
    same(found, own)
    assert found.arch == ARCH and "detectron2" in found.layout


def test_a_c4_detector_of_detectron2(own: Tensors, tmp_path: Path) -> None:
    named = {
        ("roi_heads." if key.startswith("res5") else "backbone.") + key: torch.from_numpy(value)
        for key, value in detectron2(own).items()
    }
    named["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    named["pixel_std"] = torch.ones(3, 1, 1)
    torch.save({"model": named, "iteration": 7}, tmp_path / "model_final.pth")
    found = load_backbone_file(tmp_path / "model_final.pth")
    same(found, own)
    assert found.arch.stride_in_1x1 and found.preprocess["order"] == "BGR"
    assert found.preprocess["mean"] == pytest.approx(PREPROCESSES["caffe"]["mean"])


def test_msra_in_caffe2s_names(own: Tensors, tmp_path: Path) -> None:
    """Scale and shift alone; with mean 0 and variance 1 - epsilon batch norm is just that."""
    blobs: dict[str, np.ndarray] = {"fc1000_w": np.ones((2, 2), np.float32)}
    for key, value in own.items():
        if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        norm, kind = "bn" in key or "downsample.1" in key, key.rsplit(".", 1)[1]
        tail = ("_bn_s" if kind == "weight" else "_bn_b") if norm else "_w"
        if "layer" not in key:
            name = f"res_conv1{tail}" if norm else "conv1_w"
        else:
            stage, block, rest = re.fullmatch(r"layer(\d)\.(\d)\.(.*)\.\w+", key).groups()  # type: ignore[union-attr]
            branch = "1" if "downsample" in rest else "2" + "abc"[int(rest[-1]) - 1]
            name = f"res{int(stage) + 1}_{block}_branch{branch}{tail}"
        blobs[name] = value.numpy()
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(blobs, protocol=2))
    found = load_backbone_file(tmp_path / "R-50.pkl")
    assert found.arch.stride_in_1x1 and found.preprocess == PREPROCESSES["caffe"] and found.left_out == ("fc1000_w",)
    for key, value in own.items():
        if key.endswith((".weight", ".bias")):
            assert torch.equal(found.state_dict[key], value)
    norm = found.network().bn1.eval()
    x = torch.randn(1, 4, 3, 3)
    expected = x * own["bn1.weight"][:, None, None] + own["bn1.bias"][:, None, None]
    assert torch.allclose(norm(x), expected, atol=1e-6)


def simclr_variables(own: Tensors) -> dict[str, np.ndarray]:
    """In the order in which a ResNet-50 is written down: stem; in each block its shortcut, then its convolutions."""
    kinds = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    order = ["conv1"]
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            order += [f"layer{stage}.{block}.downsample.0"] * (block == 0)
            order += [f"layer{stage}.{block}.conv{index}" for index in (1, 2, 3)]
    variables = {}
    for number, name in enumerate(order):
        tail = f"_{number}" if number else ""
        norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
        variables[f"base_model/conv2d{tail}/kernel"] = own[f"{name}.weight"].permute(2, 3, 1, 0).numpy()
        for ours, theirs in kinds.items():
            variables[f"base_model/batch_normalization{tail}/{theirs}"] = own[f"{norm}.{ours}"].numpy()
    return variables


def test_simclrs_tensorflow_variables(own: Tensors, tmp_path: Path) -> None:
    more = {"global_step": np.array(7), "head_supervised/linear_layer/dense/kernel": np.ones((2, 2), np.float32)}
    np.savez(tmp_path / "simclr.npz", **simclr_variables(own), **more)
    found = load_backbone_file(tmp_path / "simclr.npz")
    same(found, own)
    assert found.arch.pool_padding == "end" and found.preprocess == PREPROCESSES["simclr"]


Experiment = collections.namedtuple(
    "Experiment", ["online_params", "target_params", "online_state", "target_state", "opt_state"]
)


@pytest.mark.parametrize("wrapped", [True, False])
def test_byols_haiku_pickle(own: Tensors, wrapped: bool, tmp_path: Path) -> None:
    def module(name: str) -> str:
        found = re.fullmatch(r"layer(\d)\.(\d)\.(conv|bn|downsample\.)(\d)", name)
        if found is None:
            return "res_net50/~/initial_conv" if name == "conv1" else "res_net50/~/initial_batchnorm"
        stage, block, layer, index = int(found[1]) - 1, found[2], found[3], int(found[4])
        if layer == "downsample.":
            tail = "shortcut_batchnorm" if index else "shortcut_conv"
        else:
            tail = f"{'batchnorm' if layer == 'bn' else 'conv'}_{index - 1}"
        return f"res_net50/~/block_group_{stage}/~/block_{block}/~/{tail}"

    parameters: dict[str, Any] = {"projector/linear": {"w": np.ones((2, 2))}}
    state: dict[str, Any] = {}
    for key, value in own.items():
        name, kind = key.rsplit(".", 1)
        if value.ndim == 4:
            parameters[module(name)] = {"w": value.permute(2, 3, 1, 0).numpy()}
        elif kind in ("weight", "bias"):
            entry = parameters.setdefault(module(name), {})
            entry["scale" if kind == "weight" else "offset"] = value.numpy().reshape(1, 1, 1, -1)
        elif kind != "num_batches_tracked":
            average = value.numpy().reshape(1, 1, 1, -1)
            ema = f"{module(name)}/~/{kind.removeprefix('running_')}_ema"
            state[ema] = {"average": average, "hidden": 0 * average, "counter": np.array(1)}
    wrong = {name: {"w": np.zeros((1, 1, 1, 1))} for name in parameters}
    content: Any = (
        Experiment(parameters, wrong, state, {}, None)
        if wrapped
        else {"online_params": parameters, "online_state": state}
    )
    (tmp_path / "byol.pkl").write_bytes(pickle.dumps({"experiment_state": content, "step": 1}))
    found = load_backbone_file(tmp_path / "byol.pkl")
    same(found, own)
    assert "online" in found.layout and found.arch.conv_padding == found.arch.pool_padding == "end"


class Tower(nn.Module):
    """CLIP's archive: an image tower below `visual`, beside it what the text needs."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Keys(nn.Module):
    """Tensors by dotted names, as modules in modules, for an archive whose code does not matter."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        inner: dict[str, Tensors] = {}
        for key, value in tensors.items():
            head, _, rest = key.partition(".")
            if rest:
                inner.setdefault(head, {})[rest] = value
            else:
                self.register_buffer(head, value)
        for head, below in inner.items():
            self.add_module(head, Keys(below))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("archive", [True, False])
def test_clip(archive: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch = ResNetOptions(name="resnet50", width=1 / 16, stem_width=4, stem="clip")
    tensors = {key: value.half() if value.ndim == 4 else value for key, value in ResNet(arch).state_dict().items()}
    tensors["attnpool.positional_embedding"] = torch.ones(2, 2)
    if archive:
        torch.jit.script(Tower(Keys(tensors))).save(str(tmp_path / "RN50.pt"))
    else:
        torch.save(under("visual.", tensors), tmp_path / "RN50.pt")
    found = load_backbone_file(tmp_path / "RN50.pt")
    assert found.arch == arch and found.preprocess == PREPROCESSES["clip"]
    assert all(torch.equal(found.state_dict[key], tensors[key].to(value)) for key, value in found.state_dict.items())


def test_a_stem_for_cifar(tmp_path: Path) -> None:
    arch = ResNetOptions(name="resnet18", width=1 / 16, stem_width=4, stem="cifar3x3")
    tensors = ResNet(arch).state_dict()
    torch.save({"model": {**under("encoder.", tensors), **under("head.", mlp(0, 2))}}, tmp_path / "supcon.pth")
    found = load_backbone_file(tmp_path / "supcon.pth")
    assert found.arch == arch and found.preprocess == PREPROCESSES["cifar10"]


def test_what_does_not_fit_is_said(own: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"

    def fails(content: Any, match: str) -> None:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=match):
            load_backbone_file(path)

    two = {**under("module.encoder.l_to_ab.", own), **under("module.encoder.ab_to_l.", decoy(own))}
    fails({"model": two}, r"holds 2 networks.*'model.module.encoder.l_to_ab.' \(318 tensors\), 'model.*ab_to_l.' \(")
    fails({"model": {"patch_embed.proj.weight": torch.ones(1)}}, "vision Transformer")
    fails({**own, "conv1.weight": torch.ones(4, 9, 7, 7)}, r"\(4, 9, 7, 7\) and does not read 3 channels")
    fails({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, r"\['state_dict', 'epoch'\] at the top and 1 keys")
    fails(3, "holds a int")
    del two
    np.savez(tmp_path / "sk.npz", **{f"base_model/conv2d_{n}/kernel": np.ones((1, 1, 1, 1)) for n in range(60)})
    with pytest.raises(CheckpointError, match="60 keys that start with"):
        load_backbone_file(tmp_path / "sk.npz")
