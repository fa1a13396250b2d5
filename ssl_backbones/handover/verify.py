"""The self-check of a handover: two networks, one image, the same features.

Loading without a missing key proves little: channel order, mean and std, the place of the stride and the padding of
the pool leave no trace in the keys. So the features themselves are compared, C2 to C5, on a fixed image, each network
after its own preprocessing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from openworld.errors import HandoverError
from ssl_backbones.nets import ResNet
from ssl_backbones.options import Preprocess

Features = Callable[[Tensor], Mapping[str, Tensor]]
"""From a (3, H, W) uint8 RGB image to the (1, C, h, w) maps ``c2``..``c5``, preprocessing included."""

STAGES = ("c2", "c3", "c4", "c5")


def test_image(height: int = 128, width: int = 160) -> Tensor:
    """The fixed image: (3, height, width) uint8 RGB of waves, with no symmetry between channels, sides or axes."""
    y = torch.arange(height, dtype=torch.float64)[:, None] / 32
    x = torch.arange(width, dtype=torch.float64)[None, :] / 32
    red = torch.sin(3.1 * x + 1.7 * y) + 0.6
    green = torch.sin(5.3 * x - 2.9 * y + 1.0) * torch.cos(0.7 * y)
    blue = torch.cos(0.9 * x * y + 2.0) - 0.15 * x
    return torch.stack([red, green, blue]).mul(70).add(110).clamp(0, 255).to(torch.uint8)


test_image.__test__ = False  # type: ignore[attr-defined]  # not a case for pytest


def stage_features(network: ResNet, preprocess: Preprocess) -> Features:
    """How ``network`` sees an RGB image: in evaluation mode, after ``preprocess``. Its mode is restored."""

    @torch.no_grad()
    def features(image: Tensor) -> Mapping[str, Tensor]:
        parameter = next(iter(network.state_dict().values()))
        x = image.float().div(255).mul(preprocess["range"])
        x = x if preprocess["order"] == "RGB" else x.flip(0)
        x = (x - torch.tensor(preprocess["mean"])[:, None, None]) / torch.tensor(preprocess["std"])[:, None, None]
        training = network.training
        network.eval()
        try:
            return network.forward_stages(x[None].to(parameter))
        finally:
            network.train(training)

    return features


def verify(
    features_a: Features,
    features_b: Features,
    *,
    names: tuple[str, str] = ("the pretrained backbone", "the detector"),
    tolerance: float = 1e-4,
    image: Tensor | None = None,
) -> dict[str, float]:
    """Compare two networks stage by stage on one image.

    Args:
        features_a, features_b: see :data:`Features`; both in evaluation mode.
        names: how the error calls them.
        tolerance: allowed difference, as a share of the largest absolute value of the stage in ``features_a``.
        image: (3, H, W) uint8 RGB; None for :func:`test_image`.

    Returns:
        The relative difference of each stage.

    Raises:
        HandoverError: names the first stage that differs, by how much, and the likely causes.
    """
    image = test_image() if image is None else image
    with torch.no_grad():
        a, b = features_a(image), features_b(image)
        differences = {stage: _difference(a[stage], b[stage]) for stage in STAGES}
        wrong = next((stage for stage in STAGES if not differences[stage] <= tolerance), None)
        if wrong is None:
            return differences
        flipped = features_b(image.flip(0))
        swapped = _difference(a[wrong], flipped[wrong]) < 0.25 * differences[wrong]
    shapes = f"{tuple(a[wrong].shape)} and {tuple(b[wrong].shape)}"
    amount = f"shapes {shapes}" if a[wrong].shape != b[wrong].shape else f"by {differences[wrong]:.2g} of the largest"
    raise HandoverError(
        f"{names[0]} and {names[1]} differ first at {wrong.upper()} ({amount} value). "
        f"{_causes(wrong, swapped, a[wrong].shape == b[wrong].shape)}",
        where="backbone handover",
        remedy="give both networks the same preprocessing and architecture options (see the backbone's card)",
    )


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference over the largest absolute value of ``a``; infinite for other shapes, NaN, zeros."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    scale = float(a.abs().max())
    share = float((a - b).abs().max()) / scale if scale > 0 else float("inf")
    return share if share == share else float("inf")


def _causes(stage: str, swapped: bool, same_shape: bool) -> str:
    if swapped:
        return "They agree, or nearly so, when red and blue are exchanged: the cause is the colour order (RGB or BGR)."
    if not same_shape:
        return "Likely causes: another stem (7x7 with pool or 3x3), pool padding, stride, width, or a resized image."
    if stage == "c2":
        return (
            "Likely causes: colour order, input range (1 or 255), mean and std, stem or pool padding, "
            "or weights that were not loaded."
        )
    return (
        "Likely causes: the stride in the 1x1 and not in the 3x3 (stride_in_1x1), weights of this stage that were not "
        "loaded, or a batch norm that is not in evaluation mode."
    )
