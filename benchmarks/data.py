"""Reading annotations, and feeding images, beside a loader written as torchvision's detection reference writes its own.

    python benchmarks/data.py [--xml 10000] [--boxes 100000] [--images 96] [--size 640 480] [--repeats 5] [--json FILE]

Annotations: a generated VOC folder and a generated COCO file are parsed, and read from the cache; both must agree.
The cache does not take files that have only just been written, so the run waits two seconds first. The files are in the
system's page cache both times.

Images: the same generated JPEG photographs with COCO annotations go through both loaders in one run, in turns, with 0,
1 and 2 worker processes: decode, horizontal flip, resize to the size of the model, float32 in [0, 1]. The peer is
``CocoDetection`` (Pillow) with ``v2`` transforms, boxes as ``tv_tensors`` and a ``DataLoader`` that collates to lists;
it resizes uint8 images, and so there is a line for each kind of resizing of this package. A worker's start is not
timed. Each figure is the median of the repeats, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from openworld.data.formats import cache as annotation_cache
from openworld.data.formats.coco import read_coco
from openworld.data.formats.voc import read_voc
from openworld.data.loader import TrainBatches
from openworld.data.options import LoaderOptions
from openworld.data.splits import View
from openworld.data.transforms import as_float
from openworld.records import Dataset

BATCH = 4
NAMES = ["cat", "dog", "bird", "car"]


def write_voc(folder: Path, count: int) -> Path:
    """Write XML as VOC's own, three objects per image on average."""
    rng = np.random.default_rng(0)
    (folder / "Annotations").mkdir(parents=True)
    for number in range(count):
        objects = ""
        for _ in range(int(rng.integers(1, 6))):
            x1, y1, x2, y2 = (*rng.integers(1, 200, 2).tolist(), *rng.integers(210, 330, 2).tolist())
            objects += (
                f"\t<object>\n\t\t<name>{NAMES[int(rng.integers(4))]}</name>\n\t\t<pose>Unspecified</pose>\n"
                f"\t\t<truncated>0</truncated>\n\t\t<difficult>{int(rng.random() < 0.1)}</difficult>\n\t\t<bndbox>\n"
                f"\t\t\t<xmin>{x1}</xmin>\n\t\t\t<ymin>{y1}</ymin>\n\t\t\t<xmax>{x2}</xmax>\n\t\t\t<ymax>{y2}</ymax>\n"
                "\t\t</bndbox>\n\t</object>\n"
            )
        text = (
            f"<annotation>\n\t<folder>VOC2007</folder>\n\t<filename>{number:06d}.jpg</filename>\n\t<source>\n"
            "\t\t<database>generated</database>\n\t</source>\n\t<size>\n\t\t<width>500</width>\n"
            f"\t\t<height>333</height>\n\t\t<depth>3</depth>\n\t</size>\n\t<segmented>0</segmented>\n{objects}</annotation>\n"
        )
        (folder / f"Annotations/{number:06d}.xml").write_text(text)
    return folder


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write smooth noise of several octaves, which takes about as long to decode as a photograph."""
    rng = np.random.default_rng(1)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        picture = np.zeros((size[1], size[0], 3))
        for cells in (4, 16, 64, 160):
            layer = Image.fromarray(rng.integers(0, 255, (cells, cells, 3), dtype=np.uint8)).resize(size)
            picture += np.asarray(layer, dtype=np.float64) / (1 + cells / 32)
        picture *= 255 / picture.max()
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"images/{number:06d}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number:06d}.jpg", "width": size[0], "height": size[1]})
        for _ in range(5):
            x, y = (rng.uniform(0, 0.5, 2) * size).round(2).tolist()
            box = [x, y, *(rng.uniform(0.1, 0.4, 2) * size).round(2).tolist()]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(rng.integers(4)) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "set.json").write_text(json.dumps(content))
    return folder / "set.json"


def seconds_of(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def summary(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": values}


def agree(first: Dataset, second: Dataset) -> bool:
    """Return whether two readings are equal."""
    return first.categories == second.categories and all(
        (a.image_id, a.path, a.width, a.height, a.annotation_ids)
        == (b.image_id, b.path, b.width, b.height, b.annotation_ids)
        and np.array_equal(a.boxes, b.boxes)
        and np.array_equal(a.categories, b.categories)
        and np.array_equal(a.ignore, b.ignore)
        for a, b in zip(first, second, strict=True)
    )


def write_coco_file(path: Path, num_images: int, num_boxes: int) -> Path:
    """A COCO file with polygons of ten points, as large per box as the published ones."""
    rng = np.random.default_rng(2)
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "width": 640, "height": 480, "license": 1}
        for number in range(num_images)
    ]
    annotations = [
        {
            "id": number + 1,
            "image_id": image,
            "category_id": number % len(NAMES) + 1,
            "bbox": rng.uniform(1, 200, 4).round(2).tolist(),
            "segmentation": [rng.uniform(1, 400, 20).round(2).tolist()],
            "area": 1.0,
            "iscrowd": 0,
        }
        for number, image in enumerate(rng.integers(0, num_images, num_boxes).tolist())
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def measure_annotations(folder: Path, read: Callable[[Path | None], Dataset], repeats: int) -> dict[str, Any]:
    """Seconds to read annotations without and with a cache in ``folder``; ``read`` takes the folder of the cache."""
    time.sleep(annotation_cache.SETTLED_S + 0.1)
    cold, warm = [], []
    for _ in range(repeats):
        taken, parsed = seconds_of(lambda: read(None))
        cold.append(taken)
    read(folder)
    if len(parsed) >= annotation_cache.MIN_IMAGES and len(list(folder.iterdir())) != 1:
        raise SystemExit("the cache was not written")
    for _ in range(repeats):
        taken, kept = seconds_of(lambda: read(folder))
        warm.append(taken)
    if not agree(parsed, kept):
        raise SystemExit("the cache holds other records than the files")
    return {
        "images": len(parsed),
        "boxes": parsed.num_annotations,
        "parsed_s": summary(cold),
        "cached_s": summary(warm),
        "cache_bytes": sum(file.stat().st_size for file in folder.iterdir()) if folder.exists() else 0,
        "speedup": statistics.median(cold) / statistics.median(warm),
    }


def collate(batch: list[Any]) -> tuple[Any, ...]:
    return tuple(zip(*batch, strict=True))


def one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def peer_batches(path: Path, sides: tuple[int, int], workers: int) -> Iterator[Any]:
    """One epoch of the reference's kind of loader."""
    transforms = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(0.5),
            v2.Resize(sides[0], max_size=sides[1], antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = CocoDetection(str(path.parent / "images"), str(path), transforms=transforms)
    wrapped = wrap_dataset_for_transforms_v2(dataset, target_keys=["boxes", "labels", "image_id"])
    yield from DataLoader(
        wrapped, batch_size=BATCH, shuffle=True, num_workers=workers, collate_fn=collate, worker_init_fn=one_thread
    )


def our_batches(dataset: Dataset, sides: tuple[int, int], workers: int, resize: str) -> Iterator[Any]:
    """One epoch of this package's loader, images decoded every time."""
    options = LoaderOptions(
        min_size=sides[0],
        max_size=sides[1],
        scale_jitter=[1.0, 1.0],
        workers=workers,
        cache_mib=0,
        resize="uint8" if resize == "uint8" else "float",
    )
    batches = TrainBatches(
        View(dataset, dataset.box_categories),
        batch_size=BATCH,
        seed_parts=(0,),
        start_step=0,
        total_steps=len(dataset) // BATCH,
        options=options,
    )
    for images, targets in batches:  # with uint8 an engine makes them float32, the peer's loader here
        yield [as_float(image) for image in images], targets


def rate(batches: Iterator[Any]) -> float:
    """Return the images per second after the first batch."""
    next(batches)
    started, images = time.perf_counter(), 0
    for batch in batches:
        images += len(batch[0])
    return images / (time.perf_counter() - started)


def measure_images(
    path: Path, sides: tuple[int, int], repeats: int, workers: tuple[int, ...] = (0, 1, 2)
) -> dict[str, Any]:
    dataset = read_coco(path)
    loaders: dict[str, Callable[[int], Iterator[Any]]] = {
        "openworld, resize float": lambda number: our_batches(dataset, sides, number, "float"),
        "openworld, resize uint8": lambda number: our_batches(dataset, sides, number, "uint8"),
        "torchvision reference": lambda number: peer_batches(path, sides, number),
    }
    found: dict[str, Any] = {}
    for number in workers:
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(repeats):
            for name, make in loaders.items():
                rates[name].append(rate(make(number)))
        found[str(number)] = {name: summary(values) for name, values in rates.items()}
    return {"images": len(dataset), "model_sides": list(sides), "images_per_second": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--xml", type=int, default=10_000, help="XML files")
    parser.add_argument("--boxes", type=int, default=100_000, help="boxes of the COCO file")
    parser.add_argument("--images", type=int, default=96, help="photographs")
    parser.add_argument("--size", type=int, nargs=2, default=[640, 480], help="of the photographs, pixels")
    parser.add_argument("--sides", type=int, nargs=2, default=[600, 1000], help="min_size and max_size of the model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        xml = write_voc(folder / "voc", options.xml)
        coco = write_coco_file(folder / "coco.json", options.boxes // 7, options.boxes)
        report = {
            "annotations": {
                "XML files": measure_annotations(
                    folder / "voc_cache", lambda cache: read_voc(xml, cache=cache), options.repeats
                ),
                "COCO file": measure_annotations(
                    folder / "coco_cache", lambda cache: read_coco(coco, cache=cache), options.repeats
                ),
            },
            "loader": measure_images(
                write_photographs(folder / "photographs", options.images, tuple(options.size)),
                tuple(options.sides),
                options.repeats,
            ),
            "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
                        "torchvision": torchvision.__version__},
        }  # fmt: skip
    loader = report["loader"]
    for kind, reading in report["annotations"].items():
        print(f"{kind}: {reading['images']} images, {reading['boxes']} boxes")
        for key, label in (("parsed_s", "parsed"), ("cached_s", "from the cache")):
            row = reading[key]
            print(f"  {label:<26}{row['median']:8.3f} s   ({row['min']:.3f} to {row['max']:.3f})")
    width, height = options.size
    print(f"{loader['images']} JPEG of {width}x{height} to sides {options.sides}, images/s")
    for number, rows in loader["images_per_second"].items():
        for label, row in rows.items():
            print(f"  {number} workers, {label:<26}{row['median']:8.1f}     ({row['min']:.1f} to {row['max']:.1f})")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
