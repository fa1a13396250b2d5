"""A backbone as found in a weight file, and the preprocessing of published networks."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD, Preprocess

PREPROCESSES: dict[str, Preprocess] = {
    "imagenet": {"order": "RGB", "range": 1.0, "mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)},
    # SwAV, src/multicropdataset.py: 0.228 for red, in all released networks of SwAV, DeepCluster-v2 and SeLa-v2
    "swav": {"order": "RGB", "range": 1.0, "mean": list(IMAGENET_MEAN), "std": [0.228, *IMAGENET_STD[1:]]},
    # SimCLR, data_util.py: images stay in [0, 1]
    "simclr": {"order": "RGB", "range": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3},
    # CLIP, clip/clip.py
    "clip": {
        "order": "RGB",
        "range": 1.0,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    },
    # SupContrast, main_supcon.py, for CIFAR-10
    "cifar10": {"order": "RGB", "range": 1.0, "mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]},
    # detectron2/config/defaults.py, for the MSRA networks
    "caffe": {"order": "BGR", "range": 255.0, "mean": [103.53, 116.28, 123.675], "std": [1.0] * 3},
}
"""Preprocessing of networks, by name."""


class Found(NamedTuple):
    """A backbone as stored in a file."""

    layout: str
    """Code that writes such files."""
    tensors: dict[str, Tensor]
    """Tensors by torchvision's names."""
    left_out: list[str]
    """Keys of the other tensors in the same dictionary."""
    preprocess: Preprocess
    arch: dict[str, Any]
    """Options of the backbone that follow from the layout and not from the tensors."""
    prefix: str = ""
    """Prefix of its keys, with the dictionaries around it."""
    choice: str = ""
    """Why this network was taken and not another one of the file, as a sentence; empty if there is no other."""
