"""Context networks of CPC: they summarise the rows of a grid of patches read so far.

Shapes: N images, G x G patches of each, D features and C context dimensions of a patch.
"""

from __future__ import annotations

from torch import Tensor, nn


class MaskedConvolutions(nn.Module):
    """Five residual blocks of convolutions that see their own row and those above (CPC v2, pseudo-code).

    (N, G, G, D) features -> (N, G, G, D) contexts; the context of a row depends on this row and those above.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim = dim
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(dim, hidden, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1)),
                nn.ZeroPad2d((0, 0, 1, 0)),
                nn.Conv2d(hidden, hidden, (2, 1)),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, dim, 1),
            )
            for _ in range(5)
        )

    def forward(self, z_NGGD: Tensor) -> Tensor:
        """Compute the contexts."""
        x = z_NGGD.permute(0, 3, 1, 2)
        for block in self.blocks:
            x = x + block(x)
        return x.relu().permute(0, 2, 3, 1)


class ColumnGRU(nn.Module):
    """A GRU that reads each column of the grid downwards.

    (N, G, G, D) features -> (N, G, G, C) contexts; the context of a patch depends on it and on those above.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dim = hidden
        self.gru = nn.GRU(dim, self.dim, batch_first=True)

    def forward(self, z_NGGD: Tensor) -> Tensor:
        """Compute the contexts."""
        columns = z_NGGD.transpose(1, 2)
        states, _ = self.gru(columns.flatten(0, 1))
        contexts: Tensor = states.unflatten(0, columns.shape[:2])
        return contexts.transpose(1, 2)
