"""Import detectors that other code has trained, and convert a run from one engine to the other."""
