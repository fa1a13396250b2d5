"""Sections of open-world methods on the page of a run: one module per method, one entry in the table."""

from openworld.report.methods.base import MethodPage
from openworld.report.methods.ore import ORE_PAGE

METHOD_PAGES: dict[str, MethodPage] = {"ore": ORE_PAGE}
"""Name of a method and its part of the page. A method without an entry shows its calibration record."""
