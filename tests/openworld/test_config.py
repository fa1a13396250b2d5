"""The configuration: the two factors of a schedule, steps by task, and the presets of ORE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from openworld.config import PhaseOptions, RunConfig, scaled
from openworld.configfile import CONFIGS, dump_config, read_config, read_options
from openworld.data.options import ExemplarOptions
from openworld.errors import ConfigError
from openworld.methods.ore.options import ClusteringOptions, EnergyOptions, OreOptions, UnknownLabelOptions


def stacked(*names: str) -> RunConfig:
    """Configurations one over the other, as on the command line."""
    return read_config(*(CONFIGS / name for name in names))


def test_a_quarter_of_the_batch_by_the_linear_rule() -> None:
    phase = PhaseOptions(steps=18000, steps_by_task={2: 52000}, lr=0.01, batch_size=8, warmup_steps=100)
    clustering = ClusteringOptions(start_step=1000, update_every=3000, later_start_step=0)
    config = RunConfig(train=phase, method=OreOptions(clustering=clustering), batch_factor=0.25)
    small = scaled(config)
    assert (small.train.batch_size, small.train.lr) == (2, pytest.approx(0.0025))
    assert (small.train.steps, small.train.steps_by_task, small.train.warmup_steps) == (72000, {2: 208000}, 400)
    timed = small.method.clustering
    assert (timed.start_step, timed.update_every, timed.later_start_step) == (4000, 12000, 0)
    assert scaled(small) is small
    # As many images are seen: 8 x 18000 = 2 x 72000.
    assert small.train.batch_size * small.train.steps == phase.batch_size * phase.steps


def test_a_tenth_of_the_length_keeps_batch_and_rate() -> None:
    phase = PhaseOptions(steps=18000, lr=0.01, batch_size=8, warmup_steps=100)
    short = scaled(RunConfig(train=phase, length_factor=0.1)).train
    assert (short.steps, short.warmup_steps, short.batch_size, short.lr) == (1800, 10, 8, 0.01)


def test_a_batch_never_vanishes_and_its_rate_follows_it() -> None:
    phase = PhaseOptions(steps=10, lr=0.3, batch_size=3, warmup_steps=0)
    small = scaled(RunConfig(train=phase, batch_factor=0.5)).train
    assert small.batch_size == 2 and small.lr == pytest.approx(0.2) and small.steps == 20
    tiny = scaled(RunConfig(train=phase, batch_factor=0.01)).train
    assert tiny.batch_size == 1 and tiny.lr == pytest.approx(0.1)


def test_factors_are_positive() -> None:
    for name in ("batch_factor", "length_factor"):
        for value in (0, -1, float("inf"), float("nan")):
            with pytest.raises(ConfigError, match=name):
                RunConfig(**{name: value})  # type: ignore[arg-type]


def test_steps_by_task() -> None:
    phase = PhaseOptions(steps=5, steps_by_task={2: 7, 4: 0}, lr=0.1)
    assert [phase.for_task(task).steps for task in (1, 2, 3, 4)] == [5, 7, 5, 0]
    with pytest.raises(ConfigError, match=r"steps_by_task is \{0: 7\}"):
        PhaseOptions(steps=5, steps_by_task={0: 7}, lr=0.1)


def given(tmp_path: Path, *layers: str) -> PhaseOptions:
    """``train`` of a configuration of one file per layer; its default is of 320 steps."""
    paths = [tmp_path / f"{number}.yaml" for number in range(len(layers))]
    for path, layer in zip(paths, layers, strict=True):
        path.write_text(f"train: {{{layer}}}")
    return read_config(*paths).train


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (("lr: 0.1",), (320, None)),
        (("epochs: 12",), (None, 12.0)),
        (("steps: 8",), (8, None)),
        (("epochs: 12", "epochs: null, steps: 8"), (8, None)),
        (("steps: 8", "steps: null, epochs: 0.5"), (None, 0.5)),
    ],
)
def test_a_length_is_given_in_steps_or_in_epochs(
    tmp_path: Path, layers: tuple[str, ...], expected: tuple[int | None, float | None]
) -> None:
    phase = given(tmp_path, *layers)
    assert (phase.steps, phase.epochs) == expected
    path = tmp_path / "dumped.yaml"
    path.write_text(dump_config(RunConfig(train=phase)))
    assert read_config(path).train == phase


def test_two_lengths_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.epochs is 12, and steps is 8"):
        given(tmp_path, "epochs: 12", "steps: 8")
    with pytest.raises(ConfigError, match=r"train\.steps is missing, and so is epochs"):
        given(tmp_path, "steps: null")
    with pytest.raises(ConfigError, match=r"PhaseOptions\.epochs is 2, and steps is 3"):
        PhaseOptions(steps=3, epochs=2, lr=0.1)


def test_epochs_become_steps() -> None:
    phase = PhaseOptions(epochs=2.5, steps_by_task={3: 7}, lr=0.1, batch_size=4)
    assert phase.in_steps(11) == replace(phase, epochs=None, steps=7)  # 27.5 images
    assert phase.in_steps(1).num_steps == 1
    assert phase.for_task(2).in_steps(11).num_steps == phase.for_task(3).in_steps(100).num_steps == 7
    nothing = replace(phase, epochs=0.0)
    assert nothing.in_steps(11).num_steps == 0 and nothing.is_skipped and nothing.in_steps(11).is_skipped
    assert not phase.is_skipped and not nothing.for_task(3).is_skipped


def test_factors_of_epochs_of_the_average_and_of_validations() -> None:
    """The average of a quarter of the batch weighs the images of four steps as that of the whole weighs one step."""
    phase = PhaseOptions(epochs=12, lr=0.01, batch_size=8, ema_decay=0.9, validate_every=100)
    small = scaled(RunConfig(train=phase, batch_factor=0.25)).train
    assert (small.epochs, small.steps, small.validate_every) == (12, None, 400)
    assert small.ema_decay**4 == pytest.approx(0.9)
    short = scaled(RunConfig(train=phase, length_factor=0.5)).train
    assert (short.epochs, short.validate_every, short.ema_decay) == (6, 50, pytest.approx(0.81))
    assert scaled(RunConfig(train=replace(phase, ema_decay=0.0), length_factor=0.5)).train.ema_decay == 0


def test_the_paper_preset_is_what_the_options_default_to() -> None:
    config = stacked("demo.yaml", "ore/paper.yaml")
    assert config.method.clustering == ClusteringOptions()
    assert config.method.unknown_labels == UnknownLabelOptions()
    assert config.method.energy == EnergyOptions()
    assert config.exemplars == ExemplarOptions()
    assert not config.method.energy.uses_unknown_labels


def test_the_reference_preset_says_that_it_uses_unknown_labels() -> None:
    config = stacked("demo.yaml", "ore/reference.yaml")
    assert config.method.energy.uses_unknown_labels
    assert config.method.clustering.distance_order == 10 and config.method.clustering.margin == 2
    assert config.train == RunConfig().train  # a preset of ORE leaves the schedule alone
    again = stacked("demo.yaml", "ore/reference.yaml", "ore/paper.yaml")
    assert again.method == stacked("demo.yaml", "ore/paper.yaml").method


def test_both_presets_name_the_same_options() -> None:
    """But for a few of the head's, on which the paper is silent and the own defaults stay."""

    def keys(tree: object, prefix: str = "") -> set[str]:
        if not isinstance(tree, dict):
            return {prefix}
        return {key for name, value in tree.items() for key in keys(value, f"{prefix}.{name}")}

    paper, reference = (keys(read_options(CONFIGS / "ore" / f"{name}.yaml")) for name in ("paper", "reference"))
    assert paper <= reference
    assert all(key.startswith(".model") for key in reference - paper)


@pytest.mark.parametrize("path", sorted((CONFIGS / "ore").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_fragment_stacks(path: Path) -> None:
    stacked("demo.yaml", f"ore/{path.name}")


def test_the_published_lengths() -> None:
    config = stacked("demo.yaml", "ore/reference.yaml", "ore/schedule_reference.yaml")
    assert config.train.steps == 18000
    assert [config.increment.for_task(task).steps for task in (2, 3, 4)] == [52000, 40000, 41000]
    assert [config.replay.for_task(task).steps for task in (2, 3, 4)] == [4000, 2500, 3000]
    assert config.increment.schedule == "constant" and config.increment.lr == 1e-4
    assert replace(config.train, milestones=[]).lr == 0.01
