"""Losses as pure functions of projected features, one file per family.

They are computed in fp32 (float64 stays float64), also under autocast; normalise what their definition normalises,
visibly; detach nothing but the assignments of Sinkhorn; return a scalar mean unless their docstring says otherwise;
and return 0 with a gradient path for an empty batch. With several processes, give them gathered features.
"""

from ssl_backbones.losses.agreement import (
    barlow_twins,
    byol_regression,
    dino_cross_entropy,
    distillation,
    negative_cosine,
)
from ssl_backbones.losses.clustering import proto_nce, sinkhorn, sinkhorn_labels, swapped_prediction
from ssl_backbones.losses.contrastive import (
    curl_bilinear,
    info_nce,
    info_nce_batch,
    nce,
    nce_log_normaliser,
    nt_xent,
    sup_con,
)
from ssl_backbones.losses.distribution import alignment, uniformity

__all__ = [
    "alignment",
    "barlow_twins",
    "byol_regression",
    "curl_bilinear",
    "dino_cross_entropy",
    "distillation",
    "info_nce",
    "info_nce_batch",
    "nce",
    "nce_log_normaliser",
    "negative_cosine",
    "nt_xent",
    "proto_nce",
    "sinkhorn",
    "sinkhorn_labels",
    "sup_con",
    "swapped_prediction",
    "uniformity",
]
