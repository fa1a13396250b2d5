"""CPC: Representation Learning with Contrastive Predictive Coding (van den Oord et al. 2018), and CPC v2 (Henaff et
al. 2020).

Shapes: N images, M of all processes, G x G patches of each, D features and C context dimensions of a patch, P
dimensions to predict.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openworld.errors import ConfigError
from openworld.runtime.distributed import first_row, gather_rows_with_gradient
from ssl_backbones.contexts import ColumnGRU, MaskedConvolutions
from ssl_backbones.losses.numerics import cross_entropy_or_zero, full_precision
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.cpc_options import CPCOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import ModulesOf
from ssl_backbones.views import RECIPES, cut_patches


class CPC(Method):
    """The rows of a grid of patches read so far predict the patches below, among all patches of the batch.

    The encoder sees one patch at a time; it is an ordinary backbone, and what is exported. A context network sums up
    the rows read so far, and a matrix W_k for each distance k predicts. The bilinear score of the paper, z W_k c, goes
    through a projection of z to ``projection_dim`` dimensions, as in CPC v2, and is divided by ``temperature`` (1 in
    the paper; CPC v2's factor 0.1 is a temperature of 10). With several processes the patches of all of them are
    candidates.

    CPC v2 is: ``arch.norm: layer`` (batch norm lets patches see each other through its statistics), ``directions: 4``
    (the grid is also read from the other three sides, with their own networks), ``skipped_rows: 2``, and the
    views ``cpc_v2`` with changes to each patch by itself. Its pseudo-code (appendix) is the only code; there
    the predictions also have a bias, which W_k of CPC and this one do not have.
    """

    view_kinds = ("patches",)
    exports_projector = True

    options: CPCOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        """Raises ConfigError where the grid has fewer rows than the options ask for."""
        super().__init__(pretraining)
        grid = RECIPES[pretraining.views][0].patches
        assert grid is not None  # view_kinds
        own, dim, self.count = self.options, self.encoder.dim, grid.count
        if own.skipped_rows + own.predicted_rows >= self.count:
            raise ConfigError(
                f"method.skipped_rows is {own.skipped_rows} and method.predicted_rows {own.predicted_rows}, "
                f"of a grid of {self.count} rows",
                remedy=f"choose at most {self.count - 1} together",
            )
        network = MaskedConvolutions if own.context == "pixelcnn" else ColumnGRU
        self.projector = nn.Linear(dim, own.projection_dim)
        self.contexts: ModulesOf[MaskedConvolutions | ColumnGRU] = ModulesOf(
            network(dim, own.context_dim) for _ in range(own.directions)
        )
        self.predictors = ModulesOf(
            ModulesOf(nn.Linear(context.dim, own.projection_dim, bias=False) for _ in range(own.predicted_rows))
            for context in self.contexts
        )

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute InfoNCE (equation 4), the mean over directions and distances."""
        (pictures,) = batch.views
        patches = self.encoder(cut_patches(pictures, self.count))
        z_NGGD = patches.unflatten(0, (-1, self.count, self.count))
        targets_MGGP, losses = gather_rows_with_gradient(self.projector(z_NGGD)), []
        first = first_row(z_NGGD)
        for quarter, (context, predictors) in enumerate(zip(self.contexts, self.predictors, strict=True)):
            turned, targets = (grid.rot90(quarter, (1, 2)) for grid in (z_NGGD, targets_MGGP))
            c_NGGC = context(turned)
            for k, predictor in enumerate(predictors, 1 + self.options.skipped_rows):
                predicted = predictor(c_NGGC[:, :-k])
                losses.append(predictive_info_nce(predicted, targets, self.options.temperature, first))
        return torch.stack(losses).mean(), {"spread": spread(targets_MGGP.flatten(0, 2))}


@full_precision
def predictive_info_nce(predicted_NRGP: Tensor, targets_MGGP: Tensor, temperature: float, first: int = 0) -> Tensor:
    """Compute InfoNCE of predicted patches among all patches of all images (CPC, equation 4; CPC v2, pseudo-code).

    Args:
        predicted_NRGP: (N, R, G, P) predictions of the last R rows, any float dtype. Nothing is normalised.
        targets_MGGP: (M, G, G, P) projections of all patches of M images, with their gradient.
        first: position of the first of the N images among the M.

    Returns:
        Scalar, mean over N * R * G predictions. ln(M * G * G) where all scores are equal; 0 for an empty batch.
    """
    images, rows = predicted_NRGP.shape[:2]
    place = torch.arange(targets_MGGP[..., 0].numel(), device=targets_MGGP.device).view(targets_MGGP.shape[:3])
    logits = predicted_NRGP.flatten(0, 2) @ targets_MGGP.flatten(0, 2).T / temperature
    return cross_entropy_or_zero(logits, place[first : first + images, -rows:].flatten())
