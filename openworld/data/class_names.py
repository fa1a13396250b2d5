"""Class names as people write them: the lists of tasks, and the names of annotation files to those of the tasks."""

from __future__ import annotations

from typing import Any

from openworld.errors import ConfigError
from openworld.labels import LabelSpace
from openworld.runtime.options import shown


def check_tasks(tasks: Any) -> None:
    """Refuse what is not a list of tasks, each a list of class names.

    Raises:
        ConfigError: another form, or a name that no class can have. The problem continues a sentence that starts with
            the key: ``is 2, not a list``.
    """
    if not isinstance(tasks, list):
        raise ConfigError(f"is {shown(tasks)}, not a list", remedy="write one list of class names for each task")
    if not tasks:
        raise ConfigError("is empty", remedy="name the classes of at least one task")
    if all(isinstance(item, str) for item in tasks):
        apart = ", ".join(f"[{item}]" for item in tasks)
        also = f", or [{apart}] for a task each" if len(tasks) > 1 else ""
        raise ConfigError(
            f"is {tasks!r}, class names without a list for each task",
            remedy=f"write [[{', '.join(tasks)}]] for a single task{also}",
        )
    for number, names in enumerate(tasks, start=1):
        if not isinstance(names, list):
            problem = f"is wrong: task {number} is {shown(names)}, not a list"
            raise ConfigError(problem, remedy="list the class names of each task")
        for name in names:
            _check_name(name, f"class {shown(name)} of task {number}")
    try:
        LabelSpace.of(tasks, 1)
    except ConfigError as error:
        raise ConfigError(f"is wrong: {error.problem}", remedy=error.remedy) from None


def check_rename(rename: Any) -> None:
    """Refuse what is not a mapping of class names to class names.

    Raises:
        ConfigError: as for :func:`check_tasks`.
    """
    if not isinstance(rename, dict):
        raise ConfigError(f"is {shown(rename)}, not a mapping", remedy="write `airplane: aeroplane`, one a line")
    for old, new in rename.items():
        _check_name(old, f"the name {shown(old)}")
        _check_name(new, f"{shown(new)}, the name for {old!r},")


def _check_name(name: Any, what: str) -> None:
    if not isinstance(name, str) or not name.strip():
        problem = f"is wrong: {what} is {'blank' if isinstance(name, str) else 'not a text'}"
        raise ConfigError(problem, remedy="write class names as texts; a class that is called null needs quotes")
