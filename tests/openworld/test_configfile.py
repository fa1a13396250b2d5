"""Configuration files: round trip, unknown keys, defaults that stay when one leaf changes."""

from dataclasses import replace
from pathlib import Path

import pytest

from openworld.config import RunConfig
from openworld.configfile import CONFIGS, dump_config, find_config, read_config, read_config_of_run
from openworld.data.options import DataOptions
from openworld.errors import ConfigError
from openworld.run.folder import config_difference


def test_round_trip(tmp_path: Path) -> None:
    config = replace(RunConfig(), seed=7, pretrain=None)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "config.yaml") == config


NAMES = ("0E0", "1e-3", "no", "7", "007", "2024-01-01", "2024-13-45", "12:30", "~", "null", "cat", "=", "<<", "9" * 30)
MARKS = (
    "valve [open]",
    "a: b",
    "# b",
    "{c}",
    "“red”",
    "车",
    "🚗",
    " x",
    "\u00a0x",
    "it's",
    '"',
    "*a",
    "!b",
    "%d",
    "- e",
)


@pytest.mark.parametrize("name", [*NAMES, *MARKS])
def test_class_names_that_look_like_something_else_stay_texts(tmp_path: Path, name: str) -> None:
    config = RunConfig(data=DataOptions(tasks=[[name]]), pretrain=None)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert read_config(tmp_path / "config.yaml").data.tasks == [[name]]


def test_one_leaf_changes_and_its_neighbours_keep_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {lr: 5e-4}\nmethod:\n  clustering: {margin: 3.0}\n")
    config, default = read_config(tmp_path / "config.yaml"), RunConfig()
    assert config_difference(default, config) == [
        f"method.clustering.margin: {default.method.clustering.margin} → 3.0",
        f"train.lr: {default.train.lr} → 0.0005",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {stepz: 3}", "stepz"),
        ("trian: {steps: 3}", "trian"),
        ("train: {steps: many}", "steps"),
        ("seed: [1", "config.yaml"),
        ("{model: {weights: a.safetensors}, pretrain: {}}", "pretrain is on"),
        ("tasks: 9", "the schedule has 3"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tasks: [[red, null]]", "data.tasks is wrong: class null of task 1 is not a text\nWhat to do: write class"),
        ("tasks: [red, blue]", "data.tasks is ['red', 'blue'], class names without a list for each task\nWhat to do: "),
        ("tasks: {1: [red]}", "data.tasks is {1: ['red']}, not a list\nWhat to do: write one list of class names"),
        ("tasks: [[red], blue]", "data.tasks is wrong: task 2 is 'blue', not a list"),
        ("tasks: [[red], []]", "data.tasks is wrong: task 2 has no classes"),
        ("tasks: [[red], [red]]", "data.tasks is wrong: class 'red' is in task 1 and in task 2"),
        ("tasks: [[red, unknown]]", "data.tasks is wrong: class name 'unknown' of task 1 is reserved"),
        ("tasks: [['']]", "data.tasks is wrong: class '' of task 1 is blank"),
        ("tasks: null", "data.tasks is null, not a list"),
        ("tasks: red", "data.tasks is 'red': schedule 'red' is neither a known name nor a file"),
        ("rename: [a, b]", "data.rename is ['a', 'b'], not a mapping"),
        ("rename: {a: }", "data.rename is wrong: null, the name for 'a', is not a text"),
        ("rename: {a: [b]}", "data.rename is wrong: ['b'], the name for 'a', is not a text"),
        ("train: {annotations: a}\n  train: {images: b}", "line 3: the key 'train' is in line 2 already"),
    ],
)
def test_mistakes_in_the_data_are_said_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"data:\n  {text}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value).startswith(f"{path}: {message}") and str(caught.value).count("\n") == 1


def test_class_names_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data:\n  tasks: [[no, 0], [1.5, off, 007]]\n  rename: {yes: no, 2020-01-01: 0, '3': 1e3}\n")
    data = read_config(path).data
    assert data.tasks == [["no", "0"], ["1.5", "off", "007"]]
    assert data.rename == {"yes": "no", "2020-01-01": "0", "3": "1e3"}
    (tmp_path / "again.yaml").write_text(dump_config(read_config(path)))
    assert read_config(tmp_path / "again.yaml") == read_config(path)


def test_a_key_twice_stops_and_a_merged_key_does_not(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("train: {steps: 6}\nseed: 1\ntrain: {steps: 999}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value) == f"{path}: line 3: the key 'train' is in line 1 already\nWhat to do: keep one of the two"
    path.write_text("train: &train {steps: 6, lr: 0.5}\nincrement: {<<: *train, steps: 4}\n")
    config = read_config(path)
    assert (config.train.steps, config.increment.steps, config.increment.lr) == (6, 4, 0.5)
    (tmp_path / "later.yaml").write_text("train: {steps: 7}\n")  # in another file it is no repetition
    assert read_config(path, tmp_path / "later.yaml").train.steps == 7


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("name: für\r\ndata: {tasks: [[Tür, 车]]}\r\n".encode(encoding))
    config = read_config(path)
    assert config.name == "für" and config.data.tasks == [["Tür", "车"]]


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("seed: 1\nname: für\n".encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert str(caught.value) == f"{path}: line 2 is not UTF-8 (byte 0xfc)\nWhat to do: save the file as UTF-8"


def test_the_home_folder_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tasks.yaml").write_text("tasks: [[cat]]")
    (tmp_path / "config.yaml").write_text(
        "data:\n  synthetic: null\n  tasks: ~/tasks.yaml\n  train: {annotations: ~/a.json, images: $HOME/a}\n"
        "  test: {annotations: b.json, image_set: ~/test.txt}\n"
        "pretrain: {images: ~/c, method: {name: clip, captions: ~/d}}"
    )
    config = read_config(Path("~/config.yaml"))
    assert config.data.tasks == [["cat"]]
    assert (config.data.train.annotations, config.data.train.images) == (f"{tmp_path}/a.json", f"{tmp_path}/a")
    assert (config.data.test.annotations, config.data.test.image_set) == ("b.json", f"{tmp_path}/test.txt")
    assert config.pretrain is not None and config.pretrain.images == f"{tmp_path}/c"
    assert config.pretrain.method.captions == f"{tmp_path}/d"  # type: ignore[attr-defined]


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean ore/reference\.yaml\?"):
        find_config("ore/refrence.yaml")
    with pytest.raises(ConfigError, match="is a folder\nWhat to do: give a path to a"):
        find_config(str(tmp_path))
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ConfigError, match=f"is a folder\nWhat to do: give {tmp_path}/config.yaml"):
        find_config(str(tmp_path))
    assert find_config("ore/reference") == CONFIGS / "ore" / "reference.yaml"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        read_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "path", [*sorted((CONFIGS / "owod").glob("*.yaml")), CONFIGS / "demo.yaml"], ids=lambda p: p.stem
)
def test_shipped_configurations_are_valid(path: Path) -> None:
    read_config(path)


def test_the_demo_file_is_the_default() -> None:
    assert config_difference(RunConfig(), read_config(CONFIGS / "demo.yaml")) == []


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run") as caught:
        read_config_of_run(tmp_path)
    assert str(tmp_path) in str(caught.value) and "--output" in str(caught.value)
