"""Variants of a configuration: what each changes, and how they are named, defined and chosen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openworld.config import RunConfig
from openworld.configfile import CONFIGS, read_config, read_options
from openworld.data.options import BenchmarkOptions, DataOptions
from openworld.distillation.options import DistillationOptions
from openworld.errors import ConfigError
from openworld.methods.closed.options import ClosedOptions
from openworld.run.first_task import training_of
from openworld.run.folder import config_difference
from openworld.run.variants import (
    AT_ONCE,
    at_once,
    chosen_variants,
    defined_in,
    from_backbones,
    learns_at_once,
    switched_one_by_one,
    variants_of,
)
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.backbones.resnet import ResNet
from ssl_backbones.options import PretrainOptions


def test_each_variant_changes_one_thing() -> None:
    assert "random initialisation" not in variants_of(RunConfig())  # it begins so
    config = RunConfig(pretrain=PretrainOptions())
    changed = {name: config_difference(config, change(config)) for name, change in variants_of(config).items()}
    assert changed.pop("full") == []
    assert changed["no energy"] == ["method.energy.enabled: True → False"]
    assert changed["no clustering"] == ["method.clustering.enabled: True → False"]
    assert changed["no unknown labelling"] == ["method.unknown_labels.enabled: True → False"]
    assert changed["no replay"] == ["exemplars.enabled: True → False"]
    joint = changed[AT_ONCE]
    assert "train.steps: 320 → 1000" in joint  # 320 + 2 × (220 + 120)
    assert {line.split(":")[0].split(".")[0] for line in joint} == {"data", "method", "train"}
    closed = changed["closed"]
    assert "method.name: 'ore' → 'closed'" in closed and all(line.startswith("method.") for line in closed)
    random = changed["random initialisation"]
    assert all(line.startswith(("pretrain", "model.arch")) for line in random) and random


def test_all_classes_at_once_see_as_many_images_as_the_schedule() -> None:
    config = RunConfig()
    config = replace(
        config,
        tasks=2,
        train=replace(config.train, steps=100, batch_size=8, steps_by_task={1: 90}),
        increment=replace(config.increment, steps=60, batch_size=4),
        replay=replace(config.replay, steps=10, batch_size=2, steps_by_task={2: 30, 3: 500}),
    )
    joint = at_once(config)
    assert joint.schedule == (("ball", "cube", "ring", "heart", "cone", "gear"),) and joint.last_task == 1
    assert joint.train.for_task(1).steps == 128  # (90 × 8 + 60 × 4 + 30 × 2) / 8 = 127.5
    without = replace(config, exemplars=replace(config.exemplars, enabled=False))
    assert at_once(without).train.for_task(1).steps == 120
    assert learns_at_once(joint, of=config) and not learns_at_once(config, of=config)
    assert not learns_at_once(replace(config, tasks=1), of=config) and not learns_at_once(joint, of=RunConfig())
    assert AT_ONCE not in variants_of(replace(config, tasks=1))
    benchmark = replace(config, pretrain=None, data=DataOptions(benchmark=BenchmarkOptions(name="voc_10_10")))
    assert AT_ONCE not in variants_of(benchmark)
    with pytest.raises(ConfigError, match="'voc_10_10' cannot be learned at once"):
        at_once(benchmark)


def test_variants_are_defined_by_name(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("train: {lr: 5e-4}\n")
    file = tmp_path / "defined.yaml"
    file.write_text(
        f"""
as it is:
2: {{increment: {{lr: 5e-4}}}}
file: {tmp_path / "own.yaml"}
both: [ore/reference.yaml, {{method: {{clustering: {{start_step: 7}}}}}}]
joint: [{{train: {{steps: 20}}}}, {AT_ONCE}, {{train: {{warmup_steps: 3}}}}]
sizes: [{{data: {{loader: {{min_size: 256}}}}}}, {{data: {{loader: {{max_size: 512}}}}}}]
"""
    )
    config = RunConfig()
    plans = {name: change(config) for name, change in defined_in(str(file), config).items()}
    assert plans["as it is"] == config and plans["file"].train.lr == 5e-4
    assert config_difference(config, plans["2"]) == ["increment.lr: 0.001 → 0.0005"]
    assert plans["both"].method.clustering.start_step == 7 and plans["both"].model.layout == "fixed"  # type: ignore[attr-defined]
    assert plans["joint"].train.steps == 20 + 2 * (220 + 120) and plans["joint"].train.warmup_steps == 3
    assert plans["sizes"].data.loader.max_size == 512  # the first alone would be refused


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mine: {increment: {lrr: 1}}", r"defined\.yaml: increment\.lrr is not an option"),
        ("mine: 3", r"defined\.yaml: the variant 'mine' is 3"),
        ("mine: [[closed]]", r"defined\.yaml: the variant 'mine' is \['closed'\]"),
        ("mine: closd", "configuration file 'closd' does not exist"),
        ("mine: [closed, no energy]", "the method 'closed' has no variant 'no energy'"),
        ("- closed", r"defined\.yaml: holds a list"),
    ],
)
def test_a_definition_that_is_none_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "defined.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        for change in defined_in(str(tmp_path / "defined.yaml"), RunConfig()).values():
            change(RunConfig())


def test_the_shipped_ledger() -> None:
    config = read_config(CONFIGS / "owod" / "coco_mini.yaml")
    changes = defined_in("ledger.yaml", config)
    plans = {name: change(config) for name, change in changes.items()}
    assert list(plans) == ["closed", "ORE as configured", "ORE paper", "ORE reference", AT_ONCE]
    built_in = variants_of(config)
    assert plans["closed"] == built_in["closed"](config) and plans["ORE as configured"] == config
    for name in ("paper", "reference"):
        there = read_config(CONFIGS / "owod" / "coco_mini.yaml", CONFIGS / "ore" / f"{name}.yaml")
        changed = {line.split(":")[0] for line in config_difference(there, plans[f"ORE {name}"])}
        assert changed == {f"method.clustering.{key}" for key in ("start_step", "update_every", "momentum")}
        assert plans[f"ORE {name}"].method.clustering.start_step < config.train.steps  # type: ignore[attr-defined]
    assert plans[AT_ONCE].train.steps == 1200 + 3 * (400 + 200) and len(plans[AT_ONCE].schedule[0]) == 80


def test_variants_of_all_kinds_are_chosen_together(tmp_path: Path) -> None:
    torch.save(ResNet(ResNetOptions(width=0.0625)).state_dict(), tmp_path / "a.pth")
    (tmp_path / "mine.yaml").write_text("mine: closed\nclosed: {train: {steps: 1}}\n")
    config = RunConfig()
    kinds: dict[str, Any] = {
        "define": [str(tmp_path / "mine.yaml")],
        "switch": {"model": {"layout": "fixed"}},
        "backbones": {"a": tmp_path / "a.pth"},
    }
    own = ["mine", "closed", "full", "model.layout=fixed", "random", "a"]
    assert list(chosen_variants(config, **kinds)) == own
    assert list(chosen_variants(config)) == list(variants_of(config))
    chosen = chosen_variants(config, ["a", "no replay", "closed", "a"], **kinds)
    assert list(chosen) == ["a", "no replay", "closed"]
    assert chosen["closed"](config).train.steps == 1 and chosen["a"](config).pretrain is None
    with pytest.raises(ConfigError, match="no variant 'no such thing'\nWhat to do: choose from: full, no unknown"):
        chosen_variants(config, ["no such thing"], **kinds)
    (tmp_path / "more.yaml").write_text("full: {}\n")
    with pytest.raises(ConfigError, match="the variant 'full' is defined twice"):
        chosen_variants(config, **{**kinds, "define": [str(tmp_path / "more.yaml")]})


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


@pytest.mark.parametrize("name", ["ORE paper", "ORE reference"])
def test_the_rows_of_ore_have_no_teacher_and_no_joint_replay(name: str) -> None:
    config = read_config(CONFIGS / "owod" / "voc_animals.yaml")
    row = chosen_variants(config, [name], define=["ledger.yaml"])[name](config)
    assert config.distillation != DistillationOptions() and config.exemplars.during_training > 0
    assert not row.distillation.needs_teacher and row.distillation.pseudo_label_score is None
    assert row.exemplars.during_training == 0


def test_the_ledger_says_why_there_is_no_joint_row_for_one_task() -> None:
    config = read_config(CONFIGS / "owod" / "voc_animals.yaml")
    one = replace(config, tasks=1)
    assert list(chosen_variants(one, ["closed"], define=["ledger.yaml"])) == ["closed"]
    with pytest.raises(ConfigError, match="a single task"):
        chosen_variants(one, define=["ledger.yaml"])[AT_ONCE](one)
