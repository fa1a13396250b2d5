"""The reference code's options, which stand in configs/ore/reference.yaml and once more among detectron2's keys."""

from __future__ import annotations

from typing import Any

import pytest

from openworld.config import OreOptions, RunConfig
from openworld.configfile import CONFIGS, find_config, read_options, with_options
from openworld.convert.published_run import reference_ore
from openworld.engines.detectron2.names import SECTIONS, model_keys, ore_defaults, own_roi_fields, section_keys
from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.runtime.dotted import leaves
from ssl_backbones.options import ArchOptions

TREE = read_options(find_config("ore/reference.yaml"))
PRESET = with_options(RunConfig(), TREE)
DETECTRON2 = read_options(CONFIGS / "detectron2" / "ORE-reference.yaml")


def test_every_leaf_of_the_file_arrives() -> None:
    for name, value in leaves(TREE):
        found: Any = PRESET
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value and type(found) is type(value), name
    assert PRESET.train == RunConfig().train and PRESET.model.arch is None  # nothing else changes


def test_converted_detectors_are_configured_by_the_file() -> None:
    assert reference_ore(energy=True) == with_options(OreOptions(), TREE["ore"])
    off = reference_ore(energy=False)
    assert not off.energy.enabled and off.clustering == PRESET.ore.clustering


def test_the_detectron2_file_says_the_same() -> None:
    """Its nodes below ORE, on detectron2's defaults of ours, and its keys of detectron2; detectron2 is not needed."""
    given, ore = DETECTRON2["ORE"], PRESET.ore
    nodes = ore_defaults()
    parts = dict(zip(SECTIONS, (ore.unknown_labels, ore.clustering, ore.energy), strict=True))
    for name, part in parts.items():
        assert {**nodes[name], **given[name]} == section_keys(part), name
    roi = {name.upper(): getattr(PRESET.model.roi, name) for name in own_roi_fields()}
    found = {**nodes["ROI"], **given["ROI"]}
    size = "CANONICAL_SIZE_PX"  # detectron2's own, which no preset changes
    assert {**found, size: 0} == {**roi, size: 0} and size not in given["ROI"]
    assert given["HEAD"] == PRESET.model.head
    assert given.keys() == {"HEAD", "ROI", *SECTIONS}
    keys = model_keys(PRESET.model, ArchOptions(arch="resnet50"), LabelSpace.of([["a"], ["b"]], 1, "fixed"))
    named = dict(leaves({"MODEL": DETECTRON2["MODEL"]}))
    assert named and named == {name: keys[name] for name in named}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"energy": {"temp": 1}}, r"there is no option 'energy\.temp'"),
        ({"energy": {"temperature": -1.0}}, "temperature"),
    ],
)
def test_a_tree_of_options_is_checked(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_options(OreOptions(), tree)
