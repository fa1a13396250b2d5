"""Open-world methods: what is unknown, how it is learned, and how a detection is decided. One folder per method.

:data:`METHODS` is the table; a method is one folder, one line in the table, and one test. A method of another package
is found by an entry point of the group ``openworld.methods``, or by its import path in the configuration.
"""

from __future__ import annotations

METHODS: dict[str, str] = {
    "ore": "openworld.methods.ore.options:OreOptions",
    "closed": "openworld.methods.closed.options:ClosedOptions",
    "max_logit": "openworld.methods.max_logit.options:MaxLogitOptions",
}
"""Name → the options class of the method, as ``module:class``; its ``build`` makes the method."""
