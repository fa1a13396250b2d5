"""Known classes alone: torchvision's own Faster R-CNN and our ``closed`` method, trained alike, over several seeds.

    python benchmarks/closed_set.py --config configs/demo.yaml --output DIR [--seeds 0 1 2 3 4] [--set KEY VALUE]
        [--switch KEY=VALUE [KEY=VALUE …]] [--no-peer] [--threads 1]

Task 1 of an ordinary configuration is trained and tested; several ``--config`` are stacked, as in `openworld run`. Both
detectors get the same trunk with the same weights (``model.weights``, or random ones of the seed; nothing is
pretrained), the same batches, optimiser, rates, clipping and number of steps, through the same training loop, and are
scored by pycocotools through the same code. The peer is stock_rcnn.py.

Each ``--switch`` adds a variant of ours with some options changed, and three that no option has:

    start.box_head=torchvision      the two hidden layers start from torch's default in place of Caffe2's "Xavier"
    start.predictor=torchvision     the last two layers do, in place of normal ones of 0.01 and 0.001
    unknown_row=live                the row of unknown stays in the softmax, as under an open-world method

Results are kept in DIR, a file per variant and seed, as soon as each is there, and are not repeated. DIR/table.md has
all of them, also those of earlier calls: AP50 / AP per seed, mean ± standard error, standard deviation, the paired
difference from torchvision, and CPU seconds per step.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from stock_rcnn import StockDetector

from openworld.config import RunConfig, scaled
from openworld.configfile import layers_of
from openworld.data.loader import TrainBatches, eval_batches
from openworld.data.options import LoaderOptions
from openworld.data.splits import training_view
from openworld.detector import Detector, build_detector
from openworld.errors import ConfigError, DataError, OpenWorldError
from openworld.labels import LabelSpace
from openworld.methods.closed.method import Closed
from openworld.methods.closed.options import ClosedOptions
from openworld.metrics.coco import coco_average_precision
from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
from openworld.records import Dataset
from openworld.run.detect import detect_prepared
from openworld.run.folder import with_arch
from openworld.run.sources import Sources, open_sources
from openworld.run.train import Phase, train_phase
from openworld.runtime.dotted import leaves
from openworld.runtime.files import write_atomic, write_json
from openworld.runtime.option_trees import construct, from_words
from openworld.runtime.runlog import RunLog
from openworld.runtime.seeding import seed_everything

PEER, OURS = "torchvision", "ours"
BATCH = 8
"""Images per batch at test."""


# -- variants ---------------------------------------------------------------------------------------------------------


class LiveUnknownRow(Closed):
    """The closed method, whose softmax keeps the row of unknown; no region is ever labelled so."""

    @property
    def unused_rows(self) -> tuple[int, ...]:
        return ()


def default_box_head(detector: Detector) -> Detector:
    """Start the hidden layers of the box head as torch and torchvision do."""
    head = detector.engine.features.head  # type: ignore[attr-defined]
    for layer in (head.fc6, head.fc7):
        layer.reset_parameters()
    return detector


def default_predictor(detector: Detector) -> Detector:
    """Start the layers of logits and deltas as torch and torchvision do."""
    for name in ("cls_score", "bbox_pred"):
        detector.engine.get_submodule(name).reset_parameters()  # type: ignore[attr-defined]
    return detector


def live_unknown_row(detector: Detector) -> Detector:
    """Keep the row of unknown in the softmax."""
    detector.method = LiveUnknownRow(detector.space)
    return detector


CHANGES: dict[str, Callable[[Detector], Detector]] = {
    "start.box_head=torchvision": default_box_head,
    "start.predictor=torchvision": default_predictor,
    "unknown_row=live": live_unknown_row,
}
"""Switches that are not options: what they make of an untrained detector of ours."""


@dataclass(frozen=True)
class Variant:
    """A detector to train: its name in the table, its configuration, and what is made of it before the training."""

    name: str
    config: RunConfig
    changes: tuple[Callable[[Detector], Detector], ...] = ()


def variants_of(config: RunConfig, switches: Sequence[Sequence[str]], *, peer: bool) -> list[Variant]:
    """Return the peer, ours, and ours with each group of switches.

    Raises:
        ConfigError: a switch is not an option, or its value is out of its domain.
    """
    found = [Variant(PEER, config, (StockDetector,))] if peer else []
    found.append(Variant(OURS, config))
    for switch in switches:
        words = [tuple(word.partition("=")[::2]) for word in switch if word not in CHANGES]
        changed = construct(RunConfig, from_words(words), default=config)  # type: ignore[arg-type]
        found.append(Variant(" ".join(switch), changed, tuple(CHANGES[word] for word in switch if word in CHANGES)))
    return found


# -- one training -----------------------------------------------------------------------------------------------------


def result_of(variant: Variant, seed: int, sources: Sources, log: RunLog) -> dict[str, Any]:
    """Train a variant on task 1 and score it on the test images; return what its file holds.

    Raises:
        DataError: no test image shows a class of task 1.
    """
    config = variant.config
    space = LabelSpace.of(config.schedule, 1, config.model.layout)
    truth = GroundTruth.from_dataset(sources.test, space)
    if not ((truth.labels < space.num_known) & ~truth.ignore).any():
        raise DataError("no test image shows a class of task 1", where="data.test", remedy="give images that show one")
    seed_everything(seed, 1, "train")
    weights = None if config.model.weights is None else Path(config.model.weights)
    detector = build_detector(config, space, weights)
    for change in variant.changes:
        detector = change(detector)
    options = config.train.for_task(1)
    batches = TrainBatches(
        training_view(sources.train, space),
        batch_size=options.batch_size,
        seed_parts=(seed, 1, "train"),
        start_step=0,
        total_steps=options.steps,
        options=config.data.loader,
    )
    log.truncate(0)
    started, cpu_started = time.perf_counter(), time.process_time()
    # No checkpoint is written: a training that is killed is begun anew.
    whole = replace(options, checkpoint_every=max(options.steps, 1))
    train_phase(detector, batches, Phase(1, "train", whole, log.path.parent, space.known, 0), log, None)
    cpu_seconds, seconds = time.process_time() - cpu_started, time.perf_counter() - started
    return {
        "variant": variant.name,
        "seed": seed,
        **average_precision(detector.eval(), sources.test, truth, config.data.loader),
        "steps": options.steps,
        "train_seconds": seconds,
        "cpu_seconds_per_step": cpu_seconds / max(options.steps, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "config": settings(config),
    }


def average_precision(
    detector: Detector, test: Dataset, truth: GroundTruth, loader: LoaderOptions
) -> dict[str, float | None]:
    """Detect on the test images and score the known classes by pycocotools."""
    columns = []
    for images, positions, scales in eval_batches(test, BATCH, loader):
        sizes = [(width, height) for width, height in test.sizes[positions].tolist()]
        for position, found in zip(positions, detect_prepared(detector, images, scales, sizes), strict=True):
            at = torch.full_like(found.labels, position)
            columns.append((at, found.boxes, found.labels, found.scores))
    scored = ScoredBoxes.from_arrays(*(torch.cat(column).numpy() for column in zip(*columns, strict=True)))
    return coco_average_precision(truth, scored, detector.space.num_known)


def settings(config: RunConfig) -> dict[str, Any]:
    """Return the options that a result depends on, by dotted key, as JSON gives them back."""
    parts = {part: asdict(getattr(config, part)) for part in ("data", "model", "train")}
    found: dict[str, Any] = json.loads(json.dumps(dict(leaves(parts))))
    return found


def check_same_settings(path: Path, stored: dict[str, Any], config: RunConfig) -> None:
    """Refuse a kept result of other settings. Options that only one of the two has are passed over.

    Raises:
        ConfigError: a setting differs.
    """
    now = settings(config)
    different = [key for key, value in stored["config"].items() if key in now and now[key] != value]
    if different:
        raise ConfigError(
            f"the result was made with another {', '.join(different)}",
            where=str(path),
            remedy="give another --output, or remove the file",
        )


# -- the table --------------------------------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return all results as a Markdown table: the peer and ours first, the other variants by falling AP50."""
    seeds = sorted({result["seed"] for result in results})
    of: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        of.setdefault(result["variant"], {})[result["seed"]] = result
    names = sorted(of, key=lambda name: (name != PEER, name != OURS, -statistics.mean(points(of[name], "ap50"))))
    head = [
        "variant",
        *(f"seed {seed}" for seed in seeds),
        "AP50",
        "SD",
        "AP",
        "SD",
        "AP50 − peer",
        "AP − peer",
        "s/step",
    ]
    rows = [head, ["---"] * len(head)]
    for name in names:
        own, peer = of[name], of.get(PEER, {})
        cells = [f"{100 * own[s]['ap50']:.1f} / {100 * own[s]['ap']:.1f}" if s in own else "" for s in seeds]
        for key in ("ap50", "ap"):
            values = points(own, key)
            cells += [with_error(values), f"{statistics.stdev(values):.1f}" if len(values) > 1 else "–"]
        both = [seed for seed in own if seed in peer and name != PEER]
        for key in ("ap50", "ap"):
            cells.append(with_error([100 * (own[seed][key] - peer[seed][key]) for seed in both], sign="+"))
        cells.append(f"{statistics.median(result['cpu_seconds_per_step'] for result in own.values()):.3f}")
        rows.append([name, *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def points(results: dict[int, dict[str, Any]], key: str) -> list[float]:
    """A score of each seed, in points."""
    return [100 * result[key] for result in results.values()]


def with_error(values: Sequence[float], sign: str = "") -> str:
    """Mean ± standard error and the number of values."""
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:{sign}.1f} (1)"
    return (
        f"{statistics.mean(values):{sign}.1f} ± {statistics.stdev(values) / math.sqrt(len(values)):.1f} ({len(values)})"
    )


# -- the command ------------------------------------------------------------------------------------------------------


def base_config(files: Sequence[str], options: Sequence[Sequence[str]]) -> RunConfig:
    """Read the configuration; the method becomes ``closed``, and random weights replace a pretraining.

    Raises:
        ConfigError: as :func:`openworld.configfile.read_config`; or the detector has no peer.
    """
    words = [(key, value) for key, value in options]
    config = with_arch(construct(RunConfig, [*layers_of(files), *from_words(words)]))
    if config.model.engine != "torchvision" or config.model.neck != "fpn":
        raise ConfigError(
            "the peer is torchvision's Faster R-CNN with a pyramid",
            where="model",
            remedy="choose engine: torchvision and neck: fpn",
        )
    return replace(scaled(config), pretrain=None, method=ClosedOptions())


def file_of(folder: Path, variant: str, seed: int) -> Path:
    return folder / "results" / f"{re.sub(r'[^A-Za-z0-9_.=-]+', '+', variant)}.seed{seed}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", required=True, help="YAML file; later ones override earlier ones")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the results, and for a world")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--set", action="append", nargs=2, default=[], metavar=("KEY", "VALUE"), help="for all variants"
    )
    parser.add_argument(
        "--switch", action="append", nargs="+", default=[], metavar="KEY=VALUE", help="a variant of ours"
    )
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="train torchvision's too")
    parser.add_argument("--threads", type=int, default=1, help="of the arithmetic")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        config = base_config(options.config, options.set)
        variants = variants_of(config, options.switch, peer=options.peer)
        sources = open_sources(config, options.output)
        for seed in options.seeds:
            for variant in variants:
                path = file_of(options.output, variant.name, seed)
                if path.is_file():
                    check_same_settings(path, json.loads(path.read_text()), variant.config)
                    continue
                result = result_of(variant, seed, sources, RunLog(path.with_suffix(".jsonl")))
                write_json(path, result)
                scores = ", ".join(f"{key} {100 * result[key]:.1f}" for key in ("ap50", "ap"))
                print(f"seed {seed}, {variant.name}: {scores}, {result['train_seconds']:.0f} s", flush=True)
                write_table(options.output)
    except OpenWorldError as error:
        sys.exit(str(error))
    print(write_table(options.output))


def write_table(folder: Path) -> str:
    """Write DIR/table.md from all results in the folder, and return it."""
    text = table([json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))])
    write_atomic(folder / "table.md", text)
    return text


if __name__ == "__main__":
    main()
