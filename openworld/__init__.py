"""Open-world object detection: detect the classes taught so far, call the rest *unknown*, learn it as the next task."""

__version__ = "0.1.0"
