"""Verbs that measure a pretrained backbone: knn, linear, semi, transform, suppress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from jsonargparse import ArgumentParser, Namespace

from openworld.cli.parser import PATH, Reads
from openworld.cli.verbs import AddVerb
from openworld.report.text import percent
from openworld.runtime.options import Above, AtMost, Items, NonNegativeInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from ssl_backbones.handover import BackboneFile
    from ssl_backbones.probes.frozen import FrozenProbes
    from ssl_backbones.probes.labelled import LabelledSet


def add_verbs(verb: AddVerb) -> None:
    """Add the verbs below the verb `probe`."""
    knn_verb = verb("knn", knn, "classify images by their nearest neighbours among the features")
    _image_arguments(knn_verb)
    knn_verb.add_argument(
        "--k", type=Reads(PositiveInt), default=20, help="neighbours (papers: 200 on CIFAR-10 and ImageNet)"
    )
    knn_verb.add_argument(
        "--temperature", type=Reads(PositiveFloat), default=0.1, help="of their votes (ImageNet: 0.07)"
    )

    linear_verb = verb("linear", linear, "train a linear classifier on the frozen features")
    _image_arguments(linear_verb)
    linear_verb.add_argument(
        "--protocol", type=str, default="closed_form", help="closed_form, or SGD as in a paper: moco, simclr, byol, …"
    )

    semi_verb = verb("semi", semi, "fine-tune the whole network on 1 % or 10 % of the labels")
    _image_arguments(semi_verb)
    semi_verb.add_argument(
        "--protocol", type=str, default="swav_1", help="swav_1, swav_10, simclr_1, simclr_10, barlow_twins_1"
    )
    semi_verb.add_argument(
        "--share",
        type=Reads(Annotated[float, Above(0), AtMost(1)]),
        default=None,
        help="another share of the labels, from 0 to 1",
    )
    semi_verb.add_argument("--epochs", type=Reads(NonNegativeInt), default=None, help="another number of epochs")

    transform_verb = verb(
        "transform", transform, "predict how an image was transformed, from h and from the projection g(h)"
    )
    _image_arguments(transform_verb)
    transform_verb.add_argument(
        "--projector",
        type=PATH,
        default=None,
        help="a checkpoint with the head g; default: beside --backbone, or in it",
    )

    suppress_verb = verb("suppress", suppress, "what contrastive learning suppresses: RandBits, MultiDigits")
    suppress_verb.add_argument("--experiment", type=Reads(Literal["rand_bits", "multi_digits"]), required=True)
    suppress_verb.add_argument(
        "--settings",
        type=Reads(Annotated[list[NonNegativeInt], Items(1)]),
        default=None,
        help="numbers of random bits, or of digits per image",
    )
    suppress_verb.add_argument(
        "--temperatures", type=Reads(Annotated[list[PositiveFloat], Items(1)]), default=[0.05, 0.2]
    )
    suppress_verb.add_argument("--seeds", type=Reads(Annotated[list[int], Items(1)]), default=[0, 1, 2])
    suppress_verb.add_argument("--samples", type=Reads(PositiveInt), default=1500, help="number of training images")
    suppress_verb.add_argument("--epochs", type=Reads(NonNegativeInt), default=20)
    suppress_verb.add_argument("--output", type=PATH, default=None, help="a .json file for the table")


def _image_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--backbone", type=PATH, required=True, help="weights of any layout, or a folder with them")
    parser.add_argument(
        "--images", type=PATH, required=True, help="one folder of images per class, or train/ and val/ of such folders"
    )
    parser.add_argument(
        "--size", type=Reads(PositiveInt), default=64, help="side in pixels to which images are resized"
    )
    parser.add_argument("--preprocess", type=str, default=None, help="as for `openworld backbone`")
    parser.add_argument("--network", type=str, default=None, help="as for `openworld backbone`")
    parser.add_argument(
        "--limit", type=Reads(PositiveInt), default=20000, help="largest number of images, spread evenly over the set"
    )
    parser.add_argument("--seed", type=Reads(int), default=0, help="of the untrained network and of all random choices")
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--output", type=PATH, default=None, help="a .json file for the table")


def knn(arguments: Namespace) -> None:
    """Print the kNN accuracy."""
    found = _frozen(arguments).knn(k=arguments.k, temperature=arguments.temperature)
    rows = [["trained", percent(found["trained"])], ["untrained", percent(found["untrained"])]]
    _show(f"kNN, k = {found['k']}", ["network", "top-1"], rows, found, arguments)


def linear(arguments: Namespace) -> None:
    """Print the accuracies of a linear classifier."""
    import torch

    from openworld.errors import ConfigError
    from ssl_backbones.probes.linear import PROTOCOLS, LinearClassifier, fit_ridge, fit_sgd

    if arguments.protocol != "closed_form" and arguments.protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is {arguments.protocol!r}", remedy=f"choose closed_form, {', '.join(PROTOCOLS)}")

    def fit(features: torch.Tensor, labels: torch.Tensor, classes: int) -> LinearClassifier:
        if arguments.protocol == "closed_form":
            return fit_ridge(features, labels, classes)
        source = torch.Generator().manual_seed(arguments.seed)
        return fit_sgd(features, labels, classes, protocol=PROTOCOLS[arguments.protocol], generator=source)

    found = _frozen(arguments).linear(fit=fit)
    _show(f"linear, {arguments.protocol}", ["network", "top-1", "top-5"], _two_rows(found), found, arguments)


def semi(arguments: Namespace) -> None:
    """Print the accuracies after fine-tuning on a part of the labels."""
    from dataclasses import replace

    from openworld.errors import ConfigError
    from ssl_backbones.probes.semi_supervised import PROTOCOLS, semi_supervised_table

    if arguments.protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is {arguments.protocol!r}", remedy=f"choose one of {', '.join(PROTOCOLS)}")
    named = ("share", "epochs")
    changed = {name: arguments[name] for name in named if arguments[name] is not None}
    backbone, data, device = _opened(arguments)
    found = semi_supervised_table(
        backbone.network(),
        data,
        backbone.preprocess,
        size=arguments.size,
        protocol=replace(PROTOCOLS[arguments.protocol], **changed),
        seed=arguments.seed,
        device=device,
    )
    title = f"fine-tuned on {found['labels']} labels, {arguments.protocol}"
    _show(title, ["network", "top-1", "top-5"], _two_rows(found), found, arguments)


def transform(arguments: Namespace) -> None:
    """Print the accuracies of predicting the transform."""
    import logging

    from openworld.errors import CheckpointError
    from ssl_backbones.handover.projector import load_projector, projector_file

    probes = _frozen(arguments)
    try:
        head = Path(arguments.projector) if arguments.projector else projector_file(Path(arguments.backbone))
        projector = load_projector(head, probes.trained.dim)
    except CheckpointError as error:
        if arguments.projector is not None:
            raise
        logging.getLogger(__name__).warning("h alone: %s", error)
        projector = None
    found = probes.transforms(projector)
    heads = ["question", "h", "g(h)", "h, untrained", "g(h), untrained", "chance"]
    rows = [
        [
            question,
            *(percent(table[name][of]) for name in ("trained", "untrained") for of in ("h", "g")),  # type: ignore[literal-required]
            percent(table["chance"]),
        ]
        for question, table in found.items()
    ]
    _show("predicting how an image was transformed", heads, rows, dict(found), arguments)


def suppress(arguments: Namespace) -> None:
    """Train the experiment from scratch, and print its table."""
    from ssl_backbones.probes.suppression import SuppressionOptions, multi_digits, rand_bits

    _check_output(arguments)
    options = SuppressionOptions(
        temperatures=tuple(arguments.temperatures),
        seeds=tuple(arguments.seeds),
        train_samples=arguments.samples,
        test_samples=max(1, arguments.samples // 3),
        epochs=arguments.epochs,
    )
    if arguments.experiment == "rand_bits":
        what, found = "bits", rand_bits(arguments.settings or [0, 2, 5, 10, 16], options)
    else:
        what, found = "digits", multi_digits(arguments.settings or [1, 2, 4, 8, 16], options)
    rows = [
        [
            str(row["setting"]),
            f"{row['temperature']:g}",
            _with_spread(row["trained"], row["trained_spread"]),
            _with_spread(row["untrained"], row["untrained_spread"]),
            percent(row["chance"]),
        ]
        for row in found
    ]
    heads = [what, "temperature", "trained", "untrained", "chance"]
    _show(f"{arguments.experiment}: linear probe for the digit", heads, rows, {"rows": found}, arguments)


def _check_output(arguments: Namespace) -> None:
    from openworld.runtime.outputs import output_file

    if arguments.output is not None:
        output_file(arguments.output)


def _opened(arguments: Namespace) -> tuple[BackboneFile, LabelledSet, str]:
    """Open backbone and images, after a check of the output; return them with the device."""
    from openworld.cli.backbone import named_preprocess
    from openworld.runtime.environment import select_device
    from ssl_backbones.handover import load_backbone_file
    from ssl_backbones.probes.labelled import from_folder

    _check_output(arguments)
    device = select_device(arguments.device)
    preprocess = named_preprocess(arguments.preprocess)
    backbone = load_backbone_file(Path(arguments.backbone), preprocess=preprocess, network=arguments.network).as_rgb()
    data = from_folder(Path(arguments.images), side=2 * arguments.size, cache_megabytes=1024)
    return backbone, data.thinned(arguments.limit), device


def _frozen(arguments: Namespace) -> FrozenProbes:
    from ssl_backbones.probes.frozen import FrozenProbes

    backbone, data, device = _opened(arguments)
    return FrozenProbes.of(
        backbone.network(), data, backbone.preprocess, size=arguments.size, seed=arguments.seed, device=device
    )


def _two_rows(found: Any) -> list[list[str]]:
    return [[name, percent(found[name]["top1"]), percent(found[name]["top5"])] for name in ("trained", "untrained")]


def _with_spread(value: float | None, spread: float | None) -> str:
    return percent(value) if spread is None else f"{percent(value)} ± {percent(spread)}"


def _show(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], found: Any, arguments: Namespace) -> None:
    """Print the table in per cent, and write it as fractions to --output."""
    from openworld.runtime.console import narrow_table, open_console
    from openworld.runtime.files import write_json

    if arguments.output is not None:
        asked = {name: value for name, value in vars(arguments).items() if name != "output"}
        write_json(Path(arguments.output), {"probe": title, "asked": asked, **found})
    console = open_console()
    console.print(narrow_table(heads, rows, f"{title} (%)", words=[heads[0]]))
    if isinstance(found.get("chance"), float):
        console.print(f"chance: {percent(found['chance'])} %")
