"""The sections of the page of a run: each function turns the content of the folder into variables of the template."""
