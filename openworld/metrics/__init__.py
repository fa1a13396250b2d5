"""Open-world and closed-set detection metrics. They score arrays and files; they decide nothing about a detection."""
