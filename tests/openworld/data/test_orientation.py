"""Photographs with EXIF tags under annotations of every format: the box lies on the object, or somebody is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from openworld.audit.images_and_boxes import check_data
from openworld.data.formats.cache import cache_folder
from openworld.data.formats.coco import read_coco
from openworld.data.formats.read import read_dataset
from openworld.data.loader import TrainBatches, eval_batches, load_record
from openworld.data.options import LoaderOptions, SourceOptions
from openworld.data.orientation import as_upright, warn_of_orientation
from openworld.data.splits import View, hold_out
from openworld.errors import DataError
from openworld.records import Dataset, Record, merged
from tests.photographs import BOX, STORED, object_in, upright_picture, write_photograph

SIZE = (48, 64)


def yolo(folder: Path, suffix: str = ".jpg") -> Path:
    """One photograph per tag, labelled as its viewer shows it."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    x1, y1, x2, y2 = BOX
    line = f"0 {(x1 + x2) / 2 / 48} {(y1 + y2) / 2 / 64} {(x2 - x1) / 48} {(y2 - y1) / 64}\n"
    for tag in STORED:
        write_photograph(folder / "images" / f"{tag}{suffix}", tag)
        (folder / "labels" / f"{tag}.txt").write_text(line)
    (folder / "classes.txt").write_text("mug\n")
    return folder


def coco(folder: Path, tags: list[int], *, size: tuple[int, int] | None = SIZE, square: bool = False) -> Path:
    """One photograph per tag, annotated as its viewer shows it."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for tag in tags:
        write_photograph(folder / f"{tag}.jpg", tag, upright_picture(64, 64) if square else None)
        images.append({"id": tag, "file_name": f"{tag}.jpg"})
        images[-1] |= {"width": 64 if square else size[0], "height": size[1]} if size else {}
        box = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
        annotations.append({"id": tag, "image_id": tag, "category_id": 1, "bbox": box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "mug"}]}
    (folder / "a.json").write_text(json.dumps(content))
    return folder / "a.json"


def right(dataset: Dataset) -> list[int]:
    """Tags of the photographs whose box lies on the object as the loader gives it."""
    found = []
    for record in dataset:
        close = np.abs(np.array(object_in(load_record(record))) - record.boxes[0]).max() <= 1
        found += [int(record.path.stem)] if close else []
    return found


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_yolo_labels_lie_on_the_objects_whatever_the_tag(tmp_path: Path, suffix: str) -> None:
    dataset = read_dataset(SourceOptions(annotations=str(yolo(tmp_path / "set", suffix))))
    assert right(dataset) == list(STORED)
    assert dataset.sizes.tolist() == [list(SIZE)] * 8
    assert dataset.upright is True


def test_yolo_labels_of_stored_pixels(tmp_path: Path) -> None:
    """Tools that ignore the tag label what is stored: with `orientation: stored` sizes and pixels are those."""
    source = SourceOptions(annotations=str(yolo(tmp_path / "set")), orientation="stored")
    for record in read_dataset(source):
        tag = int(record.path.stem)
        assert (record.width, record.height) == ((64, 48) if tag >= 5 else SIZE)
        x, y = (BOX[0] + BOX[2]) / 2 / 48, (BOX[1] + BOX[3]) / 2 / 64
        centre = record.boxes[0].reshape(2, 2).mean(axis=0)
        np.testing.assert_allclose(centre, [x * record.width, y * record.height], rtol=1e-5)
        height, width = load_record(record).shape[-2:]
        assert (width, height) == (record.width, record.height)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_choice_reaches_the_batches_through_parts_and_workers(tmp_path: Path, workers: int) -> None:
    dataset = read_dataset(SourceOptions(annotations=str(yolo(tmp_path / "set"))))
    rest, held_out = hold_out(dataset, 0.25)
    joined = merged([rest, held_out])
    options = LoaderOptions(min_size=48, max_size=64, scale_jitter=[1.0, 1.0], flip=0.0, workers=workers)
    for images, positions, _ in eval_batches(joined, 3, options):
        for image, position in zip(images, positions, strict=True):
            assert object_in(image * 255) == pytest.approx(BOX, abs=1), joined[position].path
    view = View(joined, joined.box_categories)
    batches = TrainBatches(view, batch_size=2, seed_parts=(0,), start_step=0, total_steps=4, options=options)
    for images, targets in batches:
        for image, target in zip(images, targets, strict=True):
            assert object_in(image * 255) == pytest.approx(target.boxes[0].tolist(), abs=1)


@pytest.mark.parametrize(
    ("orientation", "on_the_object"),
    [("auto", [1, 5, 6, 7, 8]), ("upright", [1, 2, 3, 4, 5, 6, 7, 8])],
)
def test_coco_of_upright_pictures(tmp_path: Path, orientation: str, on_the_object: list[int]) -> None:
    path = coco(tmp_path, list(STORED))
    source = SourceOptions(annotations=str(path), orientation=orientation)  # type: ignore[arg-type]
    assert right(read_dataset(source)) == on_the_object


def test_coco_of_stored_pictures_refuses_those_of_another_size(tmp_path: Path) -> None:
    dataset = read_dataset(SourceOptions(annotations=str(coco(tmp_path, [1, 3, 6])), orientation="stored"))
    assert object_in(load_record(dataset.find(3))) != pytest.approx(BOX, abs=1)
    with pytest.raises(
        DataError, match=r"6\.jpg: image is 64x48, its annotation \(id 6\) says 48x64(.|\n)*orientation"
    ):
        load_record(dataset.find(6))


def test_a_size_that_is_read_from_a_file_with_a_tag_is_the_chosen_one(tmp_path: Path) -> None:
    path = coco(tmp_path, [1, 6], size=None)
    guessed, upright = read_coco(path), read_coco(path, upright=True)
    assert guessed.sizes.tolist() == [[48, 64], [64, 48]] and upright.sizes.tolist() == [[48, 64]] * 2
    assert guessed.repairs.counts == {
        "size read from the image file": 1,
        "size read from an image file with an EXIF tag, as stored": 1,
    }
    assert upright.repairs.counts == {"size read from the image file": 2} and right(upright) == [1, 6]


def voc(folder: Path, tag: int) -> Path:
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    write_photograph(folder / "JPEGImages" / f"{tag}.jpg", tag)
    box = "".join(
        f"<{key}>{value}</{key}>"
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (BOX[0] + 1, BOX[1] + 1, *BOX[2:]), strict=True)
    )
    (folder / "Annotations" / f"{tag}.xml").write_text(
        f"<annotation><size><width>48</width><height>64</height></size>"
        f"<object><name>mug</name><bndbox>{box}</bndbox></object></annotation>"
    )
    return folder


@pytest.mark.parametrize("tag", STORED)
def test_voc_of_upright_pictures(tmp_path: Path, tag: int) -> None:
    source = SourceOptions(annotations=str(voc(tmp_path / "set", tag)), orientation="upright")
    assert right(read_dataset(source)) == [tag]


def test_the_choice_is_not_lost_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENWORLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("openworld.data.formats.cache.MIN_IMAGES", 1)
    monkeypatch.setattr("openworld.data.formats.cache.SETTLED_S", -1.0)
    path = coco(tmp_path / "set", list(STORED))
    for upright in (None, True, None, False, True):
        assert read_coco(path, cache=cache_folder(), upright=upright).upright is upright
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert right(read_coco(path, cache=cache_folder(), upright=True)) == list(STORED)


# -- what the sizes cannot tell ----------------------------------------------------------------------------------------


def test_the_check_names_what_sizes_cannot_tell_and_the_evidence(tmp_path: Path) -> None:
    result = check_data({"train": read_coco(coco(tmp_path, [1, 3, 4, 6]))})
    facts = result["sets"]["train"]["undecided_orientation"]
    assert facts["images"] == 2 and facts["examples"] == [3, 4] and facts["evidence"]
    (finding,) = [found for found in result["findings"] if "EXIF tag that viewers apply" in found["finding"]]
    assert finding["level"] == "problem" and finding["finding"].startswith("2 of 4 images of train have an EXIF tag")
    assert "e.g. 6" in finding["finding"] and "orientation: upright" in finding["remedy"]
    assert result["sets"]["train"]["turned"] == {"images": 1, "examples": [6]}


@pytest.mark.parametrize("tag", [2, 3, 4, 5, 6, 7, 8])
def test_of_a_square_photograph_no_tag_can_be_told(tmp_path: Path, tag: int) -> None:
    result = check_data({"test": read_coco(coco(tmp_path, [1, tag], square=True))})
    (finding,) = [found for found in result["findings"] if "EXIF" in found["finding"]]
    assert finding["level"] == "warning" and f"(e.g. {tag})" in finding["finding"]
    decided = read_coco(coco(tmp_path, [1, tag], square=True), upright=True)
    assert right(decided) == [1, tag]
    assert not any("EXIF tag that viewers" in found["finding"] for found in check_data({"test": decided})["findings"])


def test_a_warning_before_training_once_a_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = read_coco(coco(tmp_path, [1, 2, 3, 6]))
    with caplog.at_level(logging.WARNING):
        warn_of_orientation(dataset, "train")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("2 of 4 images of train have an EXIF tag") and "Set `orientation: upright`" in message
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_orientation(read_coco(coco(tmp_path / "plain", [1, 5, 6, 8])), "train")
        warn_of_orientation(read_coco(coco(tmp_path, [1, 2, 3, 6]), upright=False), "train")
    assert caplog.records == []


# -- for loaders that always apply the tag -----------------------------------------------------------------------------


def test_annotations_of_stored_pictures_become_those_of_upright_ones(tmp_path: Path) -> None:
    """Whatever a set was annotated on, afterwards the boxes lie on the objects of the upright pictures."""
    records = []
    for tag in STORED:
        path = write_photograph(tmp_path / f"{tag}.jpg", tag)
        stored = STORED[tag](upright_picture())
        box = np.array([object_in(stored.transpose(2, 0, 1))], dtype=np.float32)
        height, width = stored.shape[:2]
        none = np.zeros(1, dtype=np.int64)
        records.append(Record(tag, path, width, height, box, none, none.astype(np.bool_)))
    dataset = Dataset.from_records(["mug"], records)
    upright = as_upright(dataset)
    assert upright.boxes.tolist() == [list(BOX)] * 8 and upright.sizes.tolist() == [list(SIZE)] * 8
    assert upright.upright and right(upright) == list(STORED) and as_upright(upright) is upright
    assert dataset.boxes.tolist() != upright.boxes.tolist()  # the given one stays
    by_size = read_coco(coco(tmp_path / "coco", [5, 6, 7, 8]))
    assert as_upright(by_size).boxes.tolist() == by_size.boxes.tolist()


def test_sets_that_are_decoded_in_different_ways_are_not_joined(tmp_path: Path) -> None:
    path = coco(tmp_path, [1])
    with pytest.raises(ValueError, match="upright or white_level"):
        merged([read_coco(path), read_coco(path, upright=True)])
