"""Base of the options of every backbone family: the network that they name, and how its files are recognised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args, get_type_hints

from openworld.errors import ConfigError
from openworld.runtime.import_path import class_at
from openworld.runtime.options import check

STAGES = ("c2", "c3", "c4", "c5")
"""Names of the stages, finest first."""


@dataclass(kw_only=True)
class BackboneOptions(ABC):
    """A network of one family. ``name`` chooses the family, see :meth:`named`."""

    NETWORK: ClassVar[str]
    """Import path ``module:class`` of the network, which is made from its options."""
    first_convolution: ClassVar[str]
    """Name of the convolution that reads the colours, in the network."""
    keys: ClassVar[str]
    """Regular expression that matches the start of each key of the network's state dict, and of no classifier's."""
    telling_keys: ClassVar[tuple[str, ...]]
    """Keys by which a state dict of the family is recognised: it has all of them."""

    name: str
    """Name of the network in the family."""

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def named(cls, name: str) -> type[BackboneOptions]:
        """Return the options class of the family that has a network of this name.

        Raises:
            ConfigError: no family has such a network.
        """
        from ssl_backbones.backbones import FAMILIES

        for family in FAMILIES.values():
            if name in family.names():
                return family
        known = [known for family in FAMILIES.values() for known in family.names()]
        raise ConfigError(f"there is no backbone {name!r}", remedy=f"choose one of {', '.join(known)}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the networks of the family: the values of its ``name``."""
        return get_args(get_type_hints(cls)["name"])

    @classmethod
    def of_card(cls, values: Mapping[str, Any]) -> BackboneOptions:
        """Read the options as :func:`dataclasses.asdict` writes them to a card.

        Raises:
            ConfigError: no network has this name, or a value is out of range.
            KeyError: the name is missing.
            TypeError: the family does not have some field.
        """
        return cls.named(values["name"])(**values)

    @classmethod
    @abstractmethod
    def of_shapes(cls, shapes: Mapping[str, Sequence[int]], where: str) -> Self:
        """Read depth and widths from the shapes of a state dict's tensors.

        Args:
            shapes: by key; the family's ``telling_keys`` are among them.
            where: names the file in errors.

        Raises:
            CheckpointError: no network of the family has such shapes.
        """

    def build(self) -> Any:
        """Make the network, a :class:`ssl_backbones.backbones.base.Backbone`, with random weights. Imports torch."""
        network: Any = class_at(self.NETWORK, object)
        return network(self)

    @property
    @abstractmethod
    def strides(self) -> dict[str, int]:
        """Pixels per cell of each stage, ``c2``..``c5``: powers of two, finest first."""

    @abstractmethod
    def in_detector(self, norm: Literal["batch", "frozen"]) -> Self:
        """Return the options of the network in a detector with ``model.norm``.

        Raises:
            ConfigError: the network has no such norm.
            HandoverError: a pretrained network of these options does not fit a detector.
        """

    @abstractmethod
    def without_initialisation(self) -> Self:
        """Return the options without those of random weights: two trained networks are alike if these are equal."""

    def alternatives(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield networks that load the same tensors but compute other features: the difference in words, the options.

        The keys and shapes of a state dict cannot tell them apart; :mod:`ssl_backbones.handover.verify` does.
        """
        yield from ()

    def __str__(self) -> str:
        return self.name
