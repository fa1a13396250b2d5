"""Whose folder it is: new runs, runs that go on, and starts that failed; and the architecture that is written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openworld.config import RunConfig
from openworld.configfile import dump_config, read_config
from openworld.engines.options import ModelOptions
from openworld.errors import CheckpointError, ConfigError, DataError
from openworld.run.folder import claim, with_arch
from openworld.run.schedule import run_schedule
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.options import PretrainOptions

SMALL = ResNetOptions(width=0.125)


def backbone(path: Path, arch: ResNetOptions = SMALL) -> Path:
    torch.save(ResNet(arch).state_dict(), path)
    return path


def with_weights(path: Path, arch: ResNetOptions | None = None) -> RunConfig:
    return RunConfig(pretrain=None, model=ModelOptions(weights=str(path), arch=arch))


def begin(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"event": "step"}\n')


# -- the architecture -------------------------------------------------------------------------------------------------


def test_the_architecture_is_written_out(tmp_path: Path) -> None:
    given = ResNetOptions(width=0.25, stride_in_1x1=True)
    cases = {
        "weights": (with_weights(backbone(tmp_path / "r18.pth")), replace(SMALL, stem_width=8)),
        "given": (with_weights(tmp_path / "gone.pth", given), given),
        "pretrain": (RunConfig(pretrain=PretrainOptions(arch=given)), given),
        "random": (RunConfig(pretrain=None), ResNetOptions()),
    }
    for name, (config, arch) in cases.items():
        claimed = claim(config, tmp_path / name, resume=False)
        assert claimed.model.arch == arch, name
        assert (
            read_config(tmp_path / name / "config.yaml")
            == claimed
            == replace(config, model=replace(config.model, arch=arch))
        )


def test_another_network_than_the_pretraining_is_refused() -> None:
    config = RunConfig(pretrain=PretrainOptions(arch=SMALL), model=ModelOptions(arch=ResNetOptions(width=0.25)))
    with pytest.raises(ConfigError, match=r"model\.arch .* is not the network of pretrain\.arch"):
        with_arch(config)


def test_resuming_may_leave_the_architecture_open(tmp_path: Path) -> None:
    """As it was left open when the run began; with the weight file there, and without it."""
    file, folder = backbone(tmp_path / "r18.pth"), tmp_path / "run"
    claimed = claim(with_weights(file), folder, resume=False)
    begin(folder)
    assert claim(with_weights(file), folder, resume=True) == claimed
    assert claim(claimed, folder, resume=True) == claimed
    file.unlink()
    assert claim(with_weights(file), folder, resume=True) == claimed


def test_the_network_that_is_taken_is_written_out(tmp_path: Path) -> None:
    """Of two in the file; a run that goes on keeps it, with the file there and without it."""
    query, key = ResNet(SMALL).state_dict(), ResNet(SMALL).state_dict()
    names = {"encoder_q.": query, "encoder_k.": key}
    file, folder = tmp_path / "moco.pth", tmp_path / "run"
    torch.save({f"{prefix}{name}": value for prefix, own in names.items() for name, value in own.items()}, file)
    for arch in (None, SMALL):
        config = with_weights(file, arch)
        assert claim(config, folder, resume=False).model.weights_network == "encoder_q."
    begin(folder)
    claimed = read_config(folder / "config.yaml")
    assert claimed.model.weights_network == "encoder_q."
    asked = replace(config, model=replace(config.model, weights_network="encoder_k."))
    assert claim(config, folder, resume=True) == claim(claimed, folder, resume=True) == claimed
    with pytest.raises(ConfigError, match=r"weights_network: 'encoder_q\.' → 'encoder_k\.'"):
        claim(asked, folder, resume=True)
    assert claim(asked, tmp_path / "other", resume=False).model.weights_network == "encoder_k."
    file.unlink()
    assert claim(config, folder, resume=True) == claimed


def test_resuming_with_another_architecture_is_refused(tmp_path: Path) -> None:
    file, folder = backbone(tmp_path / "r18.pth"), tmp_path / "run"
    claim(with_weights(file), folder, resume=False)
    begin(folder)
    with pytest.raises(ConfigError, match=r"model\.arch\.width: 0\.125 → 0\.25"):
        claim(with_weights(file, ResNetOptions(width=0.25)), folder, resume=True)
    backbone(file, ResNetOptions(width=0.25))
    with pytest.raises(ConfigError, match=r"model\.arch\.stem_width: 8 → 16"):
        claim(with_weights(file), folder, resume=True)
    random = tmp_path / "random"
    claim(RunConfig(pretrain=None, model=ModelOptions(arch=SMALL)), random, resume=False)
    begin(random)
    with pytest.raises(ConfigError, match=r"model\.arch\.width: 0\.125 → 0\.5"):
        claim(RunConfig(pretrain=None), random, resume=True)  # null is the demo's


# -- whose folder -----------------------------------------------------------------------------------------------------


def test_a_run_that_has_begun_is_not_taken_over(tmp_path: Path) -> None:
    config = RunConfig(pretrain=None)
    for name, path in {"log": "metrics.jsonl", "stage": "task1/checkpoint/train-000100/manifest.json"}.items():
        folder = tmp_path / name
        claim(config, folder, resume=False)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}\n")
        with pytest.raises(ConfigError, match="holds a run already"):
            claim(config, folder, resume=False)
        with pytest.raises(ConfigError, match="seed: 0 → 1"):
            claim(replace(config, seed=1), folder, resume=True)


def test_exemplars_of_a_failed_start_are_chosen_again(tmp_path: Path) -> None:
    claim(RunConfig(pretrain=None), tmp_path, resume=False)
    (tmp_path / "task1").mkdir()
    (tmp_path / "task1" / "exemplars.json").write_text("{}")
    claim(RunConfig(pretrain=None, seed=1), tmp_path, resume=False)
    assert not (tmp_path / "task1" / "exemplars.json").exists()
    assert read_config(tmp_path / "config.yaml").seed == 1


@pytest.mark.parametrize("fault", ["data", "weights", "batch", "frozen", "pretraining images"])
def test_a_start_that_failed_does_not_keep_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The corrected command is accepted without --resume."""
    from openworld.data.options import DataOptions, SourceOptions, SyntheticOptions
    from openworld.run import schedule
    from openworld.runtime import distributed

    small = SyntheticOptions(train_images=8, val_images=4, test_images=4, pretrain_images=0, size=64)
    good = RunConfig(
        pretrain=None,
        data=DataOptions(synthetic=small),
        model=ModelOptions(arch=SMALL, fpn_channels=8, device="cpu"),
    )
    gone = str(tmp_path / "gone")
    wrong = {
        "data": replace(
            good,
            data=replace(
                good.data, synthetic=None, train=SourceOptions(annotations=gone), test=SourceOptions(annotations=gone)
            ),
        ),
        "weights": replace(good, model=replace(good.model, weights=gone, arch=None)),
        "batch": replace(good, train=replace(good.train, batch_size=7)),
        "frozen": replace(good, model=replace(good.model, norm="frozen")),
        "pretraining images": replace(good, pretrain=PretrainOptions(arch=SMALL, images=gone)),
    }[fault]
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises((ConfigError, DataError, CheckpointError)) as error:
        if fault == "batch":
            patch.setattr(distributed, "world_size", lambda: 2)
        run_schedule(wrong, folder, resume=False)
    assert "holds a run" not in str(error.value)

    monkeypatch.setattr(schedule, "run_task", lambda run, task: {"task": task})
    assert len(run_schedule(good, folder, resume=False)) == len(good.schedule)
    assert (folder / "config.yaml").read_text() == dump_config(good)
