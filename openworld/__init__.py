"""Open-world object detection: know what was taught, say *unknown* on the rest, learn it as the next task."""

__version__ = "0.1.0"
