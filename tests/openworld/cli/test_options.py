"""Options of a verb from the command line, their errors and their help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from openworld.cli import build_parser, main
from openworld.cli.options import field_docs, split
from openworld.config import PhaseOptions, RunConfig
from openworld.runtime.option_trees import construct


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def failed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_split_leaves_flags_alone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\ntrain: {lr: 1e-2}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    words = ["--seed=3", "--output", "out", "--config", str(tmp_path / "a.yaml"), "--resume", "--train.steps", "5"]
    layers, others = split([*words, f"--config={tmp_path / 'b.yaml'}", "--profile", "4"], RunConfig)
    assert others == ["--output", "out", "--resume", "--profile", "4"]
    config = construct(RunConfig, layers)
    # The command line wins wherever it stands, and of the files the last.
    assert (config.seed, config.train.steps, config.train.lr) == (3, 5, 0.01)
    assert construct(RunConfig, layers[:2]).seed == 2


def test_print_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("increment: {steps: 9}\n")
    main(["run", "--config", str(tmp_path / "a.yaml"), "--pretrain", "null", "--print_config"])
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["pretrain"] is None and tree["increment"]["steps"] == 9


def test_errors(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    to = ("--output", str(tmp_path))
    assert failed(capsys, "run", *to, "--train.lrr", "1").startswith("error: train.lrr is not an option")
    assert failed(capsys, "run", *to, "--train.optimizer", "adam").startswith("error: train.optimizer is 'adam'")
    assert failed(capsys, "run", *to, "--train.lr").startswith("error: --train.lr has no value")
    assert failed(capsys, "pretrain", *to, "--knn_k", "0").startswith("error: knn_k is 0")
    assert failed(capsys, "run", *to, "--config", "none.yaml").startswith("error: configuration file 'none.yaml'")
    assert "--trian.lr" in failed(capsys, "run", *to, "--trian.lr", "1")  # no option of the tree: a flag's error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predict x --run y --output z --score nan", "--score is 'nan'\nWhat to do: give a number from 0 to 1"),
        ("predict x --run y --output z --score 30", "--score is '30'\nWhat to do: give a number from 0 to 1"),
        ("predict x --run y --output z --scor 1", "--scor is not an option of `openworld predict`\n… mean --score?"),
        ("predict x y --run y --output z", "'y' is one argument too many for `openworld predict`"),
        ("predict x", "--run and --output are missing\nWhat to do: write --run RUN --output OUTPUT"),
        ("predict x --run", "--run has no value\nWhat to do: write the value behind it"),
        ("predict --run y --output z", "images is missing\nWhat to do: write IMAGES"),
        (
            "ablate --output z --seeds a",
            "--seeds is 'a'\nWhat to do: give a list of 1 or more items, each item an integer",
        ),
        ("ablate --output z --seeds []", "--seeds is '[]'\nWhat to do: give a list of 1 or more items"),
        (
            "ablate --output z --backbones 5",
            "--backbones is 5\nWhat to do: name what it is for: --backbones.NAME VALUE",
        ),
        ("data check --train x --samples -1", "--samples is '-1'\nWhat to do: give an integer of at least 0"),
        ("data check --train x --workers 0", "--workers is '0'\nWhat to do: give an integer of at least 1"),
        ("data check --train_set x", "--train_set is not an option of `openworld data check`\n… mean --train-set?"),
        ("data tasks --train x --tasks x --output y", "--tasks is 'x'\nWhat to do: give an integer of at least 1"),
        ("data tasks --tasks 2", "--train and --output are missing"),
        ("evaluate --predictions p --task 0", "--task is '0'\nWhat to do: give an integer of at least 1"),
        ("evaluate --predictions p --unseen x", "--unseen is 'x'\nWhat to do: choose error, drop or unknown"),
        ("evaluate --predictions p --coco maybe", "--coco is 'maybe'\nWhat to do: give true or false"),
        ("run --output o --engine torch", "--engine is 'torch'\nWhat to do: did you mean torchvision?"),
        ("run --output o --engine x", "--engine is 'x'\nWhat to do: choose from torchvision, detectron2"),
        ("run --output o --resume=4", "--resume takes no value"),
        (
            "run --output o --lr 3",
            "--lr is not an option of `openworld run`\n… --train.lr or --increment.lr or --replay.lr",
        ),
        ("run --output o --trian.steps 3", "--trian.steps is not an option of `openworld run`\n… mean --train.steps?"),
        ("run --output o --train.stepz 3", "train.stepz is not an option\nWhat to do: did you mean train.steps?"),
        ("run --output o \u2013-seed 3", "'\u2013-seed' starts with a dash\nWhat to do: write two hyphens: --seed"),
        ("run --output $NOWHERE/x", "--output is '$NOWHERE/x', and the environment variable NOWHERE is not set\n"),
        (
            "pretrain --output o --batch-size 3",
            "--batch-size is not an option of `openworld pretrain`\n… --batch_size?",
        ),
        ("probe knn --backbone b --images i --k 0", "--k is '0'\nWhat to do: give an integer of at least 1"),
        ("data chekc", "`openworld data` has no verb 'chekc'\nWhat to do: did you mean check?"),
        ("frobnicate", "`openworld` has no verb 'frobnicate'\nWhat to do: choose from demo, run, pretrain"),
        ("data", "`openworld data` needs a verb\nWhat to do: write one behind it: audit, check, tasks, prepare"),
        (
            "",
            "`openworld` needs a verb\nWhat to do: write one behind it: demo, run, pretrain, predict, con",
        ),
    ],
)
def test_mistakes_are_said_in_two_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    text = failed(capsys, *words.split())
    start, _, inside = message.partition("…")
    assert text.startswith(f"error: {start.rstrip()}") and inside.strip() in text
    assert text.count("\n") == 2 and text.splitlines()[1].startswith("What to do: ")


def test_words_are_read_as_the_options_want(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser, _ = build_parser()

    def parsed(words: str) -> Any:
        found = parser.parse_args(words.split())
        return found[found.verb]

    for words in ("--seeds 3,4", "--seeds [3,4]", "--seeds=3,4"):
        assert parsed(f"ablate --output o {words}").seeds == [3, 4]
    one = parsed("ablate --output=~/o --seeds 0 --variants no,full --backbones.a ~/b")
    assert (one.seeds, one.variants, one.output) == ([0], ["no", "full"], "/home/me/o")
    scored = parsed("evaluate --predictions ~/a b --coco no --schedule m_owodb")
    assert (scored.predictions, scored.coco, scored.schedule) == (["/home/me/a", "b"], False, "m_owodb")
    assert parsed("run --output 2024 --profile").output == "2024"
    assert parsed("run --output o --profile").profile == 20 and parsed("run --output o").profile == 0
    assert parsed("predict ~/x --run null --output [o]")["images"] == "/home/me/x"
    assert parsed("predict x --run null --output [o]").output == "[o]"


def test_help_lists_the_keys_with_their_texts(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "run", "--help")
    assert "--train.batch_size BATCH_SIZE Images " in text and "--pretrain PRETRAIN Contrastive" in text
    assert "--model.arch" in text and "--model.arch.width" not in text  # null by default: no name chooses its class
    assert "--model.arch.width" in printed(capsys, "run", "--model.arch.name", "resnet50", "--help")
    assert "--method.clustering.margin" in text
    of_closed = printed(capsys, "run", "--method", "closed", "--help")
    assert "--method.clustering" not in of_closed and "--method.name" in of_closed
    assert "(adamw or sgd; default: adamw)" in text
    assert "default: 77)" in printed(capsys, "run", "--train.steps", "77", "--help")
    assert "--knn_k" in printed(capsys, "pretrain", "-h")


def test_texts_of_fields() -> None:
    docs = field_docs(PhaseOptions)
    assert docs["checkpoint_every"] == "Steps between checkpoints."
    assert set(docs) < set(PhaseOptions.__dataclass_fields__)
