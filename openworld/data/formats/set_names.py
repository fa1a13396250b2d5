"""What tools call the sets of a data set: keys of a description, folders and lists of images."""

from __future__ import annotations

OF_ROLE = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the set of each role, in lower case, the likeliest first."""
SET_NAMES = tuple(name for names in OF_ROLE.values() for name in names)
"""All of them."""
