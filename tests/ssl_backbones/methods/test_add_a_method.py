"""A self-supervised method that the package does not know: the two files of docs/pretraining.md, by import path."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openworld.cli import main
from openworld.runtime.runlog import RunLog
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.method import Batch
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.options import PretrainOptions

DOCS = Path(__file__).parents[3] / "docs" / "pretraining.md"
NAME = "vicreg_options:VICRegOptions"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The example's files, importable; yields their names."""
    files = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOCS.read_text(), flags=re.DOTALL))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield list(files)
    for name in files:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_a_method_by_import_path_is_trained(example: list[str], tmp_path: Path) -> None:
    assert example == ["vicreg_options.py", "vicreg.py"]  # what a newcomer writes
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    small = (
        "--arch.width 0.125 --view_size 32 --steps 4 --batch_size 4 --warmup 0 --method.projection_dim 16 --device cpu"
    )
    chosen = ["--method", NAME, "--method.variance_weight", "10", "--images", str(tmp_path / "images")]
    main(["pretrain", *chosen, *small.split(), "--output", str(tmp_path / "run")])
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["method"] == NAME and card["projector"]["file"] == "projector.safetensors"
    assert card["options"]["method"] == {
        "name": NAME,
        "projection_dim": 16,
        "invariance_weight": 25.0,
        "variance_weight": 10.0,
        "covariance_weight": 1.0,
    }
    losses = [entry["loss"] for entry in RunLog(tmp_path / "run" / "metrics.jsonl").read() if entry["event"] == "step"]
    assert len(losses) == len(set(losses)) == 4


@pytest.mark.usefixtures("example")
def test_the_examples_loss_is_its_equation() -> None:
    torch.manual_seed(0)
    chosen = PretrainOptions(
        method=MethodOptions.named(NAME)(name=NAME, projection_dim=5), arch=ResNetOptions(width=1 / 16)
    )
    method = chosen.method.implementation()(chosen).eval()
    views = [torch.rand(6, 3, 32, 32) for _ in range(2)]
    with torch.no_grad():
        loss = method.loss(Batch(views, torch.arange(6)))[0].item()
        z1, z2 = (method.projector(method.encoder(view)).double().numpy() for view in views)
    expected = 25 * ((z1 - z2) ** 2).mean()
    for z in (z1, z2):
        covariance = np.cov(z.T)
        expected += 25 * sum(max(0, 1 - (covariance[i, i] + 1e-4) ** 0.5) for i in range(5)) / 5 / 2
        expected += sum(covariance[i, j] ** 2 for i in range(5) for j in range(5) if i != j) / 5
    assert loss == pytest.approx(expected, rel=1e-5)
