"""BatchNorm over the batch of all processes: torch's SyncBatchNorm on GPUs, and one for CPUs, where torch has none.

N images, C channels, H and W cells, K processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from openworld.runtime import distributed
from openworld.runtime.modules import batch_norm_as, replace_modules


class _RankBatchNorm(_BatchNorm):
    """Batch norm whose training statistics are those of the joined batch, with the state of torch's batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W) or (N, C); the same shape and dtype. N may differ between the processes."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        whole = input if input.dtype == torch.float64 else input.float()
        whole = whole if whole.ndim == 4 else whole[..., None, None]
        mean_C, var_C, count = joined_statistics(whole.detach())
        if self.running_mean is not None and self.running_var is not None:
            self._follow(mean_C, var_C * (count / (count - 1).clamp(min=1)))
        normalised: Tensor = _Normalise.apply(whole, mean_C, torch.rsqrt(var_C + self.eps), count)
        if self.affine:
            normalised = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return normalised.to(input.dtype).reshape(input.shape)

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, unbiased_var_C: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / float(self.num_batches_tracked)
        assert momentum is not None
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_var_C.to(self.running_var.dtype), momentum)


class RankBatchNorm2d(_RankBatchNorm, nn.BatchNorm2d):
    """For (N, C, H, W)."""


class RankBatchNorm1d(_RankBatchNorm, nn.BatchNorm1d):
    """For (N, C)."""


def joined_statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute mean and biased variance per channel over all processes, and the number of values per channel.

    Args:
        input: (N, C, H, W) floating.

    Returns:
        (C,), (C,) and (), float32 or float64.
    """
    var_C, mean_C = torch.var_mean(input, dim=(0, 2, 3), correction=0)
    count = torch.full_like(mean_C, input.numel() // input.shape[1])
    means_KC, vars_KC, counts_KC = distributed.gather_rows(torch.stack([mean_C, var_C, count])[None]).unbind(1)
    total_C = counts_KC.sum(0)
    shares_KC = counts_KC / total_C
    joined_C = (shares_KC * means_KC).sum(0)
    return joined_C, (shares_KC * (vars_KC + (means_KC - joined_C).square())).sum(0), total_C[0]


class _Normalise(torch.autograd.Function):
    """(x - mean) / std, through whose mean and std the gradients of all processes flow."""

    @staticmethod
    def forward(context: Any, input: Tensor, mean_C: Tensor, scale_C: Tensor, count: Tensor) -> Tensor:
        normalised = (input - mean_C[:, None, None]) * scale_C[:, None, None]
        context.save_for_backward(normalised, scale_C, count)
        return normalised

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        normalised, scale_C, count = context.saved_tensors
        sums_2C = torch.stack([grad.sum((0, 2, 3)), (grad * normalised).sum((0, 2, 3))])
        means_2C = distributed.mean_over_ranks(sums_2C) * (distributed.world_size() / count)
        centred = grad - means_2C[0, :, None, None] - normalised * means_2C[1, :, None, None]
        return centred * scale_C[:, None, None], None, None, None


def synchronise_batch_norm(model: nn.Module, *, only_trained: bool = False) -> None:
    """Replace each batch norm inside a model by one over the batch of all processes; names and tensors stay.

    The replacement is torch's SyncBatchNorm if the model is on a GPU. With a single process nothing is replaced.

    Args:
        model: changed in place.
        only_trained: keep the norms whose scale does not train, such as those of frozen stages.
    """
    if distributed.world_size() == 1:
        return
    on_gpu = _is_on_gpu(model)
    joined: dict[type[nn.Module], type[_BatchNorm]] = {
        nn.BatchNorm1d: nn.SyncBatchNorm if on_gpu else RankBatchNorm1d,
        nn.BatchNorm2d: nn.SyncBatchNorm if on_gpu else RankBatchNorm2d,
    }

    def rule(module: nn.Module) -> nn.Module | None:
        if type(module) not in joined:
            return None
        assert isinstance(module, _BatchNorm)
        return batch_norm_as(joined[type(module)], module) if _is_trained(module) or not only_trained else None

    replace_modules(model, rule)


def _is_on_gpu(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _is_trained(norm: _BatchNorm) -> bool:
    return norm.affine and norm.weight.requires_grad
