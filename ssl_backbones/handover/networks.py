"""Which network of a checkpoint is the backbone, where it holds several.

Self-supervised training keeps two networks: one that gradients train, and an average of it. The one that the authors of
the code evaluate is taken, by the words in which the names of the two differ. Which one it was, and why, goes into
:attr:`Choice.reason`, which every reader shows. Networks that the table does not tell apart are not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from openworld.errors import CheckpointError
from ssl_backbones.handover.tree import unwrapped

OPTION = "--network; in a configuration with model.weights_network, method.teacher_network or BACKBONE_NETWORK"
"""What the user sets: on the command line, for a run, for a distillation, in detectron2's own tools."""


class Twins(NamedTuple):
    """Words that tell two networks of one training apart."""

    take: frozenset[str]
    """Words of the one to take; empty: it has no such word, as in ``encoder`` beside ``encoder_k``."""
    leave: frozenset[str]
    why: str


def _twins(take: str, leave: str, why: str) -> Twins:
    return Twins(frozenset(take.split()), frozenset(leave.split()), why)


TWINS = (
    # MoCo, main_lincls.py; PCL, eval_cls_imagenet.py; DenseCL; PixPro (encoder, encoder_k)
    _twins("q query", "k key ema momentum", "MoCo evaluates the query encoder, and the key encoder is its average"),
    _twins("", "k key", "gradients train this one, and the key encoder is its average"),
    # MoCo v3, main_lincls.py
    _twins("base", "momentum", "MoCo v3 evaluates the base encoder, and the momentum encoder is its average"),
    # solo-learn (backbone, momentum_backbone), lightly (backbone, backbone_momentum), ALBEF (…_m)
    _twins("", "momentum m", "gradients train this one, and the momentum network is its average"),
    # BYOL, byol_experiment.py; lucidrains' byol-pytorch; PyTorch-BYOL; OpenSelfSup
    _twins("online", "target ema momentum", "BYOL evaluates the online network, and the target network is its average"),
    _twins("", "target", "gradients train this one, and the target network is its average"),
    # DINO, eval_linear.py (checkpoint_key); Mean Teacher; Unbiased Teacher
    _twins("teacher", "student", "DINO and Mean Teacher evaluate the teacher, the average of the student"),
    # timm/models/_helpers.py, load_state_dict (use_ema)
    _twins("timm's", "", "timm loads state_dict_ema, the average, where there is one"),
    # DeiT, ConvNeXt and PyContrast load `model` from files that hold model_ema too
    _twins("", "ema", "these are the trained weights, and the other is their moving average (EMA)"),
)
"""Pairs of networks, and the one to take."""

_SAYS_NOTHING = {"module", "model", "models", "net", "nets", "network", "encoder", "backbone"}
_SAYS_NOTHING |= {"state", "dict", "params", "weights", "shadow"}
_WHOLE_WORDS = {"state_dict_ema": {"timm's"}}


class Candidate(NamedTuple):
    """A network of a file."""

    name: str
    """Prefix of its keys, with the dictionaries around it: ``state_dict.module.encoder_q.``."""
    tensors: Mapping[str, Tensor]
    """By torchvision's names."""


class Choice(NamedTuple):
    """The network that is taken."""

    taken: int
    """Its place among the candidates."""
    reason: str
    """A sentence that names it, the others and why; empty if the file holds no other."""


def choose(candidates: Sequence[Candidate], wanted: str | None, where: str) -> Choice:
    """Choose the backbone among the networks of a file.

    Args:
        candidates: at least one.
        wanted: prefix of the keys that the user named, or a beginning of it that fits one network alone; None leaves
            it to :data:`TWINS`.
        where: names the file in errors.

    Raises:
        CheckpointError: no or several networks have this prefix; or nothing tells the networks apart. The message
            lists them with their number of tensors.
    """
    if wanted is not None:
        return _named(candidates, wanted, where)
    distinct: list[int] = []
    for index, candidate in enumerate(candidates):
        if not any(_same_values(candidate, candidates[earlier]) for earlier in distinct):
            distinct.append(index)
    for index in distinct:
        others = [candidates[other] for other in distinct if other != index]
        reasons = [_preferred(candidates[index], other) for other in others]
        if all(reasons):
            left = ", ".join(repr(other.name) for other in others)
            why = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
            taken = candidates[index].name
            return Choice(index, f"{taken!r} is taken and {left} left out: {why}" if others else "")
    raise CheckpointError(
        f"it holds {len(distinct)} networks, and their names do not tell which one is meant: "
        f"{_listed([candidates[index] for index in distinct])}",
        where=where,
        remedy=f"name one by its prefix with {OPTION}",
    )


def _named(candidates: Sequence[Candidate], wanted: str, where: str) -> Choice:
    """Choose by name: the same one, else one that ends so, else one that has these words in it."""
    names = [candidate.name for candidate in candidates]
    found = [index for index, name in enumerate(names) if name.rstrip(".") == wanted.rstrip(".")]
    if bare := _bare(wanted):
        found = found or [index for index, name in enumerate(names) if f".{_bare(name)}".endswith(f".{bare}")]
        found = found or [index for index, name in enumerate(names) if f".{bare}." in f".{_bare(name)}."]
    if len(found) != 1:
        raise CheckpointError(
            f"{len(found) or 'none'} of its networks {'is' if len(found) < 2 else 'are'} under {wanted!r}: "
            f"{_listed(candidates)}",
            where=where,
            remedy=f"name one by its whole prefix with {OPTION}",
        )
    others = [repr(name) for index, name in enumerate(names) if index != found[0]]
    return Choice(found[0], f"{names[found[0]]!r} is taken as asked, {', '.join(others)} left out" if others else "")


def _bare(name: str) -> str:
    return ".".join(word for word in unwrapped(name.rstrip(".")).split(".") if word != "module")


def _preferred(one: Candidate, other: Candidate) -> str | None:
    """Return why ``one`` is taken and not ``other``; None if nothing says so."""
    if _shapes(one) != _shapes(other):  # a distilled student and its teacher, two different backbones
        return None
    ones, others = _words(one.name), _words(other.name)
    ones, others = ones - others - _SAYS_NOTHING, others - ones - _SAYS_NOTHING
    votes: list[str] = []
    for twins in TWINS:
        for first, second, vote in ((ones, others, twins.why), (others, ones, "")):
            takes = bool(first & twins.take) if twins.take else not first
            leaves = bool(second & twins.leave) if twins.leave else not second
            if takes and leaves:
                votes.append(vote)
                first -= twins.take
                second -= twins.leave
    return votes[0] if votes and all(votes) and not ones and not others else None


def _words(name: str) -> set[str]:
    words: set[str] = set()
    for part in name.split("."):
        words |= _WHOLE_WORDS.get(part) or {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", part)}
    return words - {"ema", "momentum"} if "teacher" in words else words  # a teacher is an average anyway


def _shapes(candidate: Candidate) -> dict[str, torch.Size]:
    """Return the shapes of the convolutions; averages may come without buffers."""
    return {key: value.shape for key, value in candidate.tensors.items() if value.ndim == 4}


def _same_values(one: Candidate, other: Candidate) -> bool:
    """Return whether two names are of one network, as where a learner keeps its network and a part of it."""
    if one.tensors.keys() != other.tensors.keys():
        return False
    pairs = [(value, other.tensors[key]) for key, value in one.tensors.items()]
    return all(a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def _listed(candidates: Sequence[Candidate]) -> str:
    return ", ".join(f"{candidate.name!r} ({len(candidate.tensors)} tensors)" for candidate in candidates)
