"""Every field of every options class below a run refuses values outside its domain, under its full key.

The values are made from the annotations by :func:`outside`, which knows nothing of :mod:`openworld.runtime.options` but
the limits' numbers. They go through the reader, as from a file and as from the command line.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from openworld.config import PhaseOptions, RunConfig
from openworld.data.options import KnownFormat
from openworld.engines.options import ModelOptions
from openworld.errors import ConfigError
from openworld.methods import METHODS
from openworld.methods.options import MethodOptions
from openworld.methods.ore.options import ClusteringOptions
from openworld.runtime.option_trees import Given, construct, from_words
from openworld.runtime.options import Above, AtLeast, AtMost, Below, Between, FilePath, Items, PathRule
from ssl_backbones.backbones import BackboneOptions
from ssl_backbones.methods import METHODS as PRETRAIN_METHODS
from ssl_backbones.methods.options import MethodOptions as PretrainMethodOptions
from ssl_backbones.options import PretrainOptions

NAMES: dict[type, tuple[str, ...]] = {
    MethodOptions: tuple(METHODS),
    PretrainMethodOptions: tuple(PRETRAIN_METHODS),
    BackboneOptions: ("resnet18", "convnext_tiny"),
}
"""The names of each class that chooses its section's class by name."""
REQUIRED: dict[str, dict[str, Any]] = {"data.benchmark": {"name": "m_owodb"}}
"""What a section needs that is off by default, beside the field in question."""
WITHOUT_LIMIT: dict[str, str] = {}
"""Fields that refuse nothing at all, with the reason."""


def sections(owner: type, key: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Key, annotation and a tree with the names above it, of each field at and below a class."""
    for name, hint in get_type_hints(owner, include_extras=True).items():
        if get_origin(hint) is not None and "ClassVar" in str(hint):
            continue
        here = f"{key}.{name}" if key else name
        yield here, hint, {}
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for declared in (member for member in members if isinstance(member, type) and is_dataclass(member)):
            if not hasattr(declared, "named"):
                yield from sections(declared, here)
                continue
            for choice in NAMES[declared]:
                for below, of_field, names in sections(declared.named(choice), here):
                    yield below, of_field, {**names, here: choice}


FIELDS = {f"{key} {' '.join(names.values())}".strip(): (key, hint, names) for key, hint, names in sections(RunConfig)}


def outside(hint: Any) -> list[Any]:
    """Values that an annotation excludes: wrong types, unknown names, numbers beyond each limit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return [*outside(arguments[0]), *(value for limit in arguments[1:] for value in beyond(arguments[0], limit))]
    if origin is Literal:
        return ["no such name", 77, True, ["a"], None]
    if origin in (Union, types.UnionType):
        values = [value for member in arguments for value in outside(member)]
        kinds = tuple(kind for kind in (str, type(None)) if kind in arguments or (kind is str and takes_text(hint)))
        return [value for value in values if not isinstance(value, kinds)]
    if origin is list:
        return ["text", 5, None, *([item] for item in outside(arguments[0]))]
    if origin is dict:
        return ["text", 5, None, *({key: item} for key in ("x", 1.5) for item in outside(arguments[1]))]
    if is_dataclass(hint):
        return [5, True, ["text"], None, {"no_such_option": 1}]
    simple: dict[Any, list[Any]] = {
        int: [1.5, "text", True, None, [1], math.nan],
        float: ["text", True, None, [1.0], math.nan, math.inf, -math.inf],
        bool: [1, "text", None, [True]],
        str: [5, True, None, ["text"]],
        type(None): [],
    }
    return simple[hint]


def beyond(hint: Any, limit: Any) -> list[Any]:
    """Values of the right type that break one limit."""
    step = 1 if hint is int else 1e-6
    match limit:
        case AtLeast(least):
            return [least - step]
        case AtMost(most):
            return [most + step]
        case Above(bound) | Below(bound):
            return [bound]
        case Between(least, most):
            return [least - step, most + step]
        case Items(least, most):
            inner = get_args(get_args(hint)[0] if get_origin(hint) is Annotated else hint)[0]
            return [items(inner, count) for count in (least - 1, (most or math.inf) + 1) if 0 <= count < math.inf]
        case KnownFormat():
            return ["no such format"]
        case PathRule():
            return []
    raise AssertionError(limit)


def items(hint: Any, count: float) -> list[Any]:
    """A list of valid items: numbers that all lists of numbers take, or lists of names."""
    return [["name"] if get_origin(hint) is list else 1] * int(count)


def tree_with(key: str, value: Any, names: dict[str, str]) -> dict[str, Any]:
    """A tree with one value, with the names of the chosen sections above it, and what they need beside it."""
    tree: dict[str, Any] = {}
    *above, last = key.split(".")
    branch, here = tree, ""
    for name in above:
        here = f"{here}.{name}".removeprefix(".")
        branch = branch.setdefault(name, {**REQUIRED.get(here, {}), **({"name": names[here]} if here in names else {})})
    branch[last] = value
    return tree


def takes_text(hint: Any) -> bool:
    return hint in (str, FilePath) or not {str, FilePath}.isdisjoint(get_args(hint))


@pytest.mark.parametrize("field", FIELDS)
def test_a_value_outside_its_domain_is_refused_under_the_full_key(field: str) -> None:
    key, hint, names = FIELDS[field]
    values = outside(hint)
    assert bool(values) is (key not in WITHOUT_LIMIT)
    for value in values:
        with pytest.raises(ConfigError) as caught:
            construct(RunConfig, [Given(tree_with(key, value, names), "run.yaml")])
        assert str(caught.value).startswith((f"run.yaml: {key} is ", f"run.yaml: {key}.")), (value, str(caught.value))
        assert caught.value.remedy
        if takes_text(hint):  # on the command line every word is a text
            continue
        words = [(part, name) for part, name in names.items()] + [(key, json.dumps(value))]
        needed = [Given(tree_with(f"{part}.name", "m_owodb", {}), None) for part in REQUIRED if key.startswith(part)]
        with pytest.raises(ConfigError) as caught:
            construct(RunConfig, [*needed, *from_words(words)])
        assert str(caught.value).startswith((f"{key} is ", f"{key}.")), (value, str(caught.value))


def test_the_walk_reaches_every_class() -> None:
    """Counted by hand from the classes, so that the walk does not end early."""
    assert {
        "train.milestones",
        "model.arch.width resnet18",
        "data.benchmark.root",
        "pretrain.method.epsilon swav",
    } <= set(FIELDS)
    assert len([key for key in FIELDS if key.startswith("increment.")]) == 17
    assert len(FIELDS) > 280


@pytest.mark.parametrize(
    ("owner", "values", "message"),
    [
        (PhaseOptions, {"steps": 1, "lr": 0.1, "optimizer": "adam"}, "PhaseOptions.optimizer is 'adam'"),
        (PhaseOptions, {"steps": 1, "lr": 0.1, "schedule": "poly"}, "PhaseOptions.schedule is 'poly'"),
        (ModelOptions, {"neck": "c5"}, "ModelOptions.neck is 'c5'"),
        (ModelOptions, {"norm": "sync"}, "ModelOptions.norm is 'sync'"),
        (ModelOptions, {"precision": "fp16"}, "ModelOptions.precision is 'fp16'"),
        (ClusteringOptions, {"margin": math.inf}, "ClusteringOptions.margin is inf"),
        (PretrainOptions, {"lr_milestones": [-1]}, "PretrainOptions.lr_milestones is [-1]"),
    ],
)
def test_objects_made_in_python_are_checked_too(owner: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        owner(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"data": {"loader": {"min_size": 64, "max_size": 32}}}, "data.loader.max_size is 32"),
        ({"data": {"loader": {"scale_jitter": [1.0, 0.5]}}}, "data.loader.scale_jitter is [1.0, 0.5]"),
        ({"data": {"synthetic": None}}, "data.train.annotations is missing"),
        ({"data": {"benchmark": {"name": "voc_19_1"}, "tasks": [["cat"]]}}, "data.tasks is [['cat']]"),
        ({"data": {"benchmark": {"name": "voc_19_1"}, "val": {"images": "x"}}}, "data.val is SourceOptions("),
        ({"model": {"rpn": {"background_iou": 0.8}}}, "model.rpn.background_iou is 0.8"),
        ({"model": {"rpn": {"anchor_sizes": [8.0]}}}, "model.rpn.anchor_sizes has 1 entries"),
        ({"method": {"energy": {"fit_on": "known_only"}}}, "method.energy.fit_on is 'known_only'"),
        (
            {"method": {"energy": {"decision": "threshold", "test_temperature": 2}}},
            "method.energy.test_temperature is 2.0",
        ),
        ({"pretrain": {"arch": {"stem": "clip"}}}, "pretrain.arch.stem is 'clip'"),
        ({"pretrain": {"method": {"name": "clip", "text_heads": 3}}}, "pretrain.method.text_width is 64"),
        (
            {"pretrain": {"method": {"name": "instdisc", "proximal_weight": 1, "form": "softmax"}}},
            "pretrain.method.proximal_weight is",
        ),
        ({"model": {"weights": "a.pth"}, "pretrain": {}}, "model.weights is 'a.pth' and pretrain is on"),
        ({"tasks": 9}, "tasks is 9 and the schedule has 3"),
        ({"exemplars": {"enabled": False, "during_training": 0.5}}, "exemplars.during_training is 0.5, and enabled"),
        (
            {"exemplars": {"during_training": 0.5}, "increment": {"steps": 2, "lr": 1e-3, "batch_size": 1}},
            "exemplars.during_training is 0.5, and increment.batch_size is 1",
        ),
        ({"distillation": {"pseudo_label_score": 0.01}}, "distillation.pseudo_label_score is 0.01, and detections"),
    ],
)
def test_rules_that_span_fields_name_the_full_key(tree: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        construct(RunConfig, [Given(tree, "run.yaml")])
    assert str(caught.value).startswith(f"run.yaml: {key}")
    assert caught.value.remedy
