"""Classes by their import path ``module:class``, by which a configuration names classes of other packages."""

from __future__ import annotations

from importlib import import_module
from typing import Any, TypeVar

from openworld.errors import ConfigError

T = TypeVar("T")


def class_at(path: str, base: type[T]) -> type[T]:
    """Import a class.

    Args:
        path: ``module:class``, the module as in an import statement.
        base: the class that it must be derived from; may be abstract.

    Raises:
        ConfigError: the module cannot be imported, or has no such class, or the class is not derived from ``base``.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = getattr(import_module(module), name)
    except (Exception, SystemExit) as error:  # the module is anybody's code: a script may even end the process
        raise ConfigError(
            f"{path} cannot be imported ({type(error).__name__}: {error})",
            remedy="correct the import path module:class, or put the folder of the module on PYTHONPATH",
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(
            f"{path} is not a subclass of {base.__module__}.{base.__qualname__}", remedy="name a class that is one"
        )
    return found
