"""Proposals for a schedule: which classes come with which task.

Frequent classes come first, as they do in practice. Or a file says which group each class belongs to, as the
super-categories of OW-DETR's split do (Gupta et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from openworld.errors import ConfigError, DataError
from openworld.report.text import counted
from openworld.runtime.files import read_yaml
from openworld.runtime.option_trees import typed
from openworld.runtime.options import fits, shown


def by_frequency(counts: Mapping[str, int], num_tasks: int, *, leave_unknown: int = 0) -> list[list[str]]:
    """Deal classes out to tasks, the most frequent first.

    Args:
        counts: objects of each class. Classes without objects are left out.
        num_tasks: at least 1. The numbers of classes differ by at most one; earlier tasks have more.
        leave_unknown: number of the rarest classes to leave out of all tasks.

    Returns:
        class names by task, the most frequent first; those of equal frequency by name.

    Raises:
        ConfigError: fewer classes than tasks, or a number below its limit.
    """
    if num_tasks < 1 or leave_unknown < 0:
        raise ConfigError(
            f"{num_tasks} tasks and {leave_unknown} unknown classes",
            remedy="give at least 1 task and 0 unknown classes",
        )
    names = _by_falling_count(counts)
    kept = names[: max(0, len(names) - leave_unknown)]
    if len(kept) < num_tasks:
        raise ConfigError(
            f"{len(names)} classes have objects, {leave_unknown} of them stay unknown: too few for {num_tasks} tasks",
            remedy="ask for fewer tasks or fewer unknown classes",
        )
    size, more = divmod(len(kept), num_tasks)
    tasks, start = [], 0
    for number in range(num_tasks):
        stop = start + size + (number < more)
        tasks.append(kept[start:stop])
        start = stop
    return tasks


def by_group(counts: Mapping[str, int], groups: Mapping[str, str | int], *, leave_unknown: int = 0) -> list[list[str]]:
    """Make one task per group of classes.

    Args:
        counts: objects of each class. Classes without objects are left out.
        groups: class name to its group. Groups become tasks in the order in which they are first named, or by number if
            all are numbers. Classes without a group are in no task.
        leave_unknown: number of the rarest classes with a group to leave out of all tasks.

    Returns:
        class names by task, the most frequent first. Groups without any class are left out.

    Raises:
        ConfigError: no group has a class.
        DataError: the groups name a class that the data do not have.
    """
    if leave_unknown < 0:
        raise ConfigError(f"{leave_unknown} unknown classes", remedy="give 0 or more")
    strange = [name for name in groups if name not in counts]
    if strange:
        raise DataError(
            f"the groups name {', '.join(map(repr, strange[:5]))}, which the annotations do not have",
            remedy=f"correct the names; the annotations have: {', '.join(list(counts)[:20])}",
        )
    names = [name for name in _by_falling_count(counts) if name in groups]
    names = names[: max(0, len(names) - leave_unknown)]
    order = list(dict.fromkeys(groups.values()))
    if all(isinstance(group, int) for group in order):
        order.sort(key=int)
    tasks = [task for group in order if (task := [name for name in names if groups[name] == group])]
    if not tasks:
        raise ConfigError("no group has a class with objects", remedy="give groups to classes of the annotations")
    return tasks


def propose(
    counts: Mapping[str, int], num_tasks: int | None, by: str, *, leave_unknown: int = 0
) -> tuple[list[list[str]], str]:
    """Propose a schedule by ``frequency``, or by the groups of a file.

    Args:
        counts: objects of each class.
        num_tasks: needed by frequency; with groups it must be their number, or None.
        by: ``frequency`` or the path of a .yaml file for :func:`read_groups`.
        leave_unknown: number of the rarest classes to leave out of all tasks.

    Returns:
        class names by task, and the beginning of a sentence on how they came about, for :func:`schedule_text`.

    Raises:
        ConfigError: no number of tasks, or another one than the groups make, or as the functions of this module.
        DataError: as :func:`by_group`.
    """
    if by == "frequency":
        if num_tasks is None:
            raise ConfigError("the number of tasks is not given", remedy="name it with --tasks 2")
        return by_frequency(counts, num_tasks, leave_unknown=leave_unknown), "Tasks by frequency of the classes"
    tasks = by_group(counts, read_groups(Path(by)), leave_unknown=leave_unknown)
    if num_tasks not in (None, len(tasks)):
        raise ConfigError(
            f"the groups make {len(tasks)} tasks, and {num_tasks} are asked for",
            where=by,
            remedy="leave --tasks out, or give classes of several groups one name of a group",
        )
    return tasks, f"Tasks by the groups in {by}, for the classes"


def read_groups(path: Path) -> dict[str, str | int]:
    """Read a .yaml file that maps each class name to the name or number of its group.

    Raises:
        ConfigError: the file is missing or not such a mapping.
    """
    path = Path(path)
    remedy = "write one line per class, such as `cat: animals`"
    content = typed(dict[str, int | str], read_yaml(path, remedy=remedy, as_written=True))
    if not content:
        raise ConfigError("names no class", where=str(path), remedy=remedy)
    for name, group in content.items():
        if not fits(str, name) or not fits(int | str, group):
            problem = f"`{shown(name)}: {shown(group)}` is not a class with its group"
            raise ConfigError(problem, where=str(path), remedy=f"{remedy}; put quotes around null")
    return dict(content)


def schedule_text(tasks: Sequence[Sequence[str]], counts: Mapping[str, int], origin: str) -> str:
    """Write a schedule as YAML, with the number of objects behind each class as a comment.

    Args:
        tasks: class names by task.
        counts: objects of each class; those in no task are named in a comment.
        origin: a sentence on how it came about, for the head of the file.
    """
    width = max((len(_quoted(name)) for name in (*counts, *(name for names in tasks for name in names))), default=0)
    lines = [
        f"# {origin}",
        "# Change it as you like: move lines, or delete them; a class of no task stays unknown.",
        "tasks:",
    ]
    for number, names in enumerate(tasks, start=1):
        total = sum(counts.get(name, 0) for name in names)
        classes, objects = counted(len(names), "class", "classes"), counted(total, "object")
        lines.append(f"  - # task {number}: {classes}, {objects}")
        lines += [f"    - {_quoted(name):<{width}}  # {counts.get(name, 0):,}" for name in names]
    taught = {name for names in tasks for name in names}
    left = [name for name in _by_falling_count(counts, with_absent=True) if name not in taught]
    if left:
        lines.append("# in no task:")
        lines += [f"#   - {_quoted(name):<{width}}  # {counts[name]:,}" for name in left]
    return "\n".join(lines) + "\n"


def _by_falling_count(counts: Mapping[str, int], *, with_absent: bool = False) -> list[str]:
    """Names by falling count, then by name; without ``with_absent``, only those that have objects."""
    return sorted(
        (name for name, count in counts.items() if with_absent or count), key=lambda name: (-counts[name], name)
    )


def _quoted(name: str) -> str:
    """The name as YAML reads it back: in quotes only where it needs them."""
    text: str = yaml.safe_dump([name], default_flow_style=True, allow_unicode=True, width=10_000)
    return text.strip().removeprefix("[").removesuffix("]")
