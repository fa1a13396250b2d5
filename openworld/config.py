"""The configuration of a run: one tree of dataclasses, whose defaults are the demo.

Each branch lives beside its owner (``openworld.data.options``, ``openworld.methods.ore.options``, …). A YAML file, then
``--key value`` on the command line, change single leaves; an unknown key is an error. Standard library only, so that
``openworld --help`` does not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from openworld.data.options import DataOptions, ExemplarOptions
from openworld.distillation.options import DistillationOptions
from openworld.engines.options import ModelOptions
from openworld.methods.options import MethodOptions
from openworld.methods.ore.options import OreOptions
from openworld.runtime.options import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    check,
    given,
    refuse,
)
from ssl_backbones.options import PretrainOptions


@dataclass(kw_only=True)
class PhaseOptions:
    """One optimisation phase."""

    steps: NonNegativeInt | None = None
    """Optimisation steps; 0 skips the phase."""
    epochs: NonNegativeFloat | None = None
    """Length in passes over the images of the phase, repeats of rare classes included, in place of ``steps``; the run
    says how many steps that is. A default of ``steps`` gives way."""
    steps_by_task: dict[PositiveInt, NonNegativeInt] = field(default_factory=dict)
    """Numbers of steps for single tasks that differ, such as ``{2: 52000}``; they win over ``epochs``."""
    lr: PositiveFloat
    """Peak learning rate."""
    backbone_lr_factor: NonNegativeFloat = 1.0
    """Factor of the backbone's learning rate. A tenth is common for a pretrained backbone, above all with AdamW and few
    images (DETR, section 4; Carion et al., 2020)."""
    batch_size: PositiveInt = 8
    """Images per step, over all processes."""
    accumulate: PositiveInt = 1
    """Number of equal parts of a batch that are computed one after the other, whose gradients are averaged: saves
    memory. BatchNorm that trains sees one part at a time, and each part is padded to its own largest image. A loss is
    the mean over the parts of its means over the regions of all processes; that is the mean over the whole batch where
    every part has as many sampled regions."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimiser; SGD has momentum 0.9."""
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    """Learning rate after the warm-up. cosine: down to a hundredth of the peak; steps: a tenth after each milestone;
    constant: the peak throughout."""
    milestones: list[Share] = field(default_factory=lambda: [0.66, 0.88])
    """For `steps`: milestones as shares of the phase."""
    warmup_steps: NonNegativeInt = 20
    """Steps of linear warm-up from zero to the peak."""
    clip_gradient: NonNegativeFloat = 5.0
    """Largest norm of the gradient; 0 does not clip."""
    ema_decay: Share = 0.0
    """Decay of an exponential moving average of the weights and of BatchNorm's statistics (Polyak and Juditsky, 1992),
    which is the model at the end of the phase; the optimiser moves the weights themselves. Update n (from 0) uses at
    most (1 + n) / (10 + n), as ``tf.train.ExponentialMovingAverage`` does. 0 switches it off."""
    validate_every: NonNegativeInt = 0
    """Steps between validations, and one more after the last step; 0 never validates. Each is the mAP@50 on the
    held-out images (of ``data.val``, or the share held out of training) of the classes that the phase trains: the new
    ones; all known ones in ``replay``, and where ``distillation`` or ``exemplars.during_training`` is to keep the old
    ones. With ``ema_decay`` it is that of the average."""
    keep_best: bool = True
    """With ``validate_every``: the phase ends with the weights of the best validation, the later one of equals. Off:
    with the last ones; validations are then only logged."""
    checkpoint_every: PositiveInt = 100
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        check(self)
        if self.steps is None and self.epochs is None:
            refuse(self, "steps", "is missing, and so is epochs", remedy="give one of them")
        if self.steps is not None and self.epochs is not None:
            named = given(self) & {"steps", "epochs"}
            if len(named) != 1:
                problem = f"is {self.epochs:g}, and steps is {self.steps}"
                refuse(self, "epochs", problem, remedy="give one of them, and null for the other")
            if "steps" in named:
                self.epochs = None
            else:
                self.steps = None

    def for_task(self, task: int) -> PhaseOptions:
        """Return the phase with the length of this task."""
        if task not in self.steps_by_task:
            return replace(self, steps_by_task={})
        return replace(self, steps=self.steps_by_task[task], epochs=None, steps_by_task={})

    def in_steps(self, images: int) -> PhaseOptions:
        """Return the phase with its length in steps, to the nearest one, at least 1 unless it was 0.

        Args:
            images: number of images in an epoch of the phase.
        """
        if self.epochs is None:
            return self
        steps = max(1, round(self.epochs * images / self.batch_size)) if self.epochs else 0
        return replace(self, steps=steps, epochs=None)

    @property
    def num_steps(self) -> int:
        """Number of steps of a phase whose length is in steps, see :meth:`in_steps`."""
        assert self.steps is not None
        return self.steps

    @property
    def is_skipped(self) -> bool:
        """Whether the length is 0."""
        return not (self.epochs if self.steps is None else self.steps)


@dataclass(kw_only=True)
class RunConfig:
    """All settings that determine the outcome of a run."""

    name: str = "demo"
    """Title of the run in the report."""
    seed: int = 0
    threads: NonNegativeInt = 0
    """CPU threads of the arithmetic; 0 leaves torch's choice. Bit-exact resume needs the same number."""
    batch_factor: PositiveFloat = 1.0
    """Factor of the batch size, by the linear rule (Goyal et al., 2017): multiplies batch sizes and learning rates, and
    divides steps, warm-up and the steps that time validations and prototypes. The average of the weights reaches back
    over as many images (Busbridge et al., NeurIPS 2023). 0.25: 2 GPUs in place of 8."""
    length_factor: PositiveFloat = 1.0
    """Factor of the length of the run: multiplies steps or epochs, warm-up, the steps that time validations and
    prototypes, and those over which the average of the weights reaches back."""
    tasks: NonNegativeInt = 0
    """Run only the first tasks of the schedule; 0 runs all."""
    data: DataOptions = field(default_factory=DataOptions)
    pretrain: PretrainOptions | None = None
    """Contrastive pretraining of the backbone, before task 1; ``{}`` for its defaults. null: start from model.weights,
    or from random weights."""
    model: ModelOptions = field(default_factory=ModelOptions)
    method: MethodOptions = field(default_factory=OreOptions)
    """The open-world method; its ``name`` chooses one of openworld/methods, or another package's."""
    exemplars: ExemplarOptions = field(default_factory=lambda: ExemplarOptions(per_class=50))
    """Choice of the images of earlier tasks that are kept for the replay."""
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    """What the detector of the task before adds to the training of a later task."""
    train: PhaseOptions = field(default_factory=lambda: PhaseOptions(steps=320, lr=1e-3))
    """Training of task 1."""
    increment: PhaseOptions = field(default_factory=lambda: PhaseOptions(steps=220, lr=1e-3))
    """Training of each later task on its new classes."""
    replay: PhaseOptions = field(default_factory=lambda: PhaseOptions(steps=120, lr=5e-4))
    """Fine-tuning on the exemplars of all classes, after each later task."""

    def __post_init__(self) -> None:
        check(self)
        if self.pretrain is not None and self.model.weights is not None:
            refuse(
                self,
                "model.weights",
                f"is {self.model.weights!r} and pretrain is on",
                remedy="set `pretrain: null` to use the weights, or leave model.weights out",
            )
        if self.tasks > len(self.data.tasks):
            refuse(
                self,
                "tasks",
                f"is {self.tasks} and the schedule has {len(self.data.tasks)}",
                remedy="give a number of tasks up to that, or 0 for all",
            )
        if self.last_task > 1:
            self._check_later_tasks()

    def _check_later_tasks(self) -> None:
        """Refuse options of later tasks that would do nothing."""
        share, score = self.exemplars.during_training, self.distillation.pseudo_label_score
        if share and self.increment.batch_size == 1:
            refuse(
                self,
                "exemplars.during_training",
                f"is {share:g}, and increment.batch_size is 1",
                remedy="give a batch of at least 2, or set during_training to 0",
            )
        least = self.model.roi.score_threshold
        if score is not None and score < least:
            refuse(
                self,
                "distillation.pseudo_label_score",
                f"is {score:g}, and detections below {least:g} are dropped (model.roi.score_threshold)",
                remedy=f"give at least {least:g}, or lower that threshold",
            )

    @property
    def schedule(self) -> tuple[tuple[str, ...], ...]:
        """Class names by task."""
        return tuple(tuple(names) for names in self.data.tasks)

    @property
    def last_task(self) -> int:
        return self.tasks or len(self.data.tasks)


def scaled(config: RunConfig) -> RunConfig:
    """Apply ``batch_factor`` and ``length_factor`` to the configuration; both are 1 afterwards.

    Batch sizes and steps are rounded, to at least 1 unless they were 0; learning rates follow the rounded batch size.
    """
    if config.batch_factor == config.length_factor == 1:
        return config
    longer = config.length_factor / config.batch_factor

    def whole(value: int, factor: float) -> int:
        return max(1, round(value * factor)) if value else 0

    def phase(options: PhaseOptions) -> PhaseOptions:
        batch = whole(options.batch_size, config.batch_factor)
        return replace(
            options,
            batch_size=batch,
            lr=options.lr * batch / options.batch_size,
            steps=None if options.steps is None else whole(options.steps, longer),
            epochs=None if options.epochs is None else options.epochs * config.length_factor,
            steps_by_task={task: whole(steps, longer) for task, steps in options.steps_by_task.items()},
            warmup_steps=whole(options.warmup_steps, longer),
            ema_decay=options.ema_decay ** (1 / longer),
            validate_every=whole(options.validate_every, longer),
        )

    return replace(
        config,
        batch_factor=1.0,
        length_factor=1.0,
        method=config.method.rescaled(lambda steps: whole(steps, longer)),
        train=phase(config.train),
        increment=phase(config.increment),
        replay=phase(config.replay),
    )
