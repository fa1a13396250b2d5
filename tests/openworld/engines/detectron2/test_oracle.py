"""The heads in detectron2 against the arrays of the reference code: losses with gradients, labels, detections."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.layers import ShapeSpec
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from openworld.convert.published_run import reference_ore
from openworld.engines.detectron2.parts import OpenWorldOutputLayers
from openworld.engines.detectron2.roi_heads import OpenWorldHeads
from openworld.engines.options import RoiOptions
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import ClusteringOptions

ORACLES = Path(os.environ.get("OPENWORLD_ORACLES", Path(__file__).parents[3] / "oracles"))
pytestmark = [pytest.mark.detectron2, pytest.mark.oracle]


def cases(folder: str, pattern: str, needed: str) -> list[Any]:
    found = sorted((ORACLES / folder).glob(pattern))
    return [pytest.param(path, id=path.stem) for path in found if needed in np.load(path).files]


def space(known: int, previous: int, classes: int) -> LabelSpace:
    names = [f"class {number}" for number in range(classes)]
    tasks = [names[:previous], names[previous:known], names[known:]]
    return LabelSpace.of([part for part in tasks if part], 2 if previous else 1, "fixed")


def roi(**changes: Any) -> RoiOptions:
    return RoiOptions(
        **{
            "unknown_share": "shared",
            "unknown_box_loss": "included",
            "box_regression": "per_class",
            "smooth_l1_beta": 0.0,
            "min_side_px": 0.0,
            "cross_nms_iou": 1.0,
            **changes,
        }
    )


@pytest.mark.parametrize("path", cases("losses", "*.npz", "loss_cls"))
def test_losses_and_gradients(path: Path) -> None:
    """The whole of ``OpenWorldOutputLayers.losses`` in an event storage, with the clustering loss beginning at once."""
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    previous, known, rows = int(arrays["prev"]), int(arrays["prev"] + arrays["cur"]), int(arrays["K"])
    labels = space(known, previous, rows - 1)
    logits, deltas, features = (
        torch.from_numpy(arrays[name]).requires_grad_() for name in ("logits", "deltas", "features")
    )
    clustering = ClusteringOptions(
        weight=float(arrays["clustering_weight"]),
        start_step=7,
        margin=float(arrays["hinge_margin"]),
        distance_order=float(arrays["p"]),
        absent="zero",
        reduction="all",
        background_prototype=True,
    )
    dim = features.shape[1]
    layers = OpenWorldOutputLayers(
        ShapeSpec(channels=dim), space=labels, roi=roi(), method=Ore(labels, dim, clustering), first_step=3
    )
    proposals = []
    for image in range(len(arrays["n_per_image"])):
        boxes, classes = torch.from_numpy(arrays[f"prop{image}"]), torch.from_numpy(arrays[f"cls{image}"])
        proposals.append(
            Instances(
                (1000, 1000),
                proposal_boxes=Boxes(boxes),
                objectness_logits=torch.zeros(len(boxes)),
                proposal_iou=torch.zeros(len(boxes)),
                gt_classes=classes,
                gt_boxes=Boxes(torch.from_numpy(arrays[f"gt{image}"])),
            )
        )
    with EventStorage(4) as storage:  # the task had 3 steps before
        losses = layers.losses((logits, deltas, features), proposals)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert float(losses["loss_cls"].detach()) == pytest.approx(float(arrays["loss_cls"]), rel=1e-6)
    assert float(losses["loss_clustering"].detach()) == pytest.approx(float(arrays["loss_clustering"]), rel=1e-6)
    goals = torch.cat([each.gt_boxes.tensor for each in proposals])
    classes = torch.cat([each.gt_classes for each in proposals])
    has_goal = (goals[:, 2:] > goals[:, :2]).all(1)
    if np.isfinite(arrays["loss_box_reg"]):  # infinite where an image without ground truth has an unknown region
        assert float(losses["loss_box_reg"].detach()) == pytest.approx(float(arrays["loss_box_reg"]), rel=1e-6)
    assert bool(torch.isfinite(losses["loss_box_reg"]))
    for name, values in (("logits", logits), ("deltas", deltas), ("features", features)):
        compared = slice(None) if name != "deltas" else has_goal | (classes == labels.background)
        wanted = torch.from_numpy(arrays[f"grad_{name}"])
        assert values.grad is not None
        torch.testing.assert_close(values.grad[compared], wanted[compared], atol=1e-6, rtol=1e-6, msg=name)
    assert isinstance(layers.method, Ore)
    present = float(layers.method.prototypes.present.sum())
    assert storage.latest()["openworld/num_prototypes"][0] == present > 0


class Heads(OpenWorldHeads):
    def __init__(self, predictor: OpenWorldOutputLayers) -> None:
        self.box_predictor = predictor


@pytest.mark.parametrize("path", cases("autolabel", "full_*.npz", "in0_proposals"))
def test_labels_of_the_sampled_proposals(path: Path) -> None:
    """The regions that the reference drew at random are given, all are taken, and each must get the reference's label:
    a class, unknown for the most object-like of an image, or background."""
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    images = sum(name.startswith("in") and name.endswith("_proposals") for name in arrays)
    classes = int(arrays["num_classes"])
    labels = space(classes - 1, 0, classes - 1)
    options = reference_ore(energy=False).unknown_labels
    options.per_image = int(arrays["unk_k"])
    layers = OpenWorldOutputLayers(
        ShapeSpec(channels=2),
        space=labels,
        roi=roi(sampled_regions=10**6, positive_fraction=1.0, append_annotated=False),
        method=Ore(labels, 2, unknown_labels=options),
    )
    proposals, targets = [], []
    size = tuple(int(side) for side in arrays["image_size"].reshape(-1)[:2])
    for image in range(images):
        boxes = torch.from_numpy(arrays[f"out{image}_boxes"]).reshape(-1, 4)
        scores = torch.from_numpy(arrays[f"out{image}_objectness"])
        proposals.append(Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=scores))
        goal = torch.from_numpy(arrays[f"in{image}_gt_boxes"]).reshape(-1, 4)
        rows = torch.from_numpy(arrays[f"in{image}_gt_classes"])
        targets.append(Instances(size, gt_boxes=Boxes(goal), gt_classes=rows))
    with EventStorage():
        sampled = Heads(layers).label_and_sample_proposals(proposals, targets)
    for image, found in enumerate(sampled):
        boxes = found.proposal_boxes.tensor.tolist()
        own = sorted(zip(boxes, found.gt_classes.tolist(), strict=True))
        wanted = zip(arrays[f"out{image}_boxes"].tolist(), arrays[f"out{image}_classes"].tolist(), strict=True)
        assert own == sorted(wanted) and len(own) > 0
        goals = dict(zip(map(tuple, arrays[f"out{image}_boxes"].tolist()), arrays[f"out{image}_gt_boxes"].tolist()))
        if len(targets[image]):
            assert found.gt_boxes.tensor.tolist() == [goals[tuple(box)] for box in boxes]


@pytest.mark.parametrize("path", cases("losses", "inference*.npz", "kept_roi"))
def test_detections_of_one_image(path: Path) -> None:
    with np.load(path) as case:
        arrays = {name: case[name] for name in case.files}
    logits, deltas = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["deltas"])
    rows = logits.shape[1]
    # Every row may be detected here, as in the reference, whose evaluator looks at the label space.
    labels = space(rows - 2, 0, rows - 2)
    options = roi(
        score_threshold=float(arrays["score_thresh"]),
        nms_iou=float(arrays["nms_thresh"]),
        detections_per_image=int(arrays["topk"]),
    )
    ore = Ore(labels, 2, energy=reference_ore(energy=False).energy)
    layers = OpenWorldOutputLayers(ShapeSpec(channels=2), space=labels, roi=options, method=ore)
    size = tuple(int(side) for side in arrays["image_size"])
    boxes = torch.from_numpy(arrays["proposals"])
    proposals = [Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))]
    (found,), (kept,) = layers.inference((logits, deltas, torch.zeros(len(logits), 2)), proposals)
    np.testing.assert_allclose(found.pred_boxes.tensor.numpy(), arrays["boxes"], atol=1e-3)
    np.testing.assert_allclose(found.scores.numpy(), arrays["scores"], rtol=1e-5)
    assert found.pred_classes.tolist() == arrays["classes"].tolist()
    assert kept.tolist() == arrays["kept_roi"].tolist()
    np.testing.assert_allclose(logits[kept].numpy()[:, : arrays["det_logits"].shape[1]], arrays["det_logits"])
