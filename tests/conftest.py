"""What every test may use. None touches the user's cache of annotations; its own tests name a folder of their own."""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.two_processes import TwoProcesses

os.environ["OPENWORLD_CACHE"] = "off"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Arithmetic on one thread: tiny networks are quicker without handing work around."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def two_processes() -> Iterator[TwoProcesses]:
    """Two processes in one gloo group."""
    pair = TwoProcesses()
    yield pair
    pair.close()
