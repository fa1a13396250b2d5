"""Maximum logit: a region is unknown if the RPN calls it an object and no logit of a known class is high."""
