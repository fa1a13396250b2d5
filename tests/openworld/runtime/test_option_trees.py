"""Trees of options: layers, sections whose class a name chooses, and errors that name the full key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

import pytest
import yaml

from openworld.errors import ConfigError
from openworld.runtime.option_trees import Given, construct, from_words
from openworld.runtime.options import AtLeast, Between, check, refuse
from openworld.runtime.yaml_text import parse


@dataclass(kw_only=True)
class Phase:
    steps: Annotated[int, AtLeast(0)]
    lr: float = 0.1
    by_task: dict[Annotated[int, AtLeast(1)], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)
        if self.steps == 13:
            refuse(self, "steps", remedy="choose another")


@dataclass(kw_only=True)
class Method:
    name: str

    @classmethod
    def named(cls, name: str) -> type[Self]:
        found = next((part for part in cls.__subclasses__() if part.__name__.lower() == name), None)
        if found is None:
            raise ConfigError("there is no such method", remedy="choose ore or closed")
        return found

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class Ore(Method):
    name: Literal["ore"] = "ore"
    margin: Annotated[float, AtLeast(0)] = 10.0
    clustering: Phase = field(default_factory=lambda: Phase(steps=7, lr=0.7))


@dataclass(kw_only=True)
class Closed(Method):
    name: Literal["closed"] = "closed"
    score: Annotated[float, Between(0, 1)] = 0.5
    inner: Method | None = None


@dataclass(kw_only=True)
class Root:
    title: str = "demo"
    seed: int | None = None
    classes: list[list[str]] | str = field(default_factory=list)
    train: Phase = field(default_factory=lambda: Phase(steps=320, lr=0.5))
    extra: Phase | None = None
    warm: Phase | None = field(default_factory=lambda: Phase(steps=4))
    method: Method = field(default_factory=lambda: Ore(margin=3.0))
    other: Method | None = None

    def __post_init__(self) -> None:
        check(self)


def read(*texts: str, words: tuple[tuple[str, str], ...] = ()) -> Root:
    """YAML texts as the files f0, f1, …, then options of the command line."""
    files = [Given(parse(text, as_written=True), f"f{index}") for index, text in enumerate(texts)]
    return construct(Root, [*files, *from_words(words)])


def test_without_layers_everything_is_default() -> None:
    assert read() == Root()


def test_later_files_win_and_neighbours_keep_the_defaults_of_their_section() -> None:
    root = read("train: {lr: 0.3}\nseed: 1", "train: {steps: 5}\nseed: null")
    assert root.train == Phase(steps=5, lr=0.3) and root.seed is None
    assert read("train: {lr: 0.3}").train == Phase(steps=320, lr=0.3)


def test_words_win_over_files_and_follow_their_own_order() -> None:
    words = (("train.lr", "2"), ("train.steps", "8"), ("train.lr", "3e-1"))
    assert read("train: {lr: 0.9}", words=words).train == Phase(steps=8, lr=0.3)


def test_null_discards_and_a_later_key_brings_the_section_back() -> None:
    assert read("warm: null").warm is None
    assert read("warm: {lr: 0.9}", "warm: null").warm is None
    assert read("warm: {lr: 0.9}", "warm: null", "warm: {steps: 6}").warm == Phase(steps=6)
    assert read(words=(("warm.steps", "9"), ("warm", "null"))).warm is None
    assert read(words=(("warm", "null"), ("warm.steps", "9"))).warm == Phase(steps=9)
    assert read("extra: {steps: 1}").extra == Phase(steps=1)
    assert read(words=(("extra", "{steps: 1, lr: 4}"),)).extra == Phase(steps=1, lr=4.0)


def test_words_are_read_as_their_options_want() -> None:
    words = (("title", "123"), ("seed", "null"), ("classes", "[[cat, dog], ['1']]"), ("train.by_task.2", "7"))
    root = read("seed: 4\ntrain: {by_task: {1: 5}}", words=words)
    assert (root.title, root.seed, root.classes) == ("123", None, [["cat", "dog"], ["1"]])
    assert root.train.by_task == {1: 5, 2: 7}
    assert read(words=(("title", "null"), ("classes", "m_owodb"))).title == "null"
    assert read(words=(("classes", "2024-01-01"),)).classes == "2024-01-01"
    assert read(words=(("train.by_task", "{3: 1}"),)).train.by_task == {3: 1}


def test_a_mapping_of_a_file_replaces_that_of_an_earlier_one() -> None:
    assert read("train: {by_task: {1: 5}}", "train: {by_task: {2: 6}}").train.by_task == {2: 6}


def test_integers_become_floats_where_floats_are_meant() -> None:
    assert isinstance(read("train: {lr: 1}").train.lr, float)
    assert read("train: {lr: 5e-4}").train.lr == 5e-4  # a string in YAML 1.1
    assert read("title: 5e-4\nclasses: [[0E0]]").classes == [["0E0"]]


def test_a_chosen_section_keeps_its_default_object_under_the_same_name() -> None:
    assert read("method: {clustering: {lr: 0.2}}").method == Ore(margin=3.0, clustering=Phase(steps=7, lr=0.2))
    assert read("method: ore").method == Ore(margin=3.0)
    assert read("method: {name: ore, margin: 4}").method == Ore(margin=4.0)


def test_another_name_replaces_what_earlier_files_said() -> None:
    assert read("method: {margin: 4}", "method: {name: closed, score: 0.1}").method == Closed(score=0.1)
    assert read("method: {margin: 4}", "method: closed", "method: {score: 0.2}").method == Closed(score=0.2)
    assert read("method: closed", "method: {name: ore}").method == Ore(margin=3.0)
    assert read("method: {margin: 4}", "method: {name: ore}").method == Ore(margin=4.0)


def test_a_chosen_section_on_the_command_line() -> None:
    assert read(words=(("method.name", "closed"), ("method.score", "0.25"))).method == Closed(score=0.25)
    assert read("method: {margin: 1}", words=(("method", "closed"),)).method == Closed()
    assert read(words=(("method", "{name: closed, score: 1}"),)).method == Closed(score=1.0)
    words = (("other.name", "closed"), ("other.inner.name", "ore"), ("other.inner.clustering.steps", "2"))
    assert read(words=words).other == Closed(inner=Ore(clustering=Phase(steps=2, lr=0.7)))


def test_chosen_sections_may_be_null_and_nested() -> None:
    root = read("other: {name: closed, inner: {name: closed, inner: ore}}")
    assert root.other == Closed(inner=Closed(inner=Ore()))
    assert read("other: closed", "other: null").other is None
    assert read("other: closed", words=(("other", "null"),)).other is None


def test_what_is_written_is_read_again() -> None:
    root = read("method: {name: closed, inner: ore}\nextra: {steps: 2, by_task: {1: 1}}")
    text = yaml.safe_dump(asdict(root), sort_keys=False)
    assert read(text) == root
    assert "margin" not in yaml.safe_load(text)["method"]
    assert list(yaml.safe_load(text)["method"]) == ["name", "score", "inner"]


@pytest.mark.parametrize(
    ("texts", "words", "message"),
    [
        (["train: {stepz: 3}"], (), "f0: train.stepz is not an option\nWhat to do: did you mean train.steps?"),
        (["{}", "trian: {}"], (), "f1: trian is not an option\nWhat to do: did you mean train?"),
        (["1: 2"], (), "f0: 1 is not an option\nWhat to do: choose from title, seed"),
        (["train: {lr: 1}", "train: {steps: many}"], (), "f1: train.steps is 'many'\nWhat to do: give an integer"),
        (["train: {steps: 1}", "train: {lr: x}", "train: {}"], (), "f1: train.lr is 'x'"),
        (["train: {steps: 13}"], (), "f0: train.steps is 13\nWhat to do: choose another"),
        (["train: 5"], (), "f0: train is 5\nWhat to do: give a mapping"),
        (["train: null"], (), "f0: train is null\nWhat to do: give a mapping"),
        (["extra: {lr: 2}"], (), "f0: extra.steps is missing\nWhat to do: give an integer of at least 0"),
        (["train: {by_task: {0: 1}}"], (), "f0: train.by_task is {0: 1}"),
        (["method: {clustering: {steps: -1}}"], (), "f0: method.clustering.steps is -1"),
        (["method: {margin: .nan}"], (), "f0: method.margin is .nan"),
        (["method: orre"], (), "f0: method.name is 'orre': there is no such method\nWhat to do: choose ore or closed"),
        (
            ["method: {name: 3}"],
            (),
            "f0: method.name is '3': there is no such method\nWhat to do: choose ore or closed",
        ),
        (["other: {margin: 1}"], (), "f0: other.name is missing\nWhat to do: choose ore or closed"),
        (["method: [ore]"], (), "f0: method is ['ore']\nWhat to do: give a name, a mapping"),
        (["method: closed", "method: {margin: 1}"], (), "f1: method.margin is not an option"),
        (["other: {name: closed, inner: {name: ore, margin: -1}}"], (), "f0: other.inner.margin is -1"),
        ([], (("train.steps", "many"),), "train.steps is 'many'\nWhat to do: give an integer"),
        ([], (("train.steps", "1.5"),), "train.steps is 1.5\nWhat to do: give an integer"),
        ([], (("train", "5"),), "train is '5'\nWhat to do: give a mapping"),
        ([], (("seed.x", "5"),), "seed is {'x': '5'}\nWhat to do: give an integer or null"),
        ([], (("method.name", "x"),), "method.name is 'x': there is no such method"),
        (["train: {steps: 3}"], (("train.steps", "-1"),), "train.steps is -1"),
    ],
)
def test_errors_name_the_key_and_the_file(texts: list[str], words: tuple[tuple[str, str], ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*texts, words=words)
    assert str(caught.value).startswith(message)


def test_an_object_made_while_another_is_read_keeps_its_own_name() -> None:
    @dataclass(kw_only=True)
    class Outer:
        value: int = 0

        def __post_init__(self) -> None:
            Phase(steps=-1)

    with pytest.raises(ConfigError, match=r"^Phase\.steps is -1"):
        construct(Outer, [Given({"value": 1}, None)])


def test_two_objects_do_not_share_a_default() -> None:
    one, two = read("train: {steps: 1}"), read("train: {steps: 1}")
    one.train.by_task[1] = 1
    assert two.train.by_task == {} and read().train.by_task == {}


def test_the_class_of_a_chosen_section_gives_the_defaults(request: pytest.FixtureRequest) -> None:
    default: Any = read("other: ore").other
    assert default.margin == 10.0  # and not the 3.0 of Root.method
