"""Files with several networks, wrappers and containers: the values of the right network come out, not its twin's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from openworld.cli import main
from openworld.errors import CheckpointError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.handover import BackboneFile, load_backbone_file
from ssl_backbones.handover.projector import load_projector

ARCH = ResNetOptions(name="resnet18", width=1 / 32, stem_width=2)
Tensors = dict[str, Tensor]


def made(seed: int) -> Tensors:
    torch.manual_seed(seed)
    tensors = ResNet(ARCH).state_dict()
    return {key: value.uniform_(0.5, 1.5) if "running_" in key else value for key, value in tensors.items()}


@pytest.fixture(scope="module")
def own() -> Tensors:
    return made(0)


@pytest.fixture(scope="module")
def other() -> Tensors:
    return made(1)


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def is_of(found: BackboneFile, tensors: Tensors) -> bool:
    return found.arch == ARCH and all(torch.equal(found.state_dict[key], value) for key, value in tensors.items())


HEAD = {"projector.0.weight": torch.ones(4, 16), "predictor.0.weight": torch.ones(4, 4)}
ADAM = {
    "state": {0: {"exp_avg": torch.ones(2)}, "conv1.weight": torch.ones(1)},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}

# What the code writes: how it is made of the right network and its twin, and what is said of the choice.
PAIRS: dict[str, tuple[Callable[[Tensors, Tensors], Any], str]] = {
    "moco compiled in DDP": (
        lambda a, b: {
            "state_dict": under("module._orig_mod.encoder_k.", b) | under("module._orig_mod.encoder_q.", a),
            "optimizer": ADAM,
        },
        "query encoder",
    ),
    "moco, DDP compiled": (
        lambda a, b: under("_orig_mod.module.encoder_k.", b) | under("_orig_mod.module.encoder_q.", a),
        "query encoder",
    ),
    "moco with an average of the query encoder": (
        lambda a, b: under("encoder_k.", b) | under("encoder_ema.", made(2)) | under("encoder_q.", a),
        "MoCo evaluates the query encoder",
    ),
    "DenseCL": (
        lambda a, b: {"state_dict": under("encoder_k.0.", b) | under("encoder_q.0.", a) | under("encoder_q.1.", HEAD)},
        "query encoder",
    ),
    "query and key, in words": (lambda a, b: under("key_encoder.", b) | under("query_encoder.", a), "query encoder"),
    "PixPro": (lambda a, b: {"model": under("module.encoder_k.", b) | under("module.encoder.", a)}, "key encoder"),
    "byol-pytorch": (
        lambda a, b: {
            **under("target_encoder.net.", b),
            **under("online_encoder.net.", a),
            **under("online_encoder.", HEAD),
        },
        "BYOL evaluates the online network",
    ),
    "byol-pytorch, the learner with its own network": (
        lambda a, b: {
            **under("net.", a),
            **under("online_encoder.net.", {key: value.clone() for key, value in a.items()}),
            **under("target_encoder.net.", b),
        },
        "target network is its average",
    ),
    "PyTorch-BYOL": (
        lambda a, b: {
            "target_network_state_dict": under("encoder.", b),
            "online_network_state_dict": under("encoder.", a),
            "optimizer_state_dict": ADAM,
        },
        "BYOL evaluates the online network",
    ),
    "two dictionaries": (lambda a, b: {"target_encoder": b, "online_encoder": a}, "online network"),
    "DINO": (
        lambda a, b: {"student": under("module.backbone.", b), "teacher": under("backbone.", a), "optimizer": ADAM},
        "DINO and Mean Teacher evaluate the teacher",
    ),
    "student and teacher in one dictionary": (
        lambda a, b: {"model": under("student.backbone.", b) | under("teacher.backbone.", a) | under("student.", HEAD)},
        "evaluate the teacher",
    ),
    "Unbiased Teacher": (
        lambda a, b: {"model": under("modelStudent.backbone.", b) | under("modelTeacher.backbone.", a)},
        "evaluate the teacher",
    ),
    "a teacher called an average": (
        lambda a, b: {"model": under("student.", b) | under("ema_teacher.", a)},
        "evaluate the teacher",
    ),
    "solo-learn": (
        lambda a, b: {"state_dict": under("momentum_backbone.", b) | under("backbone.", a) | HEAD},
        "momentum network is its average",
    ),
    "lightly": (
        lambda a, b: {"state_dict": under("backbone_momentum.", b) | under("backbone.", a)},
        "momentum network is its average",
    ),
    "timm with EMA": (
        lambda a, b: {"epoch": 3, "arch": "resnet18", "state_dict": b, "state_dict_ema": a, "optimizer": ADAM},
        "timm loads state_dict_ema",
    ),
    "DeiT with EMA": (lambda a, b: {"model_ema": b, "model": a}, "moving average"),
    "model and ema": (lambda a, b: {"ema": under("module.", b), "model": a}, "moving average"),
    "mmengine with EMA": (
        lambda a, b: {"ema_state_dict": under("module.backbone.", b), "state_dict": under("backbone.", a)},
        "moving average",
    ),
    "Lightning with EMA": (
        lambda a, b: {
            "pytorch-lightning_version": "2.1.2",
            "state_dict": under("ema_model.backbone.", b) | under("model.backbone.", a) | under("model.", HEAD),
            "optimizer_states": [ADAM],
            "callbacks": {"EMA": {"weights": b}},
        },
        "moving average",
    ),
    "both, trained and averaged, each with two encoders": (
        lambda a, b: {
            "model_ema": under("encoder_k.", b) | under("encoder_q.", b),
            "model": under("encoder_k.", made(2)) | under("encoder_q.", a),
        },
        "query encoder",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_of_two_networks_the_one_that_its_authors_evaluate(
    name: str, own: Tensors, other: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, why = PAIRS[name]
    torch.save(make(own, other), tmp_path / "file.pth")
    with caplog.at_level(logging.WARNING):
        found = load_backbone_file(tmp_path / "file.pth")
    assert is_of(found, own)
    assert why in found.choice and repr(found.prefix) in found.choice
    assert len(caplog.records) == 1 and found.choice in caplog.text and "--network" in caplog.text


# Containers and wrappers around one network; nothing is to be chosen and nothing said.
SINGLE: dict[str, Callable[[Tensors], Any]] = {
    **{
        name: lambda a, name=name: {name: a, "epoch": 3, "optimizer": ADAM}  # type: ignore[misc]
        for name in ("net", "backbone", "encoder", "weights", "model", "network", "student", "model_state_dict", "EMA")
    },
    "a list with the optimiser": lambda a: [a, ADAM, {"epoch": 3}],
    "a tuple": lambda a: (a, ADAM),
    "two dictionaries deep": lambda a: {"checkpoint": {"net": under("module.", a)}, "best_acc": 0.9},
    "torch.compile": lambda a: under("_orig_mod.", a),
    "DataParallel in DDP": lambda a: under("module.module.", a),
    "model.net.": lambda a: {"state_dict": under("model.net.", a)},
    "FSDP": lambda a: {
        "_fsdp_wrapped_module." + key.replace("layer1.0.", "layer1.0._fsdp_wrapped_module."): value
        for key, value in a.items()
    },
    "activation checkpointing": lambda a: {
        key.replace("layer3.", "layer3._checkpoint_wrapped_module."): value for key, value in a.items()
    },
    "a compiled stage": lambda a: under(
        "model.", {key.replace("layer4.", "layer4._orig_mod."): value for key, value in a.items()}
    ),
    "DeepSpeed": lambda a: {"module": under("backbone.", a), "optimizer": None, "global_steps": 3, "dp_world_size": 1},
    "Fabric": lambda a: {"model": under("_forward_module.", a)},
    "a detector": lambda a: {"model": under("backbone.body.", a) | {"rpn.head.conv.0.0.weight": torch.ones(1)}},
    "DETR": lambda a: {"model": under("backbone.0.body.", {k: v for k, v in a.items() if "num_" not in k})},
    "counters averaged to floats": lambda a: {k: v.float() if "num_batches" in k else v for k, v in a.items()},
    "sparse": lambda a: a | {"layer1.0.conv1.weight": a["layer1.0.conv1.weight"].to_sparse()},
    "the same network twice": lambda a: {"state_dict": a, "model": {key: value.clone() for key, value in a.items()}},
    "names of optimisers in a dictionary": lambda a: {
        "state_dict": a,
        "optimizer": {"state": under("", made(3)), "param_groups": []},
        "optim_state": {"exp_avg": made(4), "exp_avg_sq": made(5)},
    },
}


@pytest.mark.parametrize("name", SINGLE)
def test_containers_and_wrappers(name: str, own: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(SINGLE[name](own), tmp_path / "file.pth")
    with caplog.at_level(logging.WARNING):
        found = load_backbone_file(tmp_path / "file.pth")
    counters = {key for key in own if "num_batches" in key}
    assert is_of(found, {key: value for key, value in own.items() if key not in counters})
    assert all(found.state_dict[key].dtype == torch.long for key in counters)
    assert found.choice == "" and not caplog.records


def test_left_out_keys_are_those_of_the_file(own: Tensors, other: Tensors, tmp_path: Path) -> None:
    content = under("_orig_mod.module.encoder_q.", own) | under("_orig_mod.module.encoder_k.", other)
    torch.save(content, tmp_path / "file.pth")
    left_out = load_backbone_file(tmp_path / "file.pth").left_out
    assert set(left_out) == {key for key in content if "encoder_k" in key}


def test_keys_that_would_meet_without_wrappers_stay_apart(own: Tensors, other: Tensors, tmp_path: Path) -> None:
    torch.save(under("net.", own) | under("_orig_mod.net.", other), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"2 networks.*'net.' \(120 tensors\), '_orig_mod.net.' \(120 tensors\)"):
        load_backbone_file(tmp_path / "file.pth")
    assert is_of(load_backbone_file(tmp_path / "file.pth", network="_orig_mod.net."), other)
    assert is_of(load_backbone_file(tmp_path / "file.pth", network="net"), own)


UNDECIDED: dict[str, Callable[[Tensors, Tensors], Any]] = {
    "two branches": lambda a, b: under("rgb.", a) | under("depth.", b),
    "a student, and a teacher of another shape": lambda a, b: {
        **under("student.", a),
        **under("teacher.", ResNet(ResNetOptions(name="resnet18", width=1 / 16, stem_width=2)).state_dict()),
    },
    "a network and a teacher": lambda a, b: {"model": a, "teacher": b},
    "last and best": lambda a, b: {"state_dict": a, "best_state_dict": b},
    "a list of two": lambda a, b: [a, b],
    "a momentum teacher and an online student": lambda a, b: under("online_student.", a) | under("target_teacher.", b),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_networks_that_nothing_tells_apart_are_listed(name: str, own: Tensors, other: Tensors, tmp_path: Path) -> None:
    torch.save(UNDECIDED[name](own, other), tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"holds 2 networks.*\(120 tensors\), '.*' \(12[06] tensors\)") as caught:
        load_backbone_file(tmp_path / "file.pth")
    assert caught.value.where == str(tmp_path / "file.pth")
    assert "model.weights_network" in str(caught.value.remedy) and "--network" in str(caught.value.remedy)


def test_the_user_names_the_network(own: Tensors, other: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"state_dict": under("module.encoder_q.", own) | under("module.encoder_k.", other)}, path)
    for name in ("encoder_k", "encoder_k.", "module.encoder_k.", "state_dict.module._orig_mod.encoder_k."):
        assert is_of(load_backbone_file(path, network=name), other), name
    assert is_of(load_backbone_file(path, network="encoder_q"), own)
    for wrong, match in (("encoder", "none of its networks is under 'encoder'"), ("state_dict", "2 of its networks")):
        with pytest.raises(CheckpointError, match=match):
            load_backbone_file(path, network=wrong)
    torch.save(own | under("ema.", other), path)
    assert is_of(load_backbone_file(path, network=""), own) and is_of(load_backbone_file(path, network="ema"), other)
    torch.save(under("backbone.", own), path)
    with pytest.raises(CheckpointError, match=r"none.*'student.*'backbone.' \(120 tensors\)"):
        load_backbone_file(path, network="student.")


def test_inspect_says_it_and_export_records_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    path, arch = str(tmp_path / "file.pth"), ResNetOptions(name="resnet18", width=1 / 8, stem_width=8)
    own, other = ResNet(arch).state_dict(), ResNet(arch).state_dict()
    torch.save({"student": under("backbone.", own), "teacher": under("backbone.", other)}, path)
    main(["backbone", "inspect", path])
    shown = " ".join(capsys.readouterr().out.split())
    assert "teacher.backbone." in shown and "DINO and Mean Teacher evaluate the teacher" in shown
    for network, tensors in ((None, other), ("student", own)):
        named = [] if network is None else ["--network", network]
        output = tmp_path / f"{network}.safetensors"
        main(["backbone", "export", path, "--to", "torchvision", "--output", str(output), *named])
        card = output.with_suffix(".json").read_text()
        found = load_backbone_file(output).state_dict
        assert all(torch.equal(found[key], value) for key, value in tensors.items())
        assert f'"{network or "teacher"}.backbone."' in card and "is taken" in card


def test_the_projector_is_that_of_the_network_that_is_taken(own: Tensors, other: Tensors, tmp_path: Path) -> None:
    heads = [{"projector.0.weight": torch.full((3, 16), value), "projector.0.bias": torch.zeros(3)} for value in (1, 2)]
    heads = [{key: value.float() for key, value in head.items()} for head in heads]
    content = {
        "student": under("_orig_mod.backbone.", other) | under("_orig_mod.", heads[0]),
        "teacher": under("_orig_mod.backbone.", own) | under("_orig_mod.", heads[1]),
    }
    torch.save(content, tmp_path / "file.pth")
    assert torch.equal(load_projector(tmp_path / "file.pth", 16)[0].weight, heads[1]["projector.0.weight"])


def huggingface(tensors: Tensors) -> Tensors:
    """As transformers names them, by replacing text and not by our table."""
    renamed = {}
    for key, value in tensors.items():
        for stage in (1, 2, 3, 4):
            key = key.replace(f"layer{stage}.", f"encoder.stages.{stage - 1}.layers.")
        if not key.startswith("encoder."):
            key = "embedder.embedder." + key
            key = key.replace("conv1.", "convolution.").replace("bn1.", "normalization.")
        for index in (1, 2, 3):
            key = key.replace(f".conv{index}.", f".layer.{index - 1}.convolution.")
            key = key.replace(f".bn{index}.", f".layer.{index - 1}.normalization.")
        key = key.replace("downsample.0.", "shortcut.convolution.").replace("downsample.1.", "shortcut.normalization.")
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("prefix", ["resnet.", "", "model.backbone.conv_encoder.model."])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_transformers_resnets(name: str, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arch = ResNetOptions(name=name, width=1 / 32, stem_width=2)  # type: ignore[arg-type]
    tensors = ResNet(arch).state_dict()
    content = under(prefix, huggingface(tensors)) | {"classifier.1.weight": torch.ones(2, 2)}
    safetensors.torch.save_file(content, tmp_path / "model.safetensors")
    found = load_backbone_file(tmp_path / "model.safetensors")
    assert found.arch == arch and found.left_out == ("classifier.1.weight",) and "transformers" in found.layout
    assert all(torch.equal(found.state_dict[key], value) for key, value in tensors.items())


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", ["weight_norm", "old weight_norm", "prune"])
def test_weights_in_two_parts_are_put_together(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ResNet(ARCH)
    for module in convolutions(network):
        if kind == "weight_norm":
            weight_norm(module)
            with torch.no_grad():
                module.parametrizations.weight.original0.mul_(1.5)  # type: ignore[union-attr, operator]
        elif kind == "prune":
            prune.random_unstructured(module, "weight", 0.3)  # type: ignore[no-untyped-call]
        else:
            torch.nn.utils.weight_norm(module)  # type: ignore[deprecated]
    expected = {
        name: module.weight.detach() for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    }
    torch.save({"state_dict": network.state_dict()}, tmp_path / "file.pth")
    found = load_backbone_file(tmp_path / "file.pth").state_dict
    assert len(expected) == 20
    for name, weight in expected.items():
        assert torch.allclose(found[f"{name}.weight"], weight, rtol=1e-6), name


def test_networks_that_are_not_read_are_named(own: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"

    def fails(content: Any, match: str) -> None:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=match):
            load_backbone_file(path)

    network = ResNet(ARCH)
    for module in convolutions(network):
        spectral_norm(module)
    fails(network.state_dict(), "parametrized weights.*\n.*remove_parametrizations")
    fails({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "FSDP.*\n.*FULL_STATE_DICT")
    fails({key: torch.empty(0) for key in own}, "conv1.weight holds no numbers.*\n.*zero_to_fp32")
    fails({key: value.to("meta") for key, value in own.items()}, "conv1.weight: has a shape and no numbers")
    integers = {key: (value * 50).to(torch.int8) if value.ndim == 4 else value for key, value in own.items()}
    fails(integers, "conv1.weight: is of torch.int8, as in a quantised network")
    quantised = torch.quantize_per_tensor(own["conv1.weight"], 0.1, 0, torch.qint8)
    fails({**own, "conv1.weight": quantised}, "conv1.weight: is of torch.qint8")
    stem = {key: value for key, value in own.items() if key != "conv1.weight"}
    fails({**stem, "conv1.0.weight": torch.ones(2, 3, 3, 3)}, "ResNet-C or -D.*\n.*ResNet-18")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(
    number: float, own: Tensors, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = own["layer2.0.bn1.bias"].clone()
    bad[1:3] = number
    worse = own["layer4.1.conv2.weight"].clone()
    worse[0, 0, 0, 0] = number
    torch.save({**own, "layer2.0.bn1.bias": bad, "layer4.1.conv2.weight": worse}, tmp_path / "file.pth")
    nans, infinite = (2, 0) if number != number else (0, 2)
    message = f"layer2.0.bn1.bias holds {nans} NaN and {infinite} infinite numbers of 4; 2 of 120 tensors"
    with pytest.raises(CheckpointError, match=message):
        load_backbone_file(tmp_path / "file.pth")
    with pytest.raises(SystemExit) as caught:
        main(["backbone", "inspect", str(tmp_path / "file.pth")])
    assert caught.value.code == 2 and f"{message} hold such numbers, 3 in all" in capsys.readouterr().err
    torch.save({**own, "fc.weight": torch.full((2, 2), number)}, tmp_path / "file.pth")  # a head is left out
    assert is_of(load_backbone_file(tmp_path / "file.pth"), own)


def test_numbers_beyond_float32_and_negative_variances(own: Tensors, tmp_path: Path) -> None:
    large = own["conv1.weight"].double()
    large[0, 0, 0, 0] = 1e300
    torch.save({**own, "conv1.weight": large}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"conv1\.weight holds 0 NaN and 1 infinite numbers"):
        load_backbone_file(tmp_path / "file.pth")
    torch.save({**own, "bn1.running_var": -own["bn1.running_var"]}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=r"bn1\.running_var holds a variance below 0"):
        load_backbone_file(tmp_path / "file.pth")
