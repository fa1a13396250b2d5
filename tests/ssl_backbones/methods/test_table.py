"""The table of methods, and SimCLR and MoCo v2: heads, what moves, what is decayed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

from openworld.config import RunConfig
from openworld.errors import ConfigError
from ssl_backbones.backbones import ResNetOptions
from ssl_backbones.method import Batch, spread
from ssl_backbones.methods import METHODS
from ssl_backbones.methods.moco import MoCoV2, grouped
from ssl_backbones.methods.options import MethodOptions
from ssl_backbones.methods.simclr import SimCLR
from ssl_backbones.options import PretrainOptions
from ssl_backbones.views import RECIPES

CLUSTERED = ("pcl_v1", "pcl_v2", "deepcluster_v2", "sela_v2")


def options(name: str, **own: Any) -> PretrainOptions:
    views: Any = name if name in RECIPES else "moco_v2"
    own |= {"clusters": [2, 3]} if name in CLUSTERED else {}
    method = MethodOptions.named(name)(**own)
    return PretrainOptions(method=method, arch=ResNetOptions(width=0.125), views=views, view_size=32)


def moco(**own: Any) -> MoCoV2:
    return MoCoV2(options("moco_v2", queue_size=12, **own)).train()


def batch(count: int = 4, kinds: Sequence[str] = ("image", "image")) -> Batch:
    """Noise; pictures of patches have a side that 3 and 7 divide."""
    views = [torch.rand(count, 3, 32, 32) if kind == "image" else torch.rand(count, 3, 168, 168) for kind in kinds]
    return Batch(views, torch.arange(count), torch.arange(count) % 2)


@pytest.mark.parametrize("name", METHODS)
def test_a_line_of_the_table_is_a_method(name: str) -> None:
    kind = MethodOptions.named(name)
    assert kind().name == name and kind.__doc__  # type: ignore[call-arg]
    assert issubclass(kind, get_type_hints(kind.implementation())["options"])


def test_options_wait_for_no_torch() -> None:
    """A configuration is read, and --help printed, without it."""
    program = (
        "import sys, openworld.config\n"
        "from ssl_backbones.methods import METHODS\n"
        "from ssl_backbones.methods.options import MethodOptions\n"
        "print(len([MethodOptions.named(name)() for name in METHODS]), 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [str(len(METHODS)), "False"]


def test_a_detectors_configuration_lists_the_options_of_one_method() -> None:
    config = asdict(RunConfig(pretrain=PretrainOptions()))["pretrain"]
    assert config["method"] == {"name": "simclr", "temperature": 0.2, "projection_dim": 128}
    top = {field.name for field in fields(PretrainOptions)} - {"steps"}
    for name in METHODS:
        own = {field.name for field in fields(MethodOptions.named(name))}
        assert not own & top, name


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)no method 'vicreg'.*choose from simclr, moco_v1"):
        MethodOptions.named("vicreg")
    with pytest.raises(ConfigError, match=r"is not a subclass of ssl_backbones\.methods\.options\.MethodOptions"):
        MethodOptions.named("collections:OrderedDict")


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("clip", "curl", "distillation")])
def test_loss_has_a_gradient_and_backbone_is_the_student(name: str) -> None:
    torch.manual_seed(0)
    chosen = options(name)
    method = chosen.method.implementation()(chosen).train()
    method.allocate(4)
    method.before_epoch(0, lambda: [batch()])
    method.before_step(0, 1)
    loss, numbers = method.loss(batch(kinds=method.view_kinds))
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite() and 0 < numbers["spread"] < 1.5
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert (method.backbone() is method.encoder) == (name not in ("dino", "cmc"))
    head = method.projection()
    assert (head is None) == (name == "dino")
    assert head is None or len(head.eval()(torch.rand(2, method.backbone().dim))) == 2


def test_simclr_spares_norms_and_biases() -> None:
    decayed, free = SimCLR(options("simclr")).param_groups(0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2, 4} and {p.ndim for p in free["params"]} == {1}


def test_moco_decays_everything_but_its_teacher() -> None:
    method = moco()
    (group,) = method.param_groups(0.1)
    teachers = {id(p) for p in method.teacher.parameters()}
    assert not teachers & {id(p) for p in group["params"]}
    assert len(group["params"]) == len(teachers)


def test_moco_enqueues_after_the_logits() -> None:
    torch.manual_seed(0)
    method = moco(temperature=1e6)  # all logits equal: ln(K + 1) with the K of before
    before = method.queue.negatives()
    loss, _ = method.loss(batch())
    assert loss.item() == pytest.approx(math.log(13), rel=1e-4)
    assert int(method.queue.filled) == 4 and torch.equal(method.queue.features[4:], before[4:])


def test_groups_normalise_separately() -> None:
    norm, x = nn.BatchNorm1d(1), torch.tensor([[0.0], [2.0], [10.0], [30.0]])
    assert grouped(norm, x, 2).flatten().tolist() == pytest.approx([-1, 1, -1, 1], abs=1e-3)
    assert torch.equal(grouped(norm, x, 1), norm(x))


def test_shuffled_keys_come_back_in_order_and_by_groups() -> None:
    """By hand: two groups of two along the permutation that the generator draws."""
    method = moco(shuffle_groups=2)
    given = batch()
    torch.manual_seed(7)
    order = torch.randperm(4)
    torch.manual_seed(7)
    _, keys = method.queries_and_keys(given)
    for part in order.chunk(2):
        assert torch.allclose(keys[part], method.teacher(given.views[1][part]), atol=1e-5)


def test_permutation_without_groups_changes_nothing() -> None:
    norm, x = nn.BatchNorm1d(3), torch.randn(6, 3)
    order = torch.randperm(6)
    assert torch.allclose(norm(x[order])[order.argsort()], norm(x), atol=1e-6)


def test_spread_is_one_when_isotropic_and_zero_when_collapsed() -> None:
    torch.manual_seed(0)
    assert spread(torch.randn(4000, 16)) == pytest.approx(1, abs=0.02)
    assert spread(torch.ones(8, 16)) == pytest.approx(0, abs=1e-3)
