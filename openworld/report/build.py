"""One HTML page of a run, from the files in its folder alone.

The page is self-contained: styles, figures (inline SVG) and pictures (JPEG data) are in the file, there is no script,
and it opens from a disk without a network. Whatever artefact is missing is said in its place.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openworld.metrics.forgetting import forgetting
from openworld.report import curves, plots
from openworld.report.draw import NOT_TAUGHT_COLOUR, UNKNOWN_COLOUR
from openworld.report.page import markup, render, text_of
from openworld.report.pictures import LabelledImages, Panel, Picture, data_uri, pictures
from openworld.report.profile import profile_section
from openworld.report.run_folder import RunArtefacts, TaskArtefacts, flatten, mapping, number, read_run, sequence
from openworld.runtime.files import write_atomic

_STAGES = ("world", "pretrain", "train", "exemplars", "replay", "energy", "evaluate")
_ENERGY_RULES = {
    "density": "unknown where its Weibull is denser, below one boundary",
    "window": "unknown where its Weibull holds more of a window of ±0.5",
    "threshold": "unknown below a threshold",
}
_ENERGY_LABELS = {
    "auto_labelled": "Fitted on regions of known objects and on background regions taken for unknown ones: no label of "
    "an unknown object was used.",
    "annotated_unknown": "Labels of unknown objects were used: fitted on annotated objects of classes not taught.",
    "annotated_and_auto": "Labels of unknown objects were used: fitted on annotated objects of classes not taught and "
    "on background regions taken for unknown ones.",
    "known_only": "Fitted on regions of known objects alone: no label of an unknown object was used.",
}
_NEWER = (
    "unknown_f1_50",
    "unknown_precision50",
    "unknown_hits",
    "wi_at_recall",
    "wi_classes_below_recall",
    "a_ose_one_to_one",
    "curves",
)
"""Entries of metrics.json that early versions did not write."""
_LISTED = 12
"""More classes than this are counted, not listed."""


def build_report(
    run: Path,
    test: LabelledImages | None = None,
    *,
    gone: str | None = None,
    known_threshold: float = 0.3,
    unknowns_per_image: int = 4,
    images: int = 6,
) -> Path:
    """Write ``report.html`` into the folder of a run.

    Args:
        run: the folder; only config.yaml must be there.
        test: the annotated test images, for the pictures; without them the pictures show detections only.
        gone: why the test images cannot be opened, for the page to say; None where ``test`` is given or not wanted.
        known_threshold: least score of a known detection that is drawn.
        unknowns_per_image: the so many unknown detections with the highest scores are drawn.
        images: most test images that are shown.

    Returns:
        Path of report.html.

    Raises:
        DataError: there is no such folder.
        ConfigError: its config.yaml is missing or is not a mapping.
    """
    artefacts = read_run(run)
    shown, unopened = pictures(
        artefacts, test, count=images, known_threshold=known_threshold, unknowns=unknowns_per_image
    )
    page = render(
        "template.html",
        title=str(artefacts.config.get("name") or artefacts.path.resolve().name),
        folder=artefacts.path.resolve().name,
        swatches={"unknown": _css(UNKNOWN_COLOUR), "not_taught": _css(NOT_TAUGHT_COLOUR)},
        notes=artefacts.notes,
        warnings=_warnings(artefacts),
        headline=_headline(artefacts),
        classes=_classes(artefacts),
        run=_what_was_run(artefacts),
        results=_results(artefacts),
        forgetting=_forgetting(artefacts),
        pictures=[_picture(picture) for picture in shown],
        pictures_note=_pictures_note(artefacts, shown, test, gone, known_threshold, unknowns_per_image),
        unopened=[] if gone is not None else unopened,
        energy=[_energy(task.number, task.energy) for task in artefacts.tasks if task.energy is not None],
        knn=_knn(artefacts.card),
        card=[(key, text_of(value)) for key, value in flatten(artefacts.card)] if artefacts.card else [],
        losses=markup(plots.loss_curves(artefacts.log)),
        commands=_commands(artefacts),
    )
    target = artefacts.path / "report.html"
    write_atomic(target, page)
    return target


def _headline(run: RunArtefacts) -> dict[str, Any]:
    """The three big numbers, each with what it means, and one sentence that reads them."""
    scored = [(task.number, task.metrics) for task in run.tasks if task.metrics is not None]
    if not scored:
        return {"figures": [], "sentence": "This run has no metrics.json yet: nothing has been evaluated."}
    last, metrics = scored[-1]
    known = number(metrics.get("known_ap50"))
    count = len(run.known(last))
    classes = f"{count} class{'es' if count != 1 else ''}"
    with_unknown = [
        (task, value) for task, found in scored if (value := number(found.get("unknown_recall50"))) is not None
    ]
    unknown_task, recall = with_unknown[-1] if with_unknown else (last, None)
    kept, taught = _kept(run)
    figures = [
        {
            "kind": "known",
            "name": "Known mAP@50",
            "value": _percent(known),
            "note": f"{classes} known after task {last}" if count else f"after task {last}",
        },
        {
            "kind": "unknown",
            "name": "U-Recall",
            "value": _percent(recall),
            "note": f"of the objects never taught, after task {unknown_task}"
            if recall is not None
            else "no evaluated task has objects that were not taught",
        },
        {
            "kind": "previous",
            "name": "Kept mAP of old classes",
            "value": _percent(kept),
            "note": f"{100 * kept / taught:.0f}\u00a0% of the {100 * taught:.1f} that they had when taught"
            if kept is not None and taught
            else (f"after task {last}" if kept is not None else "no class is old yet"),
        },
    ]
    parts = []
    if known is not None:
        parts.append(
            f"names the {classes} it was taught at {100 * known:.1f} mAP@50"
            if count
            else f"reaches {100 * known:.1f} mAP@50"
        )
    if recall is not None:
        when = "" if unknown_task == last else f" (after task {unknown_task}, the last one with such objects)"
        parts.append(f"marks {100 * recall:.0f} of 100 objects that nobody taught it as unknown{when}")
    if kept is not None and taught:
        share = f"{100 * kept / taught:.0f}\u00a0%"
        parts.append(
            f"keeps {share} of what its old classes scored when they were taught"
            if kept < taught
            else f"has forgotten nothing on average (its old classes stand at {share} of what they scored when taught)"
        )
    subject = f"After {last} task{'s' if last != 1 else ''} the detector "
    sentence = subject + (_enumerate(parts) if parts else "has no score: its metrics are all empty") + "."
    return {"figures": figures, "sentence": sentence}


def _kept(run: RunArtefacts) -> tuple[float | None, float | None]:
    """mAP@50 of the previous classes after the last task, and the mean of their AP@50 when each was taught.

    The second is None unless every class of the first has both numbers, so that the ratio compares equals, and where it
    is below half a point, of which no share is worth a word.
    """
    scored = [task for task in run.tasks if task.metrics is not None]
    if not scored:
        return None, None
    last = scored[-1]
    kept = number(mapping(last.metrics).get("previous_ap50"))
    before = []
    for task, names in enumerate(run.schedule[: last.number - 1], start=1):
        found = next((other.metrics for other in scored if other.number == task), None)
        before += [_class_ap(found, name) for name in names if _class_ap(last.metrics, name) is not None]
    known = [value for value in before if value is not None]
    taught = sum(known) / len(known) if known and len(known) == len(before) else None
    return kept, taught if taught is not None and taught >= 0.005 else None


def _class_ap(metrics: Mapping[str, Any] | None, name: str) -> float | None:
    return number(mapping(mapping(mapping(metrics).get("classes")).get(name)).get("ap50"))


def _classes(run: RunArtefacts) -> list[dict[str, Any]]:
    """The schedule: what each task teaches."""
    rows = []
    for task, names in enumerate(run.schedule, start=1):
        if not names:
            continue
        shown = ", ".join(names[:_LISTED])
        more = len(names) - _LISTED
        rows.append({"task": task, "count": len(names), "names": shown + (f" and {more} more" if more > 0 else "")})
    return rows


def _results(run: RunArtefacts) -> dict[str, Any]:
    """The table of results by task, its figure, the curves, and what the metrics files lack for them."""
    rows: list[dict[str, Any]] = []
    for task in run.tasks:
        if task.metrics is None:
            rows.append({"task": task.number, "missing": True})
            continue
        found = task.metrics
        hits = {key: number(mapping(found.get("unknown_hits")).get(key)) for key in ("unknown", "known", "background")}
        total = sum(value for value in hits.values() if value is not None)
        rows.append(
            {
                "task": task.number,
                "missing": False,
                "previous": _percent(found.get("previous_ap50")),
                "current": _percent(found.get("current_ap50")),
                "known": _percent(found.get("known_ap50")),
                "recall": _percent(found.get("unknown_recall50")),
                "ap": _percent(found.get("unknown_ap50")),
                "precision": _percent(found.get("unknown_precision50")),
                "f1": _percent(found.get("unknown_f1_50")),
                "wi": _decimal(found.get("wi"), 4),
                "a_ose": _count(found.get("a_ose")),
                "mistaken": _count(found.get("a_ose_one_to_one")),
                "below": _never_reached(found),
                "hits": [(key, _count(value), 100 * (value or 0) / total) for key, value in hits.items()]
                if total
                else [],
                "counts": [(key, text_of(value)) for key, value in flatten(mapping(found.get("counts")))],
            }
        )
    scored = [(task.number, task.metrics) for task in run.tasks if task.metrics is not None]
    contents = [{"task": task, **found} for task, found in scored]
    return {
        "rows": rows,
        "uses_unknown_labels": any(found.get("uses_unknown_labels") for _, found in scored),
        "protocols": _protocols(contents),
        "figure": markup(plots.results_by_task(scored)),
        "precision_recall": markup(curves.precision_recall(contents)),
        "unknown_recall": markup(curves.unknown_recall(contents)),
        "wilderness_impact": markup(curves.wilderness_impact(contents)),
        "lacking": _lacking(scored),
        "hits": any(row.get("hits") for row in rows),
        "below": any(row.get("below") for row in rows),
        "counts": any(row.get("counts") for row in rows),
    }


def _protocols(metrics: Sequence[Mapping[str, Any] | None]) -> list[str]:
    return sorted({str(found["protocol"]) for found in metrics if found and found.get("protocol") is not None})


def _never_reached(metrics: Mapping[str, Any]) -> str | None:
    """Classes that never reach the recall at which papers print WI; None if there are none, or no WI."""
    names = sequence(mapping(metrics.get("wi_classes_below_recall")).get(f"{curves.PUBLISHED_LEVEL:.1f}"))
    if not names or number(metrics.get("wi")) is None:
        return None
    more = len(names) - _LISTED
    return ", ".join(map(str, names[:_LISTED])) + (f" and {more} more" if more > 0 else "")


def _lacking(scored: Sequence[tuple[int, Mapping[str, Any]]]) -> str | None:
    """Which tasks' metrics.json lack which entries, as a metrics.json of an earlier version does."""
    tasks = [str(task) for task, found in scored if any(name not in found for name in _NEWER)]
    if not tasks:
        return None
    names = [name for name in _NEWER if any(name not in found for _, found in scored)]
    return (
        f"metrics.json of {_numbered(tasks)} has no {_enumerate(names)}: an earlier "
        "version wrote it. Score predictions.json again (openworld evaluate --output …/metrics.json) to see them here."
    )


def _measured_forgetting(scored: Sequence[TaskArtefacts]) -> list[dict[str, Any]]:
    """Forgetting and kept share after each task; nothing where the results do not share a protocol."""
    results = [
        {
            "task": task.number,
            "protocol": mapping(task.metrics).get("protocol"),
            "classes": {
                name: {"ap50": _class_ap(task.metrics, name)} for name in mapping(mapping(task.metrics).get("classes"))
            },
        }
        for task in scored
    ]
    if len({str(result["protocol"]) for result in results}) > 1:
        return []
    measured = forgetting(results)
    if all(entry["forgetting"] is None for entry in measured):
        return []
    return [
        {"name": "forgetting", "cells": [_forgotten(entry["forgetting"]) for entry in measured]},
        {"name": "kept, %", "cells": [_percent(entry["kept"]) for entry in measured]},
    ]


def _forgetting(run: RunArtefacts) -> dict[str, Any]:
    """Mean AP of each task's classes after every task, their lines, and the heat map of single classes."""
    scored = [task for task in run.tasks if task.metrics is not None]
    tasks = [task.number for task in scored]
    values: dict[str, list[float | None]] = {}
    taught: dict[str, int] = {}
    groups: dict[int, list[float | None]] = {}
    for group, names in enumerate(run.schedule, start=1):
        known = [name for name in names if any(_class_ap(task.metrics, name) is not None for task in scored)]
        for name in known:
            values[name] = [_class_ap(task.metrics, name) if task.number >= group else None for task in scored]
            taught[name] = group
        if known and group in tasks:
            groups[group] = [_mean([values[name][index] for name in known]) for index in range(len(tasks))]
    rows = []
    for group, means in groups.items():
        change = plots.class_change(means, group, tasks)
        cells = [_percent(mean) if task >= group else "" for task, mean in zip(tasks, means, strict=True)]
        rows.append(
            {
                "task": group,
                "cells": cells,
                "change": "–" if change is None else _signed(change),
                "tone": "" if change is None or _signed(change) == "0.0" else ("worse" if change < 0 else "better"),
            }
        )
    losers = sorted(
        (change, name)
        for name, row in values.items()
        if (change := plots.class_change(row, taught[name], tasks)) is not None and change <= -0.005
    )
    return {
        "tasks": tasks,
        "rows": rows,
        "measured": _measured_forgetting(scored),
        "protocols": _protocols([task.metrics for task in scored]),
        "losers": [(name, f"{-100 * change:.1f}") for change, name in losers[:3]],
        "figure": markup(plots.forgetting_lines(groups, tasks)),
        "heatmap": markup(plots.class_heatmap(values, taught, tasks)),
    }


def _what_was_run(run: RunArtefacts) -> dict[str, Any]:
    """Configuration, environment, repairs of the data, exemplars and times."""
    data = []
    for name, part in (run.data or {}).items():
        found = mapping(part)
        data.append(
            {
                "name": str(name),
                "images": _count(found.get("images")),
                "annotations": _count(found.get("annotations")),
                "repairs": [(str(kind), _count(count)) for kind, count in mapping(found.get("repairs")).items()],
                "examples": [str(example) for example in sequence(found.get("examples"))],
            }
        )
    exemplars = []
    for task in run.tasks:
        if task.exemplars is not None:
            instances = mapping(task.exemplars.get("instances"))
            exemplars.append(
                {
                    "task": task.number,
                    "images": len(sequence(task.exemplars.get("images"))),
                    "per_class": text_of(task.exemplars.get("per_class")),
                    "strategy": text_of(task.exemplars.get("strategy")),
                    "instances": ", ".join(f"{name} {_count(count)}" for name, count in instances.items()),
                }
            )
    return {
        "config": [(key, text_of(value)) for key, value in flatten(run.config)],
        "environment": [(key, text_of(value)) for key, value in flatten(run.environment)] if run.environment else [],
        "data": data,
        "exemplars": exemplars,
        "times": _times(run.log),
        "profile": profile_section(run.profile),
    }


def _times(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds by task and phase, in the order of the log. A phase that was resumed counts all its parts."""
    spent: dict[Any, dict[str, float]] = {}
    for entry in log:
        seconds = number(entry.get("seconds"))
        if entry.get("event") == "phase" and seconds is not None:
            stages = spent.setdefault(entry.get("task"), {})
            stage = str(entry.get("stage"))
            stages[stage] = stages.get(stage, 0.0) + seconds
    longest = max((sum(stages.values()) for stages in spent.values()), default=0.0)
    rows = [
        {
            "task": "before task 1" if task is None else f"task {task}",
            "total": _duration(sum(stages.values())),
            "phases": [
                {
                    "stage": stage,
                    "kind": stage if stage in _STAGES else "other",
                    "time": _duration(seconds),
                    "share": 100 * seconds / longest if longest else 0.0,
                }
                for stage, seconds in stages.items()
            ],
        }
        for task, stages in spent.items()
    ]
    total = _duration(sum(sum(stages.values()) for stages in spent.values())) if rows else None
    return {"rows": rows, "total": total}


def _warnings(run: RunArtefacts) -> list[str]:
    """What a reader must know before quoting a number."""
    warnings = []
    told = [
        str(task.number)
        for task in run.tasks
        if mapping(task.energy).get("uses_unknown_labels") or mapping(task.metrics).get("uses_unknown_labels")
    ]
    if told:
        warnings.append(
            f"The results of {_numbered(told)} use labels of unknown objects: the energy that tells known from unknown "
            "was fitted on annotated objects of classes not taught. Compare them only with results that do the same."
        )
    fallen = [str(task.number) for task in run.tasks if mapping(task.energy).get("status") == "fallback"]
    if fallen:
        warnings.append(
            f"In {_numbered(fallen)} the energy could not be fitted, so the classifier's own unknown score decided "
            "alone between known and unknown. The reason is below, under the energy histogram."
        )
    return warnings


def _numbered(tasks: Sequence[str]) -> str:
    return f"task{'s' if len(tasks) > 1 else ''} {_enumerate(tasks)}"


def _energy(task: int, energy: Mapping[str, Any]) -> dict[str, Any]:
    fits = []
    for kind in ("known", "unknown"):
        fit = mapping(energy.get(kind))
        if fit:
            numbers = [_decimal(fit.get(key), 3) for key in ("shape", "location", "scale")]
            tail = [
                _count(fit.get("count")),
                _decimal(fit.get("log_likelihood"), 1),
                _decimal(fit.get("ks_statistic"), 3),
            ]
            fits.append({"kind": kind, "numbers": numbers + tail})
    temperature, at_test = _decimal(energy.get("temperature"), 2), _decimal(energy.get("test_temperature"), 2)
    rule = str(energy.get("decision"))
    rate = number(energy.get("known_rejection_rate"))
    rejected = mapping(energy.get("rejected"))
    shares = [
        f"{100 * share:.1f}\u00a0% of the {kind} regions"
        for kind in ("known", "unknown")
        if (share := number(rejected.get(kind))) is not None
    ]
    facts = [
        str(energy.get("status")),
        f"temperature {temperature}" + (f", {at_test} at prediction" if at_test not in (temperature, "–") else ""),
        _ENERGY_RULES.get(rule, f"rule {rule}") if "decision" in energy else "",
        f"calibrated to call {100 * rate:.3g}\u00a0% of known regions unknown" if rate is not None else "",
        f"boundary {_decimal(energy.get('boundary'), 3)}" if rule != "window" else "",
        f"calls {_enumerate(shares)} of the fit unknown" if shares else "",
    ]
    return {
        "facts": [fact for fact in facts if fact],
        "labels": _ENERGY_LABELS.get(str(energy.get("fit_on"))),
        "told": bool(energy.get("uses_unknown_labels")),
        "notes": [str(note) for note in sequence(energy.get("notes"))],
        "task": task,
        "status": text_of(energy.get("status")),
        "reason": None if energy.get("reason") is None else str(energy["reason"]),
        "fits": fits,
        "figure": markup(plots.energy_histogram(energy, task)),
    }


def _knn(card: Mapping[str, Any] | None) -> dict[str, Any]:
    """kNN accuracies of the card's ``knn`` entry: ``trained``, ``untrained`` and ``chance``, fractions."""
    listed = mapping(mapping(card).get("knn"))
    found = {key: value for key in ("trained", "untrained", "chance") if (value := number(listed.get(key))) is not None}
    reading = None
    if "trained" in found and "untrained" in found:
        gain = 100 * (found["trained"] - found["untrained"])
        reading = (
            f"Pretraining added {gain:.1f} points over the same network with random weights."
            if gain > 0
            else f"Pretraining added nothing: the untrained network is {-gain:.1f} points ahead."
        )
    return {"figure": markup(plots.knn_bars(found)), "reading": reading}


def _picture(picture: Picture) -> dict[str, Any]:
    story = None
    if picture.story:
        story = f"{_enumerate(list(picture.story))}: first found as unknown, named once taught"
    return {
        "id": picture.image_id,
        "name": picture.name,
        "story": story,
        "panels": [_panel(panel, picture.name) for panel in picture.panels],
    }


def _panel(panel: Panel, name: str) -> dict[str, Any]:
    caption = None
    if panel.shown is not None:
        strange = sum(panel.shown.is_unknown)
        caption = f"{len(panel.shown.names) - strange} known, {strange} unknown"
    return {
        "task": panel.task,
        "truth": data_uri(panel.truth) if panel.truth is not None else None,
        "found": data_uri(panel.found) if panel.found is not None else None,
        "caption": caption,
        "alt": f"Detections on {name} after task {panel.task}: {caption or 'none'}",
    }


def _pictures_note(
    run: RunArtefacts,
    shown: Sequence[Picture],
    test: LabelledImages | None,
    gone: str | None,
    threshold: float,
    unknowns: int,
) -> str:
    if all(task.predictions is None for task in run.tasks):
        return "No task has a predictions.json, so there are no pictures."
    if gone is not None and not shown:
        return f"The test set cannot be opened any more, so there are no pictures ({gone})."
    if gone is not None:
        choice = f"The test set cannot be opened any more ({gone}), so the pictures show detections only."
    elif test is None:
        choice = "Annotations were not given to the report, so the pictures show detections only, right or wrong."
    elif not any(picture.telling for picture in shown):
        choice = "No detection that would be drawn is right on any image, so these are simply the first ones."
    else:
        choice = (
            "Images are chosen for what they show, not at random: right detections of many classes, unknown objects "
            "found, and objects that turn from unknown into a name. They look better than the average."
        )
    return f"{choice} Drawn are known detections from score {threshold:g} on and the {unknowns} strongest unknown ones."


def _commands(run: RunArtefacts) -> list[dict[str, str]]:
    folder = shlex.quote(str(run.path))
    again = shlex.quote(f"{str(run.path).rstrip('/')}-again")
    return [
        {
            "what": "the whole run again, into a new folder",
            "line": f"openworld run --config {folder}/config.yaml --output {again}",
        },
        {"what": "this page again", "line": f"openworld report {folder}"},
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _percent(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{100 * found:.1f}"


def _decimal(value: Any, digits: int) -> str:
    found = number(value)
    return "–" if found is None else f"{found:,.{digits}f}".replace("-", "−")


def _signed(change: float) -> str:
    """A change of a fraction in points with its sign; what rounds to nothing has none."""
    text = f"{100 * change:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _forgotten(value: float | None) -> str:
    return "–" if value is None else _signed(value).lstrip("+")


def _count(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _enumerate(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _css(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in colour)
