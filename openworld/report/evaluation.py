"""Files of ``openworld evaluate --output``: one file in a chosen form, or a folder with all forms and the plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openworld.errors import ConfigError
from openworld.report import curves
from openworld.report.tables import as_csv, as_latex, as_markdown
from openworld.runtime.files import write_atomic
from openworld.runtime.outputs import output_file, output_folder

Results = Sequence[dict[str, Any]]


def as_json(results: Results) -> str:
    """Format one result as it is, several as ``{"results": [...]}``.

    Raises:
        ValueError: a value is NaN or infinite, which is not JSON.
    """
    content = results[0] if len(results) == 1 else {"results": list(results)}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


FORMS: dict[str, Callable[[Results], str]] = {
    ".json": as_json,
    ".csv": as_csv,
    ".md": as_markdown,
    ".tex": as_latex,
}
"""Suffix of a single file, and the function that makes its text."""


def checked_output(name: str) -> Path:
    """Return the path for :func:`write_results`, after a check that it can be written.

    Raises:
        ConfigError: a file lies where the folder should be, or a folder where the file should be.
        OSError: nothing can be written there.
    """
    output = Path(name)
    if output.suffix.lower() in FORMS:
        return output_file(name)
    if output.exists() and not output.is_dir():
        raise ConfigError(
            "there is a file of this name, and only a folder can take results in all forms",
            where=name,
            remedy=f"choose a folder, or a file that ends in {', '.join(FORMS)}",
        )
    return output_folder(name)


def write_results(results: Results, output: Path) -> list[Path]:
    """Write results in the form that the suffix of ``output`` names, or all forms into a folder.

    A folder gets metrics.json, results.csv, results.md, results.tex, precision_recall.png, unknown_recall.png and
    wilderness_impact.png. Plots without data are left out, and older ones of that name are removed, so that the folder
    never shows curves of another evaluation.

    Args:
        results: of :func:`openworld.predictions.score.evaluate_predictions`, in the order of the rows.
        output: ``*.json``, ``*.csv``, ``*.md`` or ``*.tex``; anything else is a folder.

    Returns:
        the written files.

    Raises:
        ConfigError: a file lies where the folder should be, or a folder where the file should be.
    """
    output = checked_output(str(output))
    form = FORMS.get(output.suffix.lower())
    if form is not None:
        write_atomic(output, form(results))
        return [output]
    files: dict[str, str | bytes | None] = {
        "metrics.json": as_json(results),
        **{f"results{suffix}": text(results) for suffix, text in FORMS.items() if suffix != ".json"},
        **curves.pictures(results),
    }
    for name, content in files.items():
        if content is None:
            (output / name).unlink(missing_ok=True)
        else:
            write_atomic(output / name, content)
    return [output / name for name, content in files.items() if content is not None]
