"""Properties of this machine: for env.json, for the choice of a device, and for `openworld doctor`."""

from __future__ import annotations

import importlib
import logging
import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from openworld.errors import ConfigError, EnvironmentProblem

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "pycocotools", "safetensors", "matplotlib", "jinja2")


def describe() -> dict[str, Any]:
    """Return versions and hardware, for env.json."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in (*PACKAGES, "detectron2")},
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "command": sys.argv,
    }


def select_device(name: str) -> str:
    """Return the device; ``auto`` means ``cuda`` if a GPU is available, else ``cpu``.

    Raises:
        ConfigError: torch does not know such a device.
        EnvironmentProblem: the requested GPU is not available.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"there is no device {name!r}", remedy="give auto, cpu, cuda or cuda:N") from error
    if not device_is_here(name):
        count = torch.cuda.device_count()
        raise EnvironmentProblem(
            f"device {name!r} was asked for and torch sees {count or 'no'} GPU{'s' if count > 1 else ''}",
            remedy="set model.device (or --device) to cpu or auto, or install a torch build for this GPU's driver",
        )
    return name


def device_is_here(name: str) -> bool:
    """Return whether torch knows this device and, if it is a GPU, sees one of this number (``cuda``: any)."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    return device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()


def device_of_finished_run(configured: str, wanted: str | None) -> str:
    """Choose the device of a trained detector: the requested one, else that of its training, else ``auto``.

    Args:
        configured: ``model.device`` of the run, which another machine may not have.
        wanted: the requested device, or None.

    Raises:
        EnvironmentProblem: the requested GPU is not available.
    """
    if wanted is not None:
        return select_device(wanted)
    if configured != "auto" and not device_is_here(configured):
        found = select_device("auto")
        logger.warning("the run's model.device %s is not on this machine: %s is used (see --device)", configured, found)
        return found
    return select_device(configured)


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
        checks.append(_check_device())
    checks += [_check_import(name) for name in ("numpy", "scipy", "PIL", "yaml", "safetensors", "jsonargparse", "rich")]
    checks += [_check_import(name) for name in ("pycocotools", "matplotlib", "jinja2")]
    checks.append(_check_disk())
    version = _version("detectron2")
    checks.append(Check("detectron2", True, f"{version}" if version else "not installed (optional)"))
    return checks


def _check_torchvision() -> Check:
    """Check that torchvision's operators load; they do not if it was built for another torch."""
    torch_version, vision_version = _version("torch"), _version("torchvision")
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


def _check_device() -> Check:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return Check("device", True, f"{torch.cuda.device_count()} GPU(s): {torch.cuda.get_device_name(0)}")
    return Check("device", True, f"CPU only, {torch.get_num_threads()} threads of {os.cpu_count()} cores")


def _check_import(module: str) -> Check:
    package = {"PIL": "pillow", "yaml": "pyyaml"}.get(module, module)
    try:
        importlib.import_module(module)
    except ImportError as error:
        return Check(package, False, str(error), f"pip install {package}")
    return Check(package, True, _version(package) or "installed")


def _check_disk() -> Check:
    status = os.statvfs(Path.cwd())
    free = status.f_bavail * status.f_frsize / 2**30
    return Check(
        "disk", free > 1, f"{free:.0f} GiB free here", "" if free > 1 else "free some space: a demo run needs 0.3 GiB"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
