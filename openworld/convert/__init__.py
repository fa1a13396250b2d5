"""Bring in what other code has trained, and move a run from one engine to the other."""
