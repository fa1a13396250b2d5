"""Options of the distillation of one backbone into another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from openworld.runtime.options import Above, AtLeast, FilePath
from ssl_backbones.methods.options import MethodOptions


@dataclass(kw_only=True)
class DistillationOptions(MethodOptions):
    """Distillation of one backbone into another (SimCLR v2, Chen et al. 2020, section 2; SEED, Fang et al. 2021)."""

    METHOD: ClassVar[str] = "ssl_backbones.methods.distillation:Distillation"

    name: str = "distillation"
    teacher: FilePath | None = None
    """File of the teacher, of any layout that ssl_backbones/handover reads. It must be given."""
    teacher_network: str | None = None
    """Prefix of the teacher's keys in its file, where that holds several networks; None: the one that its authors
    evaluate."""
    targets: Literal["similarities", "classes"] = "similarities"
    """What the student's and the teacher's softmax run over. ``similarities``: the queue of the teacher's features of
    earlier images (SEED), for a teacher without labels. ``classes``: the classes of ``classifier`` (SimCLR v2)."""
    classifier: FilePath | None = None
    """File with the teacher's last layer, ``weight`` or ``fc.weight`` (C, D) and its bias; None: the teacher's file."""
    temperature: Annotated[float, Above(0)] = 0.2
    """Temperature of the student; with ``classes``, of the teacher too (SimCLR v2: 1; SEED: 0.2)."""
    teacher_temperature: Annotated[float, Above(0)] = 0.01
    """Temperature of the teacher, with ``similarities`` (SEED: 0.01)."""
    queue_size: Annotated[int, AtLeast(1)] = 4096
    """Features of earlier images, with ``similarities`` (SEED: 65536)."""
