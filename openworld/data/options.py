"""Options of the data layer: where annotations lie, which class belongs to which task, how images are fed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from openworld.data.class_names import check_rename, check_tasks
from openworld.data.formats import FORMATS, annotations_help
from openworld.errors import ConfigError
from openworld.runtime.options import (
    Above,
    AtLeast,
    Below,
    Between,
    FilePath,
    Items,
    NonNegativeInt,
    PositiveInt,
    Share,
    check,
    refuse,
)

Orientation = Literal["auto", "stored", "upright"]
"""Which picture was annotated: as viewers show it, or as it is stored."""


def default_tasks() -> list[list[str]]:
    """The schedule of the synthetic world. Three of its twelve categories belong to no task: they stay unknown."""
    return [["ball", "cube", "ring"], ["heart", "cone", "gear"], ["star", "cross", "crescent"]]


class KnownFormat:
    """The rule for a format's name: one of :data:`openworld.data.formats.FORMATS`, or ``auto``."""

    def holds(self, value: str) -> bool:
        return value == "auto" or value in FORMATS

    def __str__(self) -> str:
        return f"out of {', '.join(('auto', *FORMATS))}"


@dataclass(kw_only=True)
class SourceOptions:
    """One annotated set of images."""

    annotations: FilePath | None = None
    """COCO: the .json file. VOC: the folder that holds Annotations/, such as VOCdevkit/VOC2007, or the XML files. YOLO:
    data.yaml or Darknet's obj.data, or the folder that holds it or images/, labels/ and classes.txt."""
    images: FilePath | None = None
    """Folder of the images. Default for COCO: the folder in which tools put them and that holds them, such as images/
    beside the .json file, the file's own folder, data/, ../train2017/ or ../images/default/; for VOC: JPEGImages/,
    images/ or beside the XML files; for YOLO: as data.yaml says, or images/."""
    format: Annotated[str, KnownFormat()] = "auto"
    """Format of the annotations: a name in :data:`openworld.data.formats.FORMATS` (coco, voc, yolo). ``auto``: a .json
    file is COCO, a folder with Annotations/ or XML files is VOC, a .yaml or .data file is YOLO, and so is a folder with
    one, with labels/ or with a list of class names."""
    image_set: FilePath | None = None
    """COCO: ``field=value`` takes the images that have it, as in ``fold=train``. VOC: a list in ImageSets/Main such as
    ``trainval``, or the path of a .txt file. Default of both: every image. YOLO: a key of data.yaml or a folder below
    images/. Default: the one of the same name as ``train``, ``val`` or ``test``. A VOC folder whose XML files lie in
    train/, val/ and test/ has these sets, too."""
    orientation: Orientation = "auto"
    """Which picture was annotated, where photographs have an EXIF orientation tag. ``upright``: as viewers show it, the
    tag applied. ``stored``: as it is stored. ``auto``: YOLO is upright, as Ultralytics takes it; for COCO and VOC the
    annotated width and height tell, and where they are those of both, it is stored."""
    cache: bool = True
    """COCO and VOC: keep the parsed annotations of 1,000 images or more in the user's cache folder, for the next time.
    The environment variable OPENWORLD_CACHE names another folder, or switches this off for all with ``off``."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class SyntheticOptions:
    """The procedural open world that the demo trains on."""

    train_images: PositiveInt = 480
    """Images for training."""
    val_images: PositiveInt = 80
    """Images for energy fitting."""
    test_images: PositiveInt = 160
    """Images for evaluation."""
    pretrain_images: NonNegativeInt = 400
    """Images without annotations for self-supervised pretraining: close-ups of one object, as photographs for
    classification are. 0: pretrain on the training images."""
    size: Annotated[int, Between(64, 1024)] = 128
    """Side of the square images in pixels."""
    seed: int = 0
    """The same seed and sizes give the same files."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class LoaderOptions:
    """How images are decoded, resized and augmented."""

    white_level: Annotated[int, Between(255, 65535)] = 65535
    """Value of 16-bit grey images that is white: 4095 for 12 bits in 16-bit files, 16383 for 14. Brighter values become
    white as well. It holds for 16-bit grey images of all sets and of ``predict``; 8-bit images stay as they are."""
    min_size: Annotated[int, AtLeast(16)] = 128
    """Shorter side of the image as it enters the model, in pixels."""
    max_size: Annotated[int, AtLeast(16)] = 128
    """Upper limit of the longer side, in pixels; it wins over ``min_size``."""
    flip: Share = 0.5
    """Probability of a horizontal flip in training."""
    scale_jitter: Annotated[list[Annotated[float, Between(0.1, 10)]], Items(2, 2)] = field(
        default_factory=lambda: [0.75, 1.0]
    )
    """Training multiplies the size by a factor drawn uniformly from this range. [1.0, 1.0] switches it off."""
    augment: Literal["none", "light", "strong"] = "none"
    """What training does to an image before it is resized and flipped, with torchvision's transforms.
    ``none``: nothing.
    ``light``: photometric distortion (brightness, contrast, saturation, hue, each with probability 0.5), then with
    probability 0.5 a crop around the centre of a box, of at least half of each side (SSD; Liu et al., ECCV 2016. There
    the crop takes at least 0.3 of each side).
    ``strong``: photometric distortion; zoom-out with probability 0.5, to at most twice the sides (SSD: four times); the
    crop with at least 0.3 of each side; and large-scale jitter: the content is scaled by a factor from 0.5 to 2.0, and
    cut or padded to the size that it would have had, at a random place (Ghiasi et al., Copy-Paste, CVPR 2021, with 0.1
    to 2.0 of 1024 pixels). These are the presets ``ssd`` and ``lsj`` of torchvision's references/detection, milder.
    Filled places have the mean colour of ImageNet.
    The result is resized as without augmentation: ``min_size``, ``max_size`` and ``scale_jitter`` give the size of the
    image, and large-scale jitter what is seen in it. Boxes are cut at the border, and left out if a crop or cut leaves
    less than a tenth of their area or less than a pixel. SSD leaves out all whose centre is cut off; but an object that
    is seen and has no label is taken for unknown. A crop that leaves none of an image's boxes is refused."""
    repeat_threshold: Share = 0.0
    """A class that less than this share of the training images shows is rare, and its images are drawn more often: by
    the square root of threshold over share (repeat factor sampling; Gupta et al., LVIS, CVPR 2019; there 0.001). 0:
    every image once an epoch."""
    resize: Literal["float", "uint8"] = "float"
    """``float`` interpolates between exact brightnesses. ``uint8`` rounds the result to 256 levels, as Pillow and most
    loaders do, and is faster where images are larger than a few hundred pixels (benchmarks/data.py)."""
    workers: NonNegativeInt = 0
    """Processes that decode ahead. 0: in the training process, and small data sets are decoded only once."""
    cache_mib: NonNegativeInt = 1024
    """With ``workers=0``, decoded images are kept when all of them together need less than this many MiB."""
    max_bad_fraction: Share = 0.05
    """Training stops when more than this fraction of the images cannot be read."""

    def __post_init__(self) -> None:
        check(self)
        if self.max_size < self.min_size:
            refuse(self, "max_size", remedy=f"give at least min_size ({self.min_size})")
        if self.scale_jitter[0] > self.scale_jitter[1]:
            refuse(self, "scale_jitter", remedy="give two rising factors, such as [0.75, 1.0]")


@dataclass(kw_only=True)
class BenchmarkOptions:
    """A published benchmark, read out of the folders in which VOC and COCO come; nothing is copied or converted."""

    name: Literal["m_owodb", "s_owodb", "voc_10_10", "voc_15_5", "voc_19_1", "voc_coco"]
    """Which one: its classes, image lists and renamings are in the package (:mod:`openworld.data.benchmarks`)."""
    root: FilePath = "datasets"
    """Folder that holds VOCdevkit/VOC2007, VOCdevkit/VOC2012 and coco/; `openworld data prepare` checks it."""
    voc2007: FilePath | None = None
    """Folder of VOC 2007, where it is not below ``root``: holds Annotations/ and JPEGImages/."""
    voc2012: FilePath | None = None
    """Folder of VOC 2012, where it is not below ``root``."""
    coco: FilePath | None = None
    """Folder of COCO 2017, where it is not below ``root``: holds train2017/, val2017/ and annotations/."""
    test_list: str = "published"
    """``published``: as printed results have it, repeats and all (M-OWODB names 9,119 images on 10,246 lines).
    ``unique``: the same images, each once. Or the name of another list of the benchmark, such as
    ``voc_coco_20_80_test``."""
    val_list: Literal["held_out", "published"] = "held_out"
    """Images for energy fitting. ``held_out``: a share of the training images, which are then not trained on.
    ``published``: the list of the benchmark, if it has one; that of M-OWODB is part of its training images."""
    coco_boxes: Literal["exact", "whole_pixels"] = "exact"
    """``whole_pixels``: boxes of COCO widened to whole pixels, as the conversion to XML that the published results used
    (coco_annotation_to_voc_style.py of JosephKJ/OWOD, convert_coco_to_voc.py of csuhan/opendet2)."""
    cache: bool = True
    """As for a single set: keep the parsed annotations in the user's cache folder."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class DataOptions:
    """Images, annotations and the schedule of classes."""

    tasks: Annotated[list[list[str]], Items(1)] | FilePath = field(default_factory=default_tasks)
    """Class names that each task introduces. Classes of the data that no task names stay unknown. Or the name of a
    published schedule, or the path of a .yaml file with ``tasks``: the lists, and ``rename``, come from there."""
    synthetic: SyntheticOptions | None = field(default_factory=SyntheticOptions)
    """The embedded synthetic world. null: read ``train``, ``val`` and ``test``."""
    benchmark: BenchmarkOptions | None = None
    """A published benchmark, in place of ``synthetic``, ``train``, ``val``, ``test`` and ``tasks``."""
    train: SourceOptions = field(default_factory=SourceOptions)
    """Images for training. Not read with ``synthetic``."""
    val: SourceOptions = field(default_factory=SourceOptions)
    """Images for energy fitting; without annotations, a part of the training images. Not read with ``synthetic``."""
    held_out_fraction: Annotated[float, Above(0), Below(1)] = 0.1
    """Without ``val``: share of the training images that is kept out of training for energy fitting."""
    test: SourceOptions = field(default_factory=SourceOptions)
    """Images for evaluation. Not read with ``synthetic``."""
    rename: dict[str, str] = field(default_factory=dict)
    """Class names of the annotation files to the names that ``tasks`` use, such as ``airplane: aeroplane``."""
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    """How images are decoded, resized and augmented."""

    def __post_init__(self) -> None:
        self._check_names()
        check(self)
        if self.benchmark is not None:
            self._take_benchmark(self.benchmark.name)
        if isinstance(self.tasks, str):
            self._take_schedule(self.tasks)
        if self.synthetic is None and self.benchmark is None:
            for name in ("train", "test"):
                if getattr(self, name).annotations is None:
                    refuse(self, f"{name}.annotations", "is missing", remedy=f"name a {annotations_help()}")

    def _check_names(self) -> None:
        """Refuse class names in our words: the annotations of the fields say no more than "lists of lists"."""
        for key, check_field in (("tasks", check_tasks), ("rename", check_rename)):
            value = getattr(self, key)
            if key == "tasks" and isinstance(value, str):
                continue
            try:
                check_field(value)
            except ConfigError as error:
                refuse(self, key, error.problem, remedy=error.remedy or "")

    def _take_schedule(self, name: str) -> None:
        """The classes of a published schedule, or of a file."""
        from openworld.data.schedules import read_schedule  # not for everybody who asks for --help

        try:
            schedule = read_schedule(name)
        except ConfigError as error:
            if error.where is not None:  # the file of the schedule
                raise
            refuse(self, "tasks", f"is {name!r}: {error.problem}", remedy=error.remedy or "")
        self.tasks, self.rename = [list(names) for names in schedule.tasks], {**schedule.rename, **self.rename}

    def _take_benchmark(self, name: str) -> None:
        """The classes of the benchmark, and nothing beside it that names images."""
        from openworld.data.schedules import SCHEDULES

        published = [list(names) for names in SCHEDULES[name].tasks]
        if self.tasks not in (published, name, default_tasks()):
            refuse(self, "tasks", remedy=f"leave it out; the benchmark {name!r} has its classes")
        self.tasks, self.rename = published, {**SCHEDULES[name].rename, **self.rename}
        if self.synthetic == SyntheticOptions():
            self.synthetic = None
        for key in ("synthetic", "train", "val", "test"):
            value = getattr(self, key)
            if value is not None and value != SourceOptions():
                refuse(self, key, remedy=f"leave it out; the benchmark {name!r} has its images")


@dataclass(kw_only=True)
class ExemplarOptions:
    """The images that are kept for replay after later tasks (paper, section 4.4).

    Raises:
        ConfigError: a value out of its range.
    """

    enabled: bool = True
    """Keep exemplars and fine-tune on them after each later task (paper, section 4.4)."""

    per_class: PositiveInt = 50
    """N_ex, fewest instances kept of each class, where the data have as many (paper, section 5.2)."""

    strategy: Literal["balanced", "greedy", "random", "herding", "by_score"] = "balanced"
    """``balanced``: images are added, the rarest class first, until every class has its instances (paper, section 4.4).
    ``greedy``: the last instances of each class in a walk through the shuffled images of all tasks so far (reference
    code, datasets/coco_utils/balanced_ft.py, which ran with 20 a class). ``random``: instances drawn class by class
    (control of PROB, Zohar et al., CVPR 2023). ``herding``: instances whose mean feature follows the class mean (iCaRL,
    Rebuffi et al., CVPR 2017, algorithm 4). ``by_score``: the instances that the detector is least and most sure of
    (PROB, create_ft_dataset in main_open_world.py). The last two look at the task's images once more after training,
    about the time of an evaluation on as many images; herding holds 4 bytes times feature dimension times annotated
    boxes in memory."""

    during_training: Annotated[float, AtLeast(0), Below(1)] = 0.0
    """Share of each batch of a later task's training that shows exemplars of the tasks before, with all classes that
    are known, in place of the task's images: joint replay, beside the fine-tuning afterwards. 0: the training sees the
    task's images alone (paper). At least one image if
    it is not 0. With ``epochs``, all images of a step count."""

    list: FilePath | None = None
    """Path of lists to use instead of choosing, for each task that replays; ``{task}`` in it stands for the number of
    the task. A list is an exemplars.json of a run, or a text file with one image id a line, as the published
    ``t2_ft.txt``, which holds images for all classes known at its task and is replayed alone. Ids are matched as
    written, else by the stem of the image file, else as a number. Example: ``ImageSets/Main/t{task}_ft.txt``."""

    def __post_init__(self) -> None:
        check(self)
        if self.during_training and not self.enabled:
            remedy = "set it to 0, or enabled to true: there are no exemplars without it"
            refuse(self, "during_training", f"is {self.during_training:g}, and enabled is false", remedy=remedy)

    @property
    def needs_detector(self) -> bool:
        """The choice is made by the task's trained detector, and therefore after its training."""
        return self.list is None and self.strategy in ("herding", "by_score")
