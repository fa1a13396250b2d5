"""Our schedules in detectron2's catalogs, our evaluator there, and the node of options."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, Instances

from openworld.convert.published_run import reference_ore
from openworld.convert.published_weights import reference_options
from openworld.engines.detectron2.config import check_supported, label_space, method_options, roi_options
from openworld.engines.options import RoiOptions
from openworld.errors import ConfigError
from openworld.methods.max_logit.options import MaxLogitOptions
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, OreOptions, UnknownLabelOptions
from openworld.metrics.protocols import PROTOCOLS
from openworld.plugins.detectron2 import OpenWorldEvaluator, add_openworld_config, command, register_schedule
from openworld.plugins.detectron2.datasets import registered

from .conftest import CONFIGS, ROOT

pytestmark = pytest.mark.detectron2


# -- data -------------------------------------------------------------------------------------------------------------


def test_a_task_sees_its_own_classes_only(world: Path) -> None:
    names = register_schedule(str(world), root=world.parent)
    assert names == [f"world_t1_{kind}" for kind in ("train", "held_out", "test")] + [
        f"world_t2_{kind}" for kind in ("train", "replay", "held_out", "test")
    ]
    sets = {name: DatasetCatalog.get(name) for name in names}
    rows = {name: {box["category_id"] for image in sets[name] for box in image["annotations"]} for name in names}
    assert rows["world_t1_train"] == {0, 1, 2} and rows["world_t2_train"] == {3, 4, 5}
    assert rows["world_t1_held_out"] <= {0, 1, 2} and rows["world_t2_replay"] == {0, 1, 2, 3, 4, 5}
    assert MetadataCatalog.get("world_t1_test").thing_classes == ["ball", "cube", "ring", "unknown"]
    assert 3 in rows["world_t1_test"] and rows["world_t1_test"] <= {0, 1, 2, 3}
    truth = json.loads((world.parent / "world" / "world" / "test.json").read_text())
    assert len(sets["world_t1_test"]) == len(truth["images"]) == 4
    assert sum(len(image["annotations"]) for image in sets["world_t2_test"]) == len(truth["annotations"])
    first = sets["world_t1_train"][0]
    assert Path(first["file_name"]).is_file() and (first["width"], first["height"]) == (64, 64)
    assert len(sets["world_t2_replay"]) < len(sets["world_t1_train"]) + len(sets["world_t2_train"])


def test_another_head_registers_anew(world: Path) -> None:
    register_schedule(str(world), root=world.parent, layout="fixed", held_out_with_unknown=True)
    rows = {box["category_id"] for image in DatasetCatalog.get("world_t1_test") for box in image["annotations"]}
    assert rows - {0, 1, 2} == {6} and MetadataCatalog.get("world_t1_test").thing_classes[6] == "unknown"
    held_out = DatasetCatalog.get("world_t1_held_out")
    assert 6 in {box["category_id"] for image in held_out for box in image["annotations"]}
    with pytest.raises(ConfigError, match="neither a benchmark nor"):
        register_schedule("m_owod")


def test_benchmarks_register_by_name_without_reading_anything(tmp_path: Path) -> None:
    names = register_schedule("m_owodb", root=tmp_path)
    assert names[0] == "m_owodb_t1_train" and "m_owodb_t4_replay" in names and len(names) == 15
    assert len(MetadataCatalog.get("m_owodb_t1_test").thing_classes) == 21


@pytest.mark.parametrize("tag", range(1, 9))
def test_boxes_lie_on_the_objects_of_detectron2s_own_reader(tmp_path: Path, tag: int) -> None:
    """A red object on a photograph that is stored turned, annotated as it is stored: its mapper applies the tag."""
    width, height, (x, y, w, h) = 60, 40, (6, 4, 20, 10)
    pixels = np.full((height, width, 3), 40, dtype=np.uint8)
    pixels[y : y + h, x : x + w] = (230, 20, 20)
    exif = Image.Exif()
    exif[0x0112] = tag
    for name in ("train", "test"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png", exif=exif)
        content = {
            "images": [{"id": n, "file_name": f"{name}.png", "width": width, "height": height} for n in range(2)],
            "categories": [{"id": 1, "name": "red"}],
            "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [x, y, w, h]} for n in range(2)],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    sets = {name: {"annotations": str(tmp_path / f"{name}.json")} for name in ("train", "test")}
    schedule = tmp_path / f"turned{tag}.yaml"
    schedule.write_text(yaml.safe_dump({"data": {"synthetic": None, "tasks": [["red"]], **sets}}))
    register_schedule(str(schedule), root=tmp_path)
    for kind in ("train", "test"):
        (image, *_) = DatasetCatalog.get(f"turned{tag}_t1_{kind}")
        shown = read_image(image["file_name"], "RGB")
        assert shown.shape[:2] == (image["height"], image["width"])
        left, top, right, bottom = (round(value) for value in image["annotations"][0]["bbox"])
        red = np.zeros(shown.shape[:2], dtype=bool)
        red[top:bottom, left:right] = True
        assert np.array_equal(shown[..., 0] > 128, red)


# -- scores -----------------------------------------------------------------------------------------------------------


def test_perfect_detections_score_perfectly(world: Path, tmp_path: Path) -> None:
    register_schedule(str(world), root=world.parent)
    evaluator = OpenWorldEvaluator("world_t1_test", tmp_path, [PROTOCOLS["unique"], PROTOCOLS["ore"]])
    evaluator.reset()
    for image in DatasetCatalog.get("world_t1_test"):
        boxes = torch.tensor([box["bbox"] for box in image["annotations"]]).reshape(-1, 4)
        rows = torch.tensor([box["category_id"] for box in image["annotations"]], dtype=torch.int64)
        found = Instances(
            (64, 64),
            pred_boxes=Boxes(boxes),
            scores=torch.linspace(0.9, 0.5, len(rows)),
            pred_classes=rows,
            extra_energy=-torch.ones(len(rows)),
            known_classes=rows.clamp(max=2),
        )
        evaluator.process([image], [{"instances": found}])
    scores = evaluator.evaluate()
    assert scores is not None and scores["openworld"]["known_ap50"] == scores["openworld"]["unknown_recall50"] == 100
    assert scores["openworld"]["a_ose"] == 0 and np.isnan(scores["openworld"]["previous_ap50"])
    assert [result["protocol"] for result in json.loads((tmp_path / "metrics.json").read_text())] == ["unique", "ore"]
    with pytest.raises(ConfigError, match="is not a test set of a registered schedule"):
        OpenWorldEvaluator("world_t1_train", tmp_path)


# -- options ----------------------------------------------------------------------------------------------------------


def configuration(path: Path | None = None, *keys: Any) -> Any:
    cfg = get_cfg()
    add_openworld_config(cfg)
    if path is not None:
        cfg.merge_from_file(str(path))
    cfg.merge_from_list(list(keys))
    return cfg


def test_every_option_has_a_key_with_its_default() -> None:
    cfg = configuration()
    options = method_options(cfg)
    assert isinstance(options, OreOptions)
    for name, owner in (
        ("unknown_labels", UnknownLabelOptions),
        ("clustering", ClusteringOptions),
        ("energy", EnergyOptions),
    ):
        assert getattr(options, name) == owner()
        assert {key.lower() for key in cfg.OPENWORLD.METHOD[name.upper()]} == set(asdict(owner()))
    node = "OPENWORLD.METHOD"
    changed = method_options(
        configuration(None, f"{node}.CLUSTERING.MARGIN", 3.0, f"{node}.ENERGY.TEST_TEMPERATURE", 2)
    )
    assert isinstance(changed, OreOptions)
    assert changed.clustering.margin == 3 and changed.energy.test_temperature == 2
    with pytest.raises(AssertionError, match="Non-existent key"):
        configuration(None, "OPENWORLD.METHOD.CLUSTERING.MARGINS", 3.0)
    with pytest.raises(ConfigError, match=r"^OPENWORLD\.METHOD\.CLUSTERING\.margin is -1"):
        method_options(configuration(None, "OPENWORLD.METHOD.CLUSTERING.MARGIN", -1.0))
    with pytest.raises(ConfigError, match="names no schedule"):
        label_space(cfg)


def test_another_method_is_chosen_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "method.yaml"
    path.write_text("OPENWORLD: {METHOD: {NAME: max_logit, KNOWN_REJECTION_RATE: 0.2}}")
    assert method_options(configuration(path)) == MaxLogitOptions(known_rejection_rate=0.2)
    path.write_text("OPENWORLD: {METHOD: {NAME: closed, MARGIN: 2}}")
    with pytest.raises(ConfigError, match=r"OPENWORLD\.METHOD\.MARGIN is not an option of the method"):
        method_options(configuration(path))


def test_what_the_heads_would_ignore_is_refused() -> None:
    check_supported(configuration())
    with pytest.raises(ConfigError, match=r"MODEL\.MASK_ON is True, must be False; .*giou"):
        check_supported(configuration(None, "MODEL.MASK_ON", True, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"))


def test_detectron2_keys_of_the_box_head_are_ours() -> None:
    """Without a change detectron2's defaults are those of the reference code's detector."""
    wanted = RoiOptions(
        sampled_regions=512,
        box_regression="per_class",
        smooth_l1_beta=0.0,
        hidden_dim=1024,
        sampling_ratio=0,
        aligned=True,
        canonical_size_px=224,
        nms_iou=0.5,
    )
    assert roi_options(configuration()) == wanted


def test_the_reference_file_is_the_reference_code() -> None:
    cfg = configuration()
    for base in ("Base-ORE-R50-C4.yaml", "ORE-reference.yaml"):
        cfg.merge_from_file(str(CONFIGS / base))
    wanted = reference_ore(energy=True)
    preset = yaml.safe_load((ROOT / "configs" / "ore" / "reference.yaml").read_text())
    for name in ("unknown_labels", "clustering", "energy"):
        found = asdict(getattr(method_options(cfg), name))
        assert {key: found[key] for key in preset["method"][name]} == preset["method"][name]
        apart = {"later_start_step", "min_samples"}
        assert {k: v for k, v in found.items() if k not in apart} == {
            k: v for k, v in asdict(getattr(wanted, name)).items() if k not in apart
        }
    roi = roi_options(cfg)
    names = {
        "backbone.stem.conv1.weight": (64,),
        "backbone.res2.0.conv1.weight": (64,),
        "roi_heads.box_predictor.cls_score.weight": (82, 2048),
        "roi_heads.box_predictor.bbox_pred.weight": (324, 2048),
    }
    blocks = {"backbone.res2": 3, "backbone.res3": 4, "backbone.res4": 6, "roi_heads.res5": 3}
    tensors = {name: torch.zeros(shape) for name, shape in names.items()}
    tensors |= {f"{stage}.{n}.conv1.weight": torch.zeros(64) for stage, count in blocks.items() for n in range(count)}
    reference = reference_options(tensors, "").roi
    assert replace(roi, hidden_dim=1, canonical_size_px=1) == replace(reference, hidden_dim=1, canonical_size_px=1)
    assert cfg.OPENWORLD.LAYOUT == "fixed" and cfg.MODEL.RPN.POST_NMS_TOPK_TEST == 1000


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_names_what_is_registered(path: Path, tmp_path: Path) -> None:
    parsed = Namespace(config_file=str(path), opts=["MODEL.DEVICE", "cpu"], resume=False, eval_only=False)
    cfg = command.setup(parsed)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        entry = registered(name)
        assert entry is not None and entry.labels == label_space(cfg)
    assert cfg.DATASETS.TRAIN[0].endswith("replay" if cfg.OPENWORLD.STAGE == "replay" else "train")
    assert label_space(cfg).background == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if cfg.MODEL.WEIGHTS:  # another configuration writes what this one starts from
        written = {yaml.safe_load(other.read_text())["OUTPUT_DIR"] for other in path.parent.glob("*.yaml")}
        assert str(Path(cfg.MODEL.WEIGHTS).parent) in written


def test_arguments_are_what_the_command_line_gives(arguments: Callable[..., Namespace], tmp_path: Path) -> None:
    cfg = command.setup(arguments(tmp_path, 2, "replay"))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7 and cfg.DATASETS.TRAIN == ("world_t2_replay",)
