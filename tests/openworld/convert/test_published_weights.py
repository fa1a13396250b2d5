"""Converted detectron2 weights against a forward pass of detectron2's written anew here, part by part and as a whole.

``D2`` follows modeling/backbone/resnet.py, proposal_generator/rpn.py, anchor_generator.py, box_regression.py and
roi_heads/{roi_heads,fast_rcnn}.py of JosephKJ/OWOD.
"""

import math
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms, nms

from openworld.cli import main
from openworld.configfile import dump_config, read_config
from openworld.convert.published_run import convert_run
from openworld.convert.published_weights import (
    convert_detectron2,
    detectron2_name,
    read_detectron2,
    read_energy,
    reference_options,
)
from openworld.data.schedules import SCHEDULES
from openworld.detector import Detector
from openworld.engines.base import Proposals
from openworld.engines.torchvision_rcnn import OpenWorldRCNN
from openworld.errors import CheckpointError, ConfigError
from openworld.labels import LabelSpace
from openworld.methods.ore.method import Ore
from openworld.methods.ore.options import EnergyOptions
from openworld.run.checkpoints import load_task
from openworld.structures import Detections, Regions

LABELS = LabelSpace.of(SCHEDULES["m_owodb"].tasks, 1, "fixed")
WIDTH = 4  # channels of the stem; ResNet-50 has 64
SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)


def checkpoint(rows: int = 82, boxes: int = 81, seed: int = 0) -> OrderedDict[str, Tensor]:
    """A state dict with detectron2's names; random weights of such sizes that activations stay moderate."""
    random = torch.Generator().manual_seed(seed)
    state: OrderedDict[str, Tensor] = OrderedDict()
    state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    state["pixel_std"] = torch.ones(3, 1, 1)

    def uniform(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return torch.rand(*shape, generator=random) * (high - low) + low

    def convolution(name: str, outside: int, inside: int, kernel: int, scale: float = 1.0) -> None:
        spread = scale * math.sqrt(2 / (inside * kernel**2))
        state[f"{name}.weight"] = torch.randn(outside, inside, kernel, kernel, generator=random) * spread
        state[f"{name}.norm.weight"] = uniform(outside, low=0.5, high=1.0)
        state[f"{name}.norm.bias"] = uniform(outside, low=-0.2, high=0.2)
        state[f"{name}.norm.running_mean"] = uniform(outside, low=-0.2, high=0.2)
        state[f"{name}.norm.running_var"] = uniform(outside, low=0.5, high=1.5)

    convolution("backbone.stem.conv1", WIDTH, 3, 7, scale=1 / 60)
    inside = WIDTH
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        narrow, wide = WIDTH * 2 ** (stage - 2), 4 * WIDTH * 2 ** (stage - 2)
        for block in range(blocks):
            name = f"{'roi_heads' if stage == 5 else 'backbone'}.res{stage}.{block}"
            if block == 0:
                convolution(f"{name}.shortcut", wide, inside, 1)
            convolution(f"{name}.conv1", narrow, inside, 1)
            convolution(f"{name}.conv2", narrow, narrow, 3)
            convolution(f"{name}.conv3", wide, narrow, 1, scale=0.5)
            inside = wide
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.tensor(D2.cell_anchors())
    c4, c5 = inside // 2, inside
    heads = {"conv": (c4, c4, 3, 0.02), "objectness_logits": (15, c4, 1, 0.4), "anchor_deltas": (60, c4, 1, 0.1)}
    for layer, (outside, channels, kernel, spread) in heads.items():
        name = f"proposal_generator.rpn_head.{layer}"
        state[f"{name}.weight"] = torch.randn(outside, channels, kernel, kernel, generator=random) * spread
        state[f"{name}.bias"] = uniform(outside, low=-0.1, high=0.1)
    for layer, outside, spread in (("cls_score", rows, 0.4), ("bbox_pred", 4 * boxes, 0.3)):
        state[f"roi_heads.box_predictor.{layer}.weight"] = torch.randn(outside, c5, generator=random) * spread
        state[f"roi_heads.box_predictor.{layer}.bias"] = uniform(outside)
    return state


class D2:
    """detectron2's forward pass in evaluation mode, on one BGR image from 0 to 255."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = {name: value.double() for name, value in state.items()}

    def convolution(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        s = self.state
        x = functional.conv2d(x, s[f"{name}.weight"], stride=stride, padding=padding)
        scale = s[f"{name}.norm.weight"] / (s[f"{name}.norm.running_var"] + 1e-5).sqrt()
        shift = s[f"{name}.norm.bias"] - s[f"{name}.norm.running_mean"] * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def stage(self, x: Tensor, name: str, blocks: int, stride: int) -> Tensor:
        for block in range(blocks):
            here, step = f"{name}.{block}", stride if block == 0 else 1
            out = self.convolution(x, f"{here}.conv1", stride=step).relu()
            out = self.convolution(out, f"{here}.conv2", padding=1).relu()
            out = self.convolution(out, f"{here}.conv3")
            x = (out + (self.convolution(x, f"{here}.shortcut", stride=step) if block == 0 else x)).relu()
        return x

    def backbone(self, bgr: Tensor) -> dict[str, Tensor]:
        """Maps by stage of a (3, H, W) image."""
        x = (bgr.double() - self.state["pixel_mean"]) / self.state["pixel_std"]
        x = self.convolution(x[None], "backbone.stem.conv1", stride=2, padding=3).relu()
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        maps = {}
        for number, (blocks, stride) in {2: (3, 1), 3: (4, 2), 4: (6, 2)}.items():
            x = maps[f"c{number}"] = self.stage(x, f"backbone.res{number}", blocks, stride)
        return maps

    @staticmethod
    def cell_anchors() -> list[list[float]]:
        anchors = []
        for size in SIZES:
            for ratio in RATIOS:
                w = math.sqrt(size**2 / ratio)
                anchors.append([-w / 2, -ratio * w / 2, w / 2, ratio * w / 2])
        return anchors

    def rpn(self, c4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Objectness (A,), deltas (A, 4) and anchors (A, 4), cell after cell, row by row."""
        head, s = "proposal_generator.rpn_head", self.state
        t = functional.conv2d(c4, s[f"{head}.conv.weight"], s[f"{head}.conv.bias"], padding=1).relu()
        scores, deltas = (
            functional.conv2d(t, s[f"{head}.{part}.weight"], s[f"{head}.{part}.bias"])[0]
            for part in ("objectness_logits", "anchor_deltas")
        )
        flat_scores, flat_deltas, anchors = [], [], []
        for y in range(c4.shape[2]):
            for x in range(c4.shape[3]):
                for index, cell in enumerate(self.cell_anchors()):
                    flat_scores.append(scores[index, y, x])
                    flat_deltas.append(deltas[4 * index : 4 * index + 4, y, x])
                    anchors.append([cell[0] + 16 * x, cell[1] + 16 * y, cell[2] + 16 * x, cell[3] + 16 * y])
        return torch.stack(flat_scores), torch.stack(flat_deltas), torch.tensor(anchors, dtype=torch.float64)

    @staticmethod
    def apply_deltas(deltas: Tensor, boxes: Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
        """Deltas (N, 4) of boxes (N, 4)."""
        size, middle = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
        moved = middle + deltas[:, :2] / torch.tensor(weights[:2]) * size
        grown = size * (deltas[:, 2:] / torch.tensor(weights[2:])).clamp(max=math.log(1000 / 16)).exp()
        return torch.cat([moved - grown / 2, moved + grown / 2], dim=1)

    def head(self, c4: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits and deltas of boxes (R, 4)."""
        x = self.stage(torch.stack([roi_align_slowly(c4[0], box) for box in boxes]), "roi_heads.res5", 3, 2)
        features, s, name = x.mean(dim=(2, 3)), self.state, "roi_heads.box_predictor"
        logits = features @ s[f"{name}.cls_score.weight"].T + s[f"{name}.cls_score.bias"]
        return features, logits, features @ s[f"{name}.bbox_pred.weight"].T + s[f"{name}.bbox_pred.bias"]


def roi_align_slowly(level: Tensor, box: Tensor, bins: int = 14) -> Tensor:
    """ROIAlignV2 (aligned) of one box on (C, H, W) at stride 16, as many samples in a bin as it has cells."""
    x1, y1, x2, y2 = (box.double() / 16 - 0.5).tolist()

    def axis(start: float, end: float, limit: int) -> Tensor:
        """(bins, limit) weights of the cells in each bin."""
        side = (end - start) / bins
        count = max(math.ceil((end - start) / bins), 1)
        weights = torch.zeros(bins, limit, dtype=torch.float64)
        for index in range(bins):
            for sample in range(count):
                place = start + index * side + (sample + 0.5) * side / count
                if -1 <= place <= limit:
                    place = min(max(place, 0), limit - 1)
                    low = min(int(place), limit - 1)
                    high = min(low + 1, limit - 1)
                    weights[index, low] += (1 - (place - low)) / count
                    weights[index, high] += (place - low) / count
        return weights

    return torch.einsum("chw,yh,xw->cyx", level, axis(y1, y2, level.shape[1]), axis(x1, x2, level.shape[2]))


def picture(height: int = 96, width: int = 128) -> Tensor:
    """(3, H, W) uint8 RGB."""
    coarse = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(3))
    fine = functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (fine[0] * 255).clamp(0, 255).to(torch.uint8)


def converted(state: dict[str, Tensor], labels: LabelSpace = LABELS, **changes: float) -> OpenWorldRCNN:
    options = reference_options(state, "model_final.pth", **changes)  # type: ignore[arg-type]
    return convert_detectron2(state, labels, options, "model_final.pth").eval()


@pytest.fixture(scope="module")
def state() -> OrderedDict[str, Tensor]:
    return checkpoint()


@pytest.fixture(scope="module")
def model(state: OrderedDict[str, Tensor]) -> OpenWorldRCNN:
    return converted(state)


def close(found: Tensor, wanted: Tensor, atol: float = 1e-4) -> None:
    assert float(wanted.abs().max()) > 0.05
    torch.testing.assert_close(found.double(), wanted.double(), atol=atol, rtol=1e-4)


# -- the same numbers -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 128), (100, 119)])
def test_each_part_computes_what_detectron2_does(
    state: dict[str, Tensor], model: OpenWorldRCNN, size: tuple[int, int]
) -> None:
    image, original = picture(*size), D2(state)
    maps = original.backbone(image.flip(0))
    batch = model.normalise([image.float() / 255])
    stages = model.features.body.forward_stages(batch.tensors, last="c4")
    for name, wanted in maps.items():
        close(stages[name], wanted)
        assert 0.1 < float((wanted > 0).double().mean()) < 0.95

    scores, deltas, anchors = original.rpn(maps["c4"])
    our_scores, our_deltas = model.rpn.head([stages["c4"]])
    ours = model.rpn._anchors([stages["c4"]]).double()
    cells = len(ours) // 15
    position = torch.tensor([3 * size + ratio for ratio in range(3) for size in range(5)])  # ours: ratio, then size
    order = (torch.arange(cells)[:, None] * 15 + position).flatten()
    assert float((ours - anchors[order]).abs().max()) <= 0.5  # rounded to whole pixels
    close(our_scores[0][0].permute(1, 2, 0).flatten(), scores[order])
    decoded = model.rpn.coder.decode(our_deltas[0][0].permute(1, 2, 0).reshape(-1, 4), [ours.float()])[:, 0]
    close(decoded, D2.apply_deltas(deltas, anchors)[order], atol=1e-2)

    boxes = torch.tensor([[0.0, 0, 128, 96], [10.3, 7.9, 61.2, 50.4], [-60, -40, 220, 190], [40, 40, 43, 42]])
    # A side of 280 pixels has 17.5 cells in 14 bins: two samples a bin.
    outputs = original.head(maps["c4"], boxes)
    zeros = torch.zeros(4)
    regions = Regions(boxes, zeros.long(), zeros, zeros, zeros.long())
    found = model.box_head(Proposals({"c4": stages["c4"]}, [boxes], [zeros], [size]), regions)
    for mine, value in zip((found.features, found.logits, found.deltas), outputs, strict=True):
        close(mine, value)
    assert outputs[1].shape == (4, 82) and outputs[2].shape == (4, 324)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (66, 98), (75, 90), (80, 100)])
def test_an_image_gives_the_detections_of_detectron2(state: dict[str, Tensor], size: tuple[int, int]) -> None:
    """Every candidate, and what the suppression leaves of them.

    The suppression visits boxes by falling score. Scores of untrained weights differ by less than the rounding of
    float32, so it is compared on one order, ours; which boxes enter it, and with which numbers, is compared before.
    """
    image, original, limit = picture(*size), D2(state), torch.tensor([*size[::-1], *size[::-1]])
    c4 = original.backbone(image.flip(0))["c4"]
    scores, deltas, anchors = original.rpn(c4)
    boxes = D2.apply_deltas(deltas, anchors).clamp(min=0).minimum(limit.double())
    inside = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
    boxes, scores = boxes[inside], scores[inside]
    proposals = boxes[nms(boxes, scores, 0.7)[:1000]]
    features, _, deltas = original.head(c4, proposals)

    # Regions of an untrained network are much alike: a classifier of what they differ in.
    name = "roi_heads.box_predictor.cls_score"
    weight = 30 * state[f"{name}.weight"]
    state = {**state, f"{name}.weight": weight, f"{name}.bias": -weight @ features.float().mean(0)}
    logits = features @ weight.double().T + state[f"{name}.bias"].double()
    rows = [*range(20), 80]  # classes that no task has taught have a probability, and are never shown
    shares = logits.softmax(1)
    region, column = (shares[:, rows] > 0.05).nonzero().T
    row = torch.tensor(rows)[column]
    chosen = D2.apply_deltas(deltas.reshape(len(proposals), 81, 4)[region, row], proposals[region], (10, 10, 5, 5))
    chosen, score = chosen.clamp(min=0).minimum(limit.double()), shares[region, row]

    def detections(**changes: float) -> Detections:
        model = converted(state, **changes)

        classifier = Ore(LABELS, model.feature_dim, energy=EnergyOptions(nms_after_decision=False))
        return Detector(model, classifier).detect([image.float() / 255])[0]

    every = detections(nms_iou=1.0, detections_per_image=1000)
    assert len(every) == len(chosen) > 30 and len(set(every.labels.tolist())) > 3
    # Each of ours is one of theirs: the nearest box of its label.
    distance = torch.cdist(every.boxes.double(), chosen, p=float("inf"))
    distance[every.labels[:, None] != row[None]] = torch.inf
    partner = distance.argmin(1)
    assert len(set(partner.tolist())) == len(every)
    close(every.boxes, chosen[partner], atol=1e-2)
    close(every.scores, score[partner])

    kept = batched_nms(chosen[partner], every.scores.double(), every.labels, 0.4)[:50]
    found = detections(nms_iou=0.4, detections_per_image=50)
    assert len(found) == len(kept) > 10 and torch.equal(found.labels, every.labels[kept])
    close(found.boxes, chosen[partner][kept], atol=1e-2)


@torch.no_grad()
def test_other_pixel_statistics_and_agnostic_boxes(state: dict[str, Tensor]) -> None:
    changed = checkpoint(rows=22, boxes=1)
    changed["pixel_mean"] = torch.tensor([100.0, 110.0, 130.0]).view(3, 1, 1)
    changed["pixel_std"] = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1)
    changed["backbone.stem.conv1.weight"] *= 57
    model = converted(changed, LabelSpace.of(SCHEDULES["voc_10_10"].tasks, 2, "fixed"))
    assert model.bbox_pred.weight.shape[0] == 4 and not model.per_class
    image = picture(64, 64)
    close(
        model.features(model.normalise([image.float() / 255]).tensors)["c4"], D2(changed).backbone(image.flip(0))["c4"]
    )
    for name in ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.0"):
        del changed[name]
    converted(changed, LabelSpace.of(SCHEDULES["voc_10_10"].tasks, 2, "fixed"))


def test_every_tensor_of_the_engine_has_one_source(state: dict[str, Tensor], model: OpenWorldRCNN) -> None:
    sources = [detectron2_name(name) for name in model.state_dict()]
    assert len(set(sources)) == len(sources)
    assert set(sources) | {"proposal_generator.anchor_generator.cell_anchors.0"} == set(state)
    other = converted(checkpoint(seed=1)).state_dict()
    same = [name for name, value in model.state_dict().items() if torch.equal(value, other[name])]
    assert same == ["pixel_mean", "pixel_std"]


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_tensors_are_all_named(state: dict[str, Tensor]) -> None:
    broken = dict(state)
    del broken["backbone.res3.0.shortcut.norm.bias"], broken["proposal_generator.rpn_head.conv.bias"]
    broken["roi_heads.mask_head.deconv.weight"] = torch.zeros(1)
    broken["backbone.res2.0.conv2.weight"] = torch.zeros(4, 4, 1, 1)
    with pytest.raises(CheckpointError) as error:
        converted(broken)
    for line in (
        "4 tensors do not fit",
        "missing: backbone.res3.0.shortcut.norm.bias",
        "missing: proposal_generator.rpn_head.conv.bias",
        "unexpected: roi_heads.mask_head.deconv.weight",
        "backbone.res2.0.conv2.weight is (4, 4, 1, 1), expected (4, 4, 3, 3)",
        "model_final.pth",
    ):
        assert line in str(error.value)


def test_the_dead_auto_encoder_is_left_out(state: dict[str, Tensor], model: OpenWorldRCNN) -> None:
    dead = {f"roi_heads.box_predictor.{name}": torch.zeros(2) for name in ("ae_model.e1.weight", "encoder.0.bias")}
    found = converted({**state, **dead}).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())


def test_a_head_of_another_schedule_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(
        CheckpointError, match=r"cls_score\.weight is \(82, 128\); the 20 classes .* need 22 rows"
    ) as error:
        converted(state, LabelSpace.of(SCHEDULES["voc_10_10"].tasks, 1, "fixed"))
    assert "schedule" in str(error.value.remedy)
    with pytest.raises(CheckpointError, match=r"bbox_pred\.weight is \(320, 128\)"):
        converted(checkpoint(boxes=80))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.stem.conv1.weight": None}, r"has no backbone\.stem\.conv1\.weight"),
        ({"backbone.res4.6.conv1.weight": torch.zeros(1)}, r"have \(3, 4, 7, 3\) blocks"),
        ({"proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(15, 4)}, "is not of the sizes"),
    ],
)
def test_other_detectors_are_refused(state: dict[str, Tensor], change: dict[str, Tensor | None], message: str) -> None:
    changed = {name: value for name, value in {**state, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        converted(changed)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pth", "legacy", "bare", "pkl2", "pkl5"])
def test_files_of_torch_and_of_pickle(tmp_path: Path, form: str) -> None:
    state = OrderedDict(a=torch.randn(2, 3), b=torch.arange(3.0).double(), c=torch.tensor(4))
    path = tmp_path / ("model_final.pkl" if form.startswith("pkl") else "model_final.pth")
    if form.startswith("pkl"):
        arrays = {name: value.numpy() for name, value in state.items()}
        arrays["b"] = arrays["b"].astype(">f8")
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}, protocol=int(form[3])))
    elif form == "bare":
        torch.save(state, path)
    else:
        whole = {"model": state, "iteration": 7, "scheduler": {"last": np.float64(0.5)}}
        torch.save(whole, path, _use_new_zipfile_serialization=form == "pth")
    found = read_detectron2(path)
    assert list(found) == ["a", "b", "c"]
    for name, value in state.items():
        torch.testing.assert_close(found[name], value.float() if name != "c" else value, rtol=0, atol=0)


def test_words_of_wrappers_in_the_names(tmp_path: Path) -> None:
    names = ("_orig_mod.module.backbone.a", "module.roi_heads._orig_mod.b", "module.proposal_generator.c")
    torch.save({"model": {name: torch.ones(1) for name in names}}, tmp_path / "model_final.pth")
    assert list(read_detectron2(tmp_path / "model_final.pth")) == ["backbone.a", "roi_heads.b", "proposal_generator.c"]


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_file_cannot_run_code(tmp_path: Path, writer: str) -> None:
    path, mark = tmp_path / "model_final.pth", tmp_path / "ran"
    content = {"model": {"a": torch.zeros(1).numpy()}, "trap": Harmful(mark)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="could run code"):
        read_detectron2(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", r"is empty \(0 bytes\)"),
        (b"PK\x03\x04 cut off", "is cut short: its 12 bytes"),
        (pickle.dumps({"model": {"a": np.array([1, np.nan])}}), "a holds 1 NaN and 0 infinite numbers of 2"),
        (pickle.dumps([1, 2]), "holds a list without weights"),
        (pickle.dumps({"model": {}}), "holds a dict without weights"),
        (pickle.dumps({"model": {"a": "text"}}), "'a' is a str"),
        (pickle.dumps({"model": {"a": np.array([None])}}), "'a' is a ndarray, not an array of numbers"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model_final.pkl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_detectron2(path)


def write_energy(path: Path, **changes: float) -> Path:
    unknown = {"scale_unk": np.float64(2.5), "shape_unk": 3.0, "shift_unk": 1.5}
    known = {"scale_known": 4.0, "shape_known": np.float64(2.0), "shift_known": 6.0}
    torch.save([unknown, known | changes], path)
    return path


def test_the_energy_file_of_the_reference_code(tmp_path: Path) -> None:
    known, unknown = read_energy(write_energy(tmp_path / "energy_dist_20.pkl"), 20)
    assert (known.shape, known.location, known.scale) == (2.0, 6.0, 4.0)
    assert (unknown.shape, unknown.location, unknown.scale) == (3.0, 1.5, 2.5)
    with pytest.raises(CheckpointError, match="is of 20 known classes, and the task has 40"):
        read_energy(tmp_path / "energy_dist_20.pkl", 40)
    with pytest.raises(CheckpointError, match="known objects has shape -1"):
        read_energy(write_energy(tmp_path / "bad.pkl", shape_known=-1.0), 20)
    torch.save([{}, {}], tmp_path / "empty.pkl")
    with pytest.raises(CheckpointError, match="no two Weibull"):
        read_energy(tmp_path / "empty.pkl", 20)


# -- a run ------------------------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_is_a_run(
    tmp_path: Path, state: dict[str, Tensor], model: OpenWorldRCNN, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "model_final.pth", tmp_path / "ore_t1"
    torch.save({"model": state}, file)
    energy = write_energy(tmp_path / "energy_dist_20.pkl")
    given = [str(file), "--schedule", "m_owodb", "--task", "1", "--output", str(folder), "--energy", str(energy)]
    main(["convert", *given])
    config = read_config(folder / "config.yaml")
    detector = load_task(folder, config, None)
    assert detector.space == LABELS
    assert config.model.weights is None and not (folder / "backbone").exists()
    for name, value in model.state_dict().items():
        assert torch.equal(detector.engine.state_dict()[name], value), name
    roi, decision = config.model.roi, detector.method.energy
    assert (roi.nms_iou, roi.detections_per_image, config.data.loader.min_size) == (0.4, 50, 800)
    assert (decision.decision, decision.window_sum, decision.test_temperature) == ("window", "riemann", 1.0)
    assert detector.method.energy_model.fitted

    said = detector.method.energy_model.verdict(torch.tensor([3.5, 8.0, 1.0, 6.2]))
    assert said.tolist() == [0, -1, 0, 0]  # windows below a shift decide nothing, as in the reference code

    with pytest.raises(SystemExit):
        main(["convert", *given])
    assert "holds a run already" in capsys.readouterr().err


def test_openworld_predict_runs_a_converted_checkpoint(tmp_path: Path, state: dict[str, Tensor]) -> None:
    file, folder = tmp_path / "model_final.pth", tmp_path / "run"
    torch.save({"model": state}, file)
    config = tmp_path / "data.yaml"
    convert_run(file, folder, task=1, schedule="m_owodb")
    small = read_config(folder / "config.yaml")
    small.data.loader.min_size = small.data.loader.max_size = 96
    config.write_text(dump_config(small))
    folder = tmp_path / "small"
    written = convert_run(file, folder, task=1, config=config)
    assert written.data == small.data and written.schedule == LABELS.tasks and not written.method.energy.enabled
    Image.fromarray(picture().permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    main(["predict", str(tmp_path / "a.png"), "--run", str(folder), "--output", str(tmp_path / "found")])
    assert (tmp_path / "found" / "predictions.json").exists() and (tmp_path / "found" / "drawings" / "a.png").exists()


def test_what_a_run_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no schedule is given"):
        convert_run(tmp_path / "a.pth", tmp_path / "run", task=1)
    with pytest.raises(ConfigError, match="task 5 is not in a schedule of 4"):
        convert_run(tmp_path / "a.pth", tmp_path / "run", task=5, schedule="m_owodb")
    (tmp_path / "demo.yaml").write_text("pretrain: null\n")
    with pytest.raises(ConfigError, match="not the schedule"):
        convert_run(tmp_path / "a.pth", tmp_path / "run", task=1, schedule="m_owodb", config=tmp_path / "demo.yaml")
    assert not (tmp_path / "run").exists()
