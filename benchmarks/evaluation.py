"""Scoring at the size of M-OWODB's test list: the vectorised evaluator beside one written as the published ones are.

    python benchmarks/evaluation.py [--images 10246] [--detections 100] [--repeats 5] [--json FILE]

The peer is the VOC loop that all published open-world evaluators share: detections as lines of text, one class after
the other, one detection after the other, twice (once for the class, once for the unknown objects). Both score the same
synthetic detections under the protocol ``ore``; the run fails if their numbers differ. Each evaluator runs in its own
process, which reports its time and its peak memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from typing import Any

import numpy as np

KNOWN = 80


def scene(images: int, detections: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw about 7 objects per image in 81 classes (the last is unknown); two of five detections are near an object."""
    generator = np.random.default_rng(seed)
    counts = generator.poisson(7, images)
    object_image = np.repeat(np.arange(images), counts)
    total = len(object_image)

    def boxes(number: int) -> np.ndarray:
        corner = generator.uniform(0, 400, (number, 2))
        return np.hstack([corner, corner + generator.uniform(20, 200, (number, 2))])

    objects, labels = np.rint(boxes(total)), generator.integers(0, KNOWN + 1, total)
    image = np.repeat(np.arange(images), detections)
    first = np.cumsum(counts) - counts
    near = (generator.random(len(image)) < 0.4) & (counts[image] > 0)
    around = np.where(near, first[image] + (generator.random(len(image)) * np.maximum(counts[image], 1)).astype(int), 0)
    moved = objects[around] + generator.normal(0, 8, (len(image), 4))
    moved = np.hstack([moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2] + 1)])
    found = np.where(near[:, None], moved, boxes(len(image)))
    right = near & (generator.random(len(image)) < 0.7)
    return {
        "object_image": object_image,
        "objects": objects,
        "object_labels": labels,
        "image": image,
        "boxes": found.astype(np.float32).astype(np.float64),
        "labels": np.where(right, labels[around], generator.integers(0, KNOWN + 1, len(image))),
        "scores": generator.random(len(image)).astype(np.float32).astype(np.float64),
    }


def vectorised(arrays: dict[str, np.ndarray], images: int, repeats: int) -> dict[str, Any]:
    """This package."""
    from openworld.metrics.ground_truth import GroundTruth, ScoredBoxes
    from openworld.metrics.owod import evaluate
    from openworld.metrics.protocols import ORE

    truth = GroundTruth.from_arrays(
        [f"{image:06d}" for image in range(images)],
        arrays["object_image"],
        arrays["objects"],
        arrays["object_labels"],
        KNOWN,
    )
    found = ScoredBoxes.from_arrays(arrays["image"], arrays["boxes"], arrays["labels"], arrays["scores"])
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = evaluate(truth, found, 60, KNOWN, ORE)
        seconds.append(time.perf_counter() - started)
    names = ("known_ap50", "unknown_ap50", "unknown_recall50", "wi", "a_ose")
    return {"seconds": seconds, "numbers": {name: result[name] for name in names}}


def loop(arrays: dict[str, np.ndarray], images: int, repeats: int) -> dict[str, Any]:
    """The plain loop. Annotations are at hand as dictionaries; reading XML is not timed."""
    records: dict[str, list[dict[str, Any]]] = {f"{image:06d}": [] for image in range(images)}
    for image, box, label in zip(arrays["object_image"], arrays["objects"], arrays["object_labels"]):
        pixels = [box[0] + 1, box[1] + 1, box[2], box[3]]
        records[f"{image:06d}"].append({"class": int(label), "bbox": pixels, "difficult": False})
    lines: dict[int, list[str]] = {row: [] for row in range(KNOWN + 1)}
    written = zip(
        arrays["image"].tolist(), arrays["boxes"].tolist(), arrays["labels"].tolist(), arrays["scores"].tolist()
    )
    for image, box, label, score in written:
        x1, y1, x2, y2 = np.float32(box)
        lines[label].append(f"{image:06d} {score:.3f} {x1 + 1:.1f} {y1 + 1:.1f} {x2:.1f} {y2:.1f}")
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        curves = [loop_class(lines[row], records, row) for row in range(KNOWN + 1)]
        known = curves[:KNOWN]
        at = [min(range(len(c["recall"])), key=lambda i: abs(c["recall"][i] - 0.8)) for c in known]
        numbers = {
            "known_ap50": float(np.mean([curve["ap"] for curve in known])),
            "unknown_ap50": float(curves[KNOWN]["ap"]),
            "unknown_recall50": float(curves[KNOWN]["recall"][-1]),
            "wi": float(
                np.mean([c["errors"][i] for c, i in zip(known, at)])
                / np.mean([c["counted"][i] for c, i in zip(known, at)])
            ),
            "a_ose": int(sum(curve["errors"][-1] for curve in known)),
        }
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "numbers": numbers}


def loop_class(lines: list[str], records: dict[str, list[dict[str, Any]]], row: int) -> dict[str, Any]:
    """Compute recall, AP and open-set errors of one class."""
    own: dict[str, dict[str, Any]] = {}
    unknowns: dict[str, np.ndarray] = {}
    positives = 0
    for name, objects in records.items():
        mine = [thing for thing in objects if thing["class"] == row]
        own[name] = {"bbox": np.array([thing["bbox"] for thing in mine], float), "found": [False] * len(mine)}
        unknowns[name] = np.array([thing["bbox"] for thing in objects if thing["class"] == KNOWN], float)
        positives += len(mine)
    split = [line.split(" ") for line in lines]
    order = np.argsort(-np.array([float(words[1]) for words in split]), kind="stable")
    names = [split[at][0] for at in order]
    boxes = np.array([[float(word) for word in split[at][2:]] for at in order])
    true, false, errors = np.zeros(len(names)), np.zeros(len(names)), np.zeros(len(names))
    for at, name in enumerate(names):
        best, where = overlap(own[name]["bbox"], boxes[at])
        if best > 0.5 and not own[name]["found"][where]:
            own[name]["found"][where] = True
            true[at] = 1
        else:
            false[at] = 1
    if row < KNOWN:
        for at, name in enumerate(names):
            errors[at] = overlap(unknowns[name], boxes[at])[0] > 0.5
    true, false = np.cumsum(true), np.cumsum(false)
    recall, precision = true / positives, true / (true + false)
    envelope = np.concatenate([[0.0], precision, [0.0]])
    for at in range(len(envelope) - 1, 0, -1):
        envelope[at - 1] = max(envelope[at - 1], envelope[at])
    steps = np.concatenate([[0.0], recall, [1.0]])
    rises = np.where(steps[1:] != steps[:-1])[0]
    ap = np.sum((steps[rises + 1] - steps[rises]) * envelope[rises + 1])
    return {"recall": recall, "ap": ap, "counted": true + false, "errors": np.cumsum(errors)}


def overlap(objects: np.ndarray, box: np.ndarray) -> tuple[float, int]:
    """Return the largest IoU of a box with the objects, in inclusive pixels."""
    if not objects.size:
        return -np.inf, -1
    width = np.maximum(np.minimum(objects[:, 2], box[2]) - np.maximum(objects[:, 0], box[0]) + 1, 0)
    height = np.maximum(np.minimum(objects[:, 3], box[3]) - np.maximum(objects[:, 1], box[1]) + 1, 0)
    areas = (objects[:, 2] - objects[:, 0] + 1) * (objects[:, 3] - objects[:, 1] + 1)
    iou = width * height / ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) + areas - width * height)
    best = int(np.argmax(iou))
    return float(iou[best]), best


def work(evaluator: str, images: int, detections: int, repeats: int, connection: Any) -> None:
    """Run an evaluator in its own process, and report time and peak memory."""
    result = (vectorised if evaluator == "vectorised" else loop)(scene(images, detections), images, repeats)
    scale = 1024 if sys.platform != "darwin" else 1
    connection.send({**result, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale})


def measure(evaluator: str, images: int, detections: int, repeats: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(evaluator, images, detections, repeats, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit(f"the {evaluator} evaluator failed") from None
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10246)
    parser.add_argument("--detections", type=int, default=100, help="number of detections per image")
    parser.add_argument("--repeats", type=int, default=5, help="of the vectorised evaluator; the loop runs once")
    parser.add_argument("--json", type=str, default=None, help="file for the numbers")
    options = parser.parse_args()
    ours = measure("vectorised", options.images, options.detections, options.repeats)
    peer = measure("loop", options.images, options.detections, 1)
    for name, value in peer["numbers"].items():
        if abs(value - ours["numbers"][name]) > 1e-9:
            raise SystemExit(f"{name}: {ours['numbers'][name]} here, {value} in the loop")
    median = statistics.median(ours["seconds"])
    summary = {
        "images": options.images,
        "detections_per_image": options.detections,
        "vectorised": {**ours, "median_seconds": median},
        "loop": peer,
        "ratio": peer["seconds"][0] / median,
    }
    print(f"{options.images} images x {options.detections} detections, {KNOWN + 1} classes; equal numbers to 1e-9")
    print(
        f"vectorised {median:.2f} s (of {options.repeats}: {min(ours['seconds']):.2f} to {max(ours['seconds']):.2f}), "
        f"peak {ours['peak_bytes'] / 2**30:.2f} GiB with the data"
    )
    slow, peak = peer["seconds"][0], peer["peak_bytes"] / 2**30
    print(f"plain loop {slow:.1f} s, peak {peak:.2f} GiB: {summary['ratio']:.0f} times")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump(summary, stream, indent=1)


if __name__ == "__main__":
    main()
