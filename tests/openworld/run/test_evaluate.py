"""Detection on the test images of a task: what cannot be read is scored as empty, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openworld.data.options import LoaderOptions
from openworld.records import Dataset, Record
from openworld.run import evaluate
from openworld.structures import Detections


def record(path: Path) -> Record:
    none = np.zeros(0, dtype=np.int64)
    return Record(path.stem, path, 20, 10, np.zeros((0, 4), np.float32), none, none.astype(bool))


def test_a_test_image_that_cannot_be_read_has_no_detections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    records = []
    for name in ("a", "b", "c"):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{name}.png")
        records.append(record(tmp_path / f"{name}.png"))
    (tmp_path / "b.png").write_bytes(b"no image")
    one = Detections(torch.ones(1, 4), torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long())
    monkeypatch.setattr(evaluate, "detect_prepared", lambda detector, images, scales, sizes: [one] * len(images))

    def found(chosen: list[Record]) -> list[int]:
        partial = tmp_path / "partial"
        partial.unlink(missing_ok=True)
        test = Dataset.from_records((), chosen)
        return [len(each) for each in evaluate.detect_on(None, test, LoaderOptions(), partial, "test")]  # type: ignore[arg-type]

    assert found(records) == [1, 0, 1]
    assert "b.png" in caplog.text
    assert found([records[1]]) == [0]
