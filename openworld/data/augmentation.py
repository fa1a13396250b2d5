"""Augmentation of training images: their size and mirror image, and what ``loader.augment`` adds to these.

The transforms are torchvision's (``torchvision.transforms.v2``), which draw from torch's global generator. They draw in
:func:`openworld.runtime.seeding.global_draws`, so that an image is a function of the loader's generator alone and the
global one stays as it is.

Images are (3, H, W), boxes (N, 4) ``x1 y1 x2 y2`` in pixels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area
from torchvision.transforms import v2

from openworld.data.options import LoaderOptions
from openworld.data.transforms import box_scale, flip, resized, resized_size
from openworld.runtime.seeding import global_draws
from openworld.structures import Target
from ssl_backbones.options import IMAGENET_MEAN

OVERSAMPLING = 2.0
"""Larger images are first reduced to this many times the training size: a zoom-out of 12 megapixels fills half a
gigabyte, and the resizing that follows leaves little of it."""
ZOOM_OUT = (1.0, 2.0)
"""Sides of the zoom-out over those of the image. SSD goes to 4; here, large-scale jitter reduces once more."""
LARGE_SCALE_JITTER = (0.5, 2.0)
"""Ghiasi et al. draw from 0.1 to 2 of 1024 pixels. A tenth of an image of a few hundred pixels shows nothing."""


MIN_VISIBLE = 0.1
"""A crop leaves out the boxes of which it shows a smaller share of the area (``area_thr`` of YOLOv5's augmentation)."""
CROP_TRIALS = 10
"""Crops that are tried for a drawn IoU before another one is drawn. SSD tries 50 and torchvision 40; where objects are
small, that takes several times as long as the rest and finds no more crops."""


class PhotometricDistort(v2.RandomPhotometricDistort):
    """Brightness, contrast, saturation and hue, each with probability 0.5.

    The channels keep their places, as in the released configuration of SSD (``random_order_prob: 0.0``). The base class
    permutes them with probability 0.5.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factors."""
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class IoUCrop(v2.RandomIoUCrop):
    """A crop that shows the centre of a box, and keeps all boxes as far as they are seen.

    The base class leaves out boxes whose centre is outside. What is seen of them would be background without a label,
    which an open-world method takes for an unknown object. An image without boxes has no such crop, and the base class
    divides by zero where a side has few pixels: these images stay whole.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the crop. Nothing stands for the whole image."""
        boxes = next(each for each in flat_inputs if isinstance(each, tv_tensors.BoundingBoxes))
        if not len(boxes) or self.min_scale * min(boxes.canvas_size) < 1:
            return {}
        crop: dict[str, Any] = super().make_params(flat_inputs)
        return {**crop, "is_within_crop_area": torch.ones(len(boxes), dtype=torch.bool)} if crop else {}


PHOTOMETRIC = PhotometricDistort()
CROPS = {
    "light": v2.RandomApply([IoUCrop(min_scale=0.5, trials=CROP_TRIALS)], p=0.5),
    "strong": v2.RandomApply([IoUCrop(min_scale=0.3, trials=CROP_TRIALS)], p=0.5),
}
SANITIZE = (v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(labels_getter=lambda sample: sample["kept"]))
"""Boxes are clamped first, because the second transform leaves out those that pass the border by a rounding error."""


def augment(image: Tensor, target: Target, options: LoaderOptions, generator: torch.Generator) -> tuple[Tensor, Target]:
    """An image as training feeds it: resized with scale jitter, perhaps mirrored, and augmented as the options say.

    A crop that would leave none of the boxes is refused, so that an image with boxes keeps at least one.

    Args:
        image: (3, H, W) uint8; left as it is.
        target: its N boxes, in pixels of ``image``.
        options: sizes, ``resize``, ``scale_jitter``, ``flip`` and ``augment`` are used.
        generator: all randomness. Two numbers are drawn whatever the options are, and a third one with ``augment``.

    Returns:
        (3, h, w) of the type that :func:`openworld.data.transforms.prepare` gives, and what is left of the target, at
        most N boxes, in its pixels.
    """
    draw_scale, draw_flip = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    low, high = options.scale_jitter
    factor, mirrored = low + (high - low) * draw_scale, draw_flip < options.flip
    if options.augment == "none":
        return _fitted(image, target, options, factor, mirrored)
    image, target = _reduced(image, target, options)
    with global_draws(generator):
        image = PHOTOMETRIC(image)
        if options.augment == "strong":
            zoom_out = v2.RandomZoomOut(_fill(image), ZOOM_OUT, p=0.5)
            image, target = _transformed(zoom_out, image, target) or (image, target)
        image, target = _transformed(CROPS[options.augment], image, target) or (image, target)
        if options.augment == "strong":
            jitter = torch.empty(()).uniform_(*LARGE_SCALE_JITTER).item()
            size = resized_size(*_size(image), options.min_size, options.max_size, factor)
            frame = v2.RandomCrop(size, pad_if_needed=True, fill=_fill(image))
            framed = _transformed(frame, *_fitted(image, target, options, factor * jitter, mirrored))
            if framed is not None:
                return framed
    return _fitted(image, target, options, factor, mirrored)


def _fitted(
    image: Tensor, target: Target, options: LoaderOptions, factor: float, mirrored: bool
) -> tuple[Tensor, Target]:
    """Resize to the training size times ``factor``, and mirror."""
    old = _size(image)
    new = resized_size(*old, options.min_size, options.max_size, factor)
    result, boxes = resized(image, new, options), target.boxes * box_scale(old, new)
    if mirrored:
        result, boxes = flip(result, boxes)
    return result, replace(target, boxes=boxes)


def _reduced(image: Tensor, target: Target, options: LoaderOptions) -> tuple[Tensor, Target]:
    """Reduce to :data:`OVERSAMPLING` times the training size, if the image is larger."""
    old = _size(image)
    new = min(old, resized_size(*old, options.min_size, options.max_size, OVERSAMPLING))
    return resized(image, new, options), replace(target, boxes=target.boxes * box_scale(old, new))


def _transformed(transform: v2.Transform, image: Tensor, target: Target) -> tuple[Tensor, Target] | None:
    """Pad or crop, and leave out boxes of less than a pixel and those that are hardly seen (:data:`MIN_VISIBLE`).

    Returns:
        the new image, and the target with its boxes as far as the image shows them; None if a target with boxes would
        lose all of them.
    """
    sample = {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(target.boxes, format="XYXY", canvas_size=_size(image)),
        "kept": torch.arange(len(target)),
    }
    sample = v2.Compose([transform, *SANITIZE])(sample)
    kept, boxes = sample["kept"], sample["boxes"].as_subclass(Tensor)
    seen = box_area(boxes) >= MIN_VISIBLE * box_area(target.boxes[kept])
    if len(target) and not seen.any():
        return None
    return sample["image"].as_subclass(Tensor), replace(target[kept[seen]], boxes=boxes[seen])


def _size(image: Tensor) -> tuple[int, int]:
    """(height, width)."""
    return image.shape[-2], image.shape[-1]


def _fill(image: Tensor) -> list[float]:
    """The mean colour that networks subtract: what is filled with it is zero, as the padding of a batch is."""
    return [mean if image.is_floating_point() else round(255 * mean) for mean in IMAGENET_MEAN]
