"""A made-up run folder with three tasks, plausible numbers and drawn images; and a parser of pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from openworld.records import Dataset, Record
from openworld.report import plots

TASKS = [["disc", "ring", "cross", "square"], ["triangle", "star", "bar"], ["hexagon", "heart", "moon"]]
SIDE = 128


def write_run(
    run: Path, tasks: list[list[str]] | None = None, *, images: int = 10, seed: int = 3, taught: int | None = None
) -> Dataset:
    """Write a run folder with all artefacts and return its annotated test set."""
    tasks = tasks or TASKS
    number = np.random.default_rng(seed)
    names = [name for group in tasks for name in group]
    test = _test_set(run, names, images, number)
    _write(
        run / "env.json",
        {"python": "3.11.9", "torch": "2.15.0", "cpu": "2 cores", "device": "cpu", "openworld": "0.1.0"},
    )
    config = {
        "name": "Three tasks of shapes",
        "seed": 0,
        "data": {"name": "synthetic shapes", "image_size": SIDE, "tasks": tasks},
        "pretrain": {"method": {"name": "moco_v2"}, "steps": 300, "lr": 0.06},
        "train": {"steps": 240, "lr": 0.02, "batch_size": 8},
        "method": {"name": "ore", "clustering": {"margin": 10.0, "momentum": 0.99}, "energy": {"temperature": 1.5}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    repairs = {"clipped box": 7, "empty box dropped": 2, "duplicate image": 1}
    examples = ["img_004.png, annotation 17: box 4 px outside the image, clipped"]
    _write(
        run / "data.json",
        {
            "train": {"images": 600, "annotations": 1904, "repairs": repairs, "examples": examples},
            "test": {
                "images": images,
                "annotations": test.num_annotations,
                "repairs": {},
                "examples": [],
            },
        },
    )
    card = {"method": "moco_v2", "arch": "resnet18", "steps": 300, "feature_dim": 512}
    _write(run / "backbone" / "card.json", {**card, "knn": {"trained": 0.684, "untrained": 0.431, "chance": 0.1}})
    log = [{"event": "phase", "stage": "world", "task": None, "seconds": 8.3}]
    log += [
        {
            "event": "step",
            "stage": "pretrain",
            "step": n,
            "loss": 1.4 + 3.2 * 0.99**n + 0.12 * number.normal(),
            "lr": 0.06,
        }
        for n in range(300)
    ]
    log += [{"event": "phase", "stage": "pretrain", "task": None, "seconds": 171.0}]
    for task in range(1, (taught or len(tasks)) + 1):
        log += _task(run / f"task{task}", task, tasks, test, number)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log) + '{"event": "st')
    return test


_RECALL = [step / 100 for step in range(101)]
_LEVELS = [f"{step / 10:.1f}" for step in range(1, 10)]


def _envelope(reached: float, precision: float) -> list[float]:
    """A constant precision up to a recall, then 0."""
    return [precision if recall <= reached + 1e-9 else 0.0 for recall in _RECALL]


def made_result(
    task: int,
    protocol: str = "unique",
    *,
    previous: tuple[str, ...] = (),
    current: tuple[str, ...] = ("ball", "cube"),
    unknown: bool = True,
) -> dict[str, Any]:
    """A made-up result with every entry that openworld.predictions.score writes.

    ``cube`` and ``gear`` never reach recall 0.8; ``ghost`` has no objects.
    """
    names = [*previous, *current]
    below = [name for name in names if name in ("cube", "gear")]

    def some(value: Any) -> Any:
        return value if unknown else None

    return {
        "task": task,
        "previous_classes": list(previous),
        "protocol": protocol,
        "known_ap50": 1 / 3,
        "previous_ap50": 0.4 if previous else None,
        "current_ap50": 0.25,
        "both_ap50": 1 / 3 if previous else None,
        "unknown_ap50": some(0.1),
        "unknown_recall50": some(0.55),
        "unknown_precision50": some(0.2),
        "unknown_f1_50": some(0.293),
        "unknown_recall50_at": {"10": some(0.3), "30": some(0.5), "100": some(0.55)},
        "unknown_precision50_at_recall": dict.fromkeys(_LEVELS, some(0.2)),
        "wi": some(0.04),
        "wi_at_recall": {level: some(0.05 * float(level)) for level in _LEVELS},
        "wi_classes_below_recall": {level: below if float(level) >= 0.8 else [] for level in _LEVELS},
        "a_ose": some(1234),
        "a_ose_one_to_one": some(321),
        "a_ose_at": {"10": some(900), "30": some(1200), "100": some(1234)},
        "classes": {
            name: {
                "ap50": None if name == "ghost" else 0.4 if name in previous else 0.5,
                "recall50": None if name == "ghost" else 0.7,
                "precision50": None if name == "ghost" else 0.5,
                "ground_truth": 0 if name == "ghost" else 9,
            }
            for name in names
        },
        "unknown_hits": {"unknown": some(31) or 0, "known": 12, "background": 27},
        "counts": {"images": 4, "detections": 812},
        "coco": None,
        "rules": {"name": protocol, "iou_threshold": 0.5},
        "curves": {
            "recall": _RECALL,
            "precision": {
                name: None if name == "ghost" else _envelope(0.7 if name in below else 1.0, 0.5) for name in names
            },
            "unknown_precision": some(_envelope(0.55, 0.2)),
            "unknown_recall50_by_detections": some([0.55 * min(kept, 50) / 50 for kept in range(1, 101)]),
        },
    }


def _test_set(run: Path, names: list[str], images: int, number: np.random.Generator) -> Dataset:
    records = []
    for index in range(images):
        pixels = np.clip(number.normal(118, 9, (SIDE // 4, SIDE // 4, 3)) + number.normal(0, 22, 3), 0, 255).astype(
            np.uint8
        )
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        boxes, categories = [], []
        cells = number.permutation(4)[: number.integers(2, 5)]
        for cell in cells:
            category = int(number.integers(len(names)))
            side = float(number.integers(30, 52))
            x = float(64 * (cell % 2) + number.uniform(4, 60 - side)) if side < 56 else 4.0
            y = float(64 * (cell // 2) + number.uniform(4, 60 - side)) if side < 56 else 4.0
            fill = tuple(int(value) for value in number.integers(30, 230, 3))
            corners = 3 + category
            if category % 3 == 0:
                draw.ellipse((x, y, x + side, y + side), fill=fill)
            else:
                draw.regular_polygon((x + side / 2, y + side / 2, side / 2), corners, fill=fill)
            boxes.append([x, y, x + side, y + side])
            categories.append(category)
        path = run / "world" / f"img_{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        corners, none = np.array(boxes, dtype=np.float32), np.zeros(len(boxes), dtype=np.bool_)
        records.append(Record(index, path, SIDE, SIDE, corners, np.array(categories, dtype=np.int64), none))
    return Dataset.from_records(names, records)


def _task(
    folder: Path, task: int, tasks: list[list[str]], test: Dataset, number: np.random.Generator
) -> list[dict[str, Any]]:
    previous = [name for group in tasks[: task - 1] for name in group]
    current = tasks[task - 1]
    known = previous + current
    last = task == len(tasks)
    classes = {
        name: {
            "ap50": float(np.clip(number.normal(0.62 if name in current else 0.52, 0.12), 0.02, 0.97)),
            "recall50": 0.8,
            "precision50": 0.4,
            "ground_truth": int(number.integers(10, 60)),
        }
        for name in known
    }
    mean = lambda group: float(np.mean([classes[name]["ap50"] for name in group])) if group else None  # noqa: E731
    made = made_result(task, previous=tuple(previous), current=tuple(current), unknown=not last)
    metrics = {
        **made,
        "known_ap50": mean(known),
        "previous_ap50": mean(previous),
        "current_ap50": mean(current),
        "unknown_recall50": None if last else float(number.uniform(0.25, 0.5)),
        "unknown_ap50": None if last else float(number.uniform(0.05, 0.2)),
        "unknown_precision50": None if last else float(number.uniform(0.2, 0.5)),
        "wi": None if last else float(number.uniform(0.01, 0.05)),
        "a_ose": None if last else int(number.integers(20, 1400)),
        "classes": classes,
        "counts": {"images": len(test), "detections": 812, "unknown_objects": 0 if last else 61},
        "unknown_hits": {"unknown": 0 if last else 31, "known": 12, "background": 27},
    }
    _write(folder / "metrics.json", metrics)
    samples = {
        "known": (6 + 2.2 * number.weibull(2.6, 800)).tolist(),
        "unknown": (4.2 + 1.6 * number.weibull(1.9, 300)).tolist(),
    }
    fit = {"count": 800, "log_likelihood": -812.4, "ks_statistic": 0.031}
    energy = {
        "status": "fallback" if last else "fitted",
        "reason": "only 12 unknown regions, 30 are needed" if last else None,
        "fit_on": "auto_labelled",
        "uses_unknown_labels": False,
        "decision": "density",
        "known_rejection_rate": None,
        "rejected": {"known": None, "unknown": None} if last else {"known": 0.041, "unknown": 0.8},
        "notes": [],
        "temperature": 1.0,
        "known": {"shape": 2.6, "location": 6.0, "scale": 2.2, **fit},
        "unknown": None if last else {"shape": 1.9, "location": 4.2, "scale": 1.6, **fit, "count": 300},
        "samples": {"known": samples["known"], "unknown": samples["unknown"][:12] if last else samples["unknown"]},
        "boundary": None if last else 6.53,
        "intervals": [] if last else [[None, 6.53]],
    }
    _write(folder / "calibration.json", energy)
    exemplars = {"task": task, "per_class": 20, "strategy": "balanced", "seed": 0}
    _write(folder / "exemplars.json", {**exemplars, "images": list(range(57)), "instances": dict.fromkeys(known, 20)})
    images = [_predicted(record, test.categories, known, folder.parent, number) for record in test]
    _write(
        folder / "predictions.json",
        {"format": "openworld-predictions/1", "tasks": tasks, "task": task, "images": images},
    )
    lines = []
    for stage, steps in (("train", 240), ("replay", 60 if task > 1 else 0)):
        for step in range(steps):
            falling = 0.985**step
            losses = {
                "objectness": 0.05 + 0.5 * falling + 0.02 * number.normal(),
                "rpn_box": 0.04 + 0.2 * falling + 0.01 * number.normal(),
                "classification": 0.2 + 1.1 * falling + 0.05 * number.normal(),
                "box": 0.2 + 0.3 * falling + 0.03 * number.normal(),
                "clustering": 0.1 + 0.4 * falling * (step > 40) + 0.02 * number.normal(),
            }
            lines.append(
                {
                    "event": "step",
                    "stage": stage,
                    "task": task,
                    "step": step,
                    "loss": sum(losses.values()),
                    "losses": losses,
                    "lr": 0.02,
                }
            )
        if steps:
            lines.append({"event": "phase", "stage": stage, "task": task, "seconds": 0.9 * steps})
    lines += [
        {"event": "phase", "stage": "exemplars", "task": task, "seconds": 1.2},
        {"event": "phase", "stage": "calibrate", "task": task, "seconds": 9.4},
        {"event": "phase", "stage": "evaluate", "task": task, "seconds": 21.7},
    ]
    return lines


def _predicted(
    record: Record, names: list[str], known: list[str], run: Path, number: np.random.Generator
) -> dict[str, Any]:
    detections = []
    for box, category in zip(record.boxes.tolist(), record.categories, strict=True):
        x1, y1, x2, y2 = (value + float(number.normal(0, 1.5)) for value in box)
        name = names[category]
        label = name if name in known and number.random() < 0.85 else "unknown"
        detections.append(
            _detection([x1, y1, x2 - x1, y2 - y1], label, float(number.uniform(0.4, 0.99)), known, number)
        )
    for _ in range(3):
        corner, side = number.uniform(0, 80, 2), number.uniform(12, 40, 2)
        label = str(number.choice([*known, "unknown"]))
        detections.append(
            _detection([*corner.tolist(), *side.tolist()], label, float(number.uniform(0.05, 0.35)), known, number)
        )
    detections.sort(key=lambda item: -item["score"])
    file = record.path.relative_to(run).as_posix()
    return {"id": record.image_id, "file": file, "width": SIDE, "height": SIDE, "detections": detections}


def _detection(
    box: list[float], label: str, score: float, known: list[str], number: np.random.Generator
) -> dict[str, Any]:
    best = label if label != "unknown" else str(number.choice(known))
    return {"bbox": box, "label": label, "score": score, "energy": -float(number.normal(7, 1)), "best_known": best}


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def written_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A complete run folder and its test set, for tests to copy."""
    run = tmp_path_factory.mktemp("shapes")
    return run, write_run(run, images=4)


@pytest.fixture
def fake_run(written_run: tuple[Path, Dataset], tmp_path: Path) -> tuple[Path, Dataset]:
    """A complete run folder and its test set, to change as a test likes."""
    written, test = written_run
    run = tmp_path / "shapes"
    shutil.copytree(written, run)
    records = [replace(record, path=run / record.path.relative_to(written)) for record in test]
    return run, Dataset.from_records(test.categories, records)


@pytest.fixture
def quick_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty figures, where a test is about the page."""
    monkeypatch.setattr(plots, "svg", lambda name, *_: f'<svg class="figure" data-figure="{name}"></svg>')


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Path, Dataset]]:
    """Write another run folder: ``make_run("name", tasks)``."""

    def make(name: str, tasks: list[list[str]], **options: Any) -> tuple[Path, Dataset]:
        run = tmp_path / name
        run.mkdir()
        return run, write_run(run, tasks, **options)

    return make


@pytest.fixture
def results() -> list[dict[str, Any]]:
    """Results of three tasks under one protocol; in the last one nothing is unknown."""
    return [
        made_result(1),
        made_result(2, previous=("ball", "cube"), current=("gear", "ghost")),
        made_result(3, previous=("ball", "cube", "gear", "ghost"), current=("star",), unknown=False),
    ]


# -- pages ------------------------------------------------------------------------------------------------------------

VOID = {"meta", "img", "input", "br", "link"}


@dataclass
class Element:
    """A tag with its attributes, its child elements, and all text inside."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text inside, spaces collapsed."""
        return " ".join("".join(self.pieces).split())

    def all(self, tag: str | None = None, **attributes: str) -> list[Element]:
        """Elements inside by tag and attributes, in the order of the page; ``_`` in a name stands for ``-``."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        found = []
        for child in self.children:
            if tag in (None, child.tag) and wanted.items() <= child.attributes.items():
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def texts(self, tag: str) -> list[str]:
        """The text of each element with this tag."""
        return [element.text for element in self.all(tag)]


class Page(HTMLParser):
    """Parses a page, and refuses tags that do not close in order, scripts, and whatever comes from outside."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(self.source)
        assert self._open == [self.root], [element.tag for element in self._open]
        ids = [element.attributes["id"] for element in self.root.all() if "id" in element.attributes]
        assert len(ids) == len(set(ids)), "an id comes twice"
        assert "@import" not in self.source and "url(" not in self.source.replace("url(#", "")
        for element in self.root.all():
            assert element.tag not in ("script", "link")
            for name, value in element.attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                    assert value.startswith(("#", "data:image/jpeg;base64,")), value

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.pieces.append(data)

    def __contains__(self, name: str) -> bool:
        return bool(self.root.all(id=name))

    def __getitem__(self, name: str) -> Element:
        (found,) = self.root.all(id=name)
        return found

    @property
    def figures(self) -> list[str]:
        """Names of the figures, in the order of the page."""
        return [element.attributes["data-figure"] for element in self.root.all("svg", class_="figure")]

    @property
    def pictures(self) -> int:
        """Number of embedded drawings."""
        return sum(element.attributes["src"].startswith("data:image/jpeg") for element in self.root.all("img"))


@pytest.fixture
def open_page() -> Callable[[Path], Page]:
    """Opens a page, and checks what holds for every one: see the class."""
    return Page
