"""The reference code's options, which stand in configs/ore/reference.yaml and once more among detectron2's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openworld.config import RunConfig
from openworld.configfile import CONFIGS, find_config, read_config, read_options
from openworld.convert.published_run import reference_ore
from openworld.engines.detectron2.names import model_keys, openworld_defaults, option_keys, own_roi_fields
from openworld.labels import LabelSpace
from openworld.runtime.dotted import leaves
from ssl_backbones.backbones import ResNetOptions

TREE = read_options(find_config("ore/reference.yaml"))
PRESET = read_config(Path("ore/reference.yaml"))
DETECTRON2 = read_options(CONFIGS / "detectron2" / "ORE-reference.yaml")


def test_every_leaf_of_the_file_arrives() -> None:
    for name, value in leaves(TREE):
        found: Any = PRESET
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value and type(found) is type(value), name
    assert PRESET.train == RunConfig().train and PRESET.model.arch is None  # nothing else changes


def test_converted_detectors_are_configured_by_the_file() -> None:
    assert reference_ore(energy=True) == PRESET.method
    off = reference_ore(energy=False)
    assert not off.energy.enabled and off.clustering == PRESET.method.clustering


def test_the_detectron2_file_says_the_same() -> None:
    """Its nodes below OPENWORLD, on detectron2's defaults of ours, and its keys of detectron2, which is not needed."""
    given, method, nodes = DETECTRON2["OPENWORLD"], option_keys(PRESET.method), openworld_defaults()
    assert given["METHOD"].keys() == method.keys() and given["METHOD"]["NAME"] == "ore"
    for name in ("UNKNOWN_LABELS", "CLUSTERING", "ENERGY"):
        assert {**nodes["METHOD"][name], **given["METHOD"][name]} == method[name], name
    roi = {name.upper(): getattr(PRESET.model.roi, name) for name in own_roi_fields()}
    found = {**nodes["ROI"], **given["ROI"]}
    size = "CANONICAL_SIZE_PX"  # detectron2's own, which no preset changes
    assert {**found, size: 0} == {**roi, size: 0} and size not in given["ROI"]
    assert given["LAYOUT"] == PRESET.model.layout
    assert given.keys() == {"LAYOUT", "ROI", "METHOD"}
    keys = model_keys(PRESET.model, ResNetOptions(name="resnet50"), LabelSpace.of([["a"], ["b"]], 1, "fixed"))
    named = dict(leaves({"MODEL": DETECTRON2["MODEL"]}))
    assert named and named == {name: keys[name] for name in named}
