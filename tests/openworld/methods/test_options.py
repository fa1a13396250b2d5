"""The table of methods: each name makes a method, and what is not one is refused."""

from __future__ import annotations

import inspect
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.methods import METHODS
from openworld.methods import options as module
from openworld.methods.base import OpenWorldMethod
from openworld.methods.closed.options import ClosedOptions
from openworld.methods.options import MethodOptions

SPACE = LabelSpace.of((("cat", "dog"), ("car",)), 1)


@pytest.mark.parametrize("name", METHODS)
def test_every_name_makes_its_method(name: str) -> None:
    owner = MethodOptions.named(name)
    options = owner()
    assert options.name == name
    method = options.build(SPACE, 8)
    assert isinstance(method, OpenWorldMethod) and method.space == SPACE
    assert method.uses_unknown_labels == options.uses_unknown_labels
    assert inspect.getdoc(type(method))
    same = options.rescaled(lambda steps: steps)
    assert same == options and type(options.before_calibration()) is owner
    for variant in options.variants().values():
        assert variant != options and type(variant) is owner
    method.grow(SPACE.at(2))
    assert method.space.task == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("energy", "choose one of ore, closed, max_logit"),
        ("no_such_module_here:Options", "cannot be imported"),
        ("openworld.errors:Nothing", "cannot be imported"),
        ("openworld.errors:ConfigError", "not a subclass"),
    ],
)
def test_what_is_not_a_method_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        MethodOptions.named(name)
    assert name in caught.value.problem and caught.value.remedy


def test_a_method_of_another_package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "openworld.methods.closed.options:ClosedOptions"
    points = EntryPoints([EntryPoint("theirs", target, module.ENTRY_POINTS)])
    monkeypatch.setattr(module, "entry_points", lambda *, group: points.select(group=group))
    assert MethodOptions.named("theirs") is ClosedOptions
    assert MethodOptions.named(target) is ClosedOptions
    with pytest.raises(ConfigError, match="theirs"):
        MethodOptions.named("other")


@pytest.mark.parametrize("code", ["def x(:", "undefined_name", "import sys; sys.exit(3)"])
def test_a_module_that_fails_is_refused_by_its_name(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_method.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="failing_method:Options cannot be imported"):
        MethodOptions.named("failing_method:Options")


@pytest.mark.parametrize("target", [None, "openworld.errors:ConfigError", "openworld.errors:Nothing"])
def test_options_that_make_no_method_are_refused(target: str | None) -> None:
    class Theirs(MethodOptions): ...

    if target is not None:
        Theirs.METHOD = target
    with pytest.raises(ConfigError, match=r"Theirs") as caught:
        Theirs.method_class()
    assert "METHOD" in str(caught.value) and caught.value.remedy
