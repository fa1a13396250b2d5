"""InstDisc: Unsupervised Feature Learning via Non-Parametric Instance Discrimination (Wu et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openworld.runtime.distributed import broadcast, gather_rows
from openworld.runtime.seeding import generator
from ssl_backbones.losses import info_nce, nce, nce_log_normaliser
from ssl_backbones.losses.numerics import cross_entropy_or_zero
from ssl_backbones.method import Batch, Method, spread
from ssl_backbones.methods.instdisc_options import BankOptions, InstDiscOptions
from ssl_backbones.options import PretrainOptions
from ssl_backbones.state import Bank


class ContrastBank(Bank):
    """A memory bank, and the contrast of embeddings with it. CMC and PIRL use it too.

    Buffers, beside those of :class:`Bank`:
        log_normaliser: scalar float32, ln Z of NCE; infinite until the first batch sets it for good.
    """

    log_normaliser: Tensor

    def __init__(self, images: int, options: BankOptions) -> None:
        super().__init__(images, options.projection_dim, momentum=options.bank_momentum)
        self.options, self.temperature = options, options.temperature
        self.register_buffer("log_normaliser", torch.tensor(torch.inf))

    def draw(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw negatives: (N, K) int64 rows, uniform with repetitions; K is 0 for the softmax over all rows.

        ``generators``: one per image, see :func:`generators_of`.
        """
        negatives = 0 if self.options.form == "softmax" else self.options.negatives
        drawn = torch.empty(len(generators), negatives, dtype=torch.long)
        for row, source in zip(drawn, generators, strict=True):
            row.random_(len(self.features), generator=source)
        return drawn.to(self.features.device)

    def contrast(self, z_ND: Tensor, index_N: Tensor, drawn_NK: Tensor, proximal_weight: float = 0.0) -> Tensor:
        """Compute the loss of embeddings against the rows of their images and the drawn ones, by ``options.form``.

        Args:
            z_ND: (N, D) embeddings, not normalised, of images or of other views that must find their image.
            index_N: (N,) int64 images.
            drawn_NK: negatives from :meth:`draw`.
            proximal_weight: as in :func:`ssl_backbones.losses.nce`.

        Returns:
            Scalar, mean over N. The rows are copies, so that a later :meth:`write` does not change the backward pass.
        """
        if self.options.form == "softmax":
            with torch.autocast(z_ND.device.type, enabled=False):
                logits = F.normalize(z_ND.float(), dim=1) @ self.features.clone().T / self.temperature
                return cross_entropy_or_zero(logits, index_N)
        positives, negatives = self.features[index_N], self.features[drawn_NK]
        if self.options.form == "info_nce":
            return info_nce(z_ND, positives, negatives, self.temperature)
        noise = {"temperature": self.temperature, "samples": len(self.features)}
        if self.log_normaliser.isinf():
            here = nce_log_normaliser(z_ND, positives, negatives, **noise)  # type: ignore[arg-type]
            everywhere = gather_rows(here.float()[None])
            self.log_normaliser.copy_(everywhere.logsumexp(dim=0) - math.log(len(everywhere)))
        log_normaliser = self.log_normaliser.clone()
        return nce(z_ND, positives, negatives, log_normaliser=log_normaliser, proximal_weight=proximal_weight, **noise)  # type: ignore[arg-type]


def generators_of(index_N: Tensor) -> list[torch.Generator]:
    """Make a random generator for each image of a batch, which does not depend on the process that has the image.

    Draws one number from the global generator; that of the first process counts.
    """
    step = int(broadcast(torch.randint(2**62, ())))
    return [generator(step, image) for image in index_N.tolist()]


class InstDisc(Method):
    """Each image is its own class: its embedding finds its row in a bank of all images.

    One view, one linear head; weight decay applies to every parameter (reference code). After the loss the row of each
    image moves to its new embedding. The bank starts with random unit vectors (reference code: uniform in a cube of
    the same extent).
    """

    decays_norm_and_bias = True
    view_kinds = ("image",)
    exports_projector = True

    options: InstDiscOptions

    def __init__(self, pretraining: PretrainOptions) -> None:
        super().__init__(pretraining)
        self.projector = nn.Linear(self.encoder.dim, self.options.projection_dim)

    def allocate(self, images: int) -> None:
        """Make the bank, with a row per image."""
        self.bank = ContrastBank(images, self.options)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Compute NCE against the bank (equation 7), with the proximal term of equation 10 if its weight is not 0."""
        (view,) = batch.views
        z = self.projector(self.encoder(view))
        drawn = self.bank.draw(generators_of(batch.index))
        loss = self.bank.contrast(z, batch.index, drawn, self.options.proximal_weight)
        self.bank.write(batch.index, z)
        return loss, {"spread": spread(z)}
