"""Open-world and closed-set detection metrics. They score arrays and files, and never change a detection."""
