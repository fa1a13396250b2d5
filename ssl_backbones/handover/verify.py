"""The self-check of a handover: two networks, one image, the same features.

Loading without a missing key proves little: channel order, mean and std, the place of the stride and the padding of
the pool leave no trace in the keys. So the features themselves are compared, C2 to C5, on a fixed image, each network
after its own preprocessing. Where they differ, the pretrained network is run under other settings, one or two at a
time, until it agrees with the detector: those settings are what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from openworld.errors import HandoverError
from ssl_backbones.backbones import BackboneOptions
from ssl_backbones.backbones.base import Backbone
from ssl_backbones.backbones.options import STAGES
from ssl_backbones.handover.found import PREPROCESSES
from ssl_backbones.handover.read import BackboneFile
from ssl_backbones.options import Preprocess

Features = Callable[[Tensor], Mapping[str, Tensor]]
"""From a (3, H, W) uint8 RGB image to the (1, C, h, w) maps ``c2``..``c5``, preprocessing included."""


def test_image(height: int = 128, width: int = 160) -> Tensor:
    """Make the fixed image: (3, height, width) uint8 RGB of waves, without symmetry of channels, sides or axes."""
    y = torch.arange(height, dtype=torch.float64)[:, None] / 32
    x = torch.arange(width, dtype=torch.float64)[None, :] / 32
    red = torch.sin(3.1 * x + 1.7 * y) + 0.6
    green = torch.sin(5.3 * x - 2.9 * y + 1.0) * torch.cos(0.7 * y)
    blue = torch.cos(0.9 * x * y + 2.0) - 0.15 * x
    return torch.stack([red, green, blue]).mul(70).add(110).clamp(0, 255).to(torch.uint8)


test_image.__test__ = False  # type: ignore[attr-defined]  # not a case for pytest


def stage_features(network: Backbone, preprocess: Preprocess) -> Features:
    """Make the :data:`Features` of ``network`` in evaluation mode, after ``preprocess``. Its mode is restored."""

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
    backbone: BackboneFile | None = None,
) -> dict[str, float]:
    """Compare two networks stage by stage on one image.

    Args:
        features_a, features_b: see :data:`Features`; both in evaluation mode.
        names: names of both in the error.
        tolerance: allowed difference, as a share of the largest absolute value of the stage in ``features_a``.
        image: (3, H, W) uint8 RGB; None for :func:`test_image`.
        backbone: source of ``features_a``; with it the error names the cause, not only likely ones.

    Returns:
        The relative difference of each stage.

    Raises:
        HandoverError: a stage differs; the message names the first one, the difference, and the cause or likely ones.
    """
    image = test_image() if image is None else image
    with torch.no_grad():
        a, b = features_a(image), features_b(image)
        differences = {stage: _difference(a[stage], b[stage]) for stage in STAGES}
        wrong = next((stage for stage in STAGES if not differences[stage] <= tolerance), None)
        if wrong is None:
            return differences
        pairs = zip(names, (a, b), strict=True)
        infinite = [name for name, stages in pairs if not bool(stages[wrong].isfinite().all())]
        cause = None if backbone is None or infinite else _found_cause(backbone, image, b, tolerance)
        flipped = features_b(image.flip(0))
        swapped = _difference(a[wrong], flipped[wrong]) < 0.25 * differences[wrong]
    shapes = f"{tuple(a[wrong].shape)} and {tuple(b[wrong].shape)}"
    amount = f"shapes {shapes}" if a[wrong].shape != b[wrong].shape else f"by {differences[wrong]:.2g} of the largest"
    if infinite:
        cause = f"The cause: {wrong.upper()} of {' and of '.join(infinite)} holds numbers that are not finite."
    raise HandoverError(
        f"{names[0]} and {names[1]} differ first at {wrong.upper()} ({amount} value). "
        f"{cause or _causes(wrong, swapped, a[wrong].shape == b[wrong].shape)}",
        where="backbone handover",
        remedy="give both networks the same preprocessing and architecture options (see the backbone's card)",
    )


def verify_weights(
    backbone: BackboneFile,
    tensors: Mapping[str, Tensor],
    *,
    trainable: Collection[str] | None = None,
    name: str = "the detector",
) -> None:
    """Compare a detector's tensors with the backbone's, by name: all there, of the right shapes, and loaded.

    Norms may have been frozen or replaced by ones that count no batches. A first convolution with reversed input
    channels passes, since a detector may read the other colour order; the features show whether it does.

    Args:
        tensors: tensors of the detector's trunk, by torchvision's names.
        trainable: names of the tensors that training changes; None if not known.
        name: name of the detector in the error.

    Raises:
        HandoverError: tensors are missing, belong to another architecture, or are still random; the message names them,
            and says whether they are frozen.
    """
    wanted = {key: value for key, value in backbone.state_dict.items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in tensors]
    own_key = re.compile(backbone.arch.keys)
    extra = [key for key in tensors if own_key.match(key) and key not in backbone.state_dict]
    other = [key for key in wanted if key in tensors and tensors[key].shape != wanted[key].shape]
    if other or (extra and missing):
        first = other[0] if other else extra[0]
        shapes = f": {tuple(tensors[first].shape)}, pretrained {tuple(wanted[first].shape)}" if other else ""
        raise HandoverError(
            f"{name} is of another architecture than the pretrained {backbone.arch.name}: {len(other)} tensors of "
            f"another shape, {len(missing)} missing, {len(extra)} of its own; e.g. {first}{shapes}",
            where="backbone handover",
            remedy="give the detector the depth, width and stem of the backbone's card",
        )
    if missing:
        raise HandoverError(
            f"{name} gets no values for {len(missing)} tensors of the backbone: {', '.join(missing[:3])}"
            f"{_frozen_at_random(missing, trainable)}",
            where="backbone handover",
            remedy="check the names under which the weights were exported: what is not found keeps its random values",
        )
    first = f"{backbone.arch.first_convolution}.weight"
    unlike = [key for key, value in wanted.items() if not _same_numbers(value, tensors[key], colours=key == first)]
    if unlike:
        raise HandoverError(
            f"{len(unlike)} tensors of {name} have other values than pretrained: {', '.join(unlike[:3])}"
            f"{_frozen_at_random(unlike, trainable)}",
            where="backbone handover",
            remedy="load the weights, and freeze no stage before they are loaded",
        )


def _frozen_at_random(keys: Collection[str], trainable: Collection[str] | None) -> str:
    frozen = [key for key in keys if trainable is not None and key not in trainable and "running_" not in key]
    if not frozen:
        return ""
    what = "the stem is" if frozen[0].startswith(("conv", "bn")) else "they are"
    return f"; {what} frozen at random values (FREEZE_AT, trainable_layers): {frozen[0]} never changes"


def _same_numbers(pretrained: Tensor, found: Tensor, *, colours: bool) -> bool:
    """Return whether two weights are equal; with ``colours`` the input channels may be reversed."""
    near = torch.allclose(pretrained.float(), found.detach().float().cpu(), rtol=1e-4, atol=1e-6)
    return near or (colours and _same_numbers(pretrained.flip(1), found, colours=False))


def _found_cause(backbone: BackboneFile, image: Tensor, found: Mapping[str, Tensor], tolerance: float) -> str | None:
    """Find other settings under which the pretrained network computes the same as the detector."""
    changes = list(_changes(backbone.arch, backbone.preprocess))
    pairs = [pair for pair in combinations(changes, 2) if any(change.arch for change in pair)]
    for chosen in [*((change,) for change in changes), *pairs]:
        arch, preprocess = backbone.arch, backbone.preprocess
        for change in chosen:
            arch, preprocess = replace(arch, **change.arch), cast(Preprocess, {**preprocess, **change.preprocess})
        stages = stage_features(backbone._replace(arch=arch).network(), preprocess)(image)
        if all(_difference(stages[stage], found[stage]) <= tolerance for stage in STAGES):
            return f"The cause: in the second, {' and '.join(change.what for change in chosen)}."
    return None


class _Change(NamedTuple):
    """A possible fault of a detector, and the options that reproduce it."""

    what: str
    arch: dict[str, Any]
    preprocess: dict[str, Any]


def _changes(arch: BackboneOptions, preprocess: Preprocess) -> Iterator[_Change]:
    """Yield the common faults of handovers."""
    for what, options in arch.alternatives():
        yield _Change(what, options, {})
    order: dict[str, Any] = {"order": "BGR" if preprocess["order"] == "RGB" else "RGB"}
    statistics = {"mean": preprocess["mean"][::-1], "std": preprocess["std"][::-1]}
    for tail, values in (("mean and std with it", order | statistics), ("mean and std not", order)):
        yield _Change(f"the colour order is the other one (RGB or BGR), {tail}", {}, dict(values))
    scale = 255.0 if preprocess["range"] == 1 else 1 / 255
    up_to = f"values go up to {preprocess['range'] * scale:g}, and mean and std are for {preprocess['range']:g}"
    yield _Change(up_to, {}, {"range": preprocess["range"] * scale})
    none, one = {"mean": [0.0] * 3}, {"std": [1.0] * 3}
    yield _Change("mean and std are left out", {}, none | one)
    yield _Change("the mean is left out", {}, none)
    yield _Change("the std is 1", {}, one)
    yield _Change("the std is 1 for values up to 255", {}, {"mean": _in_255(preprocess), "range": 255.0} | one)
    for name, known in PREPROCESSES.items():
        yield _Change(f"mean and std are those of {name!r}", {}, dict(known))


def _in_255(preprocess: Preprocess) -> list[float]:
    return [255 / preprocess["range"] * value for value in preprocess["mean"]]


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference over the largest |a|; infinite for other shapes, NaN, zeros."""
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
