"""Replace modules of a network by modules of another class with the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)
Convolution = TypeVar("Convolution", bound=nn.Conv2d)
BatchNorm = TypeVar("BatchNorm", bound=_BatchNorm)


def replace_modules(network: nn.Module, rule: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace modules of a network in place, as torch's converters do (``SyncBatchNorm.convert_sync_batchnorm``).

    A module registered under several names is replaced by the same module under each of them.

    Args:
        rule: from a module to its replacement, or None to keep the module. Modules inside a replaced one are not
            visited.

    Returns:
        The network, or the replacement of the network itself.
    """
    replacements: dict[nn.Module, nn.Module | None] = {}
    replaced: tuple[str, ...] = ()
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if name.startswith(replaced):
            continue
        if module not in replacements:
            replacements[module] = rule(module)
        replacement = replacements[module]
        if replacement is None:
            continue
        if name == "":
            return replacement
        network.set_submodule(name, replacement)
        replaced = (*replaced, f"{name}.")
    return network


def convolution_as(kind: type[Convolution], module: nn.Conv2d) -> Convolution:
    """Make a convolution of another class with the arguments, parameters and mode of ``module``, nothing random."""
    convolution = kind(
        module.in_channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        module.groups,
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
        device="meta",
    )
    return with_tensors_of(convolution, module)


def batch_norm_as(kind: type[BatchNorm], module: _BatchNorm) -> BatchNorm:
    """Make a batch norm of another class with the arguments, parameters, statistics and mode of ``module``."""
    norm = kind(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats, device="meta"
    )
    return with_tensors_of(norm, module)


def with_tensors_of(module: Module, other: nn.Module) -> Module:
    """Give a module the parameters and buffers of another one, the same objects, and its mode."""
    for name, parameter in other.named_parameters(recurse=False):
        setattr(module, name, parameter)
    for name, buffer in other.named_buffers(recurse=False):
        setattr(module, name, buffer)
    return module.train(other.training)
