"""The shipped recipes: readable, complete, and the papers'."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from openworld.configfile import layers_of
from openworld.errors import ConfigError
from openworld.runtime.option_trees import construct
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.options import PretrainOptions

FOLDER = Path(__file__).parents[2] / "configs" / "pretrain"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
FIELDS = {field.name: field for field in dataclasses.fields(PretrainOptions)}
OF_ONE_METHOD = {
    name for name in FIELDS if name != "arch" and dataclasses.is_dataclass(getattr(PretrainOptions(), name))
}
MAY_BE_ABSENT = {"final_lr", "lr_milestones", "local_view_size", "local_views"}
MAY_BE_ABSENT |= {"labelled", "accumulate", "sync_batch_norm", "probe_every", "probe_images"}


def read(name: str) -> PretrainOptions:
    return construct(PretrainOptions, layers_of([FOLDER / f"{name}.yaml"]))


@pytest.mark.parametrize("name", NAMES)
def test_is_complete(name: str) -> None:
    """Every field that concerns the method, in the order of the options."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert list(content) == [field for field in FIELDS if field in content]
    assert set(FIELDS) - set(content) <= OF_ONE_METHOD | MAY_BE_ABSENT
    assert list(content["arch"]) == [field.name for field in dataclasses.fields(ResNetOptions)]
    for own in OF_ONE_METHOD & set(content):
        assert content["method"].startswith(own)
        assert set(content[own]) == {field.name for field in dataclasses.fields(getattr(PretrainOptions(), own))}
    if content["method"] in OF_ONE_METHOD:
        assert content["method"] in content
    options = dataclasses.asdict(read(name))
    assert {field: options[field] for field in content} == content


def test_papers_numbers() -> None:
    simclr, moco = read("simclr"), read("moco_v2")
    assert simclr.lr == pytest.approx(0.3 * simclr.batch_size / 256)
    assert simclr.steps == 1000 * (1_281_167 // 4096) and simclr.warmup == 10 * (1_281_167 // 4096)
    assert moco.steps == 200 * (1_281_167 // 256)
    assert (moco.lr, moco.temperature, moco.queue_size, moco.teacher_momentum) == (0.03, 0.2, 65536, 0.999)


def test_papers_numbers_without_negatives() -> None:
    images = 1_281_167
    byol, v3, twins, simsiam = (read(name) for name in ("byol", "moco_v3", "barlow_twins", "simsiam"))
    assert byol.lr == pytest.approx(0.2 * byol.batch_size / 256) and v3.lr == pytest.approx(0.3 * v3.batch_size / 256)
    assert (byol.steps, byol.warmup) == (1000 * images // 4096, 10 * images // 4096)
    assert (v3.steps, v3.warmup) == (1000 * (images // 4096), 10 * (images // 4096))
    assert (byol.teacher_momentum, v3.teacher_momentum, byol.byol.hidden_dim, v3.temperature) == (0.996, 0.996, 4096, 1)
    assert twins.lr == pytest.approx(0.2 * twins.batch_size / 256) and twins.final_lr == pytest.approx(twins.lr / 1000)
    assert twins.lr * twins.barlow_twins.bias_lr_scale == pytest.approx(0.0048 * twins.batch_size / 256)
    assert (twins.projection_dim, twins.barlow_twins.hidden_dim, twins.warmup) == (8192, 8192, 10 * (images // 2048))
    assert simsiam.lr == pytest.approx(0.05 * simsiam.batch_size / 256) and simsiam.steps == 100 * (images // 512)
    assert (simsiam.projection_dim, simsiam.simsiam.predictor_dim) == (2048, 512)
    assert all(recipe.arch.zero_init_residual for recipe in (byol, v3, twins, simsiam))
    v1, sup_con = read("moco_v1"), read("sup_con")
    assert (v1.temperature, v1.lr_milestones) == (0.07, [120 * (images // 256), 160 * (images // 256)])
    assert (sup_con.lr, sup_con.final_lr, sup_con.temperature) == (0.5, pytest.approx(0.5 * 0.1**3), 0.1)
    assert sup_con.steps == 1000 * (50_000 // 1024) and sup_con.arch.stem == "cifar3x3"


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", "vicreg"), ("batch_size", 1), ("temperature", 0.0), ("teacher_momentum", 1.5), ("lr", float("nan"))],
)
def test_bad_values_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        PretrainOptions(**{field: value})  # type: ignore[arg-type]


def test_papers_numbers_with_banks_and_patches() -> None:
    images = 1_281_167
    instdisc, cmc, pirl = (read(name) for name in ("instdisc", "cmc", "pirl"))
    for recipe, epochs in ((instdisc, 200), (cmc, 240), (pirl, 800)):
        own = getattr(recipe, recipe.method)
        assert recipe.steps == epochs * (images // recipe.batch_size)
        assert (recipe.temperature, recipe.projection_dim, recipe.weight_decay) == (0.07, 128, 1e-4)
        assert (own.bank_momentum, own.form, recipe.views) == (0.5, "nce", recipe.method)
    assert [own.negatives for own in (instdisc.instdisc, cmc.cmc, pirl.pirl)] == [4096, 16384, 32000]
    assert instdisc.lr_milestones == [epoch * (images // 256) for epoch in (120, 160)]
    assert cmc.lr_milestones == [epoch * (images // 128) for epoch in (120, 160, 200)]
    assert pirl.lr == pytest.approx(0.03 * pirl.batch_size / 256) and pirl.final_lr == pytest.approx(1.2e-4)
    cpc, v2 = read("cpc"), read("cpc_v2")
    assert (cpc.lr, cpc.temperature, cpc.cpc.steps, cpc.view_size, cpc.weight_decay) == (2e-4, 1.0, 5, 256, 0.0)
    assert (v2.arch.norm, v2.cpc.directions, v2.projection_dim, v2.view_size) == ("layer", 4, 64, 260)
    assert 1 / v2.temperature == pytest.approx(0.1) and (v2.cpc.skipped_steps, v2.cpc.steps) == (2, 1)


def test_papers_numbers_with_prototypes() -> None:
    images = 1_281_167
    pcl1, pcl2, nnclr = read("pcl_v1"), read("pcl_v2"), read("nnclr")
    for pcl in (pcl1, pcl2):
        assert (pcl.pcl.clusters, pcl.pcl.negatives, pcl.queue_size) == ([25000, 50000, 100000], 16384, 16384)
        assert (pcl.pcl.warmup_epochs, pcl.pcl.iterations, pcl.pcl.restarts) == (20, 20, 5)
        assert (pcl.lr, pcl.temperature, pcl.steps) == (0.03, 0.2, 200 * (images // 256))
    assert pcl1.lr_milestones == [120 * (images // 256), 160 * (images // 256)] and pcl2.lr_milestones == []
    assert nnclr.lr == pytest.approx(0.3 * nnclr.batch_size / 256) and nnclr.queue_size == 98304
    swav, small, deep = read("swav"), read("swav_small_batch"), read("deepcluster_v2")
    for recipe, epochs in ((swav, 800), (small, 200), (deep, 400)):
        assert recipe.steps == epochs * (images // recipe.batch_size)
        assert recipe.final_lr == pytest.approx(recipe.lr / 1000) and recipe.weight_decay == 1e-6
    assert (swav.lr, small.lr, swav.swav.prototypes, small.swav.queue_length) == (4.8, 0.6, 3000, 3840)
    assert small.swav.queue_start == 15 * (images // 256)
    assert (deep.view_size, deep.local_view_size, deep.deepcluster_v2.clusters) == (160, 96, [3000] * 3)
    dino = read("dino")
    assert dino.lr == pytest.approx(0.03 * dino.batch_size / 256) and dino.steps == 100 * (images // 512)
    assert (dino.dino.outputs, dino.dino.frozen_steps, dino.teacher_momentum) == (65536, images // 512, 0.996)


def test_papers_numbers_of_pairs_frames_and_teachers() -> None:
    images = 1_281_167
    sela, clip, curl, distillation = (read(name) for name in ("sela_v2", "clip", "curl", "distillation"))
    assert (sela.steps, sela.lr, sela.sela_v2.clusters) == (400 * (images // 4096), 4.8, [3000] * 3)
    assert clip.steps == 32 * (400_000_000 // 32768) and (clip.lr, clip.weight_decay, clip.warmup) == (5e-4, 0.2, 2000)
    assert (clip.projection_dim, clip.clip.text_width, clip.clip.text_layers, clip.clip.text_heads) == (
        1024,
        512,
        12,
        8,
    )
    assert (clip.arch.stem, clip.temperature, clip.clip.largest_scale, clip.clip.context_length) == (
        "clip",
        0.07,
        100,
        77,
    )
    assert (curl.lr, curl.projection_dim, curl.teacher_momentum, curl.curl.frames) == (1e-3, 50, 0.95, 3)
    assert distillation.lr == pytest.approx(0.1 * distillation.batch_size**0.5)
    assert (distillation.steps, distillation.warmup) == (400 * (images // 4096), 20 * (images // 4096))
    assert (distillation.temperature, distillation.distillation.targets) == (1.0, "classes")
