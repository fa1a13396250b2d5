"""What runs share of their first task: which runs, and what one copies from another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openworld.config import RunConfig
from openworld.configfile import CONFIGS, read_options
from openworld.data.options import ExemplarOptions
from openworld.run.first_task import first_task_of, take_over, training_of
from openworld.run.variants import switched_one_by_one, variants_of


def test_training_is_shared_by_what_comes_after_it() -> None:
    config = RunConfig()
    variants = switched_one_by_one(config, read_options(CONFIGS / "ore" / "reference.yaml"))
    shared = {name for name, change in variants.items() if training_of(change(config)) == training_of(config)}
    suppression = replace(config, model=replace(config.model, roi=replace(config.model.roi, cross_nms_iou=0.5)))
    assert "full" in shared and training_of(suppression) == training_of(config)
    assert {name for name in variants if name.startswith("method.energy.")} <= shared
    assert not {name for name in variants if name.startswith(("method.clustering.", "method.unknown_labels."))} & shared
    assert "model.layout=fixed" not in shared and "all of them" not in shared


def test_a_whole_first_task_is_shared_by_what_differs_later() -> None:
    config = RunConfig()
    later = {
        "increment": replace(config.increment, lr=5e-4),
        "replay": replace(config.replay, steps=7),
        "exemplars": ExemplarOptions(strategy="herding"),
        "name": "another",
    }
    for name, value in later.items():
        assert first_task_of(replace(config, **{name: value})) == first_task_of(config), name
    variants = {name: change(config) for name, change in variants_of(config).items()}
    assert [name for name, plan in variants.items() if first_task_of(plan) == first_task_of(config)] == [
        "full",
        "no replay",
    ]
    assert training_of(variants["no energy"]) == training_of(config)  # its detector, but not its results
    assert first_task_of(replace(config, seed=1)) != first_task_of(config)


CHECKPOINTS = ["task1/checkpoint/calibrate-000001/model", "task1/checkpoint/train-000006/model"]
RESULTS = ["task1/calibration.json", "task1/metrics.json"]
PLAIN, HERDING = ExemplarOptions(), ExemplarOptions(strategy="herding")


@pytest.mark.parametrize(
    ("to", "taken"),
    [
        ({}, [*CHECKPOINTS, *RESULTS, "task1/exemplars.json"]),
        ({"exemplars": replace(PLAIN, enabled=False)}, [*CHECKPOINTS, *RESULTS, "task1/exemplars.json"]),
        ({"exemplars": replace(PLAIN, per_class=9)}, [*CHECKPOINTS, *RESULTS]),  # chosen anew, without a detector
        ({"exemplars": HERDING}, CHECKPOINTS[1:]),  # chosen anew, by the trained detector
        ({"exemplars": replace(HERDING, enabled=False)}, [*CHECKPOINTS, *RESULTS]),  # needs none
        (
            {"method": variants_of(RunConfig())["no energy"](RunConfig()).method},
            [CHECKPOINTS[1], "task1/exemplars.json"],
        ),
    ],
    ids=["all alike", "no replay", "other exemplars", "herding", "herding without replay", "another method"],
)
def test_a_run_takes_over_what_it_would_do_alike(tmp_path: Path, to: dict[str, object], taken: list[str]) -> None:
    trained, folder = tmp_path / "full", tmp_path / "other"
    log = [{"event": "step", "task": None}, {"event": "step", "task": 1}, {"event": "step", "task": 2}]
    files = dict.fromkeys([*CHECKPOINTS, *RESULTS, "task1/exemplars.json", "task2/metrics.json"], "content")
    files |= {"metrics.jsonl": "".join(json.dumps(line) + "\n" for line in log)}
    files |= {"data.json": json.dumps({"train": {"images": 1}, "exemplar_lists": {"2": "a digest"}})}
    for name, content in files.items():
        (trained / name).parent.mkdir(parents=True, exist_ok=True)
        (trained / name).write_text(content)
    (tmp_path / ".other.partial" / "task1").mkdir(parents=True)  # of a process that was killed
    by = replace(RunConfig(), exemplars=PLAIN)
    take_over(trained, folder, by=by, to=replace(by, **to))  # type: ignore[arg-type]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*taken, "metrics.jsonl", "data.json"}
    assert (folder / "metrics.jsonl").read_text().count("\n") == 2  # nothing of task 2
    assert json.loads((folder / "data.json").read_text()) == {"train": {"images": 1}}
    assert not (tmp_path / ".other.partial").exists()


def test_exemplars_that_were_never_chosen_are_chosen(tmp_path: Path) -> None:
    """A run without replay chooses none by herding; a run with it needs the detector as it was after its training."""
    trained = tmp_path / "no replay"
    for name in (*CHECKPOINTS, *RESULTS, "metrics.jsonl"):
        (trained / name).parent.mkdir(parents=True, exist_ok=True)
        (trained / name).touch()
    by = replace(RunConfig(), exemplars=replace(HERDING, enabled=False))
    take_over(trained, tmp_path / "full", by=by, to=replace(by, exemplars=HERDING))
    taken = [path.name for path in (tmp_path / "full" / "task1").rglob("*") if path.is_file()]
    assert taken == ["model"] and (tmp_path / "full" / CHECKPOINTS[1]).exists()
