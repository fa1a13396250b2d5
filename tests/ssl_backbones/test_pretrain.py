"""The loop end to end, tiny: exact resume, a finished run, the card, bad numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from openworld.errors import CheckpointError, ConfigError, DataError, NumericsError
from openworld.runtime.checkpoint import newest_valid, save_checkpoint
from openworld.runtime.files import sha256_of
from openworld.runtime.images import find_images
from openworld.runtime.runlog import RunLog
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.method import Batch, Method
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.methods.simclr import SimCLR
from ssl_backbones.methods.simclr_options import SimCLROptions
from ssl_backbones.methods.sup_con import SupCon
from ssl_backbones.methods.sup_con_options import SupConOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.pretrain import pretrain
from ssl_backbones.probes.labelled import LabelledCrops
from ssl_backbones.views import RECIPES

TINY: dict[str, Any] = {
    "view_size": 32,
    "steps": 5,
    "batch_size": 4,
    "warmup": 1,
    "checkpoint_every": 2,
    "knn_k": 3,
}


def options(method: MethodOptions | None = None, **changes: Any) -> PretrainOptions:
    method = SimCLROptions() if method is None else method
    return PretrainOptions(method=method, arch=ResNetOptions(width=0.125), **{**TINY, **changes})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for i in range(9):
        path = folder / "ab"[i // 5] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60)).save(path)
    return find_images(folder)


def crops() -> LabelledCrops:
    random = np.random.default_rng(1)
    red = [
        random.integers(0, 60, (20, 30, 3), dtype=np.uint8) + np.array([180, 0, 0], dtype=np.uint8) for _ in range(5)
    ]
    blue = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) for image in red[:3]]
    return [*red, *blue], ["red"] * 5 + ["blue"] * 3


class Killed(Exception):
    """Stands for the power cut."""


def kill_in_the_first_step(
    monkeypatch: pytest.MonkeyPatch, paths: list[Path], output: Path, chosen: PretrainOptions
) -> None:
    """Leave the checkpoint that a pretraining with SimCLR begins with."""

    def kill(self: object, step: int, steps: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "after_step", kill)
        with pytest.raises(Killed):
            pretrain(chosen, paths, output, seed=0)


RESUMED_HERE = ("simclr", "moco_v1", "moco_v2", "moco_v3", "byol", "simsiam", "barlow_twins", "sup_con")


@pytest.mark.parametrize(
    ("name", "kill_at"),
    [("simclr", 1), ("moco_v2", 1), *((name, 4) for name in RESUMED_HERE)],
)
def test_resume_is_exact(
    name: str, kill_at: int, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own: dict[str, Any] = {}
    if name in ("moco_v1", "moco_v2"):
        own = {"queue_size": 10, "shuffle_groups": 1 if kill_at == 1 else 2}  # groups of two images at least
    chosen = options(
        MethodOptions.named(name)(**own),
        views=name if name in RECIPES else "moco_v2",
        images="photos",
        accumulate=2 if kill_at == 1 else 1,
        probe_every=2,
    )
    whole_log, log = RunLog(tmp_path / "whole.jsonl"), RunLog(tmp_path / "metrics.jsonl")
    for each in (whole_log, log):
        each.append("phase", stage="world", task=None, seconds=1.0)
    whole = pretrain(chosen, paths, tmp_path / "whole", seed=7, log=whole_log, labelled_crops=crops())

    method = chosen.method.implementation()
    after_step = method.after_step

    def kill(self: Method, step: int, steps: int) -> None:
        if step == kill_at:
            raise Killed
        after_step(self, step, steps)

    with monkeypatch.context() as patch:
        patch.setattr(method, "after_step", kill)
        with pytest.raises(Killed):
            pretrain(chosen, paths, tmp_path / "cut", seed=7, resume=True, log=log, labelled_crops=crops())
    torch.manual_seed(12345)
    cut = pretrain(chosen, paths, tmp_path / "cut", seed=7, resume=True, log=log, labelled_crops=crops())
    assert cut.path.read_bytes() == whole.path.read_bytes()
    assert cut.card == whole.card
    assert log.read() == whole_log.read()
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_backbone_and_card(paths: list[Path], tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    result = pretrain(options(views="simclr"), paths, tmp_path / "b", seed=1, log=log, labelled_crops=crops())
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert card == result.card
    assert (card["method"], card["steps"], card["seed"], card["data"]["images"]) == ("simclr", 5, 1, 9)
    assert card["preprocess"] == {"order": "RGB", "range": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert card["sha256"] == sha256_of(result.path)
    assert card["arch"] == dataclasses.asdict(ResNetOptions(width=0.125))
    knn = card["knn"]
    assert (knn["chance"], knn["k"], knn["samples"], knn["leave_one_out"]) == (5 / 8, 3, 8, True)
    linear = card["linear"]  # the fifth red one alone is held out
    assert (linear["train_samples"], linear["test_samples"], linear["chance"]) == (7, 1, 1)
    assert card["alignment"]["samples"] == 9 and card["alignment"]["trained"] != card["alignment"]["untrained"]
    assert card["collapse"]["collapsed_at"] is None
    assert 0 <= knn["trained"] <= 1
    assert knn["untrained"] > knn["chance"]  # red and blue part without training
    tensors = safetensors.torch.load_file(result.path)
    ResNet(ResNetOptions(**card["arch"])).load_state_dict(tensors)
    steps = log.read()
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5]
    assert set(steps[0]) == {"event", "stage", "step", "loss", "lr", "spread", "feature_std", "effective_rank"}
    assert steps[0]["loss"] == pytest.approx(np.log(7), abs=2)


def test_a_finished_run_is_returned_at_once(
    paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it is resumed with the same options and images, wherever these lie; and nothing is written."""
    first = pretrain(options(steps=1), paths, tmp_path / "b", seed=0)
    written = first.path.stat().st_mtime_ns
    shutil.copytree(paths[0].parents[1], tmp_path / "moved")
    for same in (paths, find_images(tmp_path / "moved")):
        again = pretrain(options(steps=1, log_every=9), same, tmp_path / "b", seed=0, resume=True)
        assert again == first and first.path.stat().st_mtime_ns == written
    assert capsys.readouterr().err.count("is finished already") == 2
    with pytest.raises(CheckpointError, match="made with steps 1, now it is 2"):
        pretrain(options(steps=2), paths, tmp_path / "b", seed=0, resume=True)
    first.path.write_bytes(b"damaged")
    assert pretrain(options(steps=1), paths, tmp_path / "b", seed=0, resume=True).card == first.card


def test_a_backbone_is_not_overwritten(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished, or with more than its first checkpoint; nor is a run. A start that failed at once leaves it free."""
    pretrain(options(steps=1), paths, tmp_path / "done", seed=0)
    before = {path: path.read_bytes() for path in (tmp_path / "done").iterdir()}
    for steps, images in ((1, paths), (2, paths), (1, paths[1:])):
        with pytest.raises(ConfigError, match=r"holds a backbone already\n.*--resume"):
            pretrain(options(steps=steps), images, tmp_path / "done", seed=0)
    assert {path: path.read_bytes() for path in (tmp_path / "done").iterdir()} == before

    def kill(self: object, step: int, steps: int) -> None:
        if step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(SimCLR, "after_step", kill)
        with pytest.raises(Killed):
            pretrain(options(), paths, tmp_path / "begun", seed=0)
    with pytest.raises(ConfigError, match="holds a pretraining of 2 steps already"):
        pretrain(options(), paths, tmp_path / "begun", seed=0)
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "data.json"):
        (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(ConfigError, match="holds a run"):
        pretrain(options(), paths, tmp_path / "run", seed=0)
    kill_in_the_first_step(monkeypatch, paths, tmp_path / "failed", options(lr=9.0))
    assert pretrain(options(steps=1), paths, tmp_path / "failed", seed=0).card["steps"] == 1


def replaced(paths: list[Path], folder: Path, number: int, name: str) -> list[Path]:
    """A copy of the images, of which one has another name."""
    shutil.copytree(paths[0].parents[1], folder)
    old = find_images(folder)[number]
    old.rename(old.with_name(name))
    return find_images(folder)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_backbone_of_other_images_is_not_returned(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Finished or not: fewer images, as many with another name, or in another order. Other pixels are said."""
    if steps == 1:
        pretrain(options(steps=1), paths, tmp_path / "b", seed=0)
    else:
        kill_in_the_first_step(monkeypatch, paths, tmp_path / "b", options(steps=5))
    others = {
        "9 files then, 8 now": paths[1:],
        "9 files as then, with other names": replaced(paths, tmp_path / "named", 3, "z.png"),
        "or in another order": paths[::-1],
    }
    for says, images in others.items():
        with pytest.raises(CheckpointError, match=f"was made of other images: .*{says}"):
            pretrain(options(steps=steps), images, tmp_path / "b", seed=0, resume=True)
    assert not caplog.text
    shutil.copytree(paths[0].parents[1], tmp_path / "drawn")
    drawn = find_images(tmp_path / "drawn")
    Image.new("RGB", (80, 60)).save(drawn[0])
    pretrain(options(steps=steps), drawn, tmp_path / "b", seed=0, resume=True)
    assert "if other pictures took their names" in caplog.text


def test_a_card_of_an_older_version_is_compared_as_far_as_it_goes(
    paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = pretrain(options(steps=1), paths, tmp_path, seed=0)
    card = {name: value for name, value in first.card.items() if name != "files"}
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert pretrain(options(steps=1), paths, tmp_path, seed=0, resume=True).card == card
    assert "not noted of which images" in caplog.text


@pytest.mark.parametrize(
    ("method", "batch_size", "warnings"),
    [
        (SimCLROptions(), 64, ["batch_size is 64 and there are 9 images: every step takes all of them"]),
        (SimCLROptions(), 8, []),
        (MethodOptions.named("moco_v2")(queue_size=9), 4, ["method.queue_size is 9 and there are 9 images"]),  # type: ignore[call-arg]
        (MethodOptions.named("moco_v2")(queue_size=8), 4, []),  # type: ignore[call-arg]
        (MethodOptions.named("instdisc")(), 4, ["method.negatives is 512 and there are 9 images"]),  # type: ignore[call-arg]
        (MethodOptions.named("instdisc")(form="softmax"), 4, []),  # type: ignore[call-arg]
    ],
    ids=["batch", "no batch", "queue", "no queue", "bank", "whole bank"],
)
def test_too_few_images_are_said(
    paths: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    method: MethodOptions,
    batch_size: int,
    warnings: list[str],
) -> None:
    views = method.name if method.name in RECIPES else "moco_v2"
    chosen = options(method, views=views, batch_size=batch_size, steps=0)
    pretrain(chosen, paths, tmp_path, seed=0)
    assert len(caplog.messages) == len(warnings)
    assert all(text in message for text, message in zip(warnings, caplog.messages, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda there, state: there.pop("knn_k"), "with knn_k None, now it is 3"),
        (lambda there, state: there["arch"].update(colour=3), r"with arch\.colour 3, now it is None"),
        (lambda there, state: there["arch"].update(width=0.5), r"with arch\.width 0\.5, now it is 0\.125"),
        (lambda there, state: state.pop("meter"), "entry 'meter' is missing"),
        (lambda there, state: state.update(optimizer={}), "entry .* is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any], dict[str, Any]], Any],
    message: str,
) -> None:
    kill_in_the_first_step(monkeypatch, paths, tmp_path, options(steps=1))
    found = newest_valid(tmp_path / "checkpoints")
    assert found is not None
    there, state = json.loads(found.state["identity"]), found.state
    change(there, state)
    state["identity"] = json.dumps(there)
    save_checkpoint(found.path.parent, found.path.name, position=(0,), tensors=found.tensors, state=state)
    if message is None:
        assert pretrain(options(steps=1), paths, tmp_path, seed=0, resume=True).card["steps"] == 1
        return
    with pytest.raises(CheckpointError, match=f"pretrain-0000000: .*{message}"):
        pretrain(options(steps=1), paths, tmp_path, seed=0, resume=True)


def test_resume_with_other_images_is_refused(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_in_the_first_step(monkeypatch, paths, tmp_path, options())
    with pytest.raises(CheckpointError, match="was made of other images: 9 files then, 8 now"):
        pretrain(options(), paths[1:], tmp_path, seed=0, resume=True)


def test_a_loss_that_is_no_number_never_reaches_the_weights(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = []

    def poisoned(self: SimCLR, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return self.encoder(batch.views[0]).sum() * float("nan"), {}

    monkeypatch.setattr(SimCLR, "loss", poisoned)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: stepped.append(1))
    with pytest.raises(NumericsError, match="the loss is nan at step 1"):
        pretrain(options(), paths, tmp_path, seed=0)
    assert not stepped


def test_epochs_and_half_precision(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, list[int]]] = []

    def note(self: object, epoch: int, eval_batches: Callable[[], Iterable[Batch]]) -> None:
        seen.append((epoch, [i for batch in eval_batches() for i in batch.index.tolist()]))

    monkeypatch.setattr(SimCLR, "before_epoch", note)
    pretrain(options(precision="bf16", optimizer="lars"), paths, tmp_path, seed=0)
    assert seen == [(epoch, list(range(9))) for epoch in range(3)]  # 9 images, batches of 4: 2 steps an epoch


def test_labels_are_the_folders(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, int] = {}
    loss = SupCon.loss

    def note(self: SupCon, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        assert batch.labels is not None
        seen.update(zip(batch.index.tolist(), batch.labels.tolist(), strict=True))
        return loss(self, batch)

    monkeypatch.setattr(SupCon, "loss", note)
    chosen = options(method=SupConOptions(), images="photos")
    result = pretrain(chosen, paths, tmp_path, seed=0)
    assert seen == {i: int(path.parent.name == "b") for i, path in enumerate(paths)}
    with pytest.raises(DataError, match="the 5 images have no labels: all lie in a folder named a"):
        pretrain(chosen, paths[:5], tmp_path / "one", seed=0)
    with pytest.raises(ConfigError, match="sup_con learns from labels"):
        pretrain(options(method=SupConOptions()), paths, tmp_path / "world", seed=0)
    assert result.card["data"] == {"images": 9, "source": "photos", "labels": "names of folders"}


def test_no_steps_is_the_untrained_network(paths: list[Path], tmp_path: Path) -> None:
    card = pretrain(options(steps=0), paths, tmp_path, seed=0).card
    assert card["knn"] is card["linear"] is None
    assert card["collapse"] == {"collapsed_at": None, "first_rank": None}


def test_gradients_of_micro_batches_are_averaged(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that is a mean over images, without batch norm: two micro-batches are one batch."""

    def loss(self: SimCLR, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return self.encoder(batch.views[0]).square().sum(dim=1).mean(), {"images": float(len(batch.index))}

    monkeypatch.setattr(SimCLR, "loss", loss)
    found, sizes = [], []
    for accumulate in (1, 2):
        log = RunLog(tmp_path / f"{accumulate}.jsonl")
        chosen = options(accumulate=accumulate, steps=3, lr=1e-4)
        chosen.arch = ResNetOptions(width=0.125, norm="frozen")
        result = pretrain(chosen, paths, tmp_path / str(accumulate), seed=0, log=log)
        found.append(safetensors.torch.load_file(result.path))
        sizes.append([entry["images"] for entry in log.read()])
    assert sizes == [[4, 4, 4], [2, 2, 2]]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="batch_size is 4 of 9 images, for 1 processes with 3 micro-batches"):
        pretrain(options(accumulate=3), paths, tmp_path / "three", seed=0)


def test_collapse_is_in_the_log_and_on_the_card(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(self: SimCLR, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        return self.encoder(batch.views[0]).sum() * 0, {"spread": 0.0}

    monkeypatch.setattr(SimCLR, "loss", loss)
    log = RunLog(tmp_path / "metrics.jsonl")
    card = pretrain(options(), paths, tmp_path / "b", seed=0, log=log).card
    assert [entry["step"] for entry in log.read() if entry["event"] == "collapse"] == [3]
    assert card["collapse"]["collapsed_at"] == 3


def test_classes_of_the_images_are_probed(paths: list[Path], tmp_path: Path) -> None:
    """Folders a (5 images) and b (4): the fifth of a is held out. Neighbours are other images of the set."""
    log = RunLog(tmp_path / "metrics.jsonl")
    chosen = options(images=str(paths[0].parents[1]), probe_every=2)
    card = pretrain(chosen, paths, tmp_path / "b", seed=0, log=log, neighbours_of=2).card
    assert (card["knn"]["samples"], card["knn"]["test_samples"], card["knn"]["chance"]) == (8, 1, 1)
    assert card["knn"]["source"] == chosen.images and card["linear"]["test_samples"] == 1
    assert [entry["step"] for entry in log.read() if entry["event"] == "probe"] == [0, 2, 4]
    queries = json.loads((tmp_path / "b" / "neighbours.json").read_text())["queries"]
    assert len(queries) == 2
    for query in queries:
        for side in ("trained", "untrained"):
            near = [entry["image"] for entry in query[side]]
            assert len(set(near)) == 5 and query["image"] not in near and set(near) <= {str(path) for path in paths}
    taught = pretrain(options(method=SupConOptions(), images=chosen.images), paths, tmp_path / "taught", seed=0).card
    assert taught["knn"] is None  # it has learned from these labels
    apart = options(method=SupConOptions(), images=chosen.images, labelled=chosen.images, steps=0)
    assert pretrain(apart, paths, tmp_path / "apart", seed=0).card["knn"]["samples"] == 8


def test_crops_that_are_no_images(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 crops but 1 labels"):
        pretrain(options(), paths, tmp_path, seed=0, labelled_crops=([np.zeros((4, 4, 3), np.uint8)] * 2, [0]))
    with pytest.raises(DataError, match=r"float32 of shape \(3, 0, 4\)"):
        pretrain(options(), paths, tmp_path, seed=0, labelled_crops=([torch.zeros(3, 0, 4)] * 2, [0, 1]))
