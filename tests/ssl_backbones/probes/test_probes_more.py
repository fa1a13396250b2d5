"""Semi-supervised fine-tuning, predict-the-transform, feature suppression: small sets, outcomes known beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from openworld.cli import main
from openworld.errors import CheckpointError, ConfigError, DataError
from openworld.runtime.files import sha256_of
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.handover import PREPROCESSES
from ssl_backbones.handover.projector import load_projector, projector_file, write_projector
from ssl_backbones.heads import mlp
from ssl_backbones.probes.digits import draw_digits, draw_many
from ssl_backbones.probes.frozen import FrozenProbes
from ssl_backbones.probes.labelled import from_crops
from ssl_backbones.probes.semi_supervised import (
    PROTOCOLS,
    SemiProtocol,
    class_balanced_subset,
    fine_tune,
    semi_supervised_table,
)
from ssl_backbones.probes.suppression import SuppressionOptions, multi_digits, rand_bits, random_crops
from ssl_backbones.probes.transform import TRANSFORMS, TransformOptions, guess_accuracy, transformed

ARCH = ResNetOptions(width=1 / 16, stem="cifar3x3")


def crops(count: int, side: int = 12) -> tuple[list[torch.Tensor], list[str]]:
    """Red and blue noise in turn."""
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 120, (count, 3, side, side), generator=source, dtype=torch.uint8)
    for row in range(count):
        images[row, 0 if row % 2 else 2] += 120
    return list(images), ["red" if row % 2 else "blue" for row in range(count)]


# -- semi-supervised --------------------------------------------------------------------------------------------------


def test_a_balanced_subset() -> None:
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)
    chosen = class_balanced_subset(labels, 0.1, 0)
    assert labels[chosen].bincount().tolist() == [5, 2, 1]
    assert chosen == class_balanced_subset(labels, 0.1, 0) != class_balanced_subset(labels, 0.1, 1)
    assert set(chosen) <= set(class_balanced_subset(labels, 0.3, 0))
    assert class_balanced_subset(labels, 1.0, 0) == list(range(73))
    with pytest.raises(ConfigError, match="share is 0"):
        class_balanced_subset(labels, 0, 0)


def test_published_rates() -> None:
    swav = PROTOCOLS["swav_1"], PROTOCOLS["swav_10"]
    assert [(p.share, p.lr, p.head_lr, p.epochs, p.milestones, p.gamma) for p in swav] == [
        (0.01, 0.02, 5, 20, (12, 16), 0.2),
        (0.1, 0.01, 0.2, 20, (12, 16), 0.2),
    ]
    twins, *simclr = (PROTOCOLS[name] for name in ("barlow_twins_1", "simclr_1", "simclr_10"))
    assert (twins.share, twins.lr, twins.head_lr, twins.epochs, twins.batch_size) == (0.01, 0.005, 0.5, 20, 256)
    assert [(p.share, p.epochs, p.batch_size, p.nesterov) for p in simclr] == [
        (0.01, 60, 4096, True),
        (0.1, 30, 4096, True),
    ]
    assert all(p.lr == p.head_lr == pytest.approx(0.05 * p.batch_size / 256) for p in simclr)
    assert all(p.milestones is None and p.weight_decay == 0 for p in (twins, *simclr))


def test_a_step_of_fine_tuning_by_hand() -> None:
    """One full batch, head from zero: its bias moves by head_lr * (share of the class - 1/C); the trunk by nothing,
    since a classifier of zeros sends no gradient down."""
    images, names = crops(8)
    data = from_crops((images, names))
    assert data is not None
    protocol = SemiProtocol(lr=0.5, head_lr=1.0, batch_size=8, epochs=1, milestones=None)
    network = ResNet(ARCH)
    positions = [0, 1, 2, 4]  # three blue, one red
    tuned, head = fine_tune(network, data, positions, PREPROCESSES["imagenet"], size=8, protocol=protocol, seed=0)
    rate = 4 / 8  # of the batch
    expected = rate * (torch.tensor([0.75, 0.25]) - 0.5)
    assert torch.allclose(head.bias, expected, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), network.parameters(), strict=True))
    assert tuned.bn1.num_batches_tracked == 1 and network.bn1.num_batches_tracked == 0


def test_fine_tuning_learns_two_colours() -> None:
    data = from_crops(crops(60))
    assert data is not None
    torch.manual_seed(0)
    protocol = SemiProtocol(share=0.5, lr=0.05, head_lr=0.5, batch_size=8, epochs=12, milestones=None)
    found = semi_supervised_table(ResNet(ARCH), data, PREPROCESSES["imagenet"], size=8, protocol=protocol, seed=0)
    assert found["labels"] == 24 and found["test_samples"] == 12 and found["chance"] == 0.5
    assert found["trained"]["top1"] > 0.9 and found["untrained"]["top5"] == 1
    with pytest.raises(DataError, match="no image is held out"):
        few = from_crops(crops(4))
        assert few is not None
        semi_supervised_table(ResNet(ARCH), few, PREPROCESSES["imagenet"], size=8, protocol=protocol, seed=0)


# -- predict the transform --------------------------------------------------------------------------------------------


def test_the_transforms_by_hand() -> None:
    picture = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    rotated, labels = transformed(picture, "rotation", seed=0)
    assert labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(rotated[1], picture[0].transpose(1, 2).flip(1)) and torch.equal(rotated[0], picture[0])
    gray = transformed(picture, "colour", seed=0)[0][1]
    weights = torch.tensor([0.2989, 0.587, 0.114])
    assert torch.allclose(gray, (weights[:, None, None] * picture[0]).sum(0).expand(3, -1, -1), atol=1e-4)
    step = torch.zeros(1, 3, 5, 6)
    step[..., 3:] = 0.25
    edges = transformed(step, "sobel", seed=0)[0][1]
    assert torch.allclose(edges[0, 2], torch.tensor([0, 0, 0.25, 0.25, 0, 0]))  # (1 + 2 + 1) / 4 of the step
    noisy = transformed(picture, "corrupted", seed=0)[0][1]
    assert 0.1 < float((noisy - picture[0]).std()) < 0.25 and noisy.min() >= 0
    assert torch.equal(noisy, transformed(picture, "corrupted", seed=0)[0][1])
    with pytest.raises(ConfigError, match="question is 'shape'"):
        transformed(picture, "shape", seed=0)


def test_guessing_what_can_be_known_and_what_cannot() -> None:
    source = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (200,), generator=source)
    noise = torch.randn(200, 4, generator=source)
    told = torch.cat([noise, labels[:, None].float()], dim=1)
    options = TransformOptions(epochs=20)
    assert guess_accuracy((told[:100], labels[:100]), (told[100:], labels[100:]), options, seed=0) > 0.98
    blind = guess_accuracy((noise[:100], labels[:100]), (noise[100:], labels[100:]), options, seed=0)
    assert 0.3 < blind < 0.7


def test_h_against_g() -> None:
    """g keeps one sum of h: it knows less, and the control has a head of its own."""
    data = from_crops(crops(30))
    assert data is not None
    torch.manual_seed(0)
    network = ResNet(ARCH)
    forgetful = nn.Sequential(nn.Linear(network.dim, 2))
    nn.init.zeros_(forgetful[0].weight)
    probes = FrozenProbes.of(network, data, PREPROCESSES["imagenet"], size=8)
    found = probes.transforms(forgetful, questions=["colour"])["colour"]
    assert found["chance"] == 0.5 and found["trained"]["g"] == 0.5
    assert found["trained"]["h"] > 0.8 and found["untrained"]["g"] is not None
    assert float(forgetful[0].weight.detach().abs().sum()) == 0
    assert probes.transforms(None, questions=["colour"])["colour"]["trained"]["g"] is None
    assert set(TRANSFORMS) == {"colour", "rotation", "corrupted", "sobel"}


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("module.encoder_q.fc.", nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))),
        ("module.encoder_q.fc.", nn.Linear(8, 4)),
        ("module.encoder.fc.", mlp([8, 8, 8, 8], hidden_norm=True, last_norm="plain", bias=False)),
        ("projector.", mlp([8, 6, 4], hidden_norm=True, last_norm="scale", bias=False)),
        ("projector.", nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4))),
    ],
)
def test_projectors_of_checkpoints(prefix: str, head: nn.Module, tmp_path: Path) -> None:
    head.train()(torch.randn(5, 8))
    tensors = {f"{prefix}{key}": value for key, value in head.state_dict().items()}
    torch.save({"state_dict": {**tensors, "module.queue": torch.ones(2, 2)}}, tmp_path / "a.pth")
    found = load_projector(tmp_path / "a.pth", 8)
    x = torch.randn(3, 8)
    assert torch.allclose(found(x), head.eval()(x))
    with pytest.raises(CheckpointError, match=r"no projector of linear layers .* 16 dimensions"):
        load_projector(tmp_path / "a.pth", 16)


def test_where_the_head_of_a_backbone_is_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(b"weights")
    assert projector_file(tmp_path) == path  # perhaps a checkpoint with its head
    (tmp_path / "card.json").write_text(json.dumps({"method": "simclr"}))
    assert projector_file(path) == path  # a card of a version that wrote no heads
    (tmp_path / "card.json").write_text(json.dumps({"method": "dino", "projector": None}))
    with pytest.raises(CheckpointError, match="pretrained with dino, which leaves no projector"):
        projector_file(tmp_path)
    write_projector(tmp_path / "projector.safetensors", nn.Linear(3, 2), backbone_sha256=sha256_of(path))
    assert projector_file(tmp_path) == tmp_path / "projector.safetensors"
    path.write_bytes(b"other weights")
    with pytest.raises(CheckpointError, match=r"projector\.safetensors: is the projector of another backbone"):
        projector_file(tmp_path)
    (tmp_path / "projector.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        projector_file(tmp_path)


# -- feature suppression ----------------------------------------------------------------------------------------------


def test_digits() -> None:
    source = torch.Generator().manual_seed(0)
    drawn = draw_digits(torch.tensor([1, 8, 8]), 28, source)
    assert drawn.shape == (3, 1, 28, 28) and drawn.min() >= 0 and 0.9 < drawn.max() <= 1
    assert drawn[0].sum() < drawn[1].sum() and not torch.equal(drawn[1], drawn[2])
    assert draw_digits(torch.empty(0, dtype=torch.long), 28, source).shape == (0, 1, 28, 28)
    many = draw_many(torch.tensor([[3, 4, 5], [1, 1, 1]]), 32, 16, source)
    cells = many.unfold(2, 16, 16).unfold(3, 16, 16).amax(dim=(-1, -2)).flatten(1)
    assert many.shape == (2, 1, 32, 32) and ((cells > 0.5).sum(dim=1) == 3).all()


def test_crops_leave_constant_channels() -> None:
    images = torch.rand(4, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    images = torch.cat([images, torch.tensor([0.0, 1, 1, 0]).view(4, 1, 1, 1).expand(4, 1, 10, 10)], dim=1)
    cropped = random_crops(images, torch.Generator().manual_seed(0))
    assert torch.equal(cropped[:, 1:], images[:, 1:]) and not torch.equal(cropped[:, :1], images[:, :1])
    whole = random_crops(images, torch.Generator().manual_seed(0), smallest=1.0)
    assert torch.allclose(whole, images, atol=1e-5)


TINY = SuppressionOptions(
    temperatures=(0.2,),
    seeds=(0,),
    train_samples=48,
    test_samples=16,
    epochs=1,
    batch_size=24,
    digit_size=12,
    canvas=24,
)


def test_the_experiments_run_with_their_control() -> None:
    rows = rand_bits([0, 3], TINY)
    assert [row["setting"] for row in rows] == [0, 3]
    assert all(0 <= row["trained"] <= 1 and row["trained_spread"] is None for row in rows)
    rows = multi_digits([1, 2], TINY)
    assert [row["setting"] for row in rows] == [1, 2] and all(0 <= row["untrained"] <= 1 for row in rows)
    with pytest.raises(ConfigError, match="numbers from 1 to 4"):
        multi_digits([5], TINY)
    with pytest.raises(ConfigError, match="bits are"):
        rand_bits([-1], TINY)


@pytest.mark.slow
def test_random_bits_suppress_digits_at_a_high_temperature() -> None:
    """At 10 bits the control cannot be beaten at temperature 0.2, and can at 0.05 (three seeds)."""
    low, high = rand_bits([10], SuppressionOptions())
    assert low["temperature"] == 0.05 and high["temperature"] == 0.2
    assert high["trained"] < low["trained"] - 0.1


# -- from the command line --------------------------------------------------------------------------------------------


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, names = crops(24)
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    network = ResNet(ARCH)
    head = {f"projector.{key}": value for key, value in mlp([network.dim, 8, 4], hidden_norm=True).state_dict().items()}
    torch.save({**{f"backbone.{k}": v for k, v in network.state_dict().items()}, **head}, tmp_path / "a.pth")
    common = ["--backbone", str(tmp_path / "a.pth"), "--images", str(tmp_path / "images"), "--size", "8"]
    common += ["--device", "cpu", "--output", str(tmp_path / "out.json")]
    main(["probe", "knn", *common, "--k", "3"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["k"] == 3 and found["asked"]["size"] == 8 and found["trained"] > 0.8
    main(["probe", "linear", *common])
    assert json.loads((tmp_path / "out.json").read_text())["untrained"]["top5"] == 1
    main(["probe", "semi", *common, "--share", "0.2", "--epochs", "1"])
    assert json.loads((tmp_path / "out.json").read_text())["labels"] == 4
    main(["probe", "transform", *common])
    assert json.loads((tmp_path / "out.json").read_text())["rotation"]["trained"]["g"] is not None
    text = capsys.readouterr().out
    assert "kNN" in text and "untrained" in text and "g(h)" in text
    with pytest.raises(SystemExit):
        main(["probe", "semi", *common, "--protocol", "none"])
    assert "swav_10" in capsys.readouterr().err


def test_a_head_from_its_pretraining_to_the_probe(tmp_path: Path) -> None:
    for number, (image, name) in enumerate(zip(*crops(12), strict=True)):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    images = ["--images", str(tmp_path / "images"), "--device", "cpu"]
    small = ["--arch.width", "0.0625", "--view_size", "16", "--batch_size", "4", "--steps", "1", "--probe_every", "0"]
    main(["pretrain", *images, "--output", str(tmp_path / "run"), *small, "--method.projection_dim", "5"])
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    written = tmp_path / "run" / "projector.safetensors"
    assert card["projector"] == {"file": written.name, "sha256": sha256_of(written)}
    assert load_projector(projector_file(tmp_path / "run"), 32)[-1].num_features == 5
    common = ["--backbone", str(tmp_path / "run"), *images, "--size", "16", "--output", str(tmp_path / "out.json")]
    main(["probe", "transform", *common])
    rows = json.loads((tmp_path / "out.json").read_text())
    assert all(rows[question][which]["g"] is not None for question in TRANSFORMS for which in ("trained", "untrained"))
