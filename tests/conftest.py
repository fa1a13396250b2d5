"""What every test may use. None touches the user's cache of annotations; its own tests name a folder of their own.

All compute on one thread, for tiny networks are quicker without handing work around.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from tests.two_processes import TwoProcesses

os.environ["OPENWORLD_CACHE"] = "off"
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread for each test and its fixtures, whatever the test before chose."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def two_processes() -> Iterator[TwoProcesses]:
    """Two processes in one gloo group."""
    pair = TwoProcesses()
    yield pair
    pair.close()
