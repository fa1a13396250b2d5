"""Classes by their import path."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Mapping

import pytest

from openworld.errors import ConfigError
from openworld.runtime.import_path import class_at


def test_a_class_is_found() -> None:
    assert class_at("collections:OrderedDict", dict) is OrderedDict
    assert class_at("collections:UserDict", Mapping) is UserDict  # type: ignore[type-abstract]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module:Thing", "cannot be imported .*no_such_module"),
        ("collections:NoSuchClass", "cannot be imported .*NoSuchClass"),
        ("collections", "cannot be imported"),
        (":OrderedDict", "cannot be imported"),
        ("collections:Counter.update", "cannot be imported"),
        ("collections:deque", r"collections:deque is not a subclass of builtins\.dict"),
        ("collections:namedtuple", "is not a subclass"),
    ],
)
def test_what_is_wrong_with_a_path_is_said(path: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        class_at(path, dict)
