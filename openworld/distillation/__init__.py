"""What the detector of the task before teaches in a later one, so that the old classes are not forgotten."""
