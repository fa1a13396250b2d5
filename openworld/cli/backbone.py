"""Verbs for pretrained backbones: inspect, export, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from openworld.cli.parser import PATH, Reads
from openworld.cli.verbs import AddVerb

if TYPE_CHECKING:
    from ssl_backbones.handover import BackboneFile
    from ssl_backbones.options import Preprocess


def add_verbs(verb: AddVerb) -> None:
    """Add the verbs below the verb `backbone`."""
    _file_arguments(verb("inspect", inspect, "show what a weight file of any layout holds, and how it was recognised"))

    export_verb = verb("export", export, "write a backbone for torchvision or detectron2, with the settings it needs")
    _file_arguments(export_verb)
    export_verb.add_argument(
        "--to",
        type=Reads(Literal["torchvision", "detectron2", "detectron2-c4", "detectron2-fpn"]),
        required=True,
        help="detectron2: names that fit any detector by its heuristics; -c4, -fpn: the full names of such a detector",
    )
    export_verb.add_argument(
        "--output", type=PATH, required=True, help="the file: .safetensors or .pth for torchvision, .pkl for detectron2"
    )
    export_verb.add_argument(
        "--inexact", action="store_true", help="allow a library that pads differently, so that features differ a little"
    )

    verify_verb = verb("verify", verify, "compute features as a detector would, and compare them with the backbone's")
    _file_arguments(verify_verb)
    verify_verb.add_argument(
        "--settings",
        type=PATH,
        required=True,
        help="the .yaml of an export, or a detectron2 configuration with MODEL.WEIGHTS",
    )


def _file_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", type=PATH, help="weights: .safetensors, .pth, .tar, .pt, .pkl, .npz, or a folder")
    parser.add_argument(
        "--preprocess",
        type=str,
        default=None,
        help="what it was trained on, where the file cannot tell: imagenet, swav, simclr, clip, cifar10, caffe",
    )
    parser.add_argument(
        "--network",
        type=str,
        default=None,
        help="prefix of its keys, where the file holds several: student., encoder_k.",
    )
    parser.add_argument("--stride-in-1x1", type=Reads(bool), default=None, help="bottlenecks stride in their first 1x1")
    parser.add_argument(
        "--pool-padding", type=Reads(Literal["both", "end"]), default=None, help="of the stem's max pool"
    )
    parser.add_argument(
        "--conv-padding", type=Reads(Literal["both", "end"]), default=None, help="of strided convolutions"
    )


def inspect(arguments: Namespace) -> None:
    """Show layout, architecture and preprocessing of a weight file."""
    from dataclasses import asdict

    from openworld.runtime.console import open_console

    backbone = _load(arguments)
    console = open_console()
    parameters = sum(value.numel() for key, value in backbone.state_dict.items() if value.is_floating_point())
    facts = {
        "layout": backbone.layout,
        "prefix": backbone.prefix or "none",
        "choice": backbone.choice or "the file holds one network",
        **asdict(backbone.arch),
        **{f"input {name}": value for name, value in backbone.preprocess.items()},
        "numbers": f"{parameters:,} in {len(backbone.state_dict)} tensors",
        "left out": ", ".join(backbone.left_out[:4]) + (", …" if len(backbone.left_out) > 4 else "") or "nothing",
    }
    for name, value in facts.items():
        console.print(f"{name:20} {value}", highlight=False, soft_wrap=True)


def export(arguments: Namespace) -> None:
    """Write weights, settings and card for another library; check that they give the same features."""
    from openworld.runtime.console import open_console
    from openworld.runtime.outputs import output_file
    from ssl_backbones.handover import export_backbone
    from ssl_backbones.handover.settings import verify_settings

    output = output_file(arguments.output)
    backbone = _load(arguments)
    files = export_backbone(backbone, arguments.to, output, inexact=arguments.inexact)
    console = open_console()
    console.print(f"written: {files.weights}, {files.settings.name} and {files.card.name}", soft_wrap=True)
    if arguments.inexact:
        console.print("not compared: --inexact")
        return
    verify_settings(backbone, files.settings)
    console.print("C2 to C5 agree with the pretrained backbone")


def verify(arguments: Namespace) -> None:
    """Print the difference of each stage; exit with 2 and the cause if there is one."""
    from openworld.runtime.console import open_console
    from ssl_backbones.handover.settings import verify_settings

    differences = verify_settings(_load(arguments), Path(arguments.settings))
    stages = ", ".join(f"{stage.upper()} {value:.1e}" for stage, value in differences.items())
    open_console().print(f"the detector sees what the backbone saw; relative differences: {stages}", highlight=False)


def named_preprocess(name: str | None) -> Preprocess | None:
    """Return the preprocessing of a network by name; None leaves it to the weight file.

    Raises:
        ConfigError: the name is not known.
    """
    from openworld.errors import ConfigError
    from ssl_backbones.handover import PREPROCESSES

    if name is not None and name not in PREPROCESSES:
        raise ConfigError(f"preprocess is {name!r}", remedy=f"choose one of {', '.join(PREPROCESSES)}")
    return None if name is None else PREPROCESSES[name]


def _load(arguments: Namespace) -> BackboneFile:
    from dataclasses import replace

    from openworld.errors import ConfigError
    from ssl_backbones.backbones import ResNetOptions
    from ssl_backbones.handover import load_backbone_file

    backbone = load_backbone_file(
        Path(arguments.file), preprocess=named_preprocess(arguments.preprocess), network=arguments.network
    )
    named = ("stride_in_1x1", "pool_padding", "conv_padding")
    given = {name: arguments[name] for name in named if arguments[name] is not None}
    if given and not isinstance(backbone.arch, ResNetOptions):
        raise ConfigError(
            f"--{next(iter(given)).replace('_', '-')} is for ResNets, and this is a {backbone.arch.name}",
            where=arguments.file,
            remedy="leave the option out",
        )
    return backbone._replace(arch=replace(backbone.arch, **given))
