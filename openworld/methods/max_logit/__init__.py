"""Unknown is what the region proposal network calls an object and no logit of a known class claims."""
