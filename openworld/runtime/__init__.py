"""What every part needs and no paper mentions: files, checkpoints, seeds, processes, logs."""
