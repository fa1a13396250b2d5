"""Integrations of open-world detection into the tools of other frameworks."""
