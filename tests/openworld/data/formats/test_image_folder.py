"""The folder of the images of a COCO file, and the spelling of their names, as annotation tools leave them."""

from __future__ import annotations

import json
import os
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from urllib.parse import quote

import pytest
from PIL import Image

from openworld.data.formats import cache as cache_module
from openworld.data.formats.coco import read_coco
from openworld.errors import AnnotationError, DataError
from openworld.records import Dataset, check_files

NAMES = ("pic_1.jpg", "pic_2.jpg", "sub/pic_3.jpg")


def annotate(place: Path, names: Sequence[str], **size: int) -> Path:
    """A COCO file that names these images."""
    size = size or {"width": 40, "height": 30}
    content = {
        "images": [{"id": number, "file_name": name, **size} for number, name in enumerate(names)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "bbox": [1, 2, 10, 20]} for number in range(len(names))
        ],
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(content))
    return place


def touch(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """Files of these names; nobody looks into them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def files(dataset: Dataset) -> list[Path]:
    """The image files, each of which must exist."""
    check_files(dataset, "set.json")
    return [Path(os.path.normpath(str(path))) for path in dataset.paths]


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotations", "images", "prefix"),
    [
        ("set.json", "images", ""),
        ("set.json", ".", ""),
        ("result.json", "images", "images/"),  # Label Studio
        ("_annotations.coco.json", ".", ""),  # Roboflow
        ("labels.json", "data", ""),  # FiftyOne
        ("labels.json", "data", "data/"),
        ("annotations/instances_train2017.json", "train2017", ""),  # COCO itself
        ("annotations/person_keypoints_val2017.json", "val2017", ""),
        ("annotations/image_info_test-dev2017.json", "test-dev2017", ""),
        ("annotations/instances_train2017.json", "images/train2017", ""),
        ("annotations/instances_train2017.json", "train2017", "train2017/"),
        ("annotations/instances_default.json", "images/default", ""),  # CVAT
        ("annotations/instances_default.json", "images", ""),
        ("annotations/instances_Train.json", "images/Train", ""),  # CVAT's subsets, Datumaro
        ("annotations/instances_default.json", "images/default", "images/default/"),
        ("annotations/instances.json", "images", ""),  # Supervisely
        ("annotations/train.json", "data/train", ""),
        ("annotations/lvis_v1_train.json", "train", ""),
        ("train.json", "train", ""),
        ("train_annotations.json", "images/train", ""),
        ("my.set_train.json", "images/my.set_train", ""),
        ("set/all.json", "set", "set/"),  # names that are relative to where a script ran
        ("work/set/all.json", "work/set/photos", "work/set/photos/"),
        ("work/set/all.json", "work/set/photos", "set/photos/"),
    ],
)
@pytest.mark.parametrize("windows", [False, True])
def test_found_where_tools_put_them(tmp_path: Path, annotations: str, images: str, prefix: str, windows: bool) -> None:
    folder = touch(tmp_path / images)
    names = [f"{prefix}{name}" for name in NAMES]
    written = [str(PureWindowsPath(name)) for name in names] if windows else names
    dataset = read_coco(annotate(tmp_path / annotations, written))
    assert files(dataset) == [folder / name for name in NAMES]
    count = sum("/" in name for name in names) if windows else 0
    assert dataset.repairs.counts == ({"backslashes of file_name read as slashes": count} if count else {})


def test_found_from_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "train2017")
    annotate(tmp_path / "annotations/instances_train2017.json", NAMES)
    file = "instances_train2017.json"
    for folder, path in (("annotations", file), ("train2017", f"../annotations/{file}")):
        monkeypatch.chdir(tmp_path / folder)
        found = check_files(read_coco(Path(path)), path)
        assert [Path(str(name)).resolve() for name in found.paths] == [tmp_path / "train2017" / name for name in NAMES]


def test_of_equal_names_those_of_the_split_are_taken(tmp_path: Path) -> None:
    for split in ("train", "val"):
        touch(tmp_path / "images" / split)
        assert files(read_coco(annotate(tmp_path / f"annotations/instances_{split}.json", NAMES))) == [
            tmp_path / "images" / split / name for name in NAMES
        ]
    dataset = read_coco(annotate(tmp_path / "annotations/instances_test.json", NAMES))  # of which no image is there
    assert not any(Path(str(path)).exists() for path in dataset.paths)


def test_the_default_stays_where_its_files_exist(tmp_path: Path) -> None:
    for folder in ("images", "data", "set", "."):
        touch(tmp_path / folder)
    path = annotate(tmp_path / "set.json", NAMES)
    assert files(read_coco(path)) == [tmp_path / "images" / name for name in NAMES]
    (tmp_path / "images" / NAMES[0]).unlink()  # an incomplete download, and files of other sets with its names
    with pytest.raises(DataError, match=r"1 of 3 images do not exist: .*images/pic_1\.jpg \(looked in .*/images"):
        check_files(read_coco(path), path)


def test_a_folder_with_a_single_image_of_the_set_is_not_it(tmp_path: Path) -> None:
    """A picture beside the annotations, such as a preview."""
    touch(tmp_path, NAMES[:1])
    folder = touch(tmp_path / "data")
    assert files(read_coco(annotate(tmp_path / "labels.json", NAMES))) == [folder / name for name in NAMES]


def test_nothing_found_is_said_with_the_folders(tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    path = annotate(tmp_path / "annotations/instances_train2017.json", NAMES)
    dataset = read_coco(path)  # scoring needs no images
    assert [str(name) for name in dataset.paths] == [f"{path.parent}/{name}" for name in NAMES]
    with pytest.raises(DataError) as caught:
        check_files(dataset, path)
    problem, remedy = str(caught.value).splitlines()
    assert f"(looked in {path.parent}, {tmp_path / 'train2017'}, {tmp_path})" in problem
    assert "set `images`" in remedy


# -- the folder that is named ------------------------------------------------------------------------------------------


def test_a_named_folder_is_the_folder(tmp_path: Path) -> None:
    for folder in ("images", "elsewhere"):
        touch(tmp_path / folder)
    path = annotate(tmp_path / "set.json", NAMES)
    dataset = read_coco(path, tmp_path / "elsewhere")
    assert files(dataset) == [tmp_path / "elsewhere" / name for name in NAMES] and not dataset.repairs.counts
    dataset = read_coco(path, tmp_path / "nowhere")
    assert [str(name) for name in dataset.paths] == [f"{tmp_path}/nowhere/{name}" for name in NAMES]
    with pytest.raises(DataError, match=r"\(the folder .*/nowhere does not exist\)"):
        check_files(dataset, path)


@pytest.mark.parametrize("prefix", ["images/", "photos/images/", "images\\", "./images/"])
def test_names_that_repeat_the_named_folder(tmp_path: Path, prefix: str) -> None:
    folder = touch(tmp_path / "photos/images", NAMES[:2])
    path = annotate(tmp_path / "set.json", [prefix + name for name in NAMES[:2]])
    dataset = read_coco(path, folder)
    assert files(dataset) == [folder / name for name in NAMES[:2]]
    assert dataset.repairs.counts["folder of the images repeated in file_name"] == 2


def test_a_folder_of_the_split_below_the_named_one(tmp_path: Path) -> None:
    folder = touch(tmp_path / "photos/default")
    dataset = read_coco(annotate(tmp_path / "annotations/instances_default.json", NAMES), tmp_path / "photos")
    assert files(dataset) == [folder / name for name in NAMES]
    assert dataset.repairs.counts == {"image in a folder below the one that `images` names": 3}


# -- spellings ---------------------------------------------------------------------------------------------------------


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


@pytest.mark.parametrize(
    ("written", "file", "kinds"),
    [
        ("./pic.jpg", "pic.jpg", []),
        ("day 1\\my pic.jpg", "day 1/my pic.jpg", ["backslashes of file_name read as slashes"]),
        ("/pic.jpg", "pic.jpg", ["slash before file_name left out"]),
        ("/images/pic.jpg", "images/pic.jpg", ["slash before file_name left out"]),
        ("\\pic.jpg", "pic.jpg", ["backslashes of file_name read as slashes", "slash before file_name left out"]),
        ("pic.jpg?token=1a%2Fb", "pic.jpg", ["query after file_name left out"]),
        ("my%20pic%281%29.jpg", "my pic(1).jpg", ["file_name decoded as in a URL"]),
        ("/data/local-files/?d=day1/pic.jpg", "day1/pic.jpg", ["path of file_name taken out of an address"]),
        (
            "/data/local-files/?d=day%201%5Cpic.jpg",
            "day 1\\pic.jpg",
            ["path of file_name taken out of an address", "file_name decoded as in a URL"],
        ),
        ("/data/upload/4/1a2b-pic.jpg", "data/upload/4/1a2b-pic.jpg", ["slash before file_name left out"]),
        ("caf\u00e9.jpg", decomposed("caf\u00e9.jpg"), ["file_name in another Unicode form than the file"]),
        (decomposed("caf\u00e9.jpg"), "caf\u00e9.jpg", ["file_name in another Unicode form than the file"]),
        ("Sub/PIC.JPG", "sub/pic.jpg", ["file_name in other case than the file"]),
        ("PIC%201.jpg", "pic 1.JPG", ["file_name decoded as in a URL", "file_name in other case than the file"]),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_a_name_that_the_file_has_in_another_spelling(
    tmp_path: Path, written: str, file: str, kinds: list[str], named: bool
) -> None:
    folder = touch(tmp_path / ("elsewhere" if named else "images"), [file, "other.jpg"])
    path = annotate(tmp_path / "set.json", [written, "other.jpg"])
    dataset = read_coco(path, folder if named else None)
    assert files(dataset) == [folder / file, folder / "other.jpg"]
    assert sorted(dataset.repairs.counts.elements()) == sorted(kinds)
    assert all(f"{path}, images[0]: {written!r} is taken for" in example for example in dataset.repairs.examples)


@pytest.mark.parametrize("name", ["a%20b.jpg", "a\\b.jpg", "a.jpg?x", "caf\u00e9.jpg", "A.JPG", "d?d=a.jpg"])
def test_a_file_of_the_very_name_is_taken(tmp_path: Path, name: str) -> None:
    spelled = ["a b.jpg", "a/b.jpg", "a.jpg", decomposed("caf\u00e9.jpg")]
    folder = touch(tmp_path / "images", [name, *spelled])
    dataset = read_coco(annotate(tmp_path / "set.json", [name]))
    assert files(dataset) == [folder / name] and not dataset.repairs.counts


def test_what_is_ambiguous_or_taken_is_not_read(tmp_path: Path) -> None:
    touch(tmp_path / "images", ["Pic.jpg", "pIC.jpg", "b.jpg"])
    two = read_coco(annotate(tmp_path / "set.json", ["pic.jpg", "b.jpg"]))
    with pytest.raises(DataError, match="1 of 2 images do not exist"):
        check_files(two, "set.json")
    own = read_coco(annotate(tmp_path / "set.json", ["B.jpg", "b.jpg"]))  # b.jpg is another image of the set
    with pytest.raises(DataError, match=r"1 of 2 images do not exist: .*/B\.jpg"):
        check_files(own, "set.json")


CHARACTERS = [
    "a",
    "Z",
    "0",
    "007",
    " ",
    ".",
    "[x]",
    "(1)",
    "#",
    "&",
    "'",
    "%",
    "+",
    "é",
    "日本",
    "🐈",
    "=",
    "@",
    "~",
    "!",
]


@pytest.mark.parametrize(
    ("names", "file"),
    [(["a.jpg", "A.jpg", "b.jpg"], "A.JPG"), (["a.jpg?v=1", "a.jpg?v=2", "b.jpg"], "a.jpg")],
)
def test_two_names_for_one_file_are_refused(tmp_path: Path, names: list[str], file: str) -> None:
    """Which of them the picture belongs to is not known, so that the other one would get its boxes."""
    touch(tmp_path / "images", [file, "b.jpg"])
    with pytest.raises(AnnotationError, match=r"images\[1\]: file names '.*' and '.*' may both mean") as caught:
        read_coco(annotate(tmp_path / "set.json", names))
    assert f"{names[0]!r} and {names[1]!r} may both mean {tmp_path}/images/{file}" in str(caught.value)


def test_two_images_of_one_file_are_kept(tmp_path: Path) -> None:
    """The same name twice, and in two Unicode forms, is one file, whatever it is called on the disk."""
    touch(tmp_path / "images", ["A.JPG", decomposed("caf\u00e9.jpg")])
    dataset = read_coco(
        annotate(tmp_path / "set.json", ["a.jpg", "a.jpg", "caf\u00e9.jpg", decomposed("caf\u00e9.jpg")])
    )
    assert [path.name for path in files(dataset)] == ["A.JPG", "A.JPG", *[decomposed("caf\u00e9.jpg")] * 2]


def test_names_of_any_kind_in_any_layout(tmp_path: Path) -> None:
    """A property of exporters: files are found under the names that they have, and those are what is returned."""
    rng = random.Random(0)
    layouts = [
        ("set.json", "images"),
        ("set.json", "."),
        ("annotations/x_train.json", "train"),
        ("labels.json", "data"),
    ]
    for trial in range(40):
        root = tmp_path / str(trial)
        annotations, images = rng.choice(layouts)
        stems = {"a" + "".join(rng.choices(CHARACTERS, k=rng.randint(1, 5))) + "b" for _ in range(4)}
        names = [f"{rng.choice(['', 'day 1/', 'a/b/'])}{stem}.jpg" for stem in sorted(stems)]
        names += [f"{names[0].removesuffix('.jpg')}.png", "linked/a.jpg"]
        folder = touch(root / images, names[:-1])
        touch(root / "store", ["a.jpg"])
        (folder / "linked").symlink_to(root / "store", target_is_directory=True)
        dataset = read_coco(annotate(root / annotations, names))
        assert files(dataset) == [folder / name for name in names] and not dataset.repairs.counts
        written = [quote(name).replace("/", "\\") for name in names]
        assert files(read_coco(annotate(root / annotations, written))) == [folder / name for name in names]


# -- absolute names, addresses, and names that leave the folder --------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("set.json", "images"),
        ("set.json", "."),
        ("annotations/instances_train2017.json", "train2017"),
        ("a.json", "data"),
    ],
)
def test_absolute_names_in_the_folder_of_the_images(tmp_path: Path, annotations: str, images: str, named: bool) -> None:
    folder = touch(tmp_path / images)
    path = annotate(tmp_path / annotations, [str(folder / name) for name in NAMES])
    dataset = read_coco(path, folder if named else None)
    assert files(dataset) == [folder / name for name in NAMES] and not dataset.repairs.counts


def test_absolute_names_through_a_link_and_of_files_that_are_gone(tmp_path: Path) -> None:
    folder = touch(tmp_path / "store")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/images").symlink_to(folder, target_is_directory=True)
    for origin in (folder, tmp_path / "set/images"):
        dataset = read_coco(annotate(tmp_path / "set/set.json", [str(origin / name) for name in NAMES]))
        assert files(dataset) == [tmp_path / "set/images" / name for name in NAMES]
    (folder / NAMES[0]).unlink()
    with pytest.raises(DataError, match=r"1 of 3 images do not exist: .*/set/images/pic_1\.jpg"):
        check_files(read_coco(tmp_path / "set/set.json"), "set.json")


@pytest.mark.parametrize(
    "name",
    [
        "{parent}/other/a.jpg",
        "{parent}/set/images/../../other/a.jpg",
        "{parent}/set/images2/a.jpg",
        "..\\..\\media\\upload\\4\\a.jpg",
        "../other/a.jpg",
        "%2fetc/../../other/a.jpg",
        "/other/a.jpg",
        "/data/local-files/?d=other/a.jpg",
        "/data/local-files/?d=../other/a.jpg",
        "C:\\images\\a.jpg",
        "//server/images/a.jpg",
        "\\\\server\\images\\a.jpg",
        "s3://../../other/a.jpg",
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_names_that_leave_the_folder_are_refused_though_the_file_exists(tmp_path: Path, name: str, named: bool) -> None:
    touch(tmp_path / "other", ["a.jpg"])
    touch(tmp_path / "set/images2", ["a.jpg"])
    folder = touch(tmp_path / "set/images", ["b.jpg"])
    path = annotate(tmp_path / "set/set.json", ["b.jpg", name.format(parent=tmp_path)])
    with pytest.raises(AnnotationError, match=r"set\.json, images\[1\]: file name .* leaves the folder") as caught:
        read_coco(path, folder if named else None)
    assert "make file names relative" in str(caught.value)


def test_a_decoded_name_does_not_leave_the_folder(tmp_path: Path) -> None:
    touch(tmp_path / "other", ["a.jpg"])
    touch(tmp_path / "set/images", ["b.jpg"])
    dataset = read_coco(annotate(tmp_path / "set/set.json", ["%2e%2e/%2e%2e/other/a.jpg", "b.jpg"]))
    with pytest.raises(DataError, match=r"1 of 2 images do not exist: .*/images/%2e%2e/%2e%2e/other/a\.jpg"):
        check_files(dataset, "set.json")


@pytest.mark.parametrize(
    "url", ["https://files.example.org/set/pic_1.jpg", "s3://bucket/pic_1.jpg", "gs://b/pic_1.jpg"]
)
def test_a_url_is_called_one(tmp_path: Path, url: str) -> None:
    touch(tmp_path / "images", ["pic_1.jpg", "pic_2.jpg"])
    for names, count in (([url], "1 of 1"), ([url, "pic_2.jpg"], "1 of 2")):
        path = annotate(tmp_path / "set.json", names)
        with pytest.raises(DataError) as caught:
            check_files(read_coco(path), path)
        problem, remedy = str(caught.value).splitlines()
        assert f"{count} images do not exist" in problem
        assert f"file names are URLs, such as {url!r}: download the images" in problem and "fetch the images" in remedy


# -- sizes, and the cache ----------------------------------------------------------------------------------------------


def test_sizes_are_read_from_the_files_that_were_found(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name in ("day 1.png", "b.png"):
        Image.new("RGB", (33, 44)).save(tmp_path / "train" / name)
    path = annotate(tmp_path / "annotations/instances_train.json", ["train\\day%201.png", "train\\b.png"], height=44)
    dataset = read_coco(path)
    assert dataset.sizes.tolist() == [[33, 44], [33, 44]]
    assert dataset.repairs.counts == {
        "size read from the image file": 2,
        "backslashes of file_name read as slashes": 2,
        "file_name decoded as in a URL": 1,
    }


def test_where_images_lie_is_not_kept_and_few_files_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SETTLED_S", 0.0)
    names = [f"{number:04d}.jpg" for number in range(1200)]
    folder = touch(tmp_path / "images", names)
    path = annotate(tmp_path / "set.json", [f"images/{name}" for name in names])
    asked: list[str] = []
    isfile = os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda name: asked.append(str(name)) or isfile(name))
    for _ in range(2):
        dataset = read_coco(path, cache=tmp_path / "cache")
        assert len(list((tmp_path / "cache").iterdir())) == 1
        assert [str(name) for name in dataset.paths] == [str(folder / name) for name in names]
    assert len(asked) < 400
    folder.rename(tmp_path / "data")
    (tmp_path / "data/images").mkdir()
    for name in names:
        (tmp_path / "data" / name).rename(tmp_path / "data/images" / name)
    assert files(read_coco(path, cache=tmp_path / "cache"))[7] == tmp_path / "data/images/0007.jpg"
