"""The sections of the page of a run: each function turns what was read from the folder into what the template names."""
