"""What `openworld doctor` looks at: packages that fit each other, GPUs that compute, space, the system."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from openworld.runtime.environment import version_of
from openworld.runtime.gpus import driver, gpu_names, hidden, lacks_kernels, why_not_seen
from openworld.runtime.lock import lock_problem


@dataclass(frozen=True)
class Check:
    """One line of the doctor's findings."""

    name: str
    ok: bool
    finding: str
    remedy: str = ""


def examine() -> list[Check]:
    """Check everything that is known to break an installation, the torch/torchvision pair first."""
    checks = [_check_torchvision()]
    if checks[0].ok:
        checks += _check_devices()
    checks += [_check_import(name) for name in ("numpy", "scipy", "PIL", "yaml", "safetensors", "jsonargparse", "rich")]
    checks += [_check_import(name) for name in ("pycocotools", "matplotlib", "jinja2")]
    checks += [_check_disk(), _check_system()]
    version = version_of("detectron2")
    checks.append(Check("detectron2", True, f"{version}" if version else "not installed (optional)"))
    return checks


def _check_torchvision() -> Check:
    """Check that torchvision's operators load; they do not if it was built for another torch."""
    torch_version, vision_version = version_of("torch"), version_of("torchvision")
    found = f"torch {torch_version}, torchvision {vision_version}, python {platform.python_version()}"
    remedy = "install a pair made for each other: pip install -c constraints.txt --force-reinstall torch torchvision"
    if torch_version is None or vision_version is None:
        return Check("torch and torchvision", False, found + ": one is missing", remedy)
    try:
        torch = importlib.import_module("torch")
        ops = importlib.import_module("torchvision.ops")
        ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        text = f"{found}: {str(error).splitlines()[0]}"
        if "torchvision::nms" in str(error):
            text += " — torchvision was built for another torch, so its compiled operators did not load"
        return Check("torch and torchvision", False, text, remedy)
    return Check("torch and torchvision", True, found + ": compiled operators work")


def _check_devices() -> list[Check]:
    """Check that each GPU that torch sees computes; without one, that the machine has none either."""
    torch = importlib.import_module("torch")
    names = gpu_names()
    if names:
        return [_check_gpu(number, name) for number, name in enumerate(names)]
    finding = f"CPU only, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    found = None if hidden() else driver()
    if found is None:
        return [Check("device", True, finding)]
    reason, remedy = why_not_seen(found)
    return [Check("device", False, f"{finding}; {found}, and {reason}", f"{remedy}; to stay on the CPU: {_HIDE}")]


_HIDE = "set CUDA_VISIBLE_DEVICES to nothing"


def _check_gpu(number: int, name: str) -> Check:
    """Compute something small on a GPU."""
    torch = importlib.import_module("torch")
    problem = lacks_kernels(number)
    if problem is None:
        try:
            ones = torch.ones(2, 3, 8, 8, device=f"cuda:{number}")
            total = torch.nn.functional.conv2d(ones, torch.ones(1, 3, 3, 3, device=ones.device)).sum().item()
            problem = None if total == 1944 else f"{name} computes {total} in place of 1944"
        except (RuntimeError, AssertionError) as error:
            problem = f"{name} does not compute: {str(error).splitlines()[0]}"
    if problem is None:
        return Check("device", True, f"cuda:{number}, {name}: computes")
    remedy = f"install a torch build for this GPU and its driver, or set model.device (or --device) to cpu; {_HIDE} to"
    return Check("device", False, f"cuda:{number}, {problem}", f"{remedy} hide it")


def _check_import(module: str) -> Check:
    package = {"PIL": "pillow", "yaml": "pyyaml"}.get(module, module)
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Check(package, False, str(error), f"pip install {package}")
    return Check(package, True, version_of(package) or "installed")


def _check_disk() -> Check:
    try:
        free = shutil.disk_usage(Path.cwd()).free / 2**30
    except OSError as error:  # the folder is gone
        return Check("disk", False, f"the current folder cannot be used ({error.strerror})", "change to another folder")
    except AttributeError:
        return Check("disk", True, "this system does not tell the free space")
    remedy = "" if free > 1 else "free some space: a demo run needs 0.3 GiB"
    return Check("disk", free > 1, f"{free:.0f} GiB free here", remedy)


def _check_system() -> Check:
    """Say on what the project is tested, and what the current folder's file system lacks."""
    finding, remedy = platform.platform(), ""
    if sys.platform == "win32":
        finding += ": the project is tested on Linux, and not on Windows"
    try:
        with tempfile.TemporaryFile("w", dir=Path.cwd()) as stream:
            problem = lock_problem(stream)
    except OSError:
        problem = None  # nothing can be written here, so no run either
    if problem:
        finding += f"; {problem}"
        remedy = "see to it that no two runs work in one folder"
    return Check("system", True, finding, remedy)
