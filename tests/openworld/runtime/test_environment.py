"""What this machine has: the choice of a device, what the doctor finds, what env.json says."""

from __future__ import annotations

import importlib
import json
import os
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from openworld.errors import ConfigError, EnvironmentProblem
from openworld.runtime import environment
from openworld.runtime.environment import (
    Check,
    describe,
    device_is_here,
    device_of_finished_run,
    examine,
    select_device,
)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch report this number of GPUs."""

    def report(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")

    return report


def finding(name: str) -> Check:
    (found,) = [check for check in examine() if check.name == name]
    return found


@pytest.mark.parametrize(("count", "device"), [(0, "cpu"), (2, "cuda")])
def test_auto_is_a_gpu_where_there_is_one(gpus: Any, count: int, device: str) -> None:
    gpus(count)
    assert select_device("auto") == device
    assert select_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("name", "count", "there"),
    [
        ("cpu", 0, True),
        ("cuda", 0, False),
        ("cuda", 1, True),
        ("cuda:1", 1, False),
        ("cuda:1", 2, True),
    ],
)
def test_a_device_is_one_that_torch_knows_and_sees(gpus: Any, name: str, count: int, there: bool) -> None:
    gpus(count)
    assert device_is_here(name) == there
    if there:
        assert select_device(name) == name
    else:
        with pytest.raises(EnvironmentProblem, match=f"device '{name}'"):
            select_device(name)


@pytest.mark.parametrize(("count", "seen"), [(0, "no GPU"), (1, "1 GPU"), (2, "2 GPUs")])
def test_the_error_counts_the_gpus(gpus: Any, count: int, seen: str) -> None:
    gpus(count)
    with pytest.raises(EnvironmentProblem) as problem:
        select_device("cuda:7")
    assert problem.value.problem == f"device 'cuda:7' was asked for and torch sees {seen}"


def test_a_finished_run_goes_where_it_can(gpus: Any, caplog: pytest.LogCaptureFixture) -> None:
    gpus(0)
    assert device_of_finished_run("auto", None) == device_of_finished_run("cpu", None) == "cpu"
    assert not caplog.messages
    assert device_of_finished_run("cuda:1", None) == "cpu"
    assert "model.device cuda:1 is not on this machine: cpu is used" in caplog.text
    with pytest.raises(EnvironmentProblem):
        device_of_finished_run("cpu", "cuda")
    gpus(2)
    assert device_of_finished_run("cuda:1", None) == "cuda:1"
    assert device_of_finished_run("cuda:1", "cpu") == "cpu"


def test_the_environment_is_json_with_versions(gpus: Any) -> None:
    gpus(2)
    found = json.loads(json.dumps(describe()))
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["gpus"] == ["GPU 0", "GPU 1"] and found["cpus"] == os.cpu_count()


def test_a_package_that_is_missing_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert describe()["packages"]["no-such-package"] is None


def test_a_sound_installation_has_no_remedy() -> None:
    checks = examine()
    assert [check.name for check in checks if not check.ok or check.remedy] == []
    assert {"torch and torchvision", "device", "numpy", "pillow", "pyyaml", "disk", "detectron2"} <= {
        check.name for check in checks
    }


def test_a_package_that_cannot_be_imported_is_named_as_pip_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without_pillow(name: str) -> ModuleType:
        if name == "PIL":
            raise ImportError("no module named PIL")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without_pillow)
    assert finding("pillow") == Check("pillow", False, "no module named PIL", "pip install pillow")


def test_operators_that_did_not_load_point_to_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says where torchvision was built for another version; nothing that needs torch is looked at then."""

    def broken(*_: Any) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nat some line")

    monkeypatch.setattr("torchvision.ops.nms", broken)
    found = finding("torch and torchvision")
    assert not found.ok and "constraints.txt" in found.remedy
    assert "operator torchvision::nms does not exist" in found.finding and "at some line" not in found.finding
    assert "built for another torch" in found.finding
    assert "device" not in {check.name for check in examine()}


@pytest.mark.parametrize("missing", ["torch", "torchvision"])
def test_half_a_pair_is_no_pair(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    version = environment._version
    monkeypatch.setattr(environment, "_version", lambda name: None if name == missing else version(name))
    found = finding("torch and torchvision")
    assert not found.ok and "one is missing" in found.finding and f"{missing} None" in found.finding


@pytest.mark.parametrize(("gigabytes", "ok"), [(0.5, False), (2, True)])
def test_little_space_is_found(monkeypatch: pytest.MonkeyPatch, gigabytes: float, ok: bool) -> None:
    class Status(NamedTuple):
        f_bavail: int
        f_frsize: int

    monkeypatch.setattr(os, "statvfs", lambda _: Status(int(gigabytes * 2**18), 2**12))
    found = finding("disk")
    assert found.ok == ok and bool(found.remedy) != ok


@pytest.mark.parametrize("name", ["gpu", "CPU", "", "cuda:first", "toaster"])
def test_what_is_no_device_is_refused(name: str) -> None:
    assert not device_is_here(name)
    with pytest.raises(ConfigError, match=f"no device '{name}'"):
        select_device(name)
