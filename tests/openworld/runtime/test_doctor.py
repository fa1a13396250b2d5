"""What the doctor finds: broken installations, GPUs that do not compute, little space, systems without locks."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from openworld.runtime import doctor, gpus, lock
from openworld.runtime.doctor import Check, examine
from openworld.runtime.gpus import lacks_kernels


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The tests hold on a machine with a graphics card too."""
    if "tmp_path" not in request.fixturenames:
        monkeypatch.setattr(doctor, "driver", lambda: None)


def finding(name: str) -> Check:
    (found,) = [check for check in examine() if check.name == name]
    return found


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
    version = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == missing else version(name))
    found = finding("torch and torchvision")
    assert not found.ok and "one is missing" in found.finding and f"{missing} None" in found.finding


@pytest.mark.parametrize(("gigabytes", "ok"), [(0.5, False), (2, True)])
def test_little_space_is_found(monkeypatch: pytest.MonkeyPatch, gigabytes: float, ok: bool) -> None:
    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(int(gigabytes * 2**30)))
    found = finding("disk")
    assert found.ok == ok and bool(found.remedy) != ok


def test_a_system_that_does_not_tell_its_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(shutil, "disk_usage")
    assert finding("disk") == Check("disk", True, "this system does not tell the free space")


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    found = finding("disk")
    assert not found.ok and "cannot be used" in found.finding
    assert finding("system").ok


def test_windows_and_file_systems_without_locks_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding("system").remedy == ""
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(lock, "fcntl", None)
    found = finding("system")
    assert found.ok and "not on Windows" in found.finding and "no file locks" in found.finding
    assert "no two runs" in found.remedy


# -- GPUs: simulated, as they are another machine's -------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch see one GPU of this compute capability, and be compiled for these architectures."""

    def report(capability: tuple[int, int], built: list[str]) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A card")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)

    return report


@pytest.mark.parametrize(
    ("capability", "built", "fits"),
    [
        ((12, 0), ["sm_50", "sm_86", "sm_90"], False),  # a new card, an old torch
        ((3, 7), ["sm_50", "sm_86"], False),  # an old card, a new torch
        ((8, 9), ["sm_80", "sm_86"], True),  # machine code of the same major version
        ((8, 0), ["sm_86"], False),
        ((12, 1), ["sm_90", "compute_90"], True),  # PTX is compiled on the spot
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),  # "a": for no other
        ((10, 3), ["sm_100", "sm_120"], True),
        ((9, 0), ["gfx90a"], True),  # ROCm: cannot be told
    ],
)
def test_which_cards_a_build_of_torch_serves(
    card: Any, capability: tuple[int, int], built: list[str], fits: bool
) -> None:
    """By NVIDIA's rules of binary and PTX compatibility."""
    card(capability, built)
    assert (lacks_kernels(0) is None) == fits


def test_a_card_without_kernels_is_bad(card: Any) -> None:
    card((12, 0), ["sm_80", "sm_90"])
    found = finding("device")
    assert not found.ok and "A card has compute capability 12.0" in found.finding and "sm_80, sm_90" in found.finding
    assert "torch build for this GPU" in found.remedy


def test_a_card_that_does_not_compute_is_bad(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of architectures may promise too much: something is computed."""
    card((9, 0), ["sm_90"])
    ones = torch.ones

    def no_kernel(*size: int, device: str | torch.device) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(torch, "ones", no_kernel)
    found = finding("device")
    assert not found.ok and "no kernel image is available" in found.finding and "more" not in found.finding
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    assert finding("device") == Check("device", True, "cuda:0, A card: computes")
    monkeypatch.setattr(torch, "ones", lambda *size, device: 2 * ones(*size))
    assert "in place of 1944" in finding("device").finding


OLD = "| NVIDIA-SMI 470.57.02   Driver Version: 470.57.02   CUDA Version: 11.4 |"
NEW = "| NVIDIA-SMI 595.10   KMD Version: 595.10   CUDA UMD Version: 13.3 |"


@pytest.mark.parametrize(
    ("said", "code", "built", "finding_has"),
    [
        (OLD, 0, "13.2", "driver 470.57.02, which can run CUDA up to 11.4, and torch .* too old"),
        (NEW, 0, None, "driver 595.10, .* is a build for the CPU"),
        (NEW, 0, "13.2", "driver 595.10, which can run CUDA up to 13.3, and torch"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver", 9, "13.2", None),
        ("No devices were found", 0, "13.2", None),
    ],
)
def test_a_card_that_only_the_driver_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int, built: str | None, finding_has: str | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "{said}"\nexit {code}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    for name in gpus.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    gpus.driver.cache_clear()
    try:
        found = finding("device")
        assert found.ok == (finding_has is None) and found.finding.startswith("CPU only")
        assert finding_has is None or re.search(finding_has, found.finding)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        assert finding("device").ok
    finally:
        gpus.driver.cache_clear()
