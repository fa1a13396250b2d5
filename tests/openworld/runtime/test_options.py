"""Options checked against their annotations: hand-written domains, and the text of the errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from openworld.errors import ConfigError
from openworld.runtime.options import Above, AtLeast, Below, Between, Items, check, domain, fits, refuse, wanted

Share = Annotated[float, Between(0, 1)]


@dataclass(kw_only=True)
class Inner:
    share: Share = 0.5

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class Options:
    count: Annotated[int, AtLeast(1)] = 1
    rule: Literal["adamw", "sgd"] = "adamw"
    rate: Annotated[float, Above(0), Below(1)] | None = None
    jitter: Annotated[list[Share], Items(2, 2)] = field(default_factory=lambda: [0.0, 1.0])
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        check(self)
        if self.jitter[0] > self.jitter[1]:
            refuse(self, "jitter", remedy="give rising factors")
        if self.inner.share == 1:
            refuse(self, "inner.share", "is 1 and cannot be", remedy="give less")


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (int, [0, -3, 10**30], [True, 1.0, "1", None, float("nan")]),
        (float, [0, 1.5, -2], [True, "1.5", None, float("nan"), float("inf")]),
        (bool, [True, False], [0, 1, "true", None]),
        (str, ["", "null"], [None, 1]),
        (str | None, ["", None], [1, False]),
        (Literal[2, 3], [2, 3], [2.0, True, "2", 4]),
        (Literal["a", "b"] | None, ["a", None], ["c", 0]),
        (Annotated[int, AtLeast(1)], [1, 2], [0, 1.5, True]),
        (Annotated[float, Above(0), Below(1)], [0.5, 1e-9], [0, 1, float("nan"), None]),
        (Share, [0, 1, 0.3], [-0.01, 1.01]),
        (list[Share], [[], [0.5, 1]], [[0.5, 2], [True], (0.5,), 0.5, None]),
        (Annotated[list[int], Items(1)], [[1]], [[], [1.5]]),
        (dict[Annotated[int, AtLeast(1)], int], [{}, {1: -1}], [{0: 1}, {1: 1.5}, {"1": 1}, []]),
        (list[list[str]] | str, ["name", [["a"], []]], [[["a", 1]], ["a"], 3]),
        (Inner, [Inner()], [None, {}]),
    ],
)
def test_domains(hint: Any, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not fits(hint, value)] == []
    assert [value for value in outside if fits(hint, value)] == []


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (Literal["adamw", "sgd"], "choose adamw or sgd"),
        (Literal["a", "b", "c"] | None, "choose a, b, c or null"),
        (Annotated[int, AtLeast(1)], "give an integer of at least 1"),
        (Annotated[float, Above(0), Below(1)], "give a number above 0 and below 1"),
        (Annotated[float, Above(0)] | None, "give a number above 0 or null"),
        (Annotated[list[Share], Items(2, 2)], "give a list of 2 items, each item a number from 0 to 1"),
        (dict[int, str], "give a mapping from an integer to a string"),
        (bool, "give true or false"),
    ],
)
def test_remedies(hint: Any, text: str) -> None:
    assert wanted(hint) == text
    assert text.endswith(domain(hint))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "adam"}, "Options.rule is 'adam'\nWhat to do: choose adamw or sgd"),
        ({"count": 0}, "Options.count is 0\nWhat to do: give an integer of at least 1"),
        ({"count": True}, "Options.count is True\nWhat to do: give an integer of at least 1"),
        ({"rate": float("nan")}, "Options.rate is nan\nWhat to do: give a number above 0 and below 1 or null"),
        ({"jitter": [1.0, 0.5]}, "Options.jitter is [1.0, 0.5]\nWhat to do: give rising factors"),
        ({"inner": Inner(share=1)}, "Options.inner.share is 1 and cannot be\nWhat to do: give less"),
    ],
)
def test_an_object_made_in_python_names_its_class(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Options(**values)
    assert str(caught.value) == message


def test_an_annotation_that_cannot_be_checked_is_a_fault_of_the_program() -> None:
    with pytest.raises(TypeError, match="cannot be annotated"):
        fits(tuple[int, ...], (1,))
