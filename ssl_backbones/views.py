"""View recipes with the papers' magnitudes, and the sampling that makes each view reproducible.

Each view has its own generator, so it depends on (seed, step, position) alone: not on the number of workers, not on
what ran before. The crop comes first, so that colour changes touch few pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as T

from ssl_backbones.options import IMAGENET_MEAN, IMAGENET_STD, Preprocess

# Linear sRGB to X, Y and Z, each divided by that of the white point D65 (0.95047, 1, 1.08883).
XYZ_OF_WHITE_FROM_RGB = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)


@dataclass(frozen=True)
class PatchGrid:
    """Square patches, ``count`` in each of ``count`` rows.

    The numbers are pixels for views of size ``view``; they scale with the size, rounded.
    """

    view: int
    """Size of the view that the other numbers are for."""
    count: int
    """Patches per row, and number of rows."""
    cell: int
    """Side of a cell; neighbours overlap where it is larger than ``stride``."""
    stride: int
    """Pixels from a cell to the next one."""
    crop: int
    """Side of the square that is cut out of each cell, at a random place."""
    patch: int
    """Side of the patch. A smaller ``crop`` is framed in zeros (of the preprocessed image)."""
    flip_p: float = 0.0
    """Probability that a patch is flipped by itself."""
    drop_p: float = 0.0
    """Probability that a patch loses two of its three channels: they become zero (of the preprocessed image)."""

    def scaled(self, size: int) -> PatchGrid:
        """Return the same grid for views of ``size`` pixels."""
        pixels = (max(1, round(side * size / self.view)) for side in (self.cell, self.stride, self.crop, self.patch))
        cell, stride, crop, patch = pixels
        return replace(self, view=size, cell=cell, stride=stride, crop=crop, patch=patch)

    @property
    def side(self) -> int:
        """Side of the square that the grid covers."""
        return (self.count - 1) * self.stride + self.cell


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
    """The difference is divided by this."""
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
    """Whether this is a small view (multi-crop) with side ``local_view_size``. Small views come after the others."""
    side: float | None = None
    """If given, the crop is a square of this share of the image's shorter side; ``scale`` and ``ratio`` are unused."""
    frames: bool = False
    """The view is of a stack of successive frames, (3 F, H, W), all cropped alike. It cannot change colours."""
    patches: PatchGrid | None = None
    """The crop is cut into patches, each of which is jittered, grayed, blurred and solarised by itself. The view shows
    them side by side; :func:`cut_patches` cuts it into patches again."""
    order: Literal["RGB", "LAB"] = "RGB"
    """Channels of the view: ``LAB`` is CIE L*a*b* under D65, to which ``mean`` and ``std`` then refer."""

    @property
    def kind(self) -> Literal["image", "patches", "frames"]:
        """Kind of the view, see Method.view_kinds."""
        if self.frames:
            return "frames"
        return "image" if self.patches is None else "patches"

    def preprocess(self) -> Preprocess:
        """Return the preprocessing of a network that is trained with these views."""
        return {"order": self.order, "range": 1.0, "mean": list(self.mean), "std": list(self.std)}


# SimCLR, appendix A, with s = 1. Inputs stay in [0, 1], without mean and standard deviation.
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
# Instance discrimination and MoCo v1, reference code: always jittered, never blurred. (There images lose their colour
# before the jitter, here after it; on gray images saturation and hue have no effect.)
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
# PIRL, VISSL's configuration: the image, and a jigsaw of nine patches whose colours change one by one.
# (VISSL also blends in photometric changes, which are left out here.)
PIRL = replace(MOCO_V1, scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.4, 0.2))
PIRL_JIGSAW = replace(
    PIRL, scale=(0.6, 1.0), patches=PatchGrid(view=224, count=3, cell=85, stride=85, crop=64, patch=64)
)
# CMC in the linear colour space Y, Db, Dr (PyContrast, the first author's later code): the views are RGB, the method
# changes the colour space. The mean is the one of that code, brought back to RGB; its deviations are in methods/cmc.py.
CMC = replace(
    PIRL, jitter=(0.4, 0.4, 0.4, 0.1), gray_p=0.0, mean=(0.48433989, 0.45365813, 0.40250044), std=(1.0, 1.0, 1.0)
)
# CMC in L, a, b, authors' code: crops and flips only; half of the range of each channel is 1.
CMC_LAB = replace(
    CMC,
    scale=(0.2, 1.0),
    jitter_p=0.0,
    order="LAB",
    mean=(50.0, (98.233 - 86.183) / 2, (94.478 - 107.857) / 2),
    std=(50.0, (98.233 + 86.183) / 2, (94.478 + 107.857) / 2),
)
# CPC, section 3.2: 256 of 300 pixels, gray, 7 x 7 patches of 64 that overlap by half; 60 of their pixels are seen.
CPC = replace(
    MOCO_V1,
    scale=((256 / 300) ** 2, (256 / 300) ** 2),
    ratio=(1.0, 1.0),
    jitter_p=0.0,
    gray_p=1.0,
    patches=PatchGrid(view=256, count=7, cell=64, stride=32, crop=60, patch=64),
)
# CPC v2: larger patches, each flipped and reduced to one channel at random. (The authors also shear and warp them, and
# change their colours in other ways than MoCo v2's, which are used here. How often channels are dropped: own choice.)
CPC_V2 = replace(
    MOCO_V2,
    blur_p=0.0,
    patches=PatchGrid(view=260, count=6, cell=80, stride=36, crop=80, patch=80, flip_p=0.5, drop_p=0.8),
)
# CURL, reference code: a random square of 84 of 100 pixels, the same of all frames of a stack; values in [0, 1].
CURL = replace(
    SIMCLR,
    side=0.84,
    frames=True,
    interpolation=InterpolationMode.BILINEAR,
    flip_p=0.0,
    jitter_p=0.0,
    gray_p=0.0,
    blur_p=0.0,
)
# CLIP, section 2.4: only a random square of the resized image.
CLIP = replace(
    SIMCLR,
    side=1.0,
    flip_p=0.0,
    jitter_p=0.0,
    gray_p=0.0,
    blur_p=0.0,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
# SimCLR v2, section 3: distillation sees crops and flips only.
DISTILLATION = replace(SIMCLR, jitter_p=0.0, gray_p=0.0, blur_p=0.0)
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
    "instdisc": (MOCO_V1,),
    "pirl": (PIRL, PIRL_JIGSAW),
    "cmc": (CMC,),
    "cmc_lab": (CMC_LAB,),
    "cpc": (CPC,),
    "cpc_v2": (CPC_V2,),
    "clip": (CLIP,),
    "curl": (CURL, CURL),
    "distillation": (DISTILLATION,),
}


def recipes_with_kinds(kinds: Sequence[Literal["image", "patches", "frames"]]) -> list[str]:
    """Return the names of the recipes whose large views are of these kinds, in this order."""
    return [name for name in RECIPES if [recipe.kind for recipe in view_recipes(name, 0)] == list(kinds)]


def view_recipes(name: str, local_views: int | None = None) -> tuple[ViewRecipe, ...]:
    """Return the view recipes per image, with the first ``local_views`` small ones only (None: all)."""
    large = [recipe for recipe in RECIPES[name] if not recipe.local]
    small = [recipe for recipe in RECIPES[name] if recipe.local]
    return (*large, *small[:local_views])


def sample_view(image: Tensor, recipe: ViewRecipe, size: int, generator: torch.Generator) -> Tensor:
    """Make one random view.

    Args:
        image: (3, H, W) uint8, RGB; for a recipe of ``frames`` (3 F, H, W), the oldest frame first.
        size: side of the view in pixels.
        generator: source of all random numbers.

    Returns:
        (3, size, size) float32, preprocessed, with as many channels as ``image``; of patches
        (3, count * patch, count * patch), see :class:`PatchGrid`.
    """
    grid = None if recipe.patches is None else recipe.patches.scaled(size)
    side = size if grid is None else grid.side
    if recipe.side is None:
        top, left, height, width = sample_crop(image.shape[1], image.shape[2], recipe.scale, recipe.ratio, generator)
    else:
        top, left, height, width = sample_square(image.shape[1], image.shape[2], recipe.side, generator)
    crop = image[:, top : top + height, left : left + width]
    view = T.resize_image(crop, [side, side], interpolation=recipe.interpolation, antialias=True)
    view = view.float().div_(255)
    if _chance(recipe.flip_p, generator):
        view = view.flip(-1)
    if grid is None:
        return _normalise(_distort(view, recipe, generator), recipe.preprocess())
    return _lay_patches(view, recipe, grid, generator)


def cut_patches(views: Tensor, count: int) -> Tensor:
    """Cut images of patches: (N, 3, count * P, count * P) -> (N * count ** 2, 3, P, P), row by row."""
    cut: Tensor = views.unflatten(2, (count, -1)).unflatten(4, (count, -1))  # N, 3, row, P, column, P
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def evaluation_view(image: Tensor, size: int, preprocess: Preprocess) -> Tensor:
    """Resize the whole image to ``size`` x ``size``, without randomness: (3, H, W) uint8 -> (3, size, size) float32."""
    view = T.resize_image(image, [size, size], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return _normalise(view.float().div_(255), preprocess)


def sample_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Draw a random resized crop (Szegedy et al. 2015): area uniform, ratio log-uniform, ten tries, then the centre.

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


def sample_square(height: int, width: int, side: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a square crop of ``side`` times the shorter side, uniformly: top, left, height, width in pixels."""
    pixels = max(1, round(side * min(height, width)))
    y, x = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    return int(y * (height - pixels + 1)), int(x * (width - pixels + 1)), pixels, pixels


def blur_kernel(size: int) -> int:
    """Return the odd kernel width of 10 % of the side (SimCLR, reference code): 23 at 224, 7 at 64."""
    return 2 * max(1, size // 10 // 2) + 1


def blur_matrix(size: int, kernel: int, sigma: float) -> Tensor:
    """Make the (size, size) matrix of a Gaussian blur along one axis, with reflected edges.

    ``B @ image @ B.T`` equals torchvision's ``gaussian_blur``, and is much faster on a small square image.
    """
    offsets = torch.arange(kernel) - kernel // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    taps = (torch.arange(size)[:, None] + offsets).abs()
    taps = (size - 1) - ((size - 1) - taps).abs()
    return torch.zeros(size, size).scatter_add_(1, taps, (weights / weights.sum()).expand(size, -1))


def shift_hue(image: Tensor, turns: float) -> Tensor:
    """Rotate the hue of a (3, H, W) float image in [0, 1]; value and chroma do not change.

    Equals torchvision's ``adjust_hue`` in a third of its time: chroma needs no division by the value, and the
    inverse of HSV is the closed form value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6.
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


def lab_from_rgb(image: Tensor) -> Tensor:
    """Convert sRGB to CIE L*a*b* under D65 (IEC 61966-2-1, CIE 15): (3, H, W) float in [0, 1] -> (3, H, W).

    L* is from 0 to 100, a* from -86.2 to 98.3, b* from -107.9 to 94.5.
    """
    linear = torch.where(image > 0.04045, ((image + 0.055) / 1.055).clamp(min=0) ** 2.4, image / 12.92)
    xyz = torch.einsum("xc,chw->xhw", image.new_tensor(XYZ_OF_WHITE_FROM_RGB), linear)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp(min=0) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(0)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def _distort(view: Tensor, recipe: ViewRecipe, generator: torch.Generator) -> Tensor:
    """Change colours and sharpness of a (3, S, S) image in [0, 1]."""
    size = view.shape[-1]
    if _chance(recipe.jitter_p, generator):
        view = _jitter(view, recipe.jitter, generator)
    if _chance(recipe.gray_p, generator):
        view = T.rgb_to_grayscale_image(view, num_output_channels=3)
    if _chance(recipe.blur_p, generator):
        blur = blur_matrix(size, blur_kernel(size), _uniform(generator, *recipe.blur_sigma))
        view = blur @ view @ blur.T
    if recipe.solarize_p > 0 and _chance(recipe.solarize_p, generator):
        view = torch.where(view < 0.5, view, 1 - view)
    return view


def _lay_patches(picture: Tensor, recipe: ViewRecipe, grid: PatchGrid, generator: torch.Generator) -> Tensor:
    """Cut a picture into patches, change each by itself, and lay them side by side."""
    laid = torch.zeros(3, grid.count * grid.patch, grid.count * grid.patch)
    frame = (grid.patch - grid.crop) // 2
    for row in range(grid.count):
        for column in range(grid.count):
            y, x = torch.randint(grid.cell - grid.crop + 1, (2,), generator=generator).tolist()
            top, left = row * grid.stride + y, column * grid.stride + x
            patch = picture[:, top : top + grid.crop, left : left + grid.crop]
            if _chance(grid.flip_p, generator):
                patch = patch.flip(-1)
            patch = _normalise(_distort(patch, recipe, generator), recipe.preprocess())
            if _chance(grid.drop_p, generator):
                kept = int(torch.randint(3, (), generator=generator))
                patch = patch * (torch.arange(3) == kept)[:, None, None]
            top, left = row * grid.patch + frame, column * grid.patch + frame
            laid[:, top : top + grid.crop, left : left + grid.crop] = patch
    return laid


def _jitter(view: Tensor, strength: tuple[float, float, float, float], generator: torch.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue, in random order."""
    operations = (T.adjust_brightness_image, T.adjust_contrast_image, T.adjust_saturation_image, shift_hue)
    draws = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    for which in torch.randperm(4, generator=generator).tolist():
        spread, centre = strength[which], 0.0 if which == 3 else 1.0
        low = centre - spread if which == 3 else max(0.0, centre - spread)
        view = operations[which](view, low + draws[which] * (centre + spread - low))
    return view


def _normalise(view: Tensor, preprocess: Preprocess) -> Tensor:
    mean, std = torch.tensor(preprocess["mean"]), torch.tensor(preprocess["std"])
    if preprocess["order"] == "LAB":
        view = lab_from_rgb(view)
    if not mean.any() and (std == 1).all():
        return view.contiguous()
    return (view - mean[:, None, None]) / std[:, None, None]


def _chance(probability: float, generator: torch.Generator) -> bool:
    return _uniform(generator, 0.0, 1.0) < probability


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
