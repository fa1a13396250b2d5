"""Pages from the templates of this package."""

from __future__ import annotations

from importlib import resources
from typing import Any

from openworld.report.plots import PALETTE


def render(template: str, **values: Any) -> str:
    """Render a template of this package. Values are escaped; included templates lie beside it.

    Args:
        template: name of the file.
        values: variables of the template; ``palette`` is added.
    """
    import jinja2

    folder = resources.files("openworld.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(palette=PALETTE, **values)


def markup(svg: str | None) -> Any:
    """Mark a figure as markup. Texts inside were escaped when the SVG was written."""
    from markupsafe import Markup

    return None if svg is None else Markup(svg)
