"""Annotated images: formats, benchmarks, task schedules, and batches."""
