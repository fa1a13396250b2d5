"""Results for people: pages, figures, drawings, tables."""
