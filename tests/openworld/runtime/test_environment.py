"""What this machine has: the choice of a device, and what env.json says."""

from __future__ import annotations

import importlib
import json
import os
from typing import Any

import pytest
import torch

from openworld.errors import ConfigError, EnvironmentProblem
from openworld.runtime import environment
from openworld.runtime.environment import describe, device_is_here, device_of_finished_run, select_device
from openworld.runtime.gpus import Driver


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch report this number of GPUs."""

    def report(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
        monkeypatch.setattr(environment, "driver", lambda: None)

    return report


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


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("gpu", "cuda"),
        ("GPU", "cuda"),
        ("CUDA", "cuda"),
        ("0", "cuda:0"),
        ("1", "cuda:1"),
        ("gpu:1", "cuda:1"),
        ("Cuda:01", "cuda:1"),
        (" cuda:0 ", "cuda:0"),
        ("CPU", "cpu"),
        ("cpu:0", "cpu"),
        ("AUTO", "cuda"),
    ],
)
def test_a_device_by_the_names_of_other_tools(gpus: Any, name: str, device: str) -> None:
    gpus(2)
    assert select_device(name) == device
    gpus(0)
    if device.startswith("cuda") and name != "AUTO":
        with pytest.raises(EnvironmentProblem, match="sees no GPU") as problem:
            select_device(name)
        assert "what is here: cpu;" in str(problem.value.remedy)


@pytest.mark.parametrize(
    "name", ["", "-1", "mps", "tpu", "xpu", "meta", "cuda:first", "cuda:-1", "cuda:", "toaster", "0,1", "cpu:1", "٣"]
)
def test_what_is_no_device_is_refused_with_what_is_here(gpus: Any, name: str) -> None:
    gpus(1)
    assert not device_is_here(name)
    with pytest.raises(ConfigError) as problem:
        select_device(name)
    assert problem.value.problem == f"there is no device {name!r}"
    assert "auto, or what is here: cpu, cuda:0 (GPU 0)" in str(problem.value.remedy)
    assert ("torchrun" in str(problem.value.remedy)) == ("," in name)


def test_a_gpu_that_torch_was_not_compiled_for_is_refused_before_any_work(
    gpus: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (12, 0))
    with pytest.raises(
        EnvironmentProblem, match=r"GPU 0 has compute capability 12\.0, .* compiled for sm_80, sm_90 only"
    ):
        select_device("cuda:0")
    environment._warn_once.cache_clear()
    assert [select_device("auto") for _ in range(3)] == ["cpu"] * 3
    (message,) = caplog.messages  # said once
    assert message.startswith("the CPU is used, though there is a GPU: GPU 0 has compute capability 12.0")


def test_auto_says_that_a_gpu_of_the_machine_is_not_used(
    gpus: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(0)
    monkeypatch.setattr(environment, "driver", lambda: Driver("nvidia-smi", "470.57.02", "11.4"))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    environment._warn_once.cache_clear()
    assert select_device("auto") == "cpu"
    assert "nvidia-smi finds a GPU with driver 470.57.02" in caplog.text and "this driver is too old" in caplog.text
    caplog.clear()
    environment._warn_once.cache_clear()
    assert select_device("cpu") == "cpu"  # asked for
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert select_device("auto") == "cpu"  # hidden on purpose
    assert not caplog.messages
