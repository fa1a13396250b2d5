"""Properties of this machine, for env.json, and the choice of a device."""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
from functools import cache
from importlib import metadata
from typing import Any

from openworld.errors import ConfigError, EnvironmentProblem
from openworld.runtime.gpus import driver, gpu_count, gpu_names, hidden, lacks_kernels, why_not_seen

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "pycocotools", "safetensors", "matplotlib", "jinja2")


def describe() -> dict[str, Any]:
    """Return versions and hardware, for env.json."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version_of(name) for name in (*PACKAGES, "detectron2")},
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpu_names(),
        "command": sys.argv,
    }


def select_device(name: str) -> str:
    """Return torch's name of a device: ``cpu``, ``cuda`` or ``cuda:N``.

    Args:
        name: ``auto`` (``cuda`` if torch can use a GPU, else ``cpu``), ``cpu``, ``cuda`` or ``gpu``, the latter two
            also with ``:N``, or the number of a GPU alone; in capitals or not.

    Raises:
        ConfigError: there is no such device.
        EnvironmentProblem: torch cannot use the requested GPU.
    """
    if name.strip().lower() == "auto":
        return _automatic()
    device = _spelled(name)
    if device is None:
        several = "; for several GPUs start a process on each with torchrun" if "," in name else ""
        raise ConfigError(f"there is no device {name!r}", remedy=f"give auto, or what is here: {_here()}{several}")
    if device == "cpu":
        return device
    count = gpu_count()
    if _number(device) >= count:
        raise EnvironmentProblem(
            f"device {name!r} was asked for and torch sees {count or 'no'} GPU{'s' if count > 1 else ''}",
            remedy=f"set model.device (or --device) to auto, or to what is here: {_here()}; see `openworld doctor`",
        )
    if "LOCAL_RANK" not in os.environ and (problem := lacks_kernels(_number(device))):
        raise EnvironmentProblem(
            problem, remedy="install a torch build for this GPU, or set model.device (or --device) to cpu"
        )
    return device


def _here() -> str:
    return ", ".join(("cpu", *(f"cuda:{number} ({name})" for number, name in enumerate(gpu_names()))))


def _automatic() -> str:
    count, problem = gpu_count(), None
    if count and "LOCAL_RANK" not in os.environ:
        problem = lacks_kernels(0)
    elif not count and not hidden() and (found := driver()):
        problem = f"{found}; {why_not_seen(found)[0]}"
    if problem is not None:
        _warn_once(f"the CPU is used, though there is a GPU: {problem}; see `openworld doctor`")
    return "cuda" if count and problem is None else "cpu"


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


def _spelled(name: str) -> str | None:
    """Return torch's name of a device that may not be here; None if it is the name of none."""
    plain = name.strip().lower()
    if plain in ("cpu", "cpu:0"):
        return "cpu"
    found = re.fullmatch(r"(?:cuda|gpu)(?::(\d+))?|(\d+)", plain, re.ASCII)
    if found is None:
        return None
    number = found[1] or found[2]
    return "cuda" if number is None else f"cuda:{int(number)}"


def _number(device: str) -> int:
    """Return the number of a GPU, 0 for ``cuda``."""
    return int(device.partition(":")[2] or 0)


def device_is_here(name: str) -> bool:
    """Return whether this is a device and, if it is a GPU, torch sees one of this number (``cuda``: any)."""
    device = _spelled(name)
    return device == "cpu" or (device is not None and _number(device) < gpu_count())


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


def version_of(package: str) -> str | None:
    """Return the version of an installed package, else None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
