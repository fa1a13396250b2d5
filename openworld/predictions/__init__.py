"""Predictions: the file, other tools' files, and their scores."""
