"""Open-world metrics as an evaluator of detectron2: it writes predictions.json and scores that file alone."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from openworld.engines.detectron2.output_layers import EXTRA
from openworld.errors import ConfigError
from openworld.metrics.protocols import UNIQUE, Protocol
from openworld.metrics.table import Metric, headline_metrics, metric_value
from openworld.plugins.detectron2.datasets import registered
from openworld.predictions.file import PredictedImage, read_predictions, write_predictions
from openworld.predictions.score import evaluate_protocols
from openworld.runtime.files import write_json
from openworld.structures import Detections

logger = logging.getLogger(__name__)


def detections_of(instances: Instances) -> Detections:
    """Convert the instances of one image to detections, in the same pixels."""
    instances = instances.to("cpu")
    named = instances.get_fields()
    extras = {name.removeprefix(EXTRA): column for name, column in named.items() if name.startswith(EXTRA)}
    return Detections(
        instances.pred_boxes.tensor, instances.scores, instances.pred_classes, instances.known_classes, extras
    )


class OpenWorldEvaluator(DatasetEvaluator):
    """Open-world metrics under one or several protocols (:mod:`openworld.metrics`).

    Scores have the names of :data:`openworld.metrics.table.METRICS`.

    Args:
        dataset: a test set that :func:`openworld.plugins.detectron2.datasets.register_schedule` registered.
        folder: for ``predictions.json`` and ``metrics.json``, a list with an entry for each protocol.
        protocols: the rules of scoring; the returned scores are those of the first.
        uses_unknown_labels: labels of unknown objects helped to decide what is unknown; every result says so.

    Raises:
        ConfigError: the data set is not a test set of a registered schedule.
    """

    def __init__(
        self,
        dataset: str,
        folder: str | Path,
        protocols: Sequence[Protocol] = (UNIQUE,),
        *,
        uses_unknown_labels: bool = False,
    ) -> None:
        entry = registered(dataset)
        if entry is None or entry.kind != "test":
            raise ConfigError(
                f"data set {dataset!r} is not a test set of a registered schedule",
                remedy="call openworld.plugins.detectron2.register_schedule first, and name one of its test sets",
            )
        self.entry = entry
        self.folder = Path(folder)
        self.protocols = list(protocols)
        self.uses_unknown_labels = uses_unknown_labels
        self.images: list[PredictedImage] = []

    def reset(self) -> None:
        """Discard the detections collected so far."""
        self.images = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Collect the detections of a batch of images."""
        for image, output in zip(inputs, outputs, strict=True):
            found = detections_of(output["instances"])
            self.images.append(
                PredictedImage(image["image_id"], str(image["file_name"]), image["width"], image["height"], found)
            )

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Write both files in the first process and return its scores; None in the others."""
        parts = comm.gather(self.images)
        if not comm.is_main_process():
            return None
        images = {image.image_id: image for part in parts for image in part}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "predictions.json"
        told = self.uses_unknown_labels
        write_predictions(path, self.entry.labels, images.values(), uses_unknown_labels=told, upright=True)
        results = evaluate_protocols(read_predictions(path), self.entry.truth, self.protocols)
        write_json(self.folder / "metrics.json", results)
        logger.info("%s: protocol %s", path, results[0]["protocol"])
        scores = {name: _score(metric, metric_value(results[0], name)) for name, metric in headline_metrics().items()}
        return OrderedDict({"openworld": scores})


def _score(metric: Metric, value: float | None) -> float:
    """Convert a metric to the form of detectron2's log: fractions in percent, NaN for None."""
    if value is None:
        return float("nan")
    return 100.0 * value if metric.kind == "percent" else float(value)
