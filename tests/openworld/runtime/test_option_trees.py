"""Trees of options: layers, sections whose class a name chooses, and errors that name the full key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
import yaml

from openworld.errors import ConfigError
from openworld.runtime.option_trees import Given, construct, from_words
from openworld.runtime.options import AtLeast, Between, FilePath, Items, check, refuse
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


def test_texts_stay_as_they_are_written() -> None:
    names = "[[no, Yes, on], [0, 007, 1e3, 0x10], [1.50, 2020-01-01, 1_000, 12:30, .inf]]"
    written = [["no", "Yes", "on"], ["0", "007", "1e3", "0x10"], ["1.50", "2020-01-01", "1_000", "12:30", ".inf"]]
    for root in (read(f"classes: {names}"), read(words=(("classes", names),))):
        assert root.classes == written
        assert {type(name) for task in root.classes for name in task} == {str}
    assert read("title: 2020").title == "2020" and read("title: off").title == "off"
    assert read("seed: 007").seed == 7 and read("seed: 0x10").seed == 16 and read("seed: 1_000").seed == 1000
    assert read("train: {by_task: {1: 5, '2': 7}}").train.by_task == {1: 5, 2: 7}


def test_paths_have_their_home_and_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @dataclass(kw_only=True)
    class Places:
        folder: FilePath | None = None
        either: Annotated[list[str], Items(1)] | FilePath = "x"
        title: str = ""

        def __post_init__(self) -> None:
            check(self)

    def places(text: str) -> Places:
        return construct(Places, [Given(parse(text, as_written=True), "f")])

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", "/sets")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert places("folder: ~/a").folder == f"{tmp_path}/a" and places("folder: '~'").folder == str(tmp_path)
    assert places("folder: ~").folder is None
    assert (
        places("folder: $SETS/a\neither: ${SETS}_2").folder == "/sets/a" and places("either: ~/b").either[-2:] == "/b"
    )
    assert places("folder: ../a\ntitle: ~/a").folder == "../a" and places("title: ~/a").title == "~/a"
    assert places("folder: a$NOWHERE/b~").folder == "a$NOWHERE/b~" and places("either: [~/a]").either == ["~/a"]
    assert construct(Places, from_words([("folder", "~/a")])).folder == f"{tmp_path}/a"
    with pytest.raises(
        ConfigError, match=r"^f: folder is '\$NOWHERE/a', and the environment variable NOWHERE is not set"
    ):
        places("folder: $NOWHERE/a")
    with pytest.raises(ConfigError, match=r"^f: folder is '~no_such_user/a', and there is no user no_such_user"):
        places("folder: ~no_such_user/a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "$NOWHERE").mkdir()
    assert places("folder: $NOWHERE").folder == "$NOWHERE"


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
        (["train: {steps: yes}"], (), "f0: train.steps is yes\nWhat to do: give an integer of at least 0"),
        (["train: {steps: 6.0}"], (), "f0: train.steps is 6.0\nWhat to do: give an integer of at least 0"),
        (
            ["train: {steps: 1e3}"],
            (),
            "f0: train.steps is '1e3'\nWhat to do: give an integer of at least 0; write a number in plain digits",
        ),
        (["train: {steps: '6'}"], (), "f0: train.steps is '6'\nWhat to do: give an integer of at least 0; write a"),
        (["train: {steps: 010}"], (), "f0: train.steps is '010'\n"),  # 8 in YAML 1.1
        (["train: {steps: 1:30}"], (), "f0: train.steps is '1:30'\n"),  # 90 in YAML 1.1
        (["train: {lr: 1:30.5}"], (), "f0: train.lr is '1:30.5'\n"),
        (["train: {lr: [0.1]}"], (), "f0: train.lr is [0.1]\nWhat to do: give a number"),
        (["train: {lr: null}"], (), "f0: train.lr is null\nWhat to do: give a number"),
        (["title: null"], (), "f0: title is null\nWhat to do: give a string"),
        (["title: [a]"], (), "f0: title is ['a']\nWhat to do: give a string"),
        (["train: {by_task: {1: 5, 0x1: 6}}"], (), "f0: train.by_task is {1: 5, 0x1: 6}\n"),
        (["Train: {steps: 1}"], (), "f0: Train is not an option\nWhat to do: did you mean train?"),
        (["TRAIN: {steps: 1}"], (), "f0: TRAIN is not an option\nWhat to do: did you mean train?"),
        (["train: {by-task: {}}"], (), "f0: train.by-task is not an option\nWhat to do: did you mean train.by_task?"),
        (["steps: 3"], (), "f0: steps is not an option\nWhat to do: did you mean train.steps or extra.steps or warm."),
        (
            ["train.steps: 3"],
            (),
            "f0: train.steps is not an option\nWhat to do: write the sections as mappings: train: ",
        ),
        (["train: {lr:1}"], (), "f0: train.lr:1 is not an option\nWhat to do: put a blank behind the colon: lr: 1"),
        (["on: 1"], (), "f0: on is not an option"),
        (["method: 5"], (), "f0: method.name is '5': there is no such method\nWhat to do: choose ore or closed"),
        (["method: no"], (), "f0: method.name is 'no': there is no such method"),
        (["method: null"], (), "f0: method is null\nWhat to do: give a name, a mapping"),
        (["train: {lr: 1}", "train: {lr: 2, stepz: 1}", "seed: 1"], (), "f1: train.stepz is not an option"),
        (["train: 5"], (), "f0: train is 5\nWhat to do: give a mapping"),
        (["train: null"], (), "f0: train is null\nWhat to do: give a mapping"),
        (["extra: {lr: 2}"], (), "f0: extra.steps is missing\nWhat to do: give an integer of at least 0"),
        (["train: {by_task: {0: 1}}"], (), "f0: train.by_task is {0: 1}"),
        (["method: {clustering: {steps: -1}}"], (), "f0: method.clustering.steps is -1"),
        (["method: {margin: .nan}"], (), "f0: method.margin is nan"),
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
        ([], (("train.steps", "010"),), "train.steps is '010'\nWhat to do: give an integer"),
        ([], (("train.steps", "yes"),), "train.steps is yes\nWhat to do: give an integer"),
        ([], (("train", "{steps: 1, steps: 2}"),), "train is '{steps: 1, steps: 2}'\nWhat to do: give a mapping"),
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
