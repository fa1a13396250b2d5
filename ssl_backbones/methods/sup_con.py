"""SupCon: Supervised Contrastive Learning (Khosla et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from openworld.errors import DataError
from openworld.runtime.distributed import gather_rows, gather_rows_with_gradient
from ssl_backbones.heads import mlp
from ssl_backbones.losses import sup_con
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.sup_con_options import SupConOptions
from ssl_backbones.options import PretrainOptions


class SupCon(Method):
    """Views of all images of a class attract, those of other classes repel.

    The head is the authors' code: D-ReLU-128 without batch norm, both views in one forward pass. Weight decay applies
    to every parameter. Labels are the names of the folders that the images lie in.
    """

    decays_norm_and_bias = True
    needs_labels = True
    exports_projector = True

    options: SupConOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        dim = self.encoder.dim
        self.projector = mlp([dim, dim, self.options.projection_dim], hidden_norm=False)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute supervised contrast (equation 2) over the views of the batch, times temperature / base temperature.

        Raises:
            DataError: the batch has no labels.
        """
        if batch.labels is None:
            raise DataError(
                "a batch has no labels", where="supervised contrast", remedy="give each image its class in Batch.labels"
            )
        z = gather_rows_with_gradient(self.projector(self.encoder(torch.cat(batch.views))))
        labels = gather_rows(batch.labels.repeat(len(batch.views)))
        temperature = self.options.temperature
        loss = sup_con(z, labels, temperature)
        return loss * (temperature / self.options.base_temperature), {"spread": spread(z)}
