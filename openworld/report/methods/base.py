"""The section of a method on the page of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openworld.report.run_folder import TaskArtefacts


@dataclass(frozen=True, kw_only=True)
class MethodPage:
    """A method's section of the page.

    Args:
        link: a word for the navigation.
        title: head of the section.
        lead: how to read it.
        panels: HTML of each panel, in order; none if the run has nothing to show.
        warnings: what a reader must know before quoting a number.
    """

    link: str
    title: str
    lead: str
    panels: Callable[[Sequence[TaskArtefacts]], list[str]]
    warnings: Callable[[Sequence[TaskArtefacts]], list[str]]
