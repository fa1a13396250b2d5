"""Our own files, what cannot be read, and the check that two networks see the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from openworld.errors import CheckpointError, HandoverError
from openworld.runtime.files import sha256_of
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.handover import load_backbone_file, stage_features, test_image, verify
from ssl_backbones.handover.read import infer_arch
from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD, Preprocess

ARCH = ResNetOptions(name="resnet50", width=0.125, stem_width=16)
PREPROCESS: Preprocess = {"order": "RGB", "range": 1.0, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}


@pytest.fixture(scope="module")
def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(ARCH)


def test_safetensors_in_half_precision_without_counters(network: ResNet, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    kept = {k: v.half() for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    safetensors.torch.save_file(kept, path)
    tensors = load_backbone_file(path, preprocess=PREPROCESS).state_dict
    assert tensors["conv1.weight"].dtype == torch.float32
    ResNet(ARCH).load_state_dict(tensors)


def write_own(folder: Path, network: ResNet, **changes: Any) -> Path:
    path = folder / "backbone.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    arch = {"name": "resnet50", "width": 0.125, "stem_width": 16, "stride_in_1x1": True}
    card = {"arch": arch, "preprocess": {**PREPROCESS, "mean": [0.0] * 3}, "sha256": sha256_of(path), **changes}
    (folder / "card.json").write_text(json.dumps(card))
    return path


def test_own_file_with_card(network: ResNet, tmp_path: Path) -> None:
    write_own(tmp_path, network)
    found = load_backbone_file(tmp_path)
    assert found.arch.stride_in_1x1 and found.preprocess["mean"] == [0, 0, 0]
    assert not load_backbone_file(tmp_path, arch=ARCH).arch.stride_in_1x1


def test_a_card_that_does_not_fit(network: ResNet, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_backbone_file(write_own(tmp_path, network, sha256="0"))
    with pytest.raises(CheckpointError, match="is not the card"):
        load_backbone_file(write_own(tmp_path, network, preprocess={"mean": [0]}))


def test_what_cannot_be_read(network: ResNet, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_backbone_file(tmp_path / "absent.pth")
    (tmp_path / "damaged.safetensors").write_bytes(b"123")
    with pytest.raises(CheckpointError, match="damaged, or not a file of weights"):
        load_backbone_file(tmp_path / "damaged.safetensors")
    torch.save({"model": {"patch_embed.proj.weight": torch.ones(1)}}, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match="no backbone found"):
        load_backbone_file(tmp_path / "vit.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_backbone_file(tmp_path / "list.pth")


def test_the_first_differing_keys_are_named(network: ResNet, tmp_path: Path) -> None:
    own = dict(network.state_dict())
    del own["layer3.2.conv2.weight"]
    torch.save(own, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"missing layer3.2.conv2.weight"):
        load_backbone_file(tmp_path / "less.pth")
    torch.save({**network.state_dict(), "layer1.0.se.weight": torch.ones(1)}, tmp_path / "more.pth")
    with pytest.raises(CheckpointError, match=r"unexpected layer1.0.se.weight"):
        load_backbone_file(tmp_path / "more.pth")
    torch.save(dict(network.state_dict()), tmp_path / "fine.pth")
    with pytest.raises(CheckpointError, match=r"conv1.weight is \(16, 3, 7, 7\), expected \(32, 3, 7, 7\).*more"):
        load_backbone_file(tmp_path / "fine.pth", arch=ResNetOptions(name="resnet50", width=0.5))
    deep = {k.replace("layer1.2", "layer1.3"): v for k, v in network.state_dict().items()} | network.state_dict()
    torch.save(deep, tmp_path / "deep.pth")
    with pytest.raises(CheckpointError, match=r"bottleneck blocks \(4, 4, 6, 3\)"):
        load_backbone_file(tmp_path / "deep.pth")


def test_a_backbone_without_its_first_block_is_refused(network: ResNet) -> None:
    half = {key: value for key, value in network.state_dict().items() if not key.startswith("layer1.")}
    with pytest.raises(CheckpointError, match=r"half\.pth: has no first convolution or no first block"):
        infer_arch(half, Path("half.pth"))


def twin(network: ResNet, **changes: Any) -> ResNet:
    options = {"name": "resnet50", "width": 0.125, "stem_width": 16, **changes}
    other = ResNet(ResNetOptions(**options))
    other.load_state_dict(network.state_dict())
    return other


def test_verify_agrees_and_restores_the_mode(network: ResNet) -> None:
    network.train()
    before = network.get_buffer("bn1.running_mean").clone()
    frozen = twin(network, norm="frozen")
    found = verify(stage_features(network, PREPROCESS), stage_features(frozen, PREPROCESS))
    assert set(found) == {"c2", "c3", "c4", "c5"} and max(found.values()) < 1e-5
    assert network.training and torch.equal(before, network.get_buffer("bn1.running_mean"))


def test_verify_accepts_the_same_input_written_otherwise(network: ResNet) -> None:
    scaled: Preprocess = {**PREPROCESS, "range": 255.0}
    scaled["mean"], scaled["std"] = [255 * m for m in IMAGENET_MEAN], [255 * s for s in IMAGENET_STD]
    assert max(verify(stage_features(network, PREPROCESS), stage_features(network, scaled)).values()) < 1e-5


@pytest.mark.parametrize(
    ("changes", "stage", "cause"),
    [
        ({"stride_in_1x1": True}, "C3", "stride_in_1x1"),
        ({"pool_padding": "end"}, "C2", "pool padding"),
    ],
)
def test_verify_finds_what_keys_hide(network: ResNet, changes: dict[str, Any], stage: str, cause: str) -> None:
    with pytest.raises(HandoverError, match=f"differ first at {stage}.*{cause}"):
        verify(stage_features(network, PREPROCESS), stage_features(twin(network, **changes), PREPROCESS))


def test_verify_finds_preprocessing(network: ResNet) -> None:
    a = stage_features(network, PREPROCESS)
    bgr: Preprocess = {**PREPROCESS, "order": "BGR", "mean": list(IMAGENET_MEAN[::-1]), "std": list(IMAGENET_STD[::-1])}
    with pytest.raises(HandoverError, match="colour order"):
        verify(a, stage_features(network, bgr))
    with pytest.raises(HandoverError, match=r"C2.*mean and std"):
        verify(a, stage_features(network, {**PREPROCESS, "mean": [0.0] * 3, "std": [1.0] * 3}))


def test_verify_finds_one_wrong_stage_shapes_and_nan(network: ResNet) -> None:
    a = stage_features(network, PREPROCESS)
    other = twin(network)
    with torch.no_grad():
        other.get_parameter("layer4.2.conv3.weight").mul_(1.01)
    with pytest.raises(HandoverError, match="differ first at C5"):
        verify(a, stage_features(other, PREPROCESS))
    with pytest.raises(HandoverError, match=r"C2 \(shapes"):
        verify(a, lambda image: a(image[:, ::2]))
    with pytest.raises(HandoverError, match="C4"):
        verify(a, lambda image: {k: v * float("nan") if k == "c4" else v for k, v in a(image).items()})


def test_the_image_never_changes() -> None:
    image = test_image()
    assert image.shape == (3, 128, 160) and image.dtype == torch.uint8
    assert image.float().mean(dim=(1, 2)).tolist() == pytest.approx([152.2, 109.8, 68.5], abs=1)
    for other in (image.flip(0), image.flip(1), image.flip(2)):
        assert (image.int() - other.int()).abs().float().mean() > 10


def test_features_that_are_not_finite_are_the_cause(network: ResNet) -> None:
    broken = twin(network)
    with torch.no_grad():
        broken.layer3[0].conv1.weight[0, 0] = float("nan")
    features = stage_features(network, PREPROCESS), stage_features(broken, PREPROCESS)
    with pytest.raises(HandoverError, match="C4 of the detector holds numbers that are not finite") as caught:
        verify(*features)
    assert "colour" not in str(caught.value)
    with pytest.raises(HandoverError, match="C4 of the pretrained backbone holds numbers that are not finite"):
        verify(features[1], features[0])
