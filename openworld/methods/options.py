"""Base of the options of every open-world method. Standard library only, so that ``--help`` is quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, ClassVar, Self

from openworld.errors import ConfigError
from openworld.methods import METHODS
from openworld.runtime.import_path import class_at

if TYPE_CHECKING:
    from openworld.labels import LabelSpace
    from openworld.methods.base import OpenWorldMethod

ENTRY_POINTS = "openworld.methods"
"""Group of the entry points by which other packages register methods: name = ``module:class`` of the options."""


@dataclass(kw_only=True)
class MethodOptions:
    """The section ``method`` of a run's configuration. Its ``name`` chooses the class that the section is read as."""

    METHOD: ClassVar[str]
    """Import path ``module:class`` of the :class:`openworld.methods.base.OpenWorldMethod` that has these options."""

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
            remedy = f"choose one of {', '.join([*METHODS, *registered])}, or give an import path module:class"
            raise ConfigError(f"there is no method {name!r}", remedy=remedy)
        return class_at(path, MethodOptions)

    @property
    def uses_unknown_labels(self) -> bool:
        """Whether annotations of unknown objects help to decide what is unknown."""
        return False

    def build(self, space: LabelSpace, feature_dim: int) -> OpenWorldMethod:
        """Make the method for a label space and D-dimensional region features, untrained. Imports torch.

        Raises:
            ConfigError: see :meth:`method_class`.
        """
        return self.method_class().of(self, space, feature_dim)

    @classmethod
    def method_class(cls) -> type[OpenWorldMethod]:
        """Import the class at :attr:`METHOD`.

        Raises:
            ConfigError: ``METHOD`` is missing, cannot be imported, or does not name an ``OpenWorldMethod``.
        """
        from openworld.methods.base import OpenWorldMethod

        owner = f"{cls.__module__}:{cls.__qualname__}"
        if not hasattr(cls, "METHOD"):
            raise ConfigError(
                f"the options {owner} do not say which method they make",
                remedy='set METHOD = "module:class" in that class, see docs/methods.md',
            )
        try:
            return class_at(cls.METHOD, OpenWorldMethod)
        except ConfigError as error:
            raise ConfigError(f"METHOD of {owner}: {error.problem}", remedy=error.remedy) from error

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
