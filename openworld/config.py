"""The configuration of a run: one tree of dataclasses, whose defaults are the demo.

Each branch lives beside its owner (``openworld.data.options``, ``openworld.ore.options``, …). A YAML file, then
``--key value`` on the command line, change single leaves; an unknown key is an error. Standard library only, so that
``openworld --help`` does not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from openworld.data.options import DataOptions
from openworld.engines.options import ModelOptions
from openworld.errors import ConfigError
from openworld.ore.options import ClusteringOptions, EnergyOptions, ExemplarOptions, UnknownLabelOptions
from ssl_backbones.options import PretrainOptions


@dataclass(kw_only=True)
class PhaseOptions:
    """One optimisation phase."""

    steps: int
    """Optimisation steps; 0 skips the phase."""
    lr: float
    """Peak learning rate."""
    batch_size: int = 8
    """Images a step."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """SGD has momentum 0.9."""
    weight_decay: float = 1e-4
    schedule: Literal["cosine", "steps"] = "cosine"
    """cosine: down to a hundredth of the peak; steps: a tenth after each milestone."""
    milestones: list[float] = field(default_factory=lambda: [0.66, 0.88])
    """For `steps`: shares of the phase."""
    warmup_steps: int = 20
    """Linear from zero to the peak."""
    clip_gradient: float = 5.0
    """Largest norm of the gradient; 0 does not clip."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "warmup_steps", "clip_gradient", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", remedy="give a number that is not negative")
        for name in ("batch_size", "checkpoint_every", "lr"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", remedy="give a positive number")


@dataclass(kw_only=True)
class OreOptions:
    """The parts of ORE (Joseph et al., CVPR 2021)."""

    unknown_labels: UnknownLabelOptions = field(
        default_factory=lambda: UnknownLabelOptions(per_image=2, max_iou=0.3, spread_iou=0.5)
    )
    clustering: ClusteringOptions = field(
        default_factory=lambda: ClusteringOptions(weight=0.01, start_step=100, update_every=50, momentum=0.9)
    )
    energy: EnergyOptions = field(default_factory=EnergyOptions)
    exemplars: ExemplarOptions = field(default_factory=lambda: ExemplarOptions(per_class=50))


@dataclass(kw_only=True)
class RunConfig:
    """Everything that decides the outcome of a run."""

    name: str = "demo"
    """Shown in the report."""
    seed: int = 0
    threads: int = 0
    """CPU threads of the arithmetic; 0 leaves torch's choice. Bit-exact resume needs the same number."""
    tasks: int = 0
    """Run only the first tasks of the schedule; 0 runs all."""
    data: DataOptions = field(default_factory=DataOptions)
    pretrain: PretrainOptions | None = field(default_factory=PretrainOptions)
    """Contrastive pretraining of the backbone, before task 1. Off (null) where model.weights names a backbone, or to
    start from random weights."""
    model: ModelOptions = field(default_factory=ModelOptions)
    ore: OreOptions = field(default_factory=OreOptions)
    train: PhaseOptions = field(default_factory=lambda: PhaseOptions(steps=320, lr=1e-3))
    """Task 1."""
    increment: PhaseOptions = field(default_factory=lambda: PhaseOptions(steps=220, lr=1e-3))
    """New classes of each later task."""
    replay: PhaseOptions = field(default_factory=lambda: PhaseOptions(steps=120, lr=5e-4))
    """Fine-tuning on the exemplars of all classes, after each later task."""

    def __post_init__(self) -> None:
        if self.pretrain is not None and self.model.weights is not None:
            raise ConfigError(
                f"model.weights is {self.model.weights!r} and pretrain is on",
                remedy="set `pretrain: null` to use the weights, or leave model.weights out",
            )
        if not 0 <= self.tasks <= len(self.data.tasks):
            raise ConfigError(
                f"tasks is {self.tasks} and the schedule has {len(self.data.tasks)}",
                remedy="give a number of tasks up to that, or 0 for all",
            )

    @property
    def schedule(self) -> tuple[tuple[str, ...], ...]:
        """Class names by task."""
        return tuple(tuple(names) for names in self.data.tasks)

    @property
    def last_task(self) -> int:
        return self.tasks or len(self.data.tasks)
