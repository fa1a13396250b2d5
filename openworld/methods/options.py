"""Base of the options of every open-world method. Standard library only, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Self

from openworld.errors import ConfigError
from openworld.methods import METHODS

if TYPE_CHECKING:
    from openworld.labels import LabelSpace
    from openworld.methods.base import OpenWorldMethod

ENTRY_POINTS = "openworld.methods"
"""Group of the entry points by which other packages register methods: name = ``module:class`` of the options."""


@dataclass(kw_only=True)
class MethodOptions:
    """The section ``method`` of a run's configuration. Its ``name`` chooses the class that the section is read as."""

    name: str

    @classmethod
    def named(cls, name: str) -> type[MethodOptions]:
        """Return the options class of a method.

        Args:
            name: of :data:`openworld.methods.METHODS`, of an entry point, or the import path ``module:class``.

        Raises:
            ConfigError: the method does not exist, cannot be imported, or is not an options class.
        """
        registered = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
        path = name if ":" in name else {**registered, **METHODS}.get(name)
        if path is None:
            raise ConfigError(
                f"method.name is {name!r}",
                remedy=f"choose one of {', '.join([*METHODS, *registered])}, or give an import path module:class",
            )
        module, _, attribute = path.partition(":")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"method.name is {name!r}, which cannot be imported: {error}",
                remedy="correct the import path module:class, or put the module's folder on PYTHONPATH",
            ) from error
        if not (isinstance(found, type) and issubclass(found, MethodOptions)):
            raise ConfigError(
                f"method.name is {name!r}, which is not a subclass of openworld.methods.options.MethodOptions",
                remedy="name the options class of the method",
            )
        return found

    @property
    def uses_unknown_labels(self) -> bool:
        """Whether annotations of unknown objects help to decide what is unknown."""
        return False

    def build(self, space: LabelSpace, feature_dim: int) -> OpenWorldMethod:
        """Make the method for a label space and D-dimensional region features, untrained."""
        raise NotImplementedError

    def rescaled(self, steps: Callable[[int], int]) -> Self:
        """Return the options for a longer or shorter training; ``steps`` maps the numbers of steps."""
        return self

    def before_calibration(self) -> Self:
        """Return the options with everything that acts after the training at its default.

        Two configurations that agree in these train alike.
        """
        return self

    def variants(self) -> Mapping[str, Self]:
        """Return the variants of an ablation, each with one part off, by name, such as ``no clustering``."""
        return {}
