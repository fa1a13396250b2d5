"""GPUs that torch sees, those that it cannot use, and those of the machine that it does not see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables by which a user hides GPUs."""

_TIMEOUT_S = 20
_CODE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
"""Entry of torch's list of architectures: machine code or PTX, major and minor, and whether it runs on no other."""
_DRIVER = re.compile(r"(?:Driver|KMD) Version:\s*([\d.]+)")
_SUPPORTED = re.compile(r"CUDA(?: UMD)? Version:\s*([\d.]+)")


def gpu_count() -> int:
    """Return the number of GPUs that torch sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> list[str]:
    """Return the names of the GPUs that torch sees, by number."""
    import torch

    return [torch.cuda.get_device_name(number) for number in range(gpu_count())]


def lacks_kernels(number: int) -> str | None:
    """Say that torch was not compiled for a GPU; None if it was, or if that cannot be told (ROCm)."""
    import torch

    built = torch.cuda.get_arch_list()
    entries = [found.groups() for name in built if (found := _CODE.fullmatch(name))]
    here = torch.cuda.get_device_capability(number)
    for kind, major, minor, only_here in entries:
        made_for = (int(major), int(minor))
        if only_here:
            fits = made_for == here
        elif kind == "compute":
            fits = made_for <= here
        else:
            fits = made_for[0] == here[0] and made_for <= here
        if fits:
            return None
    if not entries:
        return None
    return (
        f"{torch.cuda.get_device_name(number)} has compute capability {here[0]}.{here[1]}, and torch "
        f"{torch.__version__} is compiled for {', '.join(built)} only"
    )


@dataclass(frozen=True)
class Driver:
    """What the driver's own tool says of the GPUs of this machine."""

    tool: str
    version: str | None
    cuda: str | None
    """Newest version of CUDA that the driver can run."""

    def __str__(self) -> str:
        version = f" with driver {self.version}" if self.version else ""
        return f"{self.tool} finds a GPU{version}" + (f", which can run CUDA up to {self.cuda}" if self.cuda else "")


@cache
def driver() -> Driver | None:
    """Ask the driver's tool, ``nvidia-smi`` or ``rocm-smi``; None if there is none, or it finds no GPU."""
    for tool in ("nvidia-smi", "rocm-smi"):
        path = shutil.which(tool)
        if path is None:
            continue
        try:
            answer = subprocess.run(
                [path], capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if answer.returncode == 0 and "No devices" not in answer.stdout:
            version, cuda = _DRIVER.search(answer.stdout), _SUPPORTED.search(answer.stdout)
            return Driver(tool, version and version[1], cuda and cuda[1])
    return None


def hidden() -> bool:
    """Return whether the user hid all GPUs, as by ``CUDA_VISIBLE_DEVICES=``."""
    return any(os.environ.get(name, "0").strip() in ("", "-1") for name in VISIBLE)


def why_not_seen(driver: Driver) -> tuple[str, str]:
    """Return why torch sees no GPU where the driver does, and the remedy."""
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    if driver.tool == "nvidia-smi" and cuda is None:
        build = "for ROCm" if hip else "for the CPU"
        return f"torch {torch.__version__} is a build {build}", "install a build of torch for CUDA"
    if driver.tool == "rocm-smi" and hip is None:
        build = f"for CUDA {cuda}" if cuda else "for the CPU"
        return f"torch {torch.__version__} is a build {build}", "install a build of torch for ROCm"
    if cuda is not None and driver.cuda is not None and _major(driver.cuda) < _major(cuda):
        return (
            f"torch {torch.__version__} is built for CUDA {cuda}, for which this driver is too old",
            f"install a newer driver, or a torch that is built for CUDA {_major(driver.cuda)}",
        )
    set_ones = [f"{name}={os.environ[name]}" for name in VISIBLE if name in os.environ]
    if set_ones:
        return f"{', '.join(set_ones)} is set", "unset it, or name a GPU that this machine has"
    try:
        torch.cuda.init()
        reason = "CUDA starts and counts no GPU"
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    return (
        f"torch {torch.__version__}: {reason}",
        "restart after an update of the driver; give a container its GPUs (docker run --gpus all)",
    )


def _major(version: str) -> int:
    return int(version.split(".")[0])
