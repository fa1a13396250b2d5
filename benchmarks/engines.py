"""A training step and an inference of both engines, with the same weights, in the same run; detectron2 is needed.

    python benchmarks/engines.py [--sizes 320 480] [--threads 2] [--repeats 5] [--device cpu] [--json FILE]

The detector, the images and the way of timing are those of train_step.py, which compares the default engine with
torchvision's own detector, and with detectron2's. Here ``torchvision`` and ``detectron2`` are the values of
``model.engine``: fp32 and bf16, training with ORE and without. Before anything is timed, the float32 losses of both are
compared on the same sampled regions, and the run fails if they differ by more than 1e-4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torchvision.models.detection import FasterRCNN
from train_step import (
    LABELS,
    Batch,
    Bench,
    checked_losses,
    inference_of,
    make_batch,
    nothing_unknown,
    own_model,
    print_losses,
    sampling_all,
    set_frozen_statistics,
    stock_model,
    training_of,
)

from openworld.engines.detectron2.names import detectron2_name
from openworld.engines.detectron2.parts import Detectron2RCNN
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from ssl_backbones.backbones import ResNetOptions


def twin(model: OpenWorldRCNN) -> Detectron2RCNN:
    """Build the same detector from detectron2's parts."""
    arch = ResNetOptions(name="resnet50", width=1.0, norm="frozen")
    other = Detectron2RCNN(LABELS, arch, replace(model.options, engine="detectron2"))
    named = {detectron2_name(name, "fpn"): value for name, value in model.state_dict().items()}
    found = other.model.load_state_dict(named, strict=False)
    missing = [name for name in found.missing_keys if not name.endswith("num_known")]
    if missing or found.unexpected_keys:
        raise SystemExit(f"the engines have other tensors: {missing}, {found.unexpected_keys}")
    return other.to(model.pixel_mean.device).to(memory_format=torch.channels_last)


@torch.no_grad()
def compare_losses(stock: FasterRCNN, batch: Batch, device: torch.device) -> dict[str, list[float]]:
    """Return each float32 loss of one training step of both engines."""
    ours = sampling_all(own_model(stock, 512, "fp32")).to(device)
    found = []
    for engine in (ours, twin(ours)):
        torch.manual_seed(2)
        losses, _ = engine.train().training_step(*batch, nothing_unknown)
        found.append({name: float(loss) for name, loss in losses.items()})
    return checked_losses({name: [losses[name] for losses in found] for name in found[0]})


def main() -> None:
    bench = Bench(__doc__)
    options, device = bench.start(), bench.device
    for side in options.sizes:
        batch, targets = make_batch(side, options.batch, device)
        stock = stock_model(side, options.regions).to(device)
        set_frozen_statistics(stock, batch)

        def engine(name: str, precision: str, stock: Any = stock) -> Any:
            model = own_model(stock, options.regions, precision).to(device)
            return model if name == "torchvision" else twin(model)

        losses = compare_losses(stock, (batch, targets), device)
        print_losses(f"{side} px, the same sampled regions: loss in torchvision and in detectron2", losses)
        train: dict[str, Any] = {}
        infer: dict[str, Any] = {}
        for precision in ("fp32", "bf16"):
            for name in ("torchvision", "detectron2"):
                variant = f"{name} {precision}"
                plain = engine(name, precision)
                train[variant], infer[variant] = training_of(plain, batch, targets, False), inference_of(plain, batch)
                train[f"{variant} + ORE"] = training_of(engine(name, precision), batch, targets, True)
        bench.measure(side, train, infer, losses=losses)
    bench.write()


if __name__ == "__main__":
    main()
