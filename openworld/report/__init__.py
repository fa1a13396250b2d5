"""Presentation of results: pages, figures, drawings, tables."""
