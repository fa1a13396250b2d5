"""What can be chosen about a backbone and its pretraining. The defaults are the demo: a minute on two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypedDict, get_args

from openworld.errors import ConfigError
from openworld.runtime.options import check
from ssl_backbones.backbones import BackboneOptions, ResNetOptions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MethodName = Literal[
    "simclr",
    "moco_v1",
    "moco_v2",
    "moco_v3",
    "byol",
    "simsiam",
    "barlow_twins",
    "sup_con",
    "pcl_v1",
    "pcl_v2",
    "nnclr",
    "swav",
    "deepcluster_v2",
    "dino",
    "instdisc",
    "cpc",
    "cmc",
    "pirl",
    "sela_v2",
    "clip",
    "curl",
    "distillation",
]
"""The methods of ssl_backbones/methods."""
ViewsName = Literal[
    "simclr",
    "moco_v1",
    "moco_v2",
    "moco_v3",
    "byol",
    "sup_con",
    "swav",
    "deepcluster_v2",
    "dino",
    "instdisc",
    "pirl",
    "cmc",
    "cmc_lab",
    "cpc",
    "cpc_v2",
    "clip",
    "curl",
    "distillation",
]
"""The recipes of ssl_backbones/views.py."""


class Preprocess(TypedDict):
    """What a network expects: ``(image / 255 * range - mean) / std``, channels in ``order``.

    LAB is for analysis: ``mean`` and ``std`` are those of CIE L*a*b* (views.lab_from_rgb), and no detector takes it.
    """

    order: Literal["RGB", "BGR", "LAB"]
    range: float
    mean: list[float]
    std: list[float]


@dataclass(kw_only=True)
class MoCoV3Options:
    """MoCo v3 (Chen et al. 2021)."""

    hidden_dim: int = 512
    """Width of the hidden layer of projector and predictor (reference code: 4096)."""

    def __post_init__(self) -> None:
        check(self)
        at_least("moco_v3.hidden_dim", self.hidden_dim, 1)


@dataclass(kw_only=True)
class ByolOptions:
    """BYOL (Grill et al. 2020)."""

    hidden_dim: int = 512
    """Width of the hidden layer of projector and predictor (section 3.3: 4096)."""

    def __post_init__(self) -> None:
        check(self)
        at_least("byol.hidden_dim", self.hidden_dim, 1)


@dataclass(kw_only=True)
class SimSiamOptions:
    """SimSiam (Chen and He 2021)."""

    predictor_dim: int = 32
    """Width of the predictor's hidden layer (paper: 512, a quarter of ``projection_dim``)."""
    predictor_lr_decays: bool = False
    """The predictor's learning rate follows the schedule too; kept constant it does a little better (table 1, c)."""

    def __post_init__(self) -> None:
        check(self)
        at_least("simsiam.predictor_dim", self.predictor_dim, 1)


@dataclass(kw_only=True)
class BarlowTwinsOptions:
    """Barlow Twins (Zbontar et al. 2021)."""

    hidden_dim: int = 512
    """Width of the projector's two hidden layers (paper: 8192)."""
    offdiagonal_weight: float = 0.0051
    """Weight of the redundancy term (reference code; lambda = 0.005 in the paper)."""
    bias_lr_scale: float = 0.024
    """Learning rate of biases and norms as a share of ``lr``: 0.0048 / 0.2 in the reference code."""

    def __post_init__(self) -> None:
        check(self)
        at_least("barlow_twins.hidden_dim", self.hidden_dim, 1)
        at_least("barlow_twins.offdiagonal_weight", self.offdiagonal_weight, 0)
        at_least("barlow_twins.bias_lr_scale", self.bias_lr_scale, 0)


@dataclass(kw_only=True)
class SupConOptions:
    """Supervised contrast (Khosla et al. 2020)."""

    base_temperature: float = 0.07
    """The loss is multiplied by ``temperature`` over this (reference code; equation 2 of the paper has no factor)."""

    def __post_init__(self) -> None:
        check(self)
        if not self.base_temperature > 0:
            raise ConfigError(f"sup_con.base_temperature is {self.base_temperature}", remedy="choose a value above 0")


@dataclass(kw_only=True)
class PclOptions:
    """Prototypical contrast (Li et al. 2021)."""

    clusters: list[int] = field(default_factory=lambda: [8, 16, 32])
    """Numbers of clusters, one clustering each (paper: 25000, 50000 and 100000 of 1.28 million images)."""
    warmup_epochs: int = 1
    """Epochs of InfoNCE alone before the first clustering (paper: 20)."""
    negatives: int = 16384
    """r: negative prototypes of a query, or all where there are fewer (``--pcl-r`` of the reference code)."""
    candidates: Literal["reference", "paper"] = "reference"
    """What a query's prototype is picked out of, see losses.proto_nce. ``reference``: the prototypes of the batch, of
    which some may be its own, and r more (the authors' code). ``paper``: its own and r others (equation 11)."""
    iterations: int = 20
    """Updates of k-means (reference code)."""
    restarts: int = 5
    """Runs of k-means, of which the best counts (reference code)."""
    spherical: bool = False
    """k-means on the sphere; the reference code puts only the final centroids there."""

    def __post_init__(self) -> None:
        check(self)
        one_of("pcl.candidates", self.candidates, ("reference", "paper"))
        for count in self.clusters:
            at_least("pcl.clusters", count, 2)
        for name in ("warmup_epochs", "iterations"):
            at_least(f"pcl.{name}", getattr(self, name), 0)
        for name in ("negatives", "restarts"):
            at_least(f"pcl.{name}", getattr(self, name), 1)


@dataclass(kw_only=True)
class NnclrOptions:
    """Nearest-neighbour contrast (Dwibedi et al. 2021)."""

    hidden_dim: int = 4096
    """Width of the predictor's hidden layer (section 4.1)."""

    def __post_init__(self) -> None:
        check(self)
        at_least("nnclr.hidden_dim", self.hidden_dim, 1)


@dataclass(kw_only=True)
class SwavOptions:
    """SwAV (Caron et al. 2020)."""

    prototypes: int = 64
    """K (paper: 3000)."""
    epsilon: float = 0.05
    """Entropy regularisation of the assignments; 0.03 where the loss stays at ln K (reference code, common issues)."""
    iterations: int = 3
    """Rounds of Sinkhorn-Knopp."""
    frozen_steps: int = 10
    """First steps in which the prototypes stay as they are (reference code: one epoch)."""
    queue_length: int = 0
    """Earlier features of each large view that small batches are assigned together with; 0 for none (paper: 3840 at
    batch 256)."""
    queue_start: int = 0
    """Step from which the queue is filled; it is used once it is full (reference code: epoch 15)."""

    def __post_init__(self) -> None:
        check(self)
        at_least("swav.prototypes", self.prototypes, 2)
        if not self.epsilon > 0:
            raise ConfigError(f"swav.epsilon is {self.epsilon}", remedy="choose a value above 0")
        at_least("swav.iterations", self.iterations, 1)
        for name in ("frozen_steps", "queue_length", "queue_start"):
            at_least(f"swav.{name}", getattr(self, name), 0)


@dataclass(kw_only=True)
class DeepClusterV2Options:
    """DeepCluster-v2 (Caron et al. 2020, appendix)."""

    clusters: list[int] = field(default_factory=lambda: [32, 32, 32])
    """Numbers of clusters, one head each (paper: three times 3000)."""
    iterations: int = 10
    """Updates of k-means before each epoch (reference code)."""

    def __post_init__(self) -> None:
        check(self)
        for count in self.clusters:
            at_least("deepcluster_v2.clusters", count, 2)
        at_least("deepcluster_v2.iterations", self.iterations, 0)


@dataclass(kw_only=True)
class DinoOptions:
    """DINO (Caron et al. 2021) on a ResNet."""

    outputs: int = 512
    """K, width of the last layer (paper: 65536)."""
    head_norm: bool = False
    """Batch norm in the head."""
    norm_last_layer: bool = True
    """The last layer's weights keep norm 1 (reference code); otherwise their norms are learned."""
    frozen_steps: int = 10
    """First steps in which the last layer stays as it is (reference code: one epoch)."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher after warm-up."""
    teacher_temperature_start: float = 0.04
    """... and at the first step."""
    teacher_temperature_warmup: int = 0
    """Steps in which it goes from one to the other, linearly."""
    center_momentum: float = 0.9
    """Share of the old centre in the new one (equation 4)."""
    clip_gradient: float = 3.0
    """Largest norm of the gradient of each parameter by itself (reference code); 0 turns clipping off."""

    def __post_init__(self) -> None:
        check(self)
        at_least("dino.outputs", self.outputs, 2)
        for name in ("frozen_steps", "teacher_temperature_warmup", "clip_gradient"):
            at_least(f"dino.{name}", getattr(self, name), 0)
        for name in ("teacher_temperature", "teacher_temperature_start"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"dino.{name} is {getattr(self, name)}", remedy="choose a value above 0")
        if not 0 <= self.center_momentum <= 1:
            raise ConfigError(f"dino.center_momentum is {self.center_momentum}", remedy="choose a value from 0 to 1")


@dataclass(kw_only=True)
class BankOptions:
    """What the methods with a memory bank have in common."""

    _name: ClassVar[str] = "bank"

    negatives: int = 512
    """Rows of the bank that each image is contrasted with, drawn uniformly, with repetitions, its own row possibly
    among them (reference code)."""
    bank_momentum: float = 0.5
    """Share of the old row in the new one (reference code)."""
    form: Literal["nce", "info_nce", "softmax"] = "nce"
    """``nce``: each row is told apart from noise, with a constant normaliser estimated from the first batch (papers).
    ``info_nce``: softmax over the own row and the drawn ones (PyContrast). ``softmax``: over the whole bank, nothing is
    drawn (equation 2 of instance discrimination)."""

    def __post_init__(self) -> None:
        check(self)
        one_of(f"{self._name}.form", self.form, ("nce", "info_nce", "softmax"))
        at_least(f"{self._name}.negatives", self.negatives, 1)
        if not 0 <= self.bank_momentum < 1:
            raise ConfigError(
                f"{self._name}.bank_momentum is {self.bank_momentum}", remedy="choose a value of at least 0 and below 1"
            )


@dataclass(kw_only=True)
class InstDiscOptions(BankOptions):
    """Instance discrimination (Wu et al. 2018). Reference code: 4096 negatives."""

    _name: ClassVar[str] = "instdisc"

    proximal_weight: float = 0.0
    """lambda of equation 10, which holds an embedding to its row; the reference code leaves that term out."""

    def __post_init__(self) -> None:
        check(self)
        super().__post_init__()
        at_least("instdisc.proximal_weight", self.proximal_weight, 0)
        if self.proximal_weight and self.form != "nce":
            raise ConfigError(
                f"instdisc.proximal_weight is {self.proximal_weight} with form {self.form!r}",
                remedy="set instdisc.form to nce, or proximal_weight to 0",
            )


@dataclass(kw_only=True)
class CmcOptions(BankOptions):
    """Contrastive multiview coding (Tian et al. 2020). Paper: 16384 negatives."""

    _name: ClassVar[str] = "cmc"


@dataclass(kw_only=True)
class PirlOptions(BankOptions):
    """PIRL (Misra and van der Maaten 2020). Paper: 32000 negatives."""

    _name: ClassVar[str] = "pirl"

    jigsaw_weight: float = 0.5
    """lambda: the share of the jigsaw's loss; the image's has the rest."""

    def __post_init__(self) -> None:
        check(self)
        super().__post_init__()
        if not 0 <= self.jigsaw_weight <= 1:
            raise ConfigError(f"pirl.jigsaw_weight is {self.jigsaw_weight}", remedy="choose a value from 0 to 1")


@dataclass(kw_only=True)
class CpcOptions:
    """Contrastive predictive coding (van den Oord et al. 2018), and version 2 (Henaff et al. 2020)."""

    context: Literal["pixelcnn", "gru"] = "pixelcnn"
    """What sums up the rows read so far: masked convolutions (papers, for images), or a GRU down each column."""
    context_dim: int = 256
    """Width of the masked convolutions (CPC v2, pseudo-code), or of the GRU's state."""
    skipped_steps: int = 0
    """Rows between the last one read and the first one predicted (CPC v2, pseudo-code: 2)."""
    steps: int = 3
    """Rows predicted, each by a matrix W_k of its own (CPC: 5; CPC v2: 1, the range(2, 3) of its pseudo-code)."""
    directions: Literal[1, 4] = 1
    """1: rows are predicted from those above (CPC). 4: from below, left and right as well (CPC v2)."""

    def __post_init__(self) -> None:
        check(self)
        one_of("cpc.context", self.context, ("pixelcnn", "gru"))
        for name in ("context_dim", "steps"):
            at_least(f"cpc.{name}", getattr(self, name), 1)
        at_least("cpc.skipped_steps", self.skipped_steps, 0)
        if self.directions not in (1, 4):
            raise ConfigError(f"cpc.directions is {self.directions}", remedy="choose 1 or 4")


@dataclass(kw_only=True)
class SelaV2Options:
    """SeLa-v2 (Caron et al. 2020, appendix D): SeLa (Asano et al. 2020) with what SwAV added. It has no official code;
    the appendix gives it SwAV's hyperparameters."""

    clusters: list[int] = field(default_factory=lambda: [32, 32, 32])
    """Numbers of prototypes, one head each (SwAV's paper: three times 3000)."""
    epsilon: float = 0.05
    """Entropy regularisation of the assignment (SwAV's). SeLa's code raises the probabilities to lambda = 25, which at
    a temperature of 0.1 is 0.1 / 25 = 0.004 here; which of them SeLa-v2 had is not published."""
    iterations: int = 20
    """Rounds of Sinkhorn-Knopp over the whole set (own choice; SeLa's code goes on until the scales stand still)."""

    def __post_init__(self) -> None:
        check(self)
        for count in self.clusters:
            at_least("sela_v2.clusters", count, 2)
        if not self.epsilon > 0:
            raise ConfigError(f"sela_v2.epsilon is {self.epsilon}", remedy="choose a value above 0")
        at_least("sela_v2.iterations", self.iterations, 1)


@dataclass(kw_only=True)
class ClipOptions:
    """CLIP (Radford et al. 2021). The dimension of the common space is ``projection_dim`` (RN50: 1024), and
    ``temperature`` is where the learnt one starts (0.07)."""

    captions: str | None = None
    """File of captions, see ssl_backbones/captions.py: JSON lines, or COCO's captions. Its images are in ``images``."""
    vocabulary: str | None = None
    """CLIP's own file of merges (bpe_simple_vocab_16e6.txt.gz); None reads a caption byte by byte."""
    context_length: int = 77
    """Tokens of a caption, the first and the last one included; longer captions are cut."""
    text_width: int = 64
    """Width of the text Transformer (RN50: 512)."""
    text_layers: int = 2
    """Its blocks (RN50: 12)."""
    text_heads: int = 2
    """Heads of its attention (RN50: 8)."""
    pooling: Literal["attention", "average"] = "attention"
    """How the image's features become one: by a query of their mean (authors' ResNets), or their mean itself."""
    largest_scale: float = 100.0
    """The learnt factor of the cosines, 1 over the temperature, is held below this (section 2.5)."""

    def __post_init__(self) -> None:
        check(self)
        one_of("clip.pooling", self.pooling, ("attention", "average"))
        at_least("clip.context_length", self.context_length, 3)
        for name in ("text_width", "text_layers", "text_heads", "largest_scale"):
            at_least(f"clip.{name}", getattr(self, name), 1)
        if self.text_width % self.text_heads:
            raise ConfigError(
                f"clip.text_width is {self.text_width} and clip.text_heads {self.text_heads}",
                remedy="choose a width that the heads divide",
            )


@dataclass(kw_only=True)
class CurlOptions:
    """CURL (Laskin et al. 2020), its representation: no reinforcement learning."""

    frames: int = 3
    """Frames of a stack, the picture and those just before it (reference code)."""

    def __post_init__(self) -> None:
        check(self)
        at_least("curl.frames", self.frames, 1)


@dataclass(kw_only=True)
class DistillationOptions:
    """Distillation of one backbone into another (SimCLR v2, Chen et al. 2020, section 2; SEED, Fang et al. 2021)."""

    teacher: str | None = None
    """File of the teacher, of any layout that ssl_backbones/handover reads."""
    targets: Literal["similarities", "classes"] = "similarities"
    """What the student's and the teacher's softmax run over. ``similarities``: the queue of the teacher's features of
    earlier images (SEED), for a teacher without labels. ``classes``: the classes of ``classifier`` (SimCLR v2)."""
    classifier: str | None = None
    """File with the teacher's last layer, ``weight`` or ``fc.weight`` (C, D) and its bias; None: the teacher's file."""
    teacher_temperature: float = 0.01
    """Temperature of the teacher where it differs, of ``similarities`` only (SEED: 0.01; the student has 0.2)."""

    def __post_init__(self) -> None:
        check(self)
        one_of("distillation.targets", self.targets, ("similarities", "classes"))
        if not self.teacher_temperature > 0:
            raise ConfigError(
                f"distillation.teacher_temperature is {self.teacher_temperature}", remedy="choose a value above 0"
            )


@dataclass(kw_only=True)
class PretrainOptions:
    """One self-supervised pretraining."""

    method: MethodName = "simclr"
    """Which method, see ssl_backbones/methods."""
    arch: BackboneOptions = field(default_factory=ResNetOptions)
    """The backbone; its ``name`` chooses the family, see ssl_backbones/backbones."""
    views: ViewsName = "moco_v2"
    """View recipe, see ssl_backbones/views.py."""
    view_size: int = 64
    """Side of a view in pixels."""
    local_view_size: int = 28
    """Side of the small views of a multi-crop recipe (paper: 96 beside 224)."""
    local_views: int | None = None
    """How many of the recipe's small views are made; None for all of them, 0 for the two large ones only."""
    images: str | None = None
    """Folder of images; None means the images that the detector will train on. Supervised contrast takes the name of
    the folder that an image lies in as its label; no other method looks at it."""
    labelled: str | None = None
    """Folder with one folder of images a class (or with ``train`` and ``val`` and these below), for the probes. None
    means ``images`` where that has one folder a class and the method does not learn from it, and otherwise no probe."""
    steps: int = 100
    """Optimisation steps."""
    batch_size: int = 64
    """Images a step (each gives two views), of all processes and micro-batches together. A set with fewer images is
    used whole in every step."""
    accumulate: int = 1
    """Micro-batches that a step is cut into, one after the other, whose gradients are averaged: less memory. Batch norm
    and negatives from the batch see the micro-batch only."""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    """SGD or LARS, both with momentum, or Adam with decoupled weight decay, whose first beta is that momentum."""
    lr: float = 0.01
    """Learning rate after warm-up, as it is: nothing scales it by the batch size."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    lr_milestones: list[int] = field(default_factory=list)
    """Steps at which the learning rate falls to a tenth, in the place of the cosine where there are any."""
    sgd_momentum: float = 0.9
    """Momentum of the optimiser."""
    weight_decay: float = 1e-4
    """L2 penalty; the method says which parameters it spares."""
    warmup: int = 10
    """Steps of linear warm-up."""
    temperature: float = 0.2
    """Temperature of the contrastive softmax."""
    projection_dim: int = 128
    """Dimensions of the space in which views are compared."""
    queue_size: int = 4096
    """MoCo, PCL, NNCLR: features kept from earlier batches, as negatives or as neighbours."""
    teacher_momentum: float = 0.999
    """m in teacher = m * teacher + (1 - m) * student. BYOL, MoCo v3, DINO: where its cosine to 1 starts."""
    shuffle_groups: int = 1
    """MoCo: groups with batch-norm statistics of their own, as so many devices would have; 1 turns shuffling off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks. Losses are always computed in fp32."""
    channels_last: bool = True
    """Memory layout NHWC for the convolutions."""
    sync_batch_norm: bool = False
    """With several processes, batch norm sees the micro-batch of all and not only its own share."""
    workers: int = 0
    """Processes that make views; 0 makes them in the training process. The result is the same for any number."""
    cache_megabytes: int = 1024
    """Decoded images are kept in memory, at twice the view size, where the whole set fits in this."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    log_every: int = 1
    """Steps between lines of the log, and between looks of the collapse meters."""
    probe_every: int = 500
    """Steps between kNN probes while training, where there are labelled images; 0 for none before the end."""
    probe_images: int = 25_000
    """Most labelled images that the probes look at, spread evenly."""
    knn_k: int = 20
    """Neighbours of the kNN probe."""
    knn_temperature: float = 0.1
    """Temperature of the probe's votes."""
    moco_v3: MoCoV3Options = field(default_factory=MoCoV3Options)
    """Of MoCo v3 alone."""
    byol: ByolOptions = field(default_factory=ByolOptions)
    """Of BYOL alone."""
    simsiam: SimSiamOptions = field(default_factory=SimSiamOptions)
    """Of SimSiam alone."""
    barlow_twins: BarlowTwinsOptions = field(default_factory=BarlowTwinsOptions)
    """Of Barlow Twins alone."""
    sup_con: SupConOptions = field(default_factory=SupConOptions)
    """Of supervised contrast alone."""
    pcl: PclOptions = field(default_factory=PclOptions)
    """Of PCL v1 and v2 alone."""
    nnclr: NnclrOptions = field(default_factory=NnclrOptions)
    """Of NNCLR alone."""
    swav: SwavOptions = field(default_factory=SwavOptions)
    """Of SwAV alone."""
    deepcluster_v2: DeepClusterV2Options = field(default_factory=DeepClusterV2Options)
    """Of DeepCluster-v2 alone."""
    dino: DinoOptions = field(default_factory=DinoOptions)
    """Of DINO alone."""
    instdisc: InstDiscOptions = field(default_factory=InstDiscOptions)
    """Of instance discrimination alone."""
    cpc: CpcOptions = field(default_factory=CpcOptions)
    """Of CPC alone."""
    cmc: CmcOptions = field(default_factory=CmcOptions)
    """Of CMC alone."""
    pirl: PirlOptions = field(default_factory=PirlOptions)
    """Of PIRL alone."""
    sela_v2: SelaV2Options = field(default_factory=SelaV2Options)
    """Of SeLa-v2 alone."""
    clip: ClipOptions = field(default_factory=ClipOptions)
    """Of CLIP alone."""
    curl: CurlOptions = field(default_factory=CurlOptions)
    """Of CURL alone."""
    distillation: DistillationOptions = field(default_factory=DistillationOptions)
    """Of distillation alone."""

    def __post_init__(self) -> None:
        check(self)
        one_of("method", self.method, get_args(MethodName))
        one_of("views", self.views, get_args(ViewsName))
        one_of("optimizer", self.optimizer, ("sgd", "lars", "adamw"))
        one_of("precision", self.precision, ("fp32", "bf16"))
        for name in ("steps", "warmup", "workers", "cache_megabytes", "lr", "final_lr", "weight_decay", "probe_every"):
            at_least(name, getattr(self, name), 0)
        for name in ("projection_dim", "queue_size", "shuffle_groups", "checkpoint_every", "log_every", "knn_k"):
            at_least(name, getattr(self, name), 1)
        for name, least in (("accumulate", 1), ("probe_images", 2)):
            at_least(name, getattr(self, name), least)
        at_least("view_size", self.view_size, 8)
        at_least("local_view_size", self.local_view_size, 8)
        if self.local_views is not None:
            at_least("local_views", self.local_views, 0)
        at_least("batch_size", self.batch_size, 2)
        for name in ("sgd_momentum", "teacher_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", remedy="choose a value from 0 to 1")
        for name in ("temperature", "knn_temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}", remedy="choose a value above 0")


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless the value is one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}", remedy=f"choose one of {', '.join(allowed)}")


def at_least(name: str, value: float, least: float) -> None:
    """Raise ConfigError unless the value is at least ``least``."""
    if not value >= least:
        raise ConfigError(f"{name} is {value}", remedy=f"choose a value of at least {least:g}")
