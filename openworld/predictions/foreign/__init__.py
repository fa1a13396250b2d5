"""Detections that other programs wrote, read as :class:`openworld.predictions.arrays.Predictions`."""
