"""Trainings in float64, which tells what is equal but for rounding from what is nearly equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from openworld.detector import Detector


@contextmanager
def in_double_precision() -> Iterator[pytest.MonkeyPatch]:
    """Detectors, networks that are made in the block, and what the code makes float32 are float64."""
    make = Detector.__init__

    def make_double(self: Detector, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        self.double()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detector, "__init__", make_double)
        patch.setattr(Tensor, "float", Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield patch
        finally:
            torch.set_default_dtype(torch.float32)
