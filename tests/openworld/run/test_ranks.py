"""A run of two gloo processes against the same run of one: losses, weights, exemplars, energies, predictions, scores.

Everything computes in float64, which tells what is equal but for rounding from what is nearly equal.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from torch import Tensor
from torch import distributed as dist

from openworld.config import PhaseOptions, RunConfig
from openworld.data.options import DataOptions, ExemplarOptions, LoaderOptions, SyntheticOptions
from openworld.detector import Detector
from openworld.distillation.options import DistillationOptions
from openworld.engines.options import ModelOptions, RoiOptions, RpnOptions
from openworld.errors import ConfigError
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, OreOptions, UnknownLabelOptions
from openworld.run import evaluate
from openworld.run.folder import Run, check_shares
from openworld.run.schedule import run_schedule
from openworld.runtime import distributed
from ssl_backbones.backbones import ResNetOptions
from tests.double_precision import in_double_precision
from tests.two_processes import TwoProcesses


def phase(steps: int) -> PhaseOptions:
    """Two images a process; SGD, which rounding moves no further than it is (Adam divides by small numbers)."""
    return PhaseOptions(
        steps=steps,
        batch_size=4,
        lr=1e-3,
        optimizer="sgd",
        warmup_steps=1,
        ema_decay=0.5,
        validate_every=2,
        checkpoint_every=2,
    )


def config() -> RunConfig:
    """BatchNorm is trained, images differ in size, prototypes start in the second step and move in the third.

    The batches of the replay come in two parts, one image a process.

    Few proposals, so that rounding finds no two of nearly equal objectness to swap.
    """
    return RunConfig(
        name="ranks",
        data=DataOptions(
            tasks=[["ball", "cube"], ["star", "ring"]],
            synthetic=SyntheticOptions(train_images=16, val_images=20, test_images=20, pretrain_images=0, size=64),
            loader=LoaderOptions(min_size=64, max_size=64, scale_jitter=[0.5, 1.0]),
        ),
        pretrain=None,
        model=ModelOptions(
            arch=ResNetOptions(width=0.125),
            fpn_channels=8,
            rpn=RpnOptions(train_candidates=5, train_proposals=12, test_proposals=20, anchor_sizes=[8, 16, 32, 64]),
            roi=RoiOptions(sampled_regions=8, hidden_dim=16, score_threshold=0.02),
            device="cpu",
        ),
        method=OreOptions(
            unknown_labels=UnknownLabelOptions(per_image=2, max_iou=0.3),
            clustering=ClusteringOptions(weight=0.01, start_step=1, update_every=2, items_per_class=6),
            energy=EnergyOptions(min_samples=5),
        ),
        exemplars=ExemplarOptions(per_class=2, strategy="herding", during_training=0.25),
        distillation=DistillationOptions(pseudo_label_score=0.05, class_weight=1, box_weight=1, feature_weight=0.1),
        train=phase(3),
        increment=phase(2),
        replay=replace(phase(2), accumulate=2),
    )


@contextmanager
def counted_messages() -> Iterator[dict[str, list[int]]]:
    """Bytes of each tensor that the block hands to a collective, by kind; ``gradients`` are those sent ahead."""
    sent: dict[str, list[int]] = {"all_reduce": [], "all_gather": [], "gradients": []}
    add_up, gather = dist.all_reduce, dist.all_gather

    def all_reduce(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        sent["gradients" if named.get("async_op") else "all_reduce"].append(tensor.nbytes)
        return add_up(tensor, *arguments, **named)

    def all_gather(parts: list[Tensor], tensor: Tensor) -> None:
        sent["all_gather"].append(tensor.nbytes)
        gather(parts, tensor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", all_reduce)
        patch.setattr(dist, "all_gather", all_gather)
        yield sent


def cut_to_the_second_step(run: Path, target: Path) -> None:
    """What was on the disk when a run had done two steps of its first task."""
    shutil.copytree(run, target)
    shutil.rmtree(target / "task2")
    for path in (target / "task1").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(target.parent / "second step", target / "task1" / "checkpoint" / "train-000002")


def process(rank: int, folder: Path) -> None:
    with in_double_precision():
        with counted_messages() as sent:
            run_schedule(config(), folder / "two", resume=False)
        (folder / f"traffic{rank}.json").write_text(json.dumps(sent))
        for name in ("scored anew", "from the second step"):
            run_schedule(config(), folder / name, resume=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, two_processes: TwoProcesses) -> Path:
    """``one``, ``two``, and runs that one process began and two finished."""
    folder = tmp_path_factory.mktemp("ranks")

    def keep_second_step(run: Run, task: int, detector: Detector) -> dict[str, Any]:
        if task == 1:
            shutil.copytree(run.task_folder(1) / "checkpoint" / "train-000002", folder / "second step")
        return original(run, task, detector)

    original = evaluate.calibrate
    with in_double_precision() as patch:
        patch.setattr(evaluate, "calibrate", keep_second_step)
        run_schedule(config(), folder / "one", resume=False)
    shutil.copytree(folder / "one", folder / "scored anew")
    for name in ("metrics.json", "predictions.json", "calibration.json", "checkpoint/calibrate-000001"):
        path = folder / "scored anew" / "task2" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    cut_to_the_second_step(folder / "one", folder / "from the second step")
    two_processes.run(process, folder)
    return folder


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["event"] == kind]


def steps(run: Path) -> list[dict[str, Any]]:
    return events(run, "step")


def weights(run: Path, task: int, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(run / f"task{task}" / "checkpoint" / name / "model.safetensors")


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """To 1e-12 of the tensor's largest value, at least of 1."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        one, two = tensor.double().nan_to_num(), second[name].double().nan_to_num()  # NaN: no energy is fitted yet
        assert float((one - two).abs().max()) <= 1e-12 * max(1.0, float(one.abs().max())), name


def test_parts_that_do_not_divide_the_batch_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = config()
    with pytest.raises(ConfigError, match=r"increment\.accumulate is 3, which does not divide the batch of 4"):
        check_shares(replace(plain, increment=replace(plain.increment, accumulate=3)))
    in_parts = replace(plain, replay=replace(plain.replay, accumulate=4))
    check_shares(in_parts)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(
        ConfigError, match=r"replay\.batch_size is 4, which 2 processes cannot share equally in 4 parts"
    ):
        check_shares(in_parts)


@pytest.mark.parametrize("other", ["two", "from the second step"])
def test_every_loss_and_every_weight_is_that_of_one_process(runs: Path, other: str) -> None:
    expected, got = steps(runs / "one"), steps(runs / other)
    assert len(expected) == len(got) == 7
    assert any(entry["losses"]["clustering"] > 0 for entry in expected)
    for one, two in zip(expected, got, strict=True):
        assert {**two, "loss": 0, "losses": 0} == {**one, "loss": 0, "losses": 0}
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-12, abs=1e-12)
    validations = events(runs / "one", "validation")
    assert events(runs / other, "validation") == validations
    assert [(entry["task"], entry["stage"], entry["step"]) for entry in validations] == [
        (1, "train", 2),
        (1, "train", 3),
        (2, "train", 2),
        (2, "replay", 2),
    ]
    for task, name in ((1, "train-000003"), (2, "replay-000002")):
        assert_close(weights(runs / "one", task, name), weights(runs / other, task, name))


def test_exemplars_and_scores_are_those_of_one_process(runs: Path) -> None:
    for task in ("task1", "task2"):
        exemplars = [json.loads((runs / run / task / "exemplars.json").read_text()) for run in ("one", "two")]
        assert exemplars[0] == exemplars[1] and exemplars[0]["images"]
        one, two = (json.loads((runs / run / task / "metrics.json").read_text()) for run in ("one", "two"))
        for name in ("known_ap50", "current_ap50", "unknown_recall50", "unknown_ap50", "wi", "a_ose"):
            assert two[name] == pytest.approx(one[name], abs=1e-12), name


def test_the_same_weights_give_the_same_energies_and_the_same_predictions(runs: Path) -> None:
    """To the last digit, and in the order of the images: two processes fitted, detected and scored with the weights
    that one process had trained."""
    for name in ("calibration.json", "predictions.json", "metrics.json"):
        one, two = ((runs / run / "task2" / name).read_bytes() for run in ("one", "scored anew"))
        assert one == two, name
    images = json.loads((runs / "one" / "task2" / "predictions.json").read_text())
    assert len(images["images"]) == 20


def test_only_the_first_process_writes(runs: Path) -> None:
    numbered = [(entry["stage"], entry["task"], entry["step"]) for entry in steps(runs / "two")]
    assert len(numbered) == len(set(numbered))
    left = [path.name for path in (runs / "two").rglob("*") if path.name.startswith(".tmp") or "partial" in path.name]
    assert left == []
    assert json.loads((runs / "two" / "env.json").read_text())["processes"] == 2


def test_a_step_sends_the_gradients_once_and_little_else(runs: Path) -> None:
    """Seven steps in float64, against the formulas of docs/scaling.md with 8 bytes in place of 4.

    Two of them compute a batch in two parts, so that there are nine forward and backward passes.
    """
    first, second = (json.loads((runs / f"traffic{rank}.json").read_text()) for rank in range(2))
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    gradients, channels = [], Counter[int]()
    for task, name, count, passes in ((1, "train-000003", 3, 3), (2, "replay-000002", 4, 6)):
        engine = {key: value for key, value in weights(runs / "two", task, name).items() if key.startswith("engine.")}
        trained = [
            value.numel() for key, value in engine.items() if not key.endswith((*statistics, "pixel_mean", "pixel_std"))
        ]
        gradients += count * [8 * (sum(trained) + len(trained))]
        for key, value in engine.items():
            if key.endswith("running_mean"):
                channels[len(value)] += passes
    assert first["gradients"] == gradients == second["gradients"]

    added = Counter(first["all_reduce"])
    # Losses and their sum; in task 2 three more, of the teacher.
    assert added.pop(6 * 8) == 3 and added.pop(9 * 8) == 4
    assert added.pop(2 * 8) == 9  # size of the padded batch
    # Divisors of the losses: RPN, box head, the teacher in task 2, and ORE once it has prototypes.
    assert 18 + 6 < added.pop(4) <= 18 + 6 + 9
    added.pop(8)  # barriers
    assert added == {2 * 8 * width: count for width, count in channels.items()}  # BatchNorm, backward

    gathered = Counter(first["all_gather"])
    gathered.subtract({3 * 8 * width: count for width, count in channels.items()})  # BatchNorm, forward
    assert min(gathered.values()) >= 0
    largest = max(size for size, count in gathered.items() if count)
    assert (
        0 < largest <= 2 * 8 * 16 * 8
    )  # features that ORE remembers: at most 8 regions of two images, 16 numbers each


def test_a_batch_that_the_processes_cannot_share_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match=r"train\.batch_size is 4, which 3 processes"):
        check_shares(config())
