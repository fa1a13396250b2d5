"""Open-world methods: what is unknown, how it is learned, and how a detection is decided. One folder per method."""
