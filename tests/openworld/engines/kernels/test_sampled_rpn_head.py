"""The RPN head on sampled anchors against torchvision's head over whole levels."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead

from openworld.engines import rpn
from openworld.engines.kernels.sampled_rpn_head import is_shallow, sampled_rpn_head
from openworld.engines.options import RpnOptions
from openworld.engines.rpn import ProposalNetwork
from openworld.structures import Target

SIDES = {"fpn": [(6, 5), (3, 3), (2, 1), (1, 1)], "c4": [(6, 5)]}


def head_and_levels(sides: list[tuple[int, int]], depth: int = 1) -> tuple[RPNHead, list[Tensor]]:
    torch.manual_seed(1)
    head = RPNHead(8, 3, depth).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head, [torch.randn(2, 8, *side, dtype=torch.float64, requires_grad=True) for side in sides]


def over_all_cells(head: RPNHead, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, A) and (B, A, 4), in the order of the anchors."""
    scores, deltas = head(levels)
    return (
        torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in scores], dim=1),
        torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, 4) for level in deltas], dim=1),
    )


def assert_same_gradients(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], inputs: list[Tensor]) -> None:
    factors = [torch.randn_like(output) for output in wanted]
    for ours, theirs in zip(
        *(torch.autograd.grad(outputs, inputs, factors) for outputs in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("neck", list(SIDES))
@pytest.mark.parametrize("share", [1.0, 0.2, 0.0])
def test_outputs_and_gradients_are_those_over_all_cells(neck: str, share: float) -> None:
    """Of every anchor, those at the edges too; of some; and of none, which still has a gradient of zero."""
    head, levels = head_and_levels(SIDES[neck])
    scores_BA, deltas_BA4 = over_all_cells(head, levels)
    image_S, anchor_S = torch.where(torch.rand(scores_BA.shape) < share)
    found = sampled_rpn_head(head, levels, image_S, anchor_S)
    wanted = scores_BA[image_S, anchor_S], deltas_BA4[image_S, anchor_S]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert_same_gradients(found, wanted, [*levels, *head.parameters()])


def losses_of(
    depth: int, targets: list[Target], sampled_anchors: int = 24
) -> tuple[dict[str, Tensor], list[Tensor], ProposalNetwork]:
    """Losses of a network whose head has ``depth`` convolutions, the levels that it saw, and the network."""
    model = ProposalNetwork(8, [[8.0], [16.0]], [4, 8], RpnOptions(sampled_anchors=sampled_anchors)).double().train()
    model.head, levels = head_and_levels([(8, 8), (4, 4)], depth)
    batch = ImageList(torch.zeros(2, 3, 32, 32), [(32, 32), (30, 28)])
    torch.manual_seed(2)
    return model(batch, levels, targets)[2], levels, model


BOXES = torch.tensor([[3.0, 4, 12, 14], [10, 10, 27, 25]], dtype=torch.float64)
TARGETS = [Target(BOXES, torch.tensor([0, 1])), Target(BOXES[:0], torch.tensor([], dtype=torch.int64))]


@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[1], TARGETS[1]]], ids=["boxes", "no boxes"])
def test_the_losses_are_those_of_the_plain_path(targets: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    losses, levels, model = losses_of(1, targets)
    monkeypatch.setattr(rpn, "is_shallow", lambda head: False)
    plain, plain_levels, plain_model = losses_of(1, targets)
    assert losses.keys() == plain.keys() == {"objectness", "rpn_box"}
    for name in losses:
        torch.testing.assert_close(losses[name], plain[name])
    found, wanted = (
        torch.autograd.grad(torch.stack(list(each.values())).sum(), [*maps, *network.head.parameters()])
        for each, maps, network in ((losses, levels, model), (plain, plain_levels, plain_model))
    )
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_every_layer_of_a_deeper_head_is_in_the_losses() -> None:
    """A head of two convolutions takes the plain path: the loss is that of its own outputs, and both layers learn."""
    no_boxes = [TARGETS[1], TARGETS[1]]  # every anchor is negative, and all of them are sampled
    losses, levels, model = losses_of(2, no_boxes, sampled_anchors=10**6)
    scores_BA = over_all_cells(model.head, levels)[0].float()
    expected = functional.binary_cross_entropy_with_logits(scores_BA, torch.zeros_like(scores_BA))
    torch.testing.assert_close(losses["objectness"], expected)
    for layer in model.head.conv:
        assert torch.autograd.grad(losses["objectness"], layer[0].weight, retain_graph=True)[0].abs().sum() > 0


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.conv.append(head.conv[0]),
        lambda head: head.conv[0].append(nn.BatchNorm2d(8)),
        lambda head: setattr(head.conv[0][0], "dilation", (2, 2)),
        lambda head: setattr(head.conv[0][0], "padding", (0, 0)),
        lambda head: setattr(head.conv[0], "1", nn.GELU()),
        lambda head: setattr(head, "cls_logits", nn.Conv2d(8, 3, 3, padding=1)),
    ],
)
def test_a_head_of_another_form_takes_the_plain_path(change: object) -> None:
    head, _ = head_and_levels(SIDES["c4"])
    assert is_shallow(head)
    change(head)  # type: ignore[operator]
    assert not is_shallow(head)
