"""CLIP, CURL and distillation: losses by slow loops, what moves and what does not, what the detector gets."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn import functional as F

from openworld.errors import CheckpointError, ConfigError, DataError
from openworld.runtime.images import find_images
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.handover.classifier import read_classifier
from ssl_backbones.images import BatchPlan, ImagePool, view_batches
from ssl_backbones.method import Batch, Method
from ssl_backbones.methods.clip import CLIP, AttentionPool
from ssl_backbones.methods.curl import CURL
from ssl_backbones.methods.distillation import Distillation, converted
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.optim import build_optimizer, set_learning_rates
from ssl_backbones.options import PretrainOptions
from ssl_backbones.pretrain import pretrain
from ssl_backbones.views import RECIPES, sample_square, sample_view

IMAGES = 8
CHANNELS = {"clip": 3, "curl": 9, "distillation": 3}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a classifier of 5 classes, as torchvision saves it."""
    torch.manual_seed(1)
    path, network = tmp_path_factory.mktemp("teacher") / "teacher.safetensors", ResNet(ResNetOptions(width=1 / 8))
    for _ in range(3):
        network(torch.randn(8, 3, 32, 32))  # statistics of batch norm
    fc = {"fc.weight": torch.randn(5, network.dim), "fc.bias": torch.randn(5)}
    safetensors.torch.save_file({**network.state_dict(), **fc}, path)
    return path


OWN: dict[str, dict[str, Any]] = {
    "clip": {"projection_dim": 16},
    "curl": {"projection_dim": 16, "teacher_momentum": 0.9},
    "distillation": {"queue_size": 24},
}


def options(name: str, teacher: Path | None = None, **own: Any) -> PretrainOptions:
    own = {**OWN[name], **({"teacher": str(teacher)} if name == "distillation" and teacher else {}), **own}
    method, arch = MethodOptions.named(name)(**own), ResNetOptions(width=1 / 16)
    return PretrainOptions(method=method, views=name, arch=arch, view_size=32, warmup=0)  # type: ignore[arg-type]


def build(name: str, teacher: Path | None = None, **own: Any) -> Any:
    chosen = options(name, teacher, **own)
    return chosen.method.implementation()(chosen).train()


def batch(name: str, step: int = 0) -> Batch:
    """Blurred noise as images, with more noise in each view; captions of six letters."""
    fixed, moving = torch.Generator().manual_seed(0), torch.Generator().manual_seed(step + 1)
    images = F.interpolate(torch.rand(IMAGES, CHANNELS[name], 4, 4, generator=fixed), size=32, mode="bilinear")
    views = [
        images + 0.1 * torch.randn(images.shape, generator=moving)
        for _ in MethodOptions.named(name).implementation().view_kinds
    ]
    text = torch.randint(97, 123, (IMAGES, 8), generator=fixed)
    text[:, 0], text[:, -1] = 256, 257
    return Batch(views, torch.arange(IMAGES), text=text if name == "clip" else None)


def train(method: Method, name: str, steps: int, **changes: Any) -> list[float]:
    schedule, losses = PretrainOptions(**{"steps": steps, "warmup": 0, "lr": 0.05, **changes}), []
    optimizer = build_optimizer(method.param_groups(1e-4), schedule)
    for step in range(steps):
        set_learning_rates(optimizer, step, schedule)
        method.before_step(step, steps)
        loss, _ = method.loss(batch(name, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step, steps)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("name", "optimizer", "lr"), [("clip", "adamw", 3e-3), ("curl", "adamw", 3e-3), ("distillation", "sgd", 0.05)]
)
def test_the_loss_falls(name: str, optimizer: str, lr: float, teacher: Path) -> None:
    own = {"targets": "classes"} if name == "distillation" else {}
    losses = train(build(name, teacher, **own), name, 20, optimizer=optimizer, lr=lr)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


@pytest.mark.parametrize("name", list(CHANNELS))
def test_what_has_a_gradient(name: str, teacher: Path) -> None:
    method = build(name, teacher)
    method.before_step(0, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, numbers = method.loss(batch(name))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and 0 < numbers["spread"] < 1.5
    for key, value in method.named_parameters():
        assert (value.grad is None) == key.startswith("teacher."), key
    assert {v.dtype for v in method.state_dict().values()} <= {torch.float32, torch.int64, torch.bool}


# --- CLIP


def test_clip_is_the_mean_of_both_directions() -> None:
    method = CLIP(options("clip", temperature=0.07)).eval()
    given = batch("clip")
    assert given.text is not None
    loss, numbers = method.loss(given)
    images = method.pool(method.encoder.forward_stages(given.views[0])["c5"])
    texts = method.text(given.text)
    cosines = [[F.cosine_similarity(a, b, dim=0).item() / 0.07 for b in texts] for a in images]
    total = 0.0
    for i in range(IMAGES):
        total += math.log(sum(math.exp(cosines[i][j]) for j in range(IMAGES))) - cosines[i][i]
        total += math.log(sum(math.exp(cosines[j][i]) for j in range(IMAGES))) - cosines[i][i]
    assert loss.item() == pytest.approx(total / IMAGES / 2, rel=1e-5)
    assert numbers["temperature"] == pytest.approx(0.07)
    flat, _ = CLIP(options("clip", temperature=1e6)).eval().loss(given)
    assert flat.item() == pytest.approx(math.log(IMAGES), rel=1e-5)


def test_clips_factor_is_learnt_not_decayed_and_held() -> None:
    method = CLIP(options("clip", largest_scale=20.0, temperature=0.07))
    decayed, free = method.param_groups(0.2)
    assert any(p is method.log_scale for p in free["params"]) and free["weight_decay"] == 0
    assert any(p is method.text.positions for p in decayed["params"])
    with torch.no_grad():
        method.log_scale.fill_(9.0)
    method.after_step(0, 1)
    assert method.log_scale.exp().item() == pytest.approx(20.0)
    with pytest.raises(DataError, match="no captions"):
        method.loss(Batch(batch("clip").views, torch.arange(IMAGES)))


def test_attention_pool_is_multi_head_attention_of_the_mean() -> None:
    pool = AttentionPool(128, 7, cells=6).double()
    assert pool.heads == 2
    maps = torch.randn(3, 128, 2, 3, dtype=torch.float64)
    tokens = maps.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + pool.positions[:, None]
    linear = {"q": pool.query, "k": pool.key, "v": pool.value}
    expected, _ = F.multi_head_attention_forward(
        tokens,
        tokens,
        tokens,
        128,
        pool.heads,
        None,
        torch.cat([layer.bias for layer in linear.values()]),
        None,
        None,
        False,
        0.0,
        pool.project.weight,
        pool.project.bias,
        use_separate_proj_weight=True,
        **{f"{name}_proj_weight": layer.weight for name, layer in linear.items()},
    )
    assert torch.allclose(pool(maps), expected[0], atol=1e-10)


def test_clip_pools_the_cells_that_its_views_have() -> None:
    for arch, side in ((ResNetOptions(width=1 / 16), 96), (ResNetOptions(width=1 / 16, stem="cifar3x3"), 16)):
        method = CLIP(dataclasses.replace(options("clip"), view_size=side, arch=arch))
        cells = method.encoder.forward_stages(torch.rand(2, 3, side, side))["c5"]
        assert method.pool(cells).shape == (2, 16) and cells[0, 0].numel() > 1
    average = CLIP(options("clip", pooling="average"))
    assert torch.allclose(average.pool(cells), cells.mean(dim=(2, 3)) @ average.pool[2].weight.T, atol=1e-5)  # type: ignore[index]


# --- CURL


def test_curl_is_its_bilinear_form() -> None:
    method = CURL(options("curl")).eval()
    given = batch("curl")
    q = method.projector(method.encoder(given.views[0]))
    k = method.teacher(given.views[1])
    total = 0.0
    for i in range(IMAGES):
        logits = torch.stack([q[i] @ method.similarity @ k[j] for j in range(IMAGES)])
        total -= logits.log_softmax(0)[i].item() / IMAGES
    assert method.loss(given)[0].item() == pytest.approx(total, rel=1e-5)
    assert method.similarity.min() >= 0 and method.similarity.max() < 1


def test_curls_teacher_follows_before_the_keys() -> None:
    method = CURL(options("curl"))
    before = method.similarity.clone(), [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1)
    method.before_step(0, 1)
    student = [*method.encoder.parameters(), *method.projector.parameters()]
    for old, now, s in zip(before[1], method.teacher.parameters(), student, strict=True):
        assert torch.allclose(now, 0.9 * old + 0.1 * s, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 3])
def test_curls_backbone_sees_a_scene_that_stands_still(frames: int) -> None:
    method = CURL(options("curl", frames=frames))
    method.encoder(torch.rand(4, 3 * frames, 32, 32))  # statistics of batch norm
    backbone = method.backbone()
    assert type(backbone) is ResNet and backbone.conv1.weight.shape[1] == backbone.conv1.in_channels == 3
    images = torch.rand(2, 3, 32, 32)
    expected = method.encoder.eval()(images.repeat(1, frames, 1, 1))
    assert torch.allclose(backbone.eval()(images), expected, atol=1e-4)
    assert method.encoder.conv1.weight.shape[1] == 3 * frames  # a copy
    ResNet(method.encoder.options).load_state_dict(backbone.state_dict())


def videos(folder: Path) -> list[Path]:
    """Two videos of 11 and 2 frames; a pixel of frame i is 10 i (+ 100 in the second), brighter to the lower right."""
    for name, count, base in (("a", 11, 0), ("b", 2, 100)):
        (folder / name).mkdir()
        for i in range(count):
            slope = (np.arange(20)[:, None, None] + np.arange(30)[None, :, None]) // 7
            pixels = np.full((20, 30, 3), base + 10 * i) + slope
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"frame{i}.png")
    return find_images(folder)


@pytest.mark.parametrize("cache", [0, 64])
def test_stacks_are_of_one_video_in_its_order(tmp_path: Path, cache: int) -> None:
    pool = ImagePool(videos(tmp_path), side=64, cache_megabytes=cache)
    expected = {"a/frame0": [0, 0, 0], "a/frame1": [0, 0, 10], "a/frame10": [80, 90, 100], "b/frame0": [100, 100, 100]}
    at = {str(pool.path(i).relative_to(tmp_path).with_suffix("")): i for i in range(len(pool))}
    for name, values in expected.items():
        stack = pool.stack(at[name], 3)
        assert stack.shape == (9, 20, 30) and stack[::3, 0, 0].tolist() == values, name


def test_frames_of_different_sizes_are_refused(tmp_path: Path) -> None:
    for i, width in enumerate((20, 30)):
        Image.new("RGB", (width, 20)).save(tmp_path / f"{i}.png")
    pool = ImagePool(find_images(tmp_path), side=64, cache_megabytes=0)
    with pytest.raises(DataError, match="20 x 20 and 30 x 20 pixels"):
        pool.stack(1, 2)


def test_frames_are_cropped_alike_and_views_are_not(tmp_path: Path) -> None:
    pool = ImagePool(videos(tmp_path), side=64, cache_megabytes=64)
    plan, recipes = BatchPlan(len(pool), 4, 0), RECIPES["curl"]
    for given in view_batches(pool, recipes, 16, plan, start=0, stop=3, workers=0, frames=3):
        assert [view.shape for view in given.views] == [(4, 9, 16, 16)] * 2
        assert not torch.equal(*given.views)
        newest = [int(pool[i][0, 0, 0]) for i in given.index.tolist()]
        for one, value in zip(given.views[0] * 255, newest, strict=True):
            oldest, middle, last = one.unflatten(0, (3, 3))[:, 0]
            assert last.min() >= value - 1
            for earlier, later in ((oldest, middle), (middle, last)):
                step = later - earlier  # the slope of the picture cancels where both are cropped alike
                assert float(step.std()) < 0.5 and min(abs(float(step.mean()) - d) for d in (0, 10)) < 0.5


def test_square_crops_are_of_the_shorter_side() -> None:
    source = torch.Generator().manual_seed(0)
    crops = [sample_square(100, 400, 0.84, source) for _ in range(300)]
    assert {(height, width) for _, _, height, width in crops} == {(84, 84)}
    tops, lefts = zip(*(crop[:2] for crop in crops), strict=True)
    assert (min(tops), max(tops)) == (0, 16) and min(lefts) < 10 and 306 < max(lefts) <= 316
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    recipe = RECIPES["clip"][0]
    view = sample_view(image, recipe, 16, source)
    column = [torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std)]
    assert torch.allclose(view, (image / 255 - column[0]) / column[1], atol=1e-6)  # nothing but the whole square


# --- distillation


def test_distillation_of_classes_is_the_divergence_and_a_constant(teacher: Path) -> None:
    method: Distillation = build("distillation", teacher, targets="classes", temperature=0.7)
    given = batch("distillation")
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    network = ResNet(ResNetOptions(width=1 / 8)).eval()
    file = safetensors.torch.load_file(teacher)
    network.load_state_dict({key: value for key, value in file.items() if not key.startswith("fc.")})
    features = network((given.views[0] - mean) / std)  # the views are in [0, 1]
    target = (features @ file["fc.weight"].T + file["fc.bias"]).div(0.7).softmax(1)
    student = method.head(method.encoder(given.views[0])).div(0.7).log_softmax(1)
    entropy = -(target * target.log()).sum(dim=1).mean()
    expected = F.kl_div(student, target, reduction="batchmean") + entropy
    assert method.loss(given)[0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_named_network_of_a_file_is_the_teacher(teacher: Path, tmp_path: Path) -> None:
    own = {key: value for key, value in safetensors.torch.load_file(teacher).items() if not key.startswith("fc.")}
    query, key = own, {name: value + 1 for name, value in own.items()}
    networks = {"encoder_q.": query, "encoder_k.": key}
    path = tmp_path / "moco.safetensors"
    content = {f"{prefix}{name}": value for prefix, tensors in networks.items() for name, value in tensors.items()}
    safetensors.torch.save_file(content, path)
    for network, tensors in ((None, query), ("encoder_k", key)):
        method: Distillation = build("distillation", path, teacher_network=network)
        found = method.teacher.network[0].state_dict()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_distillation_of_similarities_is_the_loop(teacher: Path) -> None:
    method = Distillation(options("distillation", teacher, temperature=0.2)).train()
    given, queue = batch("distillation"), method.queue.features.clone()
    s = F.normalize(method.head(method.encoder(given.views[0])), dim=1)
    t = F.normalize(method.teacher(converted(given.views[0], method.given, method.wanted)), dim=1)
    total = 0.0
    for i in range(IMAGES):
        others = [t[i], *queue]
        target = torch.stack([t[i] @ other / 0.01 for other in others]).softmax(0)
        logits = torch.stack([s[i] @ other / 0.2 for other in others]).log_softmax(0)
        total -= (target * logits).sum().item() / IMAGES
    assert method.loss(given)[0].item() == pytest.approx(total, rel=1e-4)
    assert torch.allclose(method.queue.features[:IMAGES], t, atol=1e-6) and int(method.queue.filled) == IMAGES


def test_the_teacher_is_finished(teacher: Path) -> None:
    method = Distillation(options("distillation", teacher)).train()
    before = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    train(method, "distillation", 3)
    assert all(torch.equal(value, before[key]) for key, value in method.teacher.state_dict().items())
    assert method.encoder.training and not method.teacher.network.training
    trained = {id(p) for group in method.param_groups(0.1) for p in group["params"]}
    assert not trained & {id(p) for p in method.teacher.parameters()}
    assert method.backbone() is method.encoder


def test_views_reach_the_teacher_as_it_knows_them() -> None:
    image = torch.rand(2, 3, 4, 4)
    given = RECIPES["moco_v2"][0].preprocess()
    mean, std = (torch.tensor(given[key])[:, None, None] for key in ("mean", "std"))  # type: ignore[literal-required]
    caffe: Any = {"order": "BGR", "range": 255.0, "mean": [103.5, 116.3, 123.7], "std": [1.0, 2.0, 3.0]}
    found = converted((image - mean) / std, given, caffe)
    for channel in range(3):
        expected = (image[:, 2 - channel] * 255 - caffe["mean"][channel]) / caffe["std"][channel]
        assert torch.allclose(found[:, channel], expected, atol=1e-3)
    assert torch.allclose(converted(image, given, given), image, atol=1e-6)


def test_classifiers_of_several_files(teacher: Path, tmp_path: Path) -> None:
    dim = 64
    assert read_classifier(teacher, dim).weight.shape == (5, dim)
    torch.save({"model": {"module.head.weight": torch.ones(3, dim)}}, tmp_path / "head.pth")
    found = read_classifier(tmp_path / "head.pth", dim)
    assert found.bias is None and torch.equal(found.weight, torch.ones(3, dim))
    layer = {"weight": torch.ones(3, dim), "bias": torch.full((3,), 2.0)}
    torch.save({**layer, "other.weight": torch.ones(2, 9)}, tmp_path / "layer.pth")
    assert read_classifier(tmp_path / "layer.pth", dim).bias.tolist() == [2, 2, 2]
    torch.save({"a.weight": torch.ones(3, dim), "b.weight": torch.ones(4, dim)}, tmp_path / "two.pth")
    with pytest.raises(CheckpointError, match=r"holds 2 classifiers of 64 features: a.weight, b.weight"):
        read_classifier(tmp_path / "two.pth", dim)
    with pytest.raises(CheckpointError, match="holds 0 classifiers of 63 features"):
        read_classifier(teacher, 63)


def test_a_teacher_must_be_named_and_see_colours(teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.teacher is not given"):
        Distillation(options("distillation"))
    with pytest.raises(ConfigError, match="not both RGB"):
        Distillation(dataclasses.replace(options("distillation", teacher), views="cmc_lab"))


# --- all of them, from files


class Killed(Exception):
    """Stands for the power cut."""


@pytest.mark.parametrize("name", list(CHANNELS))
def test_resume_is_exact(name: str, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = videos(folder)
    with (tmp_path / "captions.jsonl").open("w") as file:
        for path in paths:
            file.write(f'{{"image": "{path.relative_to(folder)}", "caption": "{path.parent.name} {path.stem}"}}\n')
    captions = str(tmp_path / "captions.jsonl")
    own = {"captions": captions, "text_width": 16, "context_length": 16} if name == "clip" else {}
    chosen = dataclasses.replace(
        options(name, teacher, **own),
        images=str(folder),
        steps=4,
        batch_size=4,
        checkpoint_every=1,
        optimizer="adamw",
        lr=1e-3,
    )
    whole = pretrain(chosen, paths, tmp_path / "whole", seed=7)
    method = chosen.method.implementation()
    after_backward = method.after_backward

    def kill(self: Method, step: int, steps: int) -> None:
        if step == 2:
            raise Killed
        after_backward(self, step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(method, "after_backward", kill)
        with pytest.raises(Killed):
            pretrain(chosen, paths, tmp_path / "cut", seed=7)
    torch.manual_seed(12345)
    cut = pretrain(chosen, paths, tmp_path / "cut", seed=7, resume=True)
    assert cut.path.read_bytes() == whole.path.read_bytes()
    ResNet(chosen.arch).load_state_dict(safetensors.torch.load_file(cut.path))
