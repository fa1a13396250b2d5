"""Infrastructure of all parts: files, checkpoints, seeds, processes, logs."""
