"""View recipes with the papers' magnitudes, and the sampling that makes each view reproducible.

All random numbers of a view come from a generator of its own, so a view depends on (seed, step, position) alone:
not on the number of workers, not on what ran before. The crop comes first, so that colour works on few pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as T

from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD, Preprocess


@dataclass(frozen=True)
class ViewRecipe:
    """Distribution of one view."""

    scale: tuple[float, float]
    """Area of the crop as a share of the image."""
    jitter: tuple[float, float, float, float]
    """Strength of brightness, contrast, saturation (factors 1 - s .. 1 + s) and hue (shift -s .. s, in turns)."""
    interpolation: InterpolationMode
    """How the crop is resized."""
    mean: tuple[float, float, float]
    """Subtracted from the RGB values in [0, 1]."""
    std: tuple[float, float, float]
    """What is left is divided by this."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop."""
    flip_p: float = 0.5
    """Probability of the horizontal flip."""
    jitter_p: float = 0.8
    """Probability of the colour jitter as a whole."""
    gray_p: float = 0.2
    """Probability of losing colour."""
    blur_p: float = 0.5
    """Probability of the Gaussian blur, with a kernel of 10 % of the side."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Its standard deviation in pixels."""
    solarize_p: float = 0.0
    """Probability that values of 0.5 and more are inverted."""
    local: bool = False
    """A small view of a part of the image (multi-crop), with a side of its own. They come after the others."""

    def preprocess(self) -> Preprocess:
        """What the network will have been trained with."""
        return {"order": "RGB", "range": 1.0, "mean": list(self.mean), "std": list(self.std)}


# SimCLR, appendix A, with s = 1. Inputs stay in [0, 1]: there is no mean and no standard deviation.
SIMCLR = ViewRecipe(
    scale=(0.08, 1.0),
    jitter=(0.8, 0.8, 0.8, 0.2),
    interpolation=InterpolationMode.BICUBIC,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
# MoCo v2, reference code. (There the blur kernel is as wide as sigma asks, here it ends at 10 % of the side.)
MOCO_V2 = ViewRecipe(
    scale=(0.2, 1.0),
    jitter=(0.4, 0.4, 0.4, 0.1),
    interpolation=InterpolationMode.BILINEAR,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
# Instance discrimination and MoCo v1, reference code: always jittered, never blurred. (There an image loses its colour
# before the jitter, here after it; on a gray image saturation and hue do nothing.)
MOCO_V1 = replace(MOCO_V2, jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, blur_p=0.0)
# BYOL, appendix B: the first view is always blurred, the second hardly ever, but solarised. Barlow Twins has the same.
BYOL_1 = ViewRecipe(
    scale=(0.08, 1.0),
    jitter=(0.4, 0.4, 0.2, 0.1),
    interpolation=InterpolationMode.BICUBIC,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    blur_p=1.0,
)
BYOL_2 = replace(BYOL_1, blur_p=0.1, solarize_p=0.2)
# MoCo v3, reference code for ResNets: BYOL's with larger crops, resized bilinearly.
MOCO_V3_1 = replace(BYOL_1, scale=(0.2, 1.0), interpolation=InterpolationMode.BILINEAR)
MOCO_V3_2 = replace(MOCO_V3_1, blur_p=BYOL_2.blur_p, solarize_p=BYOL_2.solarize_p)
# Supervised contrast, reference code for CIFAR: its statistics, no blur.
SUP_CON = replace(
    MOCO_V2, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), jitter=(0.4, 0.4, 0.4, 0.1), blur_p=0.0
)
# SwAV, section 3.2 and reference code, whose red standard deviation of 0.228 all its released networks have seen.
SWAV = replace(
    SIMCLR,
    scale=(0.14, 1.0),
    interpolation=InterpolationMode.BILINEAR,
    mean=IMAGENET_MEAN,
    std=(0.228, 0.224, 0.225),
)
SWAV_LOCAL = replace(SWAV, scale=(0.05, 0.14), local=True)
# SwAV and DeepCluster-v2 of 400 epochs, reference code: 2 x 160 + 4 x 96; without the small views, their 2 x 224.
DEEPCLUSTER_V2 = replace(SWAV, scale=(0.08, 1.0))
# DINO, reference code with the crop areas of its ResNet-50: BYOL's colours.
DINO_1, DINO_2 = (replace(view, scale=(0.14, 1.0)) for view in (BYOL_1, BYOL_2))
DINO_LOCAL = replace(DINO_1, scale=(0.05, 0.14), blur_p=0.5, local=True)
RECIPES: dict[str, tuple[ViewRecipe, ...]] = {
    "simclr": (SIMCLR, SIMCLR),
    "moco_v1": (MOCO_V1, MOCO_V1),
    "moco_v2": (MOCO_V2, MOCO_V2),
    "moco_v3": (MOCO_V3_1, MOCO_V3_2),
    "byol": (BYOL_1, BYOL_2),
    "sup_con": (SUP_CON, SUP_CON),
    "swav": (SWAV, SWAV, *[SWAV_LOCAL] * 6),
    "deepcluster_v2": (DEEPCLUSTER_V2, DEEPCLUSTER_V2, *[SWAV_LOCAL] * 4),
    "dino": (DINO_1, DINO_2, *[DINO_LOCAL] * 8),
}


def view_recipes(name: str, local_views: int | None = None) -> tuple[ViewRecipe, ...]:
    """The recipes of one image's views, with only the first ``local_views`` of the small ones (None: all)."""
    large = [recipe for recipe in RECIPES[name] if not recipe.local]
    small = [recipe for recipe in RECIPES[name] if recipe.local]
    return (*large, *small[:local_views])


def sample_view(image: Tensor, recipe: ViewRecipe, size: int, generator: torch.Generator) -> Tensor:
    """One random view.

    Args:
        image: (3, H, W) uint8, RGB.
        size: side of the view in pixels.
        generator: source of all the randomness.

    Returns:
        (3, size, size) float32, preprocessed.
    """

    def chance(probability: float) -> bool:
        return _uniform(generator, 0.0, 1.0) < probability

    top, left, height, width = sample_crop(image.shape[1], image.shape[2], recipe.scale, recipe.ratio, generator)
    crop = image[:, top : top + height, left : left + width]
    view = T.resize_image(crop, [size, size], interpolation=recipe.interpolation, antialias=True)
    view = view.float().div_(255)
    if chance(recipe.flip_p):
        view = view.flip(-1)
    if chance(recipe.jitter_p):
        view = _jitter(view, recipe.jitter, generator)
    if chance(recipe.gray_p):
        view = T.rgb_to_grayscale_image(view, num_output_channels=3)
    if chance(recipe.blur_p):
        blur = blur_matrix(size, blur_kernel(size), _uniform(generator, *recipe.blur_sigma))
        view = blur @ view @ blur.T
    if recipe.solarize_p > 0 and chance(recipe.solarize_p):
        view = torch.where(view < 0.5, view, 1 - view)
    return _normalise(view, recipe.preprocess())


def evaluation_view(image: Tensor, size: int, preprocess: Preprocess) -> Tensor:
    """The whole image at ``size`` x ``size``, without randomness: (3, H, W) uint8 -> (3, size, size) float32."""
    view = T.resize_image(image, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return _normalise(view.float().div_(255), preprocess)


def sample_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Random resized crop (Szegedy et al. 2015): area uniform, ratio log-uniform, ten tries, then the centre.

    Returns:
        top, left, height, width in pixels, inside the image.
    """
    for _ in range(10):
        area, shape, y, x = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        target = height * width * (scale[0] + area * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + shape * math.log(ratio[1] / ratio[0]))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def blur_kernel(size: int) -> int:
    """Odd kernel width of 10 % of the side (SimCLR, reference code): 23 at 224, 7 at 64."""
    return 2 * max(1, size // 10 // 2) + 1


def blur_matrix(size: int, kernel: int, sigma: float) -> Tensor:
    """Gaussian blur of one axis as a (size, size) matrix, edges reflected.

    ``B @ image @ B.T`` is torchvision's ``gaussian_blur``, in a fraction of its time on a small square image.
    """
    offsets = torch.arange(kernel) - kernel // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    taps = (torch.arange(size)[:, None] + offsets).abs()
    taps = (size - 1) - ((size - 1) - taps).abs()
    return torch.zeros(size, size).scatter_add_(1, taps, (weights / weights.sum()).expand(size, -1))


def shift_hue(image: Tensor, turns: float) -> Tensor:
    """Rotate the hue of a (3, H, W) float image in [0, 1]; value and chroma stay.

    The same as torchvision's ``adjust_hue`` in a third of its time: chroma needs no division by the value, and the
    way back from HSV is the closed form value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6.
    """
    red, green, blue = image.unbind(0)
    value = image.amax(dim=0)
    chroma = value - image.amin(dim=0)
    safe = chroma.clamp(min=1e-12)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    k = (sixths + 6 * turns + torch.tensor([5.0, 3.0, 1.0])[:, None, None]).remainder_(6)
    return torch.addcmul(value, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1)


def _jitter(view: Tensor, strength: tuple[float, float, float, float], generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue in random order."""
    operations = (T.adjust_brightness_image, T.adjust_contrast_image, T.adjust_saturation_image, shift_hue)
    draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    for which in torch.randperm(4, generator=generator).tolist():
        spread, centre = strength[which], 0.0 if which == 3 else 1.0
        low = centre - spread if which == 3 else max(0.0, centre - spread)
        view = operations[which](view, low + draws[which] * (centre + spread - low))
    return view


def _normalise(view: Tensor, preprocess: Preprocess) -> Tensor:
    mean, std = torch.tensor(preprocess["mean"]), torch.tensor(preprocess["std"])
    if not mean.any() and (std == 1).all():
        return view.contiguous()
    return (view - mean[:, None, None]) / std[:, None, None]


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
