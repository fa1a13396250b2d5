"""The ablation: which runs it starts and which it takes, with a stub in place of the training."""

import json
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openworld.config import RunConfig
from openworld.configfile import read_config
from openworld.data.options import DataOptions, SyntheticOptions
from openworld.errors import CheckpointError, ConfigError, DataError, OpenWorldError
from openworld.run import ablation
from openworld.run.ablation import run_ablation, time_spent
from openworld.run.folder import claim, identified_data
from openworld.run.sources import open_sources
from openworld.run.variants import AT_ONCE
from openworld.runtime.console import open_console
from openworld.runtime.files import write_json
from openworld.runtime.runlog import RunLog
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.options import PretrainOptions
from tests.openworld.run.test_same_data import change as change_file
from tests.openworld.run.test_same_data import configured, exchange, write_set

APS = {"cat": 0.8, "dog": 0.5, "ball": 0.4, "cube": 0.3}


class Started(list[tuple[str, int]]):
    """The runs that were started, as variant and seed, in order; ``fail`` names runs that stop after task 1."""

    fail: set[str]
    at_once: AbstractContextManager[None]
    environments: list[dict[str, str]]


class Meeting:
    """Waits, when it is entered, until another thread enters, too."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2)

    def __enter__(self) -> None:
        self._barrier.wait(timeout=60)

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Put a stub in place of `openworld run`: it claims the folder, writes data.json, and scores what it has not."""
    found = Started()
    found.fail, found.at_once, found.environments = set(), nullcontext(), []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
        given = dict(zip(command[4::2], command[5::2], strict=False))
        config, folder = read_config(Path(given["--config"])), Path(given["--output"])
        found.environments.append(env)
        with found.at_once:
            claim(config, folder, resume="--resume" in command)
        write_json(folder / "data.json", identified_data(config, open_sources(config, folder)))
        log = RunLog(folder / "metrics.jsonl")
        variant, _, seed = config.name.partition(", seed ")
        found.append((variant, int(seed)))
        for task in range(1, config.last_task + 1):
            known = [name for names in config.schedule[:task] for name in names]
            classes = {name: {"ap50": APS[name] / (1 + config.seed)} for name in known}
            if task > 1 and variant in found.fail:
                return SimpleNamespace(returncode=1)
            if not (folder / f"task{task}" / "metrics.json").exists():
                (folder / f"task{task}" / "checkpoint" / "train-1").mkdir(parents=True, exist_ok=True)
                log.append("phase", stage="train", task=task, seconds=10.0 * task, cpu_seconds=len(found))
                known_ap = sum(entry["ap50"] for entry in classes.values()) / task
                result = {"task": task, "protocol": "unique", "classes": classes, "known_ap50": known_ap}
                write_json(folder / f"task{task}" / "metrics.json", result)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(ablation, "subprocess", SimpleNamespace(run=run, STDOUT=None))
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, images in (("train", 4), ("val", 2), ("test", 2)):
        write_set(tmp_path / "data", name, images)
    return tmp_path / "data"


@pytest.fixture
def ablate(tmp_path: Path, data: Path) -> Callable[..., dict[str, Any]]:
    """Run an ablation into one folder."""

    def call(config: RunConfig | None = None, **options: Any) -> dict[str, Any]:
        given = {"seeds": [0, 1], "variants": ["full"], "jobs": 1, **options}
        return run_ablation(config or configured(data), tmp_path / "a", console=open_console(quiet=True), **given)

    return call


def test_only_what_is_new_is_run(ablate: Callable[..., Any], started: Started, tmp_path: Path) -> None:
    ablate()
    assert started == [("full", 0), ("full", 1)]
    (tmp_path / "mine.yaml").write_text("mine: {increment: {lr: 3e-4}}\n")
    own = {"define": [str(tmp_path / "mine.yaml")], "variants": ["mine", "full"]}
    content = ablate(**own, seeds=[2, 0, 1])
    assert sorted(started[2:]) == [("full", 2), ("mine", 0), ("mine", 1), ("mine", 2)]
    assert ablate(**own, seeds=[2, 0, 1]) == content and len(started) == 6
    known = content["results"]["mine"]["2"]["known_ap50"]["values"]
    assert content["seeds"] == [2, 0, 1] and known == pytest.approx([0.65 / 3, 0.65, 0.65 / 2])
    assert json.loads((tmp_path / "a" / "ablation.json").read_text()) == content
    assert "| mine |" in (tmp_path / "a" / "ablation.md").read_text()


def test_a_killed_run_goes_on(ablate: Callable[..., Any], started: Started, tmp_path: Path) -> None:
    started.fail = {"full"}
    with pytest.raises(OpenWorldError, match=r"full\.log: the run failed"):
        ablate(seeds=[0])
    started.fail = set()
    ablate(seeds=[0])
    assert started == [("full", 0), ("full", 0)]
    phases = [json.loads(line) for line in (tmp_path / "a/seed0/full/metrics.jsonl").read_text().splitlines()]
    assert [phase["task"] for phase in phases] == [1, 2]


def test_another_configuration_is_refused(ablate: Callable[..., Any], started: Started, data: Path) -> None:
    ablate()
    config = configured(data)
    with pytest.raises(ConfigError, match=r"seed0/full/config\.yaml: .*: increment\.lr: 0\.001 → 0\.5\n"):
        ablate(replace(config, increment=replace(config.increment, lr=0.5)), seeds=[5, 0])
    assert len(started) == 2  # and nothing else was begun


def test_other_data_are_refused(ablate: Callable[..., Any], started: Started, data: Path, tmp_path: Path) -> None:
    """Moved data are the same data."""
    ablate()
    moved = data.rename(tmp_path / "elsewhere")
    ablate(configured(moved))
    change_file(moved / "train.json", exchange)
    with pytest.raises(DataError, match=r"train is not the set that the run began with: .* which box has which"):
        ablate(configured(moved))
    assert len(started) == 2


def test_threads_stay_with_another_number_of_jobs(
    ablate: Callable[..., Any], started: Started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two jobs on two cores are two runs at once, with one thread each."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    started.at_once = Meeting()
    ablate(jobs=2)
    started.at_once = nullcontext()
    ablate(jobs=1, seeds=[0, 1, 2])
    assert [environment["OMP_NUM_THREADS"] for environment in started.environments] == ["1", "1", "1"]
    assert {read_config(path).threads for path in tmp_path.glob("a/seed*/full/config.yaml")} == {1}


def test_the_upper_bound_is_in_every_table(ablate: Callable[..., Any], started: Started) -> None:
    content = ablate(variants=["no replay", AT_ONCE], seeds=[0])
    bound, plain = content["results"][AT_ONCE], content["results"]["no replay"]
    assert bound["1"]["known_ap50"]["mean"] == 0.8 and bound["2"]["current_ap50"]["mean"] == 0.5
    assert [plain[task]["learned"]["mean"] for task in "12"] == [1, 1] and plain["2"]["kept"]["mean"] == 1


def test_shared_work_is_done_once(ablate: Callable[..., Any], started: Started, tmp_path: Path) -> None:
    """A variant that differs after task 1 begins with its folder; the time of both is that of two whole runs."""
    variants = ["no replay", "full", "no energy", "no clustering"]
    content = ablate(variants=variants, seeds=[3])
    assert [name for name, _ in started] == ["no replay", "no clustering", "full", "no energy"]
    logs = [tmp_path / "a/seed3" / name / "metrics.jsonl" for name in ("full", "no-energy")]
    begun = [[json.loads(line)["cpu_seconds"] for line in log.read_text().splitlines()] for log in logs]
    assert begun == [[1, 3], [1, 4, 4]]  # the first run trained task 1 for both; no energy is scored anew
    assert {read_config(log.parent / "config.yaml").name for log in logs} == {"full, seed 3", "no energy, seed 3"}
    time = content["time"]
    assert time["variants"]["full"] == {"seconds": [30.0], "cpu_seconds": [4]}
    # 10 + 20 of the first and of no clustering, 20 of the third, 10 + 20 of the fourth
    assert time["seconds"] == 110 and time["cpu_seconds"] == (1 + 1) + (2 + 2) + 3 + (4 + 4)
    ablate(variants=[*variants, "closed"], seeds=[3])
    assert started[4:] == [("closed", 3)]


def test_a_finished_run_trains_for_a_new_one(ablate: Callable[..., Any], started: Started, tmp_path: Path) -> None:
    ablate(variants=["no replay"], seeds=[0])
    ablate(variants=["full", "no replay"], seeds=[0])
    log = (tmp_path / "a/seed0/full/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["cpu_seconds"] for line in log] == [1, 2]


def test_time_without_logs(tmp_path: Path) -> None:
    plan = ablation.Plan("full", 0, RunConfig(), tmp_path / "seed0" / "full")
    times = {"variants": {"full": {"seconds": [None], "cpu_seconds": [None]}}, "seconds": 0.0, "cpu_seconds": None}
    assert time_spent([plan], tmp_path) == times
    (tmp_path / "seed0").mkdir()
    older = {"event": "phase", "stage": "pretrain", "seconds": 4.5}  # of a version that noted no CPU time
    (tmp_path / "seed0" / "metrics.jsonl").write_text(json.dumps(older))
    assert time_spent([plan], tmp_path) == {**times, "seconds": 4.5}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a b: {}\na-b: {}", "'a b' and 'a-b' share the folder a-b"),
        ("..: {}", "'..' is not a name"),
        ("backbone: {}", "'backbone' is not a name"),
        ("mine: {seed: 4}", "'mine' sets the seed"),
    ],
)
def test_a_variant_needs_a_folder_and_no_seed(
    ablate: Callable[..., Any], started: Started, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        ablate(define=[str(tmp_path / "mine.yaml")], variants=[])
    assert not started


def test_a_backbone_is_shared_by_those_that_pretrain_alike(
    ablate: Callable[..., Any], started: Started, data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A variant that pretrains otherwise does so itself; a changed pretraining is refused where it is done."""
    done: list[int] = []

    def backbone(config: RunConfig, folder: Path) -> Path:
        assert config.pretrain is not None
        if config.pretrain.steps != 3:
            raise CheckpointError("was made with steps 3")
        done.append(config.seed)
        return folder / "backbone" / "backbone.safetensors"

    monkeypatch.setattr(ablation, "run_backbone", backbone)
    arch = ResNetOptions(width=1 / 64)
    config = replace(configured(data), pretrain=PretrainOptions(steps=3, arch=arch, batch_size=4))
    (tmp_path / "mine.yaml").write_text("mine: {pretrain: {steps: 5}}\nother: {model: {layout: fixed}}\n")
    ablate(config, define=[str(tmp_path / "mine.yaml")], variants=["mine"], seeds=[0])
    assert not done  # nobody needs it
    ablate(config, define=[str(tmp_path / "mine.yaml")], seeds=[0, 1], variants=["mine", "other", "full"])
    assert done == [0, 1]
    plans = {name: read_config(tmp_path / f"a/seed1/{name}/config.yaml") for name in ("mine", "other", "full")}
    assert plans["mine"].pretrain is not None and plans["mine"].pretrain.steps == 5
    for name in ("other", "full"):
        assert plans[name].pretrain is None
        assert plans[name].model.weights == str(tmp_path / "a/seed1/backbone/backbone.safetensors")
    with pytest.raises(CheckpointError, match="made with steps 3"):
        ablate(replace(config, pretrain=PretrainOptions(steps=4, arch=arch, batch_size=4)))


def test_a_variant_alone_pretrains_on_the_close_ups_of_the_world(
    ablate: Callable[..., Any], started: Started, tmp_path: Path
) -> None:
    world = SyntheticOptions(train_images=8, val_images=2, test_images=2, pretrain_images=3, size=64)
    config = RunConfig(data=DataOptions(tasks=[["ball"], ["cube"]], synthetic=world))
    (tmp_path / "mine.yaml").write_text("mine: {pretrain: {}}\nplain: {}\n")
    ablate(config, define=[str(tmp_path / "mine.yaml")], variants=["mine", "plain"], seeds=[0])
    plans = {name: read_config(tmp_path / f"a/seed0/{name}/config.yaml") for name in ("mine", "plain")}
    assert plans["plain"].pretrain is None and plans["mine"].pretrain is not None
    folder = Path(str(plans["mine"].pretrain.images))
    assert folder.name == "pretrain" and len(list(folder.iterdir())) == 3
