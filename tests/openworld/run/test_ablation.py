"""The ablation: what each variant changes, and its table by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from openworld.config import RunConfig
from openworld.configfile import CONFIGS, read_options
from openworld.errors import ConfigError
from openworld.methods.closed.options import ClosedOptions
from openworld.metrics.table import METRICS
from openworld.run.ablation import (
    as_markdown,
    from_backbones,
    run_ablation,
    summarise,
    switched_one_by_one,
    take_over,
    training_of,
    variants_of,
)
from openworld.run.folder import config_difference
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet


def test_each_variant_changes_one_thing() -> None:
    config = RunConfig()
    changed = {name: config_difference(config, change(config)) for name, change in variants_of(config).items()}
    assert changed.pop("full") == []
    assert changed["no energy"] == ["method.energy.enabled: True → False"]
    assert changed["no clustering"] == ["method.clustering.enabled: True → False"]
    assert changed["no unknown labelling"] == ["method.unknown_labels.enabled: True → False"]
    assert changed["no replay"] == ["exemplars.enabled: True → False"]
    closed = changed["closed"]
    assert "method.name: 'ore' → 'closed'" in closed and all(line.startswith("method.") for line in closed)
    random = changed["random initialisation"]
    assert all(line.startswith(("pretrain", "model.arch")) for line in random) and random


def test_means_and_spreads_by_hand() -> None:
    def metrics(known: float, recall: float | None) -> list[dict]:  # type: ignore[type-arg]
        return [{**dict.fromkeys(METRICS, 0.0), "known_ap50": known, "unknown_recall50": recall}]

    results = [("full", 0, metrics(0.5, 0.1)), ("full", 1, metrics(0.7, None)), ("no energy", 0, metrics(0.2, None))]
    summary = summarise(results, ["full", "no energy"])
    assert summary["full"]["1"]["known_ap50"]["mean"] == pytest.approx(0.6)
    assert summary["full"]["1"]["known_ap50"]["spread"] == pytest.approx(0.1414, abs=1e-4)
    assert summary["full"]["1"]["unknown_recall50"]["values"] == [0.1, None]
    summary["full"]["1"]["previous_ap50"]["mean"] = summary["no energy"]["1"]["previous_ap50"]["mean"] = None
    text = as_markdown(summary)
    assert "Prev mAP" not in text and "Curr mAP" not in text  # without previous classes all are current
    assert "| full | 60.0 ± 14.1 |" in text and "| no energy | 20.0 |" in text


def test_an_unknown_variant_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such thing"):
        run_ablation(RunConfig(), tmp_path, seeds=[0], variants=["no such thing"], jobs=1, console=Console())


def test_options_are_switched_one_by_one() -> None:
    config = RunConfig()
    options = read_options(CONFIGS / "ore" / "reference.yaml")
    variants = switched_one_by_one(config, options)
    changed = {name: config_difference(config, change(config)) for name, change in variants.items()}
    assert changed.pop("full") == []
    together = changed.pop("all of them")
    assert len(together) == len(changed) > 20
    assert changed["method.clustering.margin=2.0"] == ["method.clustering.margin: 10.0 → 2.0"]
    assert changed["model.layout=fixed"] == ["model.layout: 'growing' → 'fixed'"]
    assert all(len(lines) == 1 for lines in changed.values())
    assert "method.clustering.items_per_class=20" not in changed  # as it was
    assert list(switched_one_by_one(config, {"model": {"layout": "fixed"}})) == ["full", "model.layout=fixed"]
    with pytest.raises(ConfigError, match=r"^method\.clustering\.margins is not an option"):
        switched_one_by_one(config, {"method": {"clustering": {"margins": 2}}})


def test_a_switch_is_read_like_a_configuration() -> None:
    """Numbers as YAML 1.1 leaves them, one task of a mapping, another method, rules between two options."""
    config = replace(RunConfig(), pretrain=None)
    options: dict[str, Any] = {
        "train": {"lr": "5e-4", "steps_by_task": {"2": 7}},
        "method": {"name": "closed"},
        "data": {"loader": {"max_size": 512, "min_size": 256}},
    }
    with pytest.raises(ConfigError, match=r"^data\.loader\.max_size is 128"):  # min_size alone
        switched_one_by_one(config, options)
    options["data"] = {"loader": {"max_size": 512}}
    variants = {name: change(config) for name, change in switched_one_by_one(config, options).items()}
    assert variants["train.lr=5e-4"].train.lr == 5e-4
    assert variants["train.steps_by_task.2=7"].train.steps_by_task == {2: 7}
    assert variants["method.name=closed"].method == ClosedOptions()
    together = variants["all of them"]
    assert together.train.lr == 5e-4 and together.method == ClosedOptions() and together.data.loader.max_size == 512
    assert all(variant.pretrain is None for variant in variants.values())


def test_the_same_schedule_from_several_backbones(tmp_path: Path) -> None:
    for name, width in (("a", 0.0625), ("b", 0.0625), ("wide", 0.125)):
        torch.save(ResNet(ResNetOptions(width=width)).state_dict(), tmp_path / f"{name}.pth")
    config = replace(RunConfig(), pretrain=None)
    files = {name: tmp_path / f"{name}.pth" for name in ("a", "b", "wide")}
    variants = from_backbones(config, {name: files[name] for name in ("a", "b")})
    plans = {name: change(config) for name, change in variants.items()}
    assert list(plans) == ["random", "a", "b"] and all(plan.pretrain is None for plan in plans.values())
    assert plans["a"].model.weights == str(files["a"]) and plans["random"].model.weights is None
    assert plans["random"].model.arch == ResNetOptions(width=0.0625, stem_width=4)
    for plan in plans.values():
        assert replace(plan, model=config.model) == config  # nothing else differs
    assert len({training_of(plan) for plan in plans.values()}) == 3  # each is trained by itself
    with pytest.raises(ConfigError, match="'a' and 'wide' are different networks"):
        from_backbones(config, {"a": files["a"], "wide": files["wide"]})
    with pytest.raises(ConfigError, match="named 'random'"):
        from_backbones(config, {"random": files["a"]})
    with pytest.raises(ConfigError, match="--switch and --backbones"):
        run_ablation(config, tmp_path, seeds=[0], variants=[], jobs=1, console=Console(), switch={}, backbones=files)


def test_training_is_shared_by_what_comes_after_it() -> None:
    config = RunConfig()
    variants = switched_one_by_one(config, read_options(CONFIGS / "ore" / "reference.yaml"))
    shared = {name for name, change in variants.items() if training_of(change(config)) == training_of(config)}
    assert "full" in shared and "model.roi.cross_nms_iou=1.0" in shared
    assert {name for name in variants if name.startswith("method.energy.")} <= shared
    assert not {name for name in variants if name.startswith(("method.clustering.", "method.unknown_labels."))} & shared
    assert "model.layout=fixed" not in shared and "all of them" not in shared


@pytest.mark.parametrize("chosen", [True, False])
def test_a_trained_first_task_is_taken_over_with_its_exemplars_if_it_has_any(tmp_path: Path, chosen: bool) -> None:
    """Without replay, exemplars by herding or score are never chosen, so there is no exemplars.json to copy."""
    trained, folder = tmp_path / "full", tmp_path / "no-energy"
    files = {
        "task1/checkpoint/train-6/model": "weights",
        "task1/checkpoint/calibrate-0/model": "fit",
        "metrics.jsonl": "{}",
        "data.json": "{}",
    }
    files |= {"task1/exemplars.json": "[]"} if chosen else {}
    for name, content in files.items():
        (trained / name).parent.mkdir(parents=True, exist_ok=True)
        (trained / name).write_text(content)
    take_over(trained, folder)
    copied = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    del files["task1/checkpoint/calibrate-0/model"]
    assert copied == files
