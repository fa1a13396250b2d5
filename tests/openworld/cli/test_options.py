"""Options of a verb from the command line, their errors and their help."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from openworld.cli import main
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


def test_help_lists_the_keys_with_their_texts(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "run", "--help")
    assert "--train.batch_size BATCH_SIZE Images " in text and "--pretrain PRETRAIN Contrastive" in text
    assert "--model.arch ARCH" in text and "--model.arch.width" not in text  # null by default: of no family yet
    assert "--model.arch.depths" in printed(capsys, "run", "--model.arch", "convnext_tiny", "--help")
    assert "--pretrain.arch.stem" in text
    assert "(adamw or sgd; default: adamw)" in text
    assert "default: 77)" in printed(capsys, "run", "--train.steps", "77", "--help")
    assert "--knn_k" in printed(capsys, "pretrain", "-h")


def test_texts_of_fields() -> None:
    docs = field_docs(PhaseOptions)
    assert docs["checkpoint_every"] == "Steps between checkpoints."
    assert set(docs) < set(PhaseOptions.__dataclass_fields__)
